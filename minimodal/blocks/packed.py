"""Linear layers in the layout that is fastest for a few rows on a CPU, for as long as one draws.

Drawing multiplies the same matrices with a handful of rows hundreds of times. oneDNN reads a matrix
that was reordered once faster if it is large (drawing at width 256: 0.74 of the time with AVX-512,
0.9 with AVX2); small ones, as the demo's, it reads slower (1.2 to 1.6). Elsewhere (CUDA, half
precision, a torch without oneDNN) nothing is packed. Read nothing before this file.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

SMALLEST = 2**17  # numbers of a weight from which on packing pays


def can_pack(weight: Tensor) -> bool:
    """Whether packing makes a product with this weight faster."""
    if not torch.backends.mkldnn.is_available() or weight.device.type != "cpu":
        return False
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return known and weight.dtype == torch.float32 and weight.numel() >= SMALLEST


def packed_product(layer: nn.Linear, packed: Tensor, x: Tensor) -> Tensor:
    """The layer's product with x by its packed weight, which has no gradient.

    x: (..., D)
    packed: the weight in oneDNN's own layout, which only oneDNN can read
    returns: (..., E)
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return nn.Linear.forward(layer, x)
    return torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "")


@contextmanager
def packed_linears(modules: Iterable[nn.Module], rows: int) -> Iterator[list[nn.Linear]]:
    """Run the modules' large linear layers, which it gives, packed: best for `rows` rows.

    The weights are packed on the way in and forgotten on the way out: they must not change in
    between.
    """
    linears = (m for module in modules for m in module.modules() if isinstance(m, nn.Linear))
    layers = [layer for layer in linears if can_pack(layer.weight)]
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
        layer.forward = partial(packed_product, layer, packed)
    try:
        yield layers
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)  # a drawing within this one has done it already

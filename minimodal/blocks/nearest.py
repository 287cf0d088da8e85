"""The nearest code of a vector, and how far it is: what rounding to a codebook means.

Rounded to bfloat16 or TF32 many latents fall on a neighbouring code, so pictures are encoded in
float32 whatever the caller computes in (`full_float32`). Vectors (N, D) and codes (K, D) in;
numbers (N,) and squared distances (N,) out. Read nothing before this file.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

MOST_SCORES = 2**27  # distances in memory at a time: half a gigabyte


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within it neither autocast nor TF32 round. Matrix products and cuDNN's convolutions have
    each a switch of their own for TF32, and that of convolutions is on by default."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def nearest(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of each vector and the squared distance to it.

    z: (N, D) vectors
    codebook: (K, D) codes
    returns: (N,) indices and (N,) squared distances
    """
    rows = max(1, MOST_SCORES // len(codebook))
    if len(z) > rows:  # placing very many codes on thousands of pictures
        parts = zip(*(nearest(part, codebook) for part in z.split(rows)), strict=True)
        indices, distances = (torch.cat(several) for several in parts)
        return indices, distances
    # |z - e|² = |z|² - 2 z·e + |e|²; |z|² is the same for every code and is added at the end.
    with full_float32(z.device):  # rounding would blur close codes
        scores = torch.addmm(codebook.square().sum(1), z, codebook.T, alpha=-2)  # (N, K)
    best, indices = scores.min(dim=1)
    return indices, (best + z.square().sum(1)).clamp(min=0)

"""The one Transformer: CLIP's two towers and DALL·E (and later the unCLIP prior) are built from it.

Pre-norm blocks of multi-head attention and a two-layer MLP (Vaswani et al. 2017; pre-norm as in
GPT-2 and CLIP). It takes vectors, not tokens, and returns vectors: embeddings, positions, final
norm and heads belong to the system that uses it.

x (B, T, D) in, (B, T, D) out. Bidirectional (CLIP's image tower) or causal (CLIP's text tower,
DALL·E). For generation a `KVCache` is passed in: the keys and values of earlier tokens are kept,
so that a step costs one token instead of the whole prefix. Read `attention.py` before: attention
itself, and DALL·E's sparse patterns.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.attention import Attend, Pattern, attend, causal_mask
from minimodal.errors import UserError

Activation = Callable[[Tensor], Tensor]


class Packed:
    """Weights of linear layers in the layout that is fastest for a few rows on a CPU.

    Drawing multiplies the same matrices with a handful of rows hundreds of times. oneDNN reads a
    matrix that was reordered once faster if it is large (drawing at width 256: 0.74 of the time
    with AVX-512, 0.9 with AVX2); of small ones, as the demo's, it is slower (1.2 to 1.6).
    Elsewhere (CUDA, half precision, a torch without oneDNN) nothing is packed and layers are
    called as they are. Made for one drawing and thrown away: it does not follow the weights.
    """

    def __init__(self, modules: Sequence[nn.Module], rows: int) -> None:
        self.weights: dict[nn.Linear, Tensor] = {}
        if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, PACKED_LINEAR)):
            return
        for layer in (layer for module in modules for layer in module.modules()):
            if isinstance(layer, nn.Linear) and fits_packing(layer.weight):
                self.weights[layer] = torch.ops.mkldnn._reorder_linear_weight(
                    layer.weight.detach(), rows
                )

    def __call__(self, layer: nn.Linear, x: Tensor, activation: Activation | None = None) -> Tensor:
        """The layer's product with x, and what an activation makes of it.

        x: (..., D)
        returns: (..., E)
        """
        weight = self.weights.get(layer)
        if weight is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            y = layer(x)
        elif activation is F.gelu:  # in one pass over the result
            return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "gelu", [], "none")
        else:
            y = torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
        return y if activation is None else activation(y)


PACKED_LINEAR = "_linear_pointwise"
PACKED_SIZE = 2**17  # numbers of a weight from which on packing pays


def fits_packing(weight: Tensor) -> bool:
    """Whether a weight is one that packing makes faster."""
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.numel() >= PACKED_SIZE


class KVCache:
    """Keys and values of the tokens seen so far, preallocated for every layer.

    The caller makes it, passes it to `Transformer.forward` and throws it away: no module keeps
    state. `length` tokens of `capacity` are filled. `project` applies a linear layer, by its packed
    weights where there are any.
    """

    def __init__(self, keys: Tensor, values: Tensor, packed: Packed | None = None) -> None:
        self.keys, self.values = keys, values  # (L, B, H, T_max, d)
        self.length = 0
        self.packed = packed

    @property
    def capacity(self) -> int:
        """How many tokens fit."""
        return self.keys.shape[3]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return all of that layer's so far.

        k: (B, H, T, d) keys of the new tokens
        v: (B, H, T, d) their values
        returns: (B, H, S, d) keys, (B, H, S, d) values
        """
        start, stop = self.length, self.length + k.shape[2]
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, {stop} were given")
        self.keys[layer, :, :, start:stop] = k
        self.values[layer, :, :, start:stop] = v
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]


def project(
    layer: nn.Linear, x: Tensor, cache: KVCache | None, *, activation: Activation | None = None
) -> Tensor:
    """A linear layer and its activation, by the cache's packed weights where it has some.

    x: (..., D)
    returns: (..., E)
    """
    if cache is not None and cache.packed is not None:
        return cache.packed(layer, x, activation)
    return layer(x) if activation is None else activation(layer(x))


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the GELU approximation of OpenAI's CLIP weights.

    x: (B, T, D) pre-activations
    returns: (B, T, D)
    """
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021): turn pairs of channels by a place's angles.

    x: (B, H, T, d) queries or keys
    angles: (T, p) radians, p = d / 2 pairs
    returns: (B, H, T, d)
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)  # (B, H, T, d / 2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        *,
        attention: Attend = attend,
        angles: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Each token gathers from the tokens that it may attend to.

        x: (B, T, D) tokens
        attention: from queries, keys and values to what is gathered; keys count cached tokens too
        angles: (T, p) of the tokens' places, for rotary positions
        returns: (B, T, D)
        """
        q, k, v = rearrange(
            project(self.qkv, x, cache), "B T (three H d) -> three B H T d", three=3, H=self.heads
        ).unbind(0)  # (B, H, T, d) each
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, S, d)
        y = attention(q, k, v)  # (B, H, T, d)
        return project(self.proj, rearrange(y, "B H T d -> B T (H d)"), cache)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: float, activation: str, norm_eps: float
    ) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.fc = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)
        if activation not in ACTIVATIONS:
            raise UserError(f"activation {activation}: expected {' or '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]

    def forward(
        self,
        x: Tensor,
        *,
        attention: Attend = attend,
        angles: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """One residual block.

        x: (B, T, D) tokens
        angles: (T, p) of the tokens' places, for rotary positions
        returns: (B, T, D)
        """
        x = x + self.attention(
            self.norm1(x), attention=attention, angles=angles, cache=cache, layer=layer
        )
        h = project(self.fc, self.norm2(x), cache, activation=self.activation)  # (B, T, 4 D)
        return x + project(self.out, h, cache)


class Transformer(nn.Module):
    """A stack of blocks over vectors.

    Weights start as in CLIP's code: deviations of 1/√D for what reads the stream, divided by
    √(2 L) for what writes to it, so that the stream's variance does not grow with the depth L.
    `patterns` gives each layer of a causal stack a sparse pattern instead of full attention.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        causal: bool,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        norm_eps: float = 1e-5,
        patterns: Sequence[Pattern] = (),
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise UserError(f"{name} {value}: expected 1 or more")
        self.width, self.depth, self.heads, self.causal = width, depth, heads, causal
        self.patterns = tuple(patterns)
        if self.patterns and (len(self.patterns) != depth or not causal):
            raise ValueError(f"{len(self.patterns)} patterns for {depth} causal layers")
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, activation=activation, norm_eps=norm_eps)
            for _ in range(depth)
        )
        read, write = width**-0.5, (width * 2 * depth) ** -0.5
        for block in self.blocks:
            nn.init.normal_(block.attention.qkv.weight, std=read)
            nn.init.normal_(block.attention.proj.weight, std=write)
            nn.init.normal_(block.fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.out.weight, std=write)
            for linear in (block.attention.qkv, block.attention.proj, block.fc, block.out):
                nn.init.zeros_(linear.bias)

    def attentions(self, past: int, queries: int, device: torch.device) -> list[Attend]:
        """How each layer's queries at places past, past + 1, … attend to all up to themselves."""
        if self.patterns:
            found = {p: p.attention(past, queries, device) for p in set(self.patterns)}
            return [found[pattern] for pattern in self.patterns]
        # A single new token may attend to everything before it: no mask is needed.
        if not self.causal or queries == 1:
            return [attend] * self.depth
        if past == 0:
            return [partial(attend, causal=True)] * self.depth
        return [partial(attend, mask=causal_mask(queries, past + queries, device))] * self.depth

    def forward(
        self, x: Tensor, *, cache: KVCache | None = None, angles: Tensor | None = None
    ) -> Tensor:
        """Run the stack; with a cache, x holds only the tokens that the cache has not seen.

        x: (B, T, D) token vectors, positions already added
        angles: (T, p) of the tokens' places, for rotary positions
        returns: (B, T, D)
        """
        B, T, D = x.shape
        past = cache.length if cache is not None else 0
        attentions = self.attentions(past, T, x.device)
        for layer, (block, attention) in enumerate(zip(self.blocks, attentions, strict=True)):
            x = block(x, attention=attention, angles=angles, cache=cache, layer=layer)
        if cache is not None:
            cache.length += T
        return x

    def new_cache(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype,
        packed: Packed | None = None,
    ) -> KVCache:  # fmt: skip
        """An empty cache for `batch` sequences of up to `capacity` tokens."""
        shape = (self.depth, batch, self.heads, capacity, self.width // self.heads)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        return KVCache(keys, torch.zeros_like(keys), packed)

"""The one Transformer: CLIP's two towers and DALL·E (and later the unCLIP prior) are built from it.

Pre-norm blocks of multi-head attention and a two-layer MLP (Vaswani et al. 2017; pre-norm as in
GPT-2 and CLIP). It takes vectors, not tokens, and returns vectors: embeddings, positions, final
norm and heads belong to the system that uses it.

x (B, T, D) in, (B, T, D) out. Bidirectional (CLIP's image tower) or causal (CLIP's text tower,
DALL·E). For generation a `KVCache` is passed in: the keys and values of earlier tokens are kept,
so that a step costs one token instead of the whole prefix. Read nothing before this file.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.errors import UserError


class KVCache:
    """Keys and values of the tokens seen so far, preallocated for every layer.

    The caller makes it, passes it to `Transformer.forward` and throws it away: no module keeps
    state. `length` tokens of `capacity` are filled.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values  # (L, B, H, T_max, d)
        self.length = 0

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


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the GELU approximation of OpenAI's CLIP weights.

    x: (B, T, D) pre-activations
    returns: (B, T, D)
    """
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Which key each query may attend to, when the queries are the last of the keys' positions.

    returns: (queries, keys) bool, True = may attend
    """
    past = keys - queries
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(past)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √d) v (Vaswani et al. 2017, equation 1).

    q: (B, H, T, d) queries
    k: (B, H, S, d) keys
    v: (B, H, S, d) values
    mask: (T, S) bool, True = may attend, or None for all
    returns: (B, H, T, d)
    """
    # On a CPU in bfloat16 the fused kernel falls back to a slow path at the sizes of our small
    # models; written out it is faster (benchmarks/attention.py has the figures).
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= 256:
        scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]))  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.softmax(scores, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


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
        self, x: Tensor, *, mask: Tensor | None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Each token gathers from the tokens that it may attend to.

        x: (B, T, D) tokens
        mask: (T, S) bool, True = may attend; S counts cached tokens too
        returns: (B, T, D)
        """
        q, k, v = rearrange(
            self.qkv(x), "B T (three H d) -> three B H T d", three=3, H=self.heads
        ).unbind(0)  # (B, H, T, d) each
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, S, d)
        y = attend(q, k, v, mask)  # (B, H, T, d)
        return self.proj(rearrange(y, "B H T d -> B T (H d)"))


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
        self, x: Tensor, *, mask: Tensor | None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """One residual block.

        x: (B, T, D) tokens
        returns: (B, T, D)
        """
        x = x + self.attention(self.norm1(x), mask=mask, cache=cache, layer=layer)
        return x + self.out(self.activation(self.fc(self.norm2(x))))


class Transformer(nn.Module):
    """A stack of blocks over vectors.

    Weights start as in CLIP's code: deviations of 1/√D for what reads the stream, divided by
    √(2 L) for what writes to it, so that the stream's variance does not grow with the depth L.
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
    ) -> None:
        super().__init__()
        self.width, self.depth, self.heads, self.causal = width, depth, heads, causal
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

    def forward(self, x: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """Run the stack; with a cache, x holds only the tokens that the cache has not seen.

        x: (B, T, D) token vectors, positions already added
        returns: (B, T, D)
        """
        B, T, D = x.shape
        past = cache.length if cache is not None else 0
        # A single new token may attend to everything before it: no mask is needed.
        mask = causal_mask(T, past + T, x.device) if self.causal and T > 1 else None
        for layer, block in enumerate(self.blocks):
            x = block(x, mask=mask, cache=cache, layer=layer)
        if cache is not None:
            cache.length += T
        return x

    def new_cache(
        self, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> KVCache:
        """An empty cache for `batch` sequences of up to `capacity` tokens."""
        shape = (self.depth, batch, self.heads, capacity, self.width // self.heads)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        return KVCache(keys, torch.zeros_like(keys))

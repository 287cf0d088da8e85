"""The one Transformer: in CLIP's two towers, DALL·E, VQGAN's prior and unCLIP's.

Pre-norm blocks of multi-head attention and a two-layer MLP (Vaswani et al. 2017; pre-norm as in
GPT-2 and CLIP). It takes vectors, not tokens, and returns vectors: embeddings, positions, final
norm and heads belong to the system that uses it.

x (B, T, D) in, (B, T, D) out. Bidirectional (CLIP's image tower) or causal (all others). For
generation a `KVCache` is passed in: the keys and values of earlier tokens are kept, so that a step
costs one token instead of the whole prefix. Read `attention.py` before.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.attention import Attend, Pattern, attend, causal_pattern, full_pattern
from minimodal.blocks.rotary import rotate
from minimodal.errors import UserError, check_choice


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the GELU approximation of OpenAI's CLIP weights.

    x: (B, T, D) pre-activations
    returns: (B, T, D)
    """
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class KVCache:
    """Keys and values of the tokens seen so far, preallocated for every layer.

    The caller makes it, passes it to `Transformer.forward` and throws it away: no module keeps
    state. `length` tokens of `capacity` are filled.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values  # (L, B, H, S, d) each, S the capacity
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
        # Written into memory that was taken once: a growing concatenation would copy all of it at
        # every token.
        self.keys[layer, :, :, start:stop] = k
        self.values[layer, :, :, start:stop] = v
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]


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
        qkv = self.qkv(x)  # (B, T, 3*D)
        qkv = rearrange(qkv, "B T (n H d) -> n B H T d", n=3, H=self.heads)  # (3, B, H, T, d)
        q, k, v = qkv.unbind(0)  # (B, H, T, d) each
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, S, d) each
        y = attention(q, k, v)  # (B, H, T, d)
        return self.proj(rearrange(y, "B H T d -> B T (H d)"))  # (B, T, D)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)).

    The norms stand in front of what they feed, not behind it as in Vaswani et al. 2017: the sum x
    then runs from the first block to the last without a norm on its way, and deep stacks learn.
    """

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
        check_choice("activation", activation, ACTIVATIONS)
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
        )  # (B, T, D)
        h = self.activation(self.fc(self.norm2(x)))  # (B, T, M) where M = 4 D in all our recipes
        return x + self.out(h)  # (B, T, D)


class Transformer(nn.Module):
    """A stack of blocks over vectors.

    `patterns` says for each layer who attends to whom, where that is not all tokens or, in a
    `causal` stack, all earlier ones.
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
        if patterns and (len(patterns) != depth or not causal):
            raise ValueError(f"{len(patterns)} patterns for {depth} causal layers")
        self.width, self.depth, self.heads = width, depth, heads
        everyone = causal_pattern if causal else full_pattern
        self.patterns = tuple(patterns) or (everyone,) * depth
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, activation=activation, norm_eps=norm_eps)
            for _ in range(depth)
        )
        # As in CLIP's code: 1/√D for what attention reads of the stream, 1/√(2 D) for what the MLP
        # does, and for what is written to it 1/√D divided by √(2 L), so that the stream's variance
        # does not grow with the depth L.
        read, write = width**-0.5, (width * 2 * depth) ** -0.5
        for block in self.blocks:
            nn.init.normal_(block.attention.qkv.weight, std=read)
            nn.init.normal_(block.attention.proj.weight, std=write)
            nn.init.normal_(block.fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.out.weight, std=write)
            for linear in (block.attention.qkv, block.attention.proj, block.fc, block.out):
                nn.init.zeros_(linear.bias)

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
        # Masks are made once a pattern, not once a layer.
        attentions = {pattern: pattern(past, T, x.device) for pattern in set(self.patterns)}
        for layer, (block, pattern) in enumerate(zip(self.blocks, self.patterns, strict=True)):
            x = block(x, attention=attentions[pattern], angles=angles, cache=cache, layer=layer)
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

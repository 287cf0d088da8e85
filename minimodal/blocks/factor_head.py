"""Heads that predict a code's factors one after the other (Lee et al. 2022, RQ-Transformer).

A VQGAN with one codebook has codes of one factor, and the head is a norm and a linear layer. With
two codebooks a code's number is a pair, and each factor has a head, which reads the stream's vector
and the factor decided just before: p(a, b) = p(a) p(b | a). The stream stays as long.

Vectors (B, N, D) in, logits (B, N, K) out. Read `sampling.py` before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minimodal.blocks.factored import Factored
from minimodal.blocks.sampling import Generators, SamplingConfig, guide, sample_token


# differs from the paper: a code of two factors is predicted one factor after the other (Lee et al.
# 2022).
class FactorHead(nn.Module):
    """The distribution of a code's next factor, given the stream and the factors before it."""

    def __init__(self, width: int, size: int, previous: int | None) -> None:
        super().__init__()
        self.previous = None
        if previous is not None:
            self.previous = nn.Embedding(previous, width)
            self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
            self.mix_out = nn.Linear(2 * width, width)
            nn.init.normal_(self.previous.weight, std=width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, size)
        nn.init.normal_(self.logits.weight, std=0.02)

    def forward(self, h: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix in the factor just decided, then predict the next.

        h: (B, N, D) the stream's vectors
        previous: (B, N) int64 the factor before, or None for the first
        returns: (B, N, D) mixed vectors for the head after this, (B, N, K) logits
        """
        if self.previous is not None:
            h = h + self.previous(previous)
            h = h + self.mix_out(self.mix(self.norm(h)))  # (B, N, D)
        return h, self.logits(self.norm(h))


class FactorHeads(nn.ModuleList, Factored):
    """A head for each factor of a code."""

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        before = (None, *sizes[:-1])
        super().__init__(FactorHead(width, size, b) for size, b in zip(sizes, before, strict=True))
        self.sizes = tuple(sizes)

    def forward(self, h: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
        """Predict every factor of codes that are known, each from the true ones before it.

        h: (B, N, D) the stream's vectors
        codes: (B, N) int64
        returns: (B, N, K), one for each factor
        """
        found, previous = [], None
        for head, part in zip(self, self.factors(codes), strict=True):
            h, logits = head(h, previous)  # (B, N, D), (B, N, K)
            found.append(logits)
            previous = part
        return tuple(found)

    def sample(self, h: Tensor, config: SamplingConfig, generator: Generators) -> Tensor:
        """Draw one code, factor by factor. With guidance the second half of h has no caption.

        h: (B', 1, D) the stream's last vectors; B' = 2 B with guidance
        returns: (B,) int64
        """
        parts, previous = [], None
        for head in self:
            h, logits = head(h, previous)  # (B', 1, D), (B', 1, K)
            logits = logits[:, 0].float()  # (B', K)
            if config.guided:
                logits = guide(*logits.chunk(2), config.guidance)  # (B, K)
            part = sample_token(logits, config, generator)  # (B,)
            parts.append(part)
            previous = (torch.cat([part, part]) if config.guided else part)[:, None]  # (B', 1)
        return self.combined(parts)

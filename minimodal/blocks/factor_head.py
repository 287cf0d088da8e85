"""The head that predicts a code's factors one after the other (Lee et al. 2022, RQ-Transformer).

A code may have several factors, as those of a VQGAN with two codebooks. Each has a head of its own,
which reads the stream's vector and the factor decided just before: p(a, b) = p(a) p(b | a).

Vectors (B, N, D) in, logits (B, N, K) out. Read nothing before this file.
"""

from torch import Tensor, nn


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
            h = h + self.mix_out(self.mix(self.norm(h)))
        return h, self.logits(self.norm(h))

"""The codebook: a vector becomes the nearest of K learned codes (van den Oord et al. 2017).

z (B, C, h, w) in; out the codes' vectors of the same shape, their numbers (B, h, w), and the
commitment loss. How the codes themselves move is in `codebook.py`.

A latent may be split into groups with a codebook each (product quantisation, Jégou et al. 2011).
The numbers of a position are then combined into one, ((a K_2) + b) K_3 + c …, so that callers see
one code a position.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.codebook import Codebook
from minimodal.blocks.factored import Factored
from minimodal.blocks.nearest import nearest


class Codes(NamedTuple):
    """What quantising gives.

    z: (B, C, h, w) the codes' vectors; gradients pass straight through to the encoder
    indices: (B, h, w) int64, 0 to K - 1 (K: the product over the groups)
    loss: () commitment loss, moves the encoder only
    """

    z: Tensor
    indices: Tensor
    loss: Tensor


class Quantizer(nn.Module, Factored):
    """One codebook, or several side by side that each round their share of the channels."""

    needs_start = True

    def __init__(
        self, sizes: tuple[int, ...], width: int, *, beta: float = 0.25, decay: float = 0.99,
        revive: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes, self.width = sizes, width  # channels of each factor
        self.beta = beta
        self.codebooks = nn.ModuleList(
            Codebook(size, width, decay=decay, revive=revive) for size in sizes
        )

    @property
    def size(self) -> int:
        """K, the number of different codes that a position can have."""
        return math.prod(self.sizes)

    @property
    def usage_counts(self) -> list[Tensor]:
        """Running counts of how often each code is used, for each codebook."""
        return [book.counts for book in self.codebooks]

    def pairs(self, z: Tensor) -> list[tuple[Tensor, Codebook]]:
        """Each codebook beside its share of the channels, as a list of vectors.

        z: (B, C, h, w) latents, C = groups times D
        """
        flat = rearrange(z, "B C h w -> (B h w) C").float()  # (B*h*w, C)
        return list(zip(flat.split(self.width, dim=1), self.codebooks, strict=True))

    def vectors(self, indices: Tensor) -> Tensor:
        """Look the codes up.

        indices: (B, h, w) int64
        returns: (B, C, h, w) float32
        """
        parts = self.factors(indices)  # (B, h, w) each
        found = [book.codes[i] for book, i in zip(self.codebooks, parts, strict=True)]
        return rearrange(torch.cat(found, dim=-1), "B h w C -> B C h w")

    def forward(self, z: Tensor) -> Codes:
        """Round each latent vector to its nearest code.

            L = β |z - sg[e]|²

        The commitment term of VQ-VAE's equation 3: it moves the encoder towards its code and
        carries β. The term that moves the codes is absent, because the averages do its work.

        z: (B, C, h, w) the encoder's latents
        """
        B, C, h, w = z.shape
        parts = [nearest(part.detach(), book.codes)[0] for part, book in self.pairs(z)]
        indices = self.combined(parts).view(B, h, w)  # (B, h, w)
        e = self.vectors(indices)  # (B, C, h, w)
        # differs from the paper: codes follow moving averages (the appendix of van den Oord et al.
        # 2017), so the loss has the commitment term only; β weighs it as in the paper, where the
        # original's code weighs the other term.
        loss = self.beta * F.mse_loss(z.float(), e)  # ()
        # Rounding has no gradient: the decoder's passes straight through to the encoder.
        return Codes(z + (e - z).detach(), indices, loss)

    def start(self, z: Tensor, generator: torch.Generator) -> None:
        """Place every codebook by k-means on real latents.

        z: (B, C, h, w) latents of a global batch
        """
        for part, book in self.pairs(z):
            book.start(part, generator)

    def update(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Let every codebook follow the encoder; call once after each optimiser step.

        z: (B, C, h, w) latents of the global batch
        returns: () how many codes were dead
        """
        return torch.stack([book.update(part, generator) for part, book in self.pairs(z)]).sum()

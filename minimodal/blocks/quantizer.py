"""The codebook: a vector becomes the nearest of K learned codes (van den Oord et al. 2017).

z (B, C, h, w) in; out the codes' vectors of the same shape, their numbers (B, h, w), and the
commitment loss. The codes themselves are no parameters: they follow the encoder as exponential
moving averages (the paper's appendix A.1), start from k-means on real latents, and a code that
nothing uses is moved to where the error is largest.

A latent may be split into groups with a codebook each (product quantisation, Jégou et al. 2011).
The numbers of a position are then combined into one, so that callers see one code a position.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.precision import full_float32

MOST_SCORES = 2**27  # distances in memory at a time: half a gigabyte


class Codes(NamedTuple):
    """What quantising gives.

    z: (B, C, h, w) the codes' vectors; gradients pass straight through to the encoder
    indices: (B, h, w) int64, 0 to K - 1 (K: the product over the groups)
    loss: () commitment loss, moves the encoder only
    """

    z: Tensor
    indices: Tensor
    loss: Tensor


def put_together(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The numbers of a code's factors as one: ((a K_2) + b) K_3 + c …

    parts: (…) int64 for each factor
    returns: (…) int64
    """
    joint = torch.zeros_like(parts[0])
    for size, part in zip(sizes, parts, strict=True):
        joint = joint * size + part
    return joint


def take_apart(indices: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The inverse of `put_together`: the number of each factor.

    indices: (…) int64
    returns: (…) int64 for each factor
    """
    parts = []
    for size in reversed(sizes):
        parts.append(indices % size)
        indices = indices // size
    return parts[::-1]


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
    with full_float32(z.device):
        scores = torch.addmm(codebook.square().sum(1), z, codebook.T, alpha=-2)  # (N, K)
    best, indices = scores.min(dim=1)
    return indices, (best + z.square().sum(1)).clamp(min=0)


def follow(counts: Tensor, indices: Tensor, *, decay: float) -> Tensor:
    """Move the running counts of codes towards a batch's, in place; tell which codes are dead.

    A code lives while it gets a hundredth of its fair share; a threshold of fixed size would
    depend on the batch.

    counts: (K,) running counts, changed
    indices: (N,) int64 codes of the batch
    returns: (K,) bool
    """
    # Not bincount: on CUDA it waits for the device, to learn the greatest index.
    ones = torch.ones_like(indices, dtype=counts.dtype)
    counts.lerp_(torch.zeros_like(counts).index_add_(0, indices, ones), 1 - decay)
    return counts < 0.01 * len(indices) / len(counts)


def draw_far(distances: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n positions, each drawn with a chance in proportion to its squared distance.

    distances: (N,) squared distances, >= 0
    returns: (n,) int64
    """
    # Whole numbers: on CUDA only their running sums are the same each time.
    shares = distances.double() / distances.double().sum().clamp(min=1e-12)
    cumulative = ((shares * 2.0**50).long() + 1).cumsum(0)
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    u = u.to(distances.device, non_blocking=True)
    places = torch.searchsorted(cumulative, (u * cumulative[-1]).ceil().long())
    return places.clamp(max=len(distances) - 1)


class Codebook(nn.Module):
    """K codes of width D that follow the encoder by exponential moving averages."""

    def __init__(self, size: int, width: int, *, decay: float, revive: bool = True) -> None:
        super().__init__()
        self.size, self.width, self.decay, self.revive = size, width, decay, revive
        self.register_buffer("codes", torch.zeros(size, width))
        self.register_buffer("counts", torch.zeros(size))  # N_k of the paper
        self.register_buffer("sums", torch.zeros(size, width))  # m_k of the paper

    @torch.no_grad()
    def start(self, z: Tensor, generator: torch.Generator, *, rounds: int = 8) -> None:
        """Data-dependent start: k-means++ seeds, then a few rounds of Lloyd's algorithm.

        z: (N, D) latents of real pictures
        """
        # Seeding in growing chunks, not one by one: K passes over the data would be slow.
        codes = z[draw_far(torch.ones_like(z[:, 0]), 1, generator)]  # (1, D)
        while len(codes) < self.size:
            more = min(max(1, len(codes) // 8), self.size - len(codes))
            codes = torch.cat([codes, z[draw_far(nearest(z, codes)[1], more, generator)]])
        self.codes.copy_(codes)
        self.counts.zero_()
        for _ in range(rounds):
            self.update(z, generator, decay=0.0)

    @torch.no_grad()
    def update(
        self, z: Tensor, generator: torch.Generator, *, decay: float | None = None
    ) -> Tensor:
        """One step of the moving averages, then revival of dead codes.

            N_k ← γ N_k + (1 - γ) n_k
            m_k ← γ m_k + (1 - γ) Σ_{i: k} z_i
            e_k = m_k / N_k

        z: (N, D) latents of the step's global batch
        returns: () how many codes were dead
        """
        gamma = self.decay if decay is None else decay
        indices, distances = nearest(z, self.codes)  # (N,), (N,)
        unused = follow(self.counts, indices, decay=gamma)
        dead = unused & self.revive
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, indices, z), 1 - gamma)
        self.codes.copy_(
            torch.where(
                unused[:, None], self.codes, self.sums / self.counts.clamp(min=1e-9)[:, None]
            )
        )
        fresh = z[draw_far(distances, self.size, generator)]  # (K, D), only dead rows are used
        # A code moved to a new place starts with a fair share, or it would die again at once.
        share = len(z) / self.size
        self.codes.copy_(torch.where(dead[:, None], fresh, self.codes))
        self.counts.copy_(torch.where(dead, torch.full_like(self.counts, share), self.counts))
        self.sums.copy_(torch.where(dead[:, None], fresh * share, self.sums))
        return unused.sum()


class Quantizer(nn.Module):
    """One codebook, or several side by side that each round their share of the channels."""

    needs_start = True

    def __init__(
        self, sizes: tuple[int, ...], width: int, *, beta: float = 0.25, decay: float = 0.99,
        revive: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes, self.width = sizes, width  # of a code's factors; channels of each
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

    def factors(self, indices: Tensor) -> list[Tensor]:
        """A code's number as those of its factors.

        indices: (B, h, w) int64
        returns: (B, h, w) int64 for each factor
        """
        return take_apart(indices, self.sizes)

    def pairs(self, z: Tensor) -> list[tuple[Tensor, Codebook]]:
        """Each codebook beside its share of the channels, as a list of vectors.

        z: (B, C, h, w) latents, C = groups times D
        """
        flat = rearrange(z, "B C h w -> (B h w) C").float()  # (B*h*w, C)
        return list(zip(flat.split(self.width, dim=1), self.codebooks, strict=True))

    def forward(self, z: Tensor) -> Codes:
        """Round each latent vector to its nearest code.

            L = β |z - sg[e]|²

        The commitment term of VQ-VAE's equation 3: it moves the encoder towards its code and
        carries β. The term that moves the codes is absent, because the averages do its work.

        z: (B, C, h, w) the encoder's latents
        """
        B, C, h, w = z.shape
        parts = [nearest(part.detach(), book.codes)[0] for part, book in self.pairs(z)]
        indices = put_together(parts, self.sizes).view(B, h, w)  # (B, h, w)
        e = self.vectors(indices)  # (B, C, h, w)
        # differs from the paper: codes follow moving averages (the appendix of van den Oord et al.
        # 2017), so the loss has the commitment term only; β weighs it as in the paper, where the
        # original's code weighs the other term.
        loss = self.beta * F.mse_loss(z.float(), e)  # ()
        # Rounding has no gradient: the decoder's passes straight through to the encoder.
        return Codes(z + (e - z).detach(), indices, loss)

    def vectors(self, indices: Tensor) -> Tensor:
        """Look the codes up.

        indices: (B, h, w) int64
        returns: (B, C, h, w) float32
        """
        parts = self.factors(indices)  # (B, h, w) each
        found = [book.codes[i] for book, i in zip(self.codebooks, parts, strict=True)]
        return rearrange(torch.cat(found, dim=-1), "B h w C -> B C h w")

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

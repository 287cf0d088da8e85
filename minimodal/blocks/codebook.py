"""How codes are placed and moved (van den Oord et al. 2017, appendix A.1).

Codes are no parameters: they follow the encoder as exponential moving averages. They start from
k-means on real latents, and a code that nothing uses is moved to where the error is largest.

Latents (N, D) of a step's global batch in; the K codes change. Read `nearest.py` before.
"""

import torch
from torch import Tensor, nn

from minimodal.blocks.nearest import nearest


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

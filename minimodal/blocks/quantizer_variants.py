"""Other ways to a discrete code, with the interface of `quantizer.Quantizer`.

    GradientQuantizer   codes are parameters, moved by a loss (van den Oord et al. 2017, eq. 3)
    GumbelQuantizer     the encoder scores every code, training mixes codes by a relaxed draw
                        (the dVAE of Ramesh et al. 2021, section 2.1)

z (B, C, h, w) in, `Codes` out, in training and eval mode alike. Both are what checkpoints of
taming-transformers have; our own recipes use neither. Read `quantizer.py` before.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.codebook import Codebook, draw_far, follow
from minimodal.blocks.factored import Factored
from minimodal.blocks.nearest import nearest
from minimodal.blocks.quantizer import Codes, Quantizer


def codebook_loss(z: Tensor, vectors: Tensor, *, commitment: float, codebook: float) -> Tensor:
    """codebook · |sg[z] - e|² + commitment · |z - sg[e]|², means over all numbers (VQ-VAE, eq. 3).

    The paper's β is `commitment`, the weight of the term that moves the encoder; `codebook` is 1.

    z: (B, C, h, w) latents
    vectors: (B, C, h, w) the codes that they were rounded to
    returns: ()
    """
    return codebook * F.mse_loss(vectors, z.detach()) + commitment * F.mse_loss(z, vectors.detach())


class OneTable(nn.Module, Factored):
    """What both have: a single table of codes, whose uses are counted."""

    needs_start = False
    codes: nn.Parameter  # (K, C)
    counts: Tensor  # (K,) uses of each code, a running average

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size, self.width, self.sizes = size, width, (size,)

    @property
    def usage_counts(self) -> list[Tensor]:
        """Running counts of how often each code is used."""
        return [self.counts]

    def vectors(self, indices: Tensor) -> Tensor:
        """Look the codes up.

        indices: (B, h, w) int64
        returns: (B, C, h, w) float32
        """
        return rearrange(F.embedding(indices, self.codes), "B h w C -> B C h w")


class GradientQuantizer(OneTable):
    """A codebook that the optimiser moves, together with everything else."""

    needs_start = True

    def __init__(
        self, size: int, width: int, *, beta: float = 0.25, decay: float = 0.99, revive: bool = True
    ) -> None:
        super().__init__(size, width)
        self.beta, self.decay, self.revive = beta, decay, revive
        self.codes = nn.Parameter(torch.zeros(size, width))
        self.register_buffer("counts", torch.zeros(size))  # uses of each code, a running average

    def forward(self, z: Tensor) -> Codes:
        """Round each latent vector to its nearest code.

        z: (B, C, h, w) the encoder's latents
        """
        B, C, h, w = z.shape
        z = z.float()
        flat = rearrange(z.detach(), "B C h w -> (B h w) C")  # (B*h*w, C)
        indices = nearest(flat, self.codes.detach())[0].view(B, h, w)  # (B, h, w)
        vectors = self.vectors(indices)  # (B, C, h, w)
        loss = codebook_loss(z, vectors, commitment=self.beta, codebook=1.0)
        return Codes(z + (vectors - z).detach(), indices, loss)

    @torch.no_grad()
    def start(self, z: Tensor, generator: torch.Generator) -> None:
        """Place the codes by k-means on real latents.

        z: (B, C, h, w) latents of a global batch
        """
        book = Codebook(self.size, self.width, decay=0.0).to(z.device)
        book.start(rearrange(z.float(), "B C h w -> (B h w) C"), generator)
        self.codes.copy_(book.codes)
        self.counts.copy_(book.counts)

    @torch.no_grad()
    def update(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Count the uses, and move dead codes to where the error is largest.

        z: (B, C, h, w) latents of the global batch
        returns: () how many codes were dead
        """
        flat = rearrange(z.float(), "B C h w -> (B h w) C")
        indices, distances = nearest(flat, self.codes)
        unused = follow(self.counts, indices, decay=self.decay)
        dead = unused & self.revive
        fresh = flat[draw_far(distances, self.size, generator)]  # (K, D), only dead rows are used
        self.codes.copy_(torch.where(dead[:, None], fresh, self.codes))
        share = torch.full_like(self.counts, len(flat) / self.size)
        self.counts.copy_(torch.where(dead, share, self.counts))
        return unused.sum()


class GumbelQuantizer(OneTable):
    """Scores for every code; training draws a relaxed mixture of codes, evaluation takes the best.

    A draw is argmax(logits + Gumbel noise); the softmax at temperature τ is its smooth stand-in,
    and τ falls in training. The noise comes in from outside. Without noise nothing is random,
    whatever mode the module is in.
    """

    def __init__(self, size: int, width: int, *, decay: float = 0.99) -> None:
        super().__init__(size, width)
        self.decay = decay
        self.scores = nn.Conv2d(width, size, 1)
        self.codes = nn.Parameter(torch.empty(size, width).normal_())
        self.register_buffer("counts", torch.zeros(size))

    def forward(self, z: Tensor, *, noise: Tensor | None = None, temperature: float = 1.0) -> Codes:
        """A mixture of codes by softmax((logits + noise) / τ), or the best code without noise.

        The loss is KL(q || uniform) = Σ_k q_k (log q_k + log K), the mean over the positions of
        the batch: not a sum, which would change with the size of batch and picture.

        z: (B, C, h, w) the encoder's latents
        noise: (B, K, h, w) of the Gumbel distribution
        """
        logits = self.scores(z).float()  # (B, K, h, w)
        log_q = F.log_softmax(logits, dim=1)
        kl = (log_q.exp() * (log_q + math.log(self.size))).sum(dim=1).mean()
        indices = logits.argmax(dim=1)  # (B, h, w)
        if noise is None:
            soft = F.softmax(logits, dim=1)
            hard = F.one_hot(indices, self.size).permute(0, 3, 1, 2)  # (B, K, h, w)
            mixture = hard + (soft - soft.detach())  # gradients pass straight through
        else:
            mixture = F.softmax((logits + noise) / temperature, dim=1)
        vectors = torch.einsum("bkhw,kd->bdhw", mixture, self.codes)
        return Codes(vectors, indices, kl)

    @torch.no_grad()
    def update(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Count the uses. Dead codes are not moved: the KL term keeps every code's chances up.

        z: (B, C, h, w) latents of the global batch
        returns: () how many codes are dead
        """
        return follow(self.counts, self.scores(z).argmax(dim=1).flatten(), decay=self.decay).sum()


def make_quantizer(
    kind: str, sizes: tuple[int, ...], width: int, *, beta: float, decay: float, revive: bool
) -> Quantizer | OneTable:
    """The quantizer of a name: sizes of its codebooks, and a code's width."""
    if kind == "ema":
        return Quantizer(sizes, width, beta=beta, decay=decay, revive=revive)
    if kind == "gumbel":
        return GumbelQuantizer(sizes[0], width, decay=decay)
    return GradientQuantizer(sizes[0], width, beta=beta, decay=decay, revive=revive)

"""Drawing from logits: temperature, top-k, top-p, guidance. One sampler for every model.

Logits (B, V) in, token ids (B,) out, each drawn by an explicit generator: the same seed gives the
same tokens whatever else the program drew. Read nothing before this file.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minimodal.errors import UserError


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    temperature divides the logits (0: always the likeliest token); top_k keeps the k likeliest
    (0: all); top_p keeps the smallest set with at least that probability (1: all); guidance is
    the scale of classifier-free guidance (1: none, 0: the caption is ignored).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        # Written so that nan is out of range, too.
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature}: expected 0 or more")
        if self.top_k < 0:
            raise UserError(f"top-k {self.top_k}: expected 0 (keep all) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p {self.top_p}: expected more than 0 and at most 1")
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance {self.guidance}: expected 0 or more (1 = none)")


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2021): u + s (c - u).

    conditional: (B, V) logits given the caption
    unconditional: (B, V) logits given the empty caption
    returns: (B, V)
    """
    return unconditional + scale * (conditional - unconditional)


def filter_logits(logits: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set to -inf what top-k and top-p (nucleus, Holtzman et al. 2020) leave out.

    logits: (B, V)
    returns: (B, V)
    """
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(dim=-1)
        # A token stays while the likelier ones hold less than top_p: the first always stays.
        drop = p.cumsum(dim=-1) - p >= top_p
        logits = logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
    return logits


def draw(logits: Tensor, config: SamplingConfig, generator: torch.Generator) -> Tensor:
    """One token a row.

    logits: (B, V)
    returns: (B,) int64
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    logits = filter_logits(
        logits.float() / config.temperature, top_k=config.top_k, top_p=config.top_p
    )
    # The Gumbel-max trick: argmax(logits + Gumbel noise) is a draw from softmax(logits). It
    # needs no sum over the row and no synchronisation with the host, unlike multinomial.
    u = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float32)
    return (logits - (-(u.clamp(min=1e-20)).log()).clamp(min=1e-20).log()).argmax(dim=-1)

"""Drawing from logits: temperature, top-k, top-p, guidance. One sampler for every model.

Logits (B, V) in, token ids (B,) out, each drawn by an explicit generator: the same seed gives the
same tokens whatever else the program drew. Read nothing before this file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimodal.errors import UserError

COLDEST, MOST_GUIDANCE = 0.001, 1000


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    temperature divides the logits (0: always the likeliest token); top_k keeps the k likeliest
    (0: all); top_p keeps the smallest set with at least that probability (1: all); guidance is the
    scale of classifier-free guidance (1: none, 0: the caption is ignored).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        # Written so that nan is out of range, too. Within these bounds no logit overflows.
        if self.temperature != 0 and not COLDEST <= self.temperature < math.inf:
            raise UserError(
                f"temperature {self.temperature}: expected 0 (the likeliest), or {COLDEST} or more"
            )
        if self.top_k < 0:
            raise UserError(f"top-k {self.top_k}: expected 0 (keep all) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p {self.top_p}: expected more than 0 and at most 1")
        if not 0 <= self.guidance <= MOST_GUIDANCE:
            raise UserError(f"guidance {self.guidance}: expected 0 to {MOST_GUIDANCE} (1 = none)")

    @property
    def ignores_caption(self) -> bool:
        """Whether only the prediction without the caption is needed."""
        return self.guidance == 0

    @property
    def guided(self) -> bool:
        """Whether two predictions are needed, with the caption and without."""
        return self.guidance != 1 and not self.ignores_caption


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): u + s (c - u).

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
        # Whole numbers: on CUDA only their running sums are the same each time.
        p = (ordered.softmax(dim=-1) * 2.0**40).long()
        # A token stays while the likelier ones hold less than top_p: the first always stays.
        drop = p.cumsum(dim=-1) - p >= math.ceil(top_p * 2**40)
        logits = logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
    return logits


Generators = torch.Generator | Sequence[torch.Generator]  # one, or one for each row


def normal(like: Tensor, generator: Generators) -> Tensor:
    """Standard normal numbers; with a generator for each row, a row's depend on its own alone.

    like: (B, …) of which shape
    returns: (B, …) float32
    """
    where = {"device": like.device, "dtype": torch.float32}
    if isinstance(generator, torch.Generator):
        return torch.randn(like.shape, generator=generator, **where)
    return torch.stack([torch.randn(like.shape[1:], generator=g, **where) for g in generator])


def sample_token(logits: Tensor, config: SamplingConfig, generator: Generators) -> Tensor:
    """One token a row. With a generator for each row, a row's token depends on its own alone.

    logits: (B, V)
    returns: (B,) int64
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / config.temperature
    logits = filter_logits(logits, top_k=config.top_k, top_p=config.top_p)
    # The first of competing exponential clocks: argmax(p / E) is a draw from p, and so is
    # argmax(logits - log E) (the Gumbel-max trick). It needs no sum over the row and no
    # synchronisation with the host, unlike multinomial.
    where = {"device": logits.device, "dtype": torch.float32}
    if isinstance(generator, torch.Generator):
        u = torch.rand(logits.shape, generator=generator, **where)  # (B, V)
    else:
        u = torch.stack([torch.rand(logits.shape[1:], generator=g, **where) for g in generator])
    clocks = -u.clamp(min=1e-20).log()  # (B, V)
    return (logits - clocks.clamp(min=1e-20).log()).argmax(dim=-1)

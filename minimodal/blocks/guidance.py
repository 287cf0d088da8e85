"""What VQGAN+CLIP's gradient follows: a distance, a score, and gradients of one's own choice.

Embeddings (N, E) of unit length and prompts (P, E) in; one number for each of both out. The
functions below whose value and gradient differ say which is which. Read nothing before this file.
"""

import math

import torch
from torch import Tensor


def great_circle(x: Tensor, y: Tensor) -> Tensor:
    """Half the squared angle between unit vectors, θ² / 2.

    differs from VQGAN-CLIP: there 2 arcsin²(|x - y| / 2), the same number, but at opposites half
    the chord may round to more than 1 and arcsin to NaN. With

        θ = 2 atan2(|x - y|, |x + y|)

    value and gradient are finite from 0 to 180 degrees; at both ends the gradient is 0, as no
    direction there is better than another.

    x: (N, E) unit vectors
    y: (P, E) unit vectors
    returns: (N, P) between 0 and π² / 2
    """
    apart, together = x[:, None] - y[None], x[:, None] + y[None]  # (N, P, E)
    theta = 2 * torch.atan2(
        torch.linalg.vector_norm(apart, dim=-1), torch.linalg.vector_norm(together, dim=-1)
    )
    return theta.square() / 2


def contrast(x: Tensor, y: Tensor, bank: Tensor, scale: float) -> Tensor:
    """How much better a picture goes with a prompt than with the captions of a bank.

        s x·y - log( exp(s x·y) + Σ_b exp(s x·b) )

    It is the log-probability that CLIP's training raises: what raises all captions at once, as
    many an adversarial picture does, gains nothing. Captions of the bank that say what the prompt
    says (cosine above 0.98) are left out.

    x: (N, E) unit vectors of pictures
    y: (P, E) unit vectors of prompts
    bank: (M, E) unit vectors of other captions
    scale: CLIP's inverse temperature
    returns: (N, P) 0 or less
    """
    own = scale * x @ y.T  # (N, P)
    others = (scale * x @ bank.T)[:, None]  # (N, 1, M)
    others = others.masked_fill((y @ bank.T > 0.98)[None], -math.inf)  # (N, P, M)
    return own - torch.logaddexp(own, others.logsumexp(dim=-1))


def stopped(distance: Tensor, stop: float | Tensor) -> Tensor:
    """The distance as it is, with the gradient of max(distance, stop): below `stop` nothing pulls.

    distance: (N, P)
    returns: (N, P)
    """
    return torch.where(distance > stop, distance, distance.detach())


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient stops only where a step along it would lead further out."""

    @staticmethod
    def forward(ctx, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        clamped = x.clamp(low, high)
        ctx.save_for_backward(x - clamped)
        return clamped

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (outside,) = ctx.saved_tensors
        return grad * (grad * outside >= 0), None, None


def clamp_through(x: Tensor, low: float | Tensor = -1.0, high: float | Tensor = 1.0) -> Tensor:
    """Clamp, but let through every gradient that brings a number back between the bounds.

    x: (…)
    returns: (…)
    """
    return _Clamp.apply(x, torch.as_tensor(low).to(x), torch.as_tensor(high).to(x))

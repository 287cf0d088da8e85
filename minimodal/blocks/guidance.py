"""What VQGAN+CLIP's gradient follows: a distance, and gradients of one's own choice.

Embeddings (N, E) of unit length and prompts (P, E) in; one number for each of both out. The
functions below whose value and gradient differ say which is which. Read nothing before this file.
"""

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


def stopped(distance: Tensor, stop: float | Tensor) -> Tensor:
    """The distance as it is, with the gradient of max(distance, stop): below `stop` nothing pulls.

    distance: (N, P)
    returns: (N, P)
    """
    return torch.where(distance > stop, distance, distance.detach())


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient stops only where a step along it would lead further out."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        clamped = x.clamp(-1, 1)
        ctx.save_for_backward(x - clamped)
        return clamped

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (outside,) = ctx.saved_tensors
        return grad * (grad * outside >= 0)


def clamp_through(x: Tensor) -> Tensor:
    """Clamp to [-1, 1], but let through every gradient that brings a number back into it.

    x: (…)
    returns: (…)
    """
    return _Clamp.apply(x)

"""What CLIP's loss is made of where all logits exist, and a loss on differences.

Embeddings (N, E) or logits (B, B) in, a mean loss out. The paper's equation is in
`minimodal/clip.py`; read it before. Several processes, and batches of which not all logits fit
into memory, are in `contrastive_rows.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1, in float32; a vector of zeros stays one.

    x: (N, E)
    returns: (N, E)
    """
    x = x.float()
    # F.normalize in three quarters of its time, which is half of a small batch's loss.
    return x * (x.square().sum(dim=-1, keepdim=True) + 1e-24).rsqrt()


def even_targets(rows: Tensor, columns: Tensor) -> Tensor:
    """Where a row's probability should lie: even over the columns that have its caption.

    rows: (b,) int64 caption numbers
    columns: (B,) int64
    returns: (b, B) float32, each row adds up to 1
    """
    target = (rows[:, None] == columns).float()  # (b, B)
    target /= target.sum(dim=1, keepdim=True)
    return target


class _BothWays(torch.autograd.Function):
    """The loss and, in the same pass, its gradient.

    With p the softmax and t the target, dL/dlogits is the mean of (p - t) / B over both ways.
    Left to automatic differentiation, twice as many matrices of B x B would be filled and kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        t = target.flatten()  # (B*B,)
        # Not log_softmax(dim=0): on a CPU it adds up thousands of terms one by one, in float32.
        columns = logits - logits.amax(dim=0)
        total = torch.dot(t, columns.flatten())
        sums = columns.exp_().sum(dim=0)  # (B,)
        total -= sums.log().sum()
        rows = logits.log_softmax(dim=1)
        total += torch.dot(t, rows.flatten())
        ctx.save_for_backward(rows.exp_().addcdiv_(columns, sums).sub_(target, alpha=2))
        return total / (-2 * len(logits))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (error,) = ctx.saved_tensors
        return error * (grad / (2 * len(error))), None


def both_ways(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the rows and of the columns of a square matrix of logits.

        L = -½ Σ_ij tᵢⱼ [ log softmax_j(lᵢⱼ) + log softmax_i(lᵢⱼ) ] / B

    logits: (B, B)
    target: (B, B) float32, symmetric, each row adds up to 1
    returns: ()
    """
    return _BothWays.apply(logits.float(), target)  # autocast makes them in bfloat16


def difference_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE between differences: what changes between two pictures is what changes in words.

        dᵤ(i, j) = (uᵢ - uⱼ) / |uᵢ - uⱼ|,   L = mean of ½ [CE(s dᵤ·Dᵥ) + CE(s dᵥ·Dᵤ)]

    over neighbours i, j in the batch at distance 1 and 2 within each four. It is not in the paper.
    Why it is here: who is left of whom is a faint part of both embeddings at first, and all the
    rest of them drowns its gradient, so that CLIP learns it late (benchmarks/RESULTS.md). In the
    difference of two pictures that share everything else only that part is left, at full size.
    For one pair of pictures it is the directional loss of Gal et al. 2021 (StyleGAN-NADA).

    image: (B, E) picture embeddings of the global batch, B a multiple of 4
    text: (B, E) caption embeddings of the global batch
    scale: (1,) inverse temperature
    returns: ()
    """
    image, text = unit(image), unit(text)
    rows = torch.arange(len(image), device=image.device)
    losses = []
    for distance in (1, 2):
        # Not by a mask: on CUDA its use as an index waits for the device, to learn a size.
        first = rows.view(-1, 2, distance)[:, 0].flatten()  # (B//2,)
        second = first ^ distance
        change = F.normalize(image[first] - image[second], dim=-1)  # (B//2, E)
        # Equal captions have no direction; the small number keeps their gradient finite.
        words = F.normalize(text[first] - text[second] + 1e-6, dim=-1)  # (B//2, E)
        logits, own = scale * change @ words.T, torch.arange(len(first), device=image.device)
        losses += [F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)]
    return torch.stack(losses).mean()

"""The optimiser and its schedule.

AdamW (Loshchilov & Hutter 2019) in torch's fused form, weight decay on matrices and kernels only,
and a learning rate that is a pure function of where a run stands. Parameters go in, an optimiser
comes out; the engine sets `lr` before every step.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn


def parameter_groups(nets: Iterable[nn.Module], weight_decay: float) -> list[dict]:
    """Split the trainable parameters into those that weight decay pulls to zero and the rest.

    Decayed are the weights of linear maps and convolutions. Embeddings, positions, norms, biases
    and scales are not: pulling a rarely used embedding to zero loses what it has learned.
    """
    decayed, kept, seen = [], [], set()
    for net in nets:
        for module in net.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                is_map = name.endswith("weight") and parameter.ndim >= 2
                is_map = is_map and not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
                (decayed if is_map else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    nets: Iterable[nn.Module], *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `nets`."""
    return torch.optim.AdamW(parameter_groups(nets, weight_decay), lr=lr, betas=betas, fused=True)


def lr_at(step: int, progress: float, *, lr: float, warmup: int, min_lr_ratio: float) -> float:
    """The learning rate of a step: linear warm-up times a cosine that ends at a share of the peak.

        lr(s, p) = lr · min(1, (s + 1) / warmup) · (r + (1 - r) · (1 + cos πp) / 2)

    The warm-up counts steps and the cosine counts `progress` (0 to 1), so that a run limited by
    time, which does not know its number of steps, follows the same formula.
    """
    warm = min(1.0, (step + 1) / max(1, warmup))
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return lr * warm * (min_lr_ratio + (1 - min_lr_ratio) * cosine)

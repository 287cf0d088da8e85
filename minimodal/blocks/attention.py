"""Attention (Vaswani et al. 2017): each query gathers the values of the keys that it is like.

Queries (B, H, T, d), keys and values (B, H, S, d) in, (B, H, T, d) out. Who may attend to whom is a
mask, or `causal`; DALL·E's sparse patterns are in `sparse.py`. Read nothing before this file.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# Who attends to whom: how the tokens at places past, past + 1, … attend to those up to now.
Pattern = Callable[[int, int, torch.device], Attend]


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Which key each query may attend to, when the queries are the last of the keys' positions.

    returns: (queries, keys) bool, True = may attend
    """
    past = keys - queries
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(past)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """softmax(q kᵀ / √d) v (Vaswani et al. 2017, equation 1).

    q: (B, H, T, d) queries
    k: (B, H, S, d) keys
    v: (B, H, S, d) values
    mask: (T, S) bool, True = may attend, or None for all
    causal: instead of a mask that is causal; faster, since half of the scores are left out
    returns: (B, H, T, d)
    """
    # On a CPU in bfloat16 the fused kernel falls back to a slow path at the sizes of our small
    # models; written out it is faster (benchmarks/kernels.py).
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= 256:
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)  # (B, H, T, S)
        if causal:
            mask = causal_mask(q.shape[2], k.shape[2], q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return torch.softmax(scores, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def full_pattern(past: int, queries: int, device: torch.device) -> Attend:
    """Every token attends to every other."""
    return attend


def causal_pattern(past: int, queries: int, device: torch.device) -> Attend:
    """A token attends to those before it and to itself."""
    if queries == 1:  # all keys are its past: no mask is needed
        return attend
    if past == 0:
        return partial(attend, causal=True)
    return partial(attend, mask=causal_mask(queries, past + queries, device))

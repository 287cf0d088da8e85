"""The nearest code of a vector, and how far it is: what rounding to a codebook means.

Vectors (N, D) and codes (K, D) in; numbers (N,) and squared distances (N,) out.
"""

import torch
from torch import Tensor

from minimodal.blocks.precision import full_float32

MOST_SCORES = 2**27  # distances in memory at a time: half a gigabyte


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
    with full_float32(z.device):  # rounding would blur close codes
        scores = torch.addmm(codebook.square().sum(1), z, codebook.T, alpha=-2)  # (N, K)
    best, indices = scores.min(dim=1)
    return indices, (best + z.square().sum(1)).clamp(min=0)

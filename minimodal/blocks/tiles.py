"""Large pictures in tiles: what a decoder needs in memory is then a tile's, not the picture's.

Latents (B, C, h, w) in, pictures (B, 3, H, W) out, where H = h f. A decoder whose norms and
attention look at all of its input sees a tile of the picture only, so tiles are no exact copy of
the whole (docs/guidance.md has the difference). Read nothing before this file.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MARGIN = 2  # codes at a tile's inner edges that do not count: zeros were padded to there


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin that overlap by a quarter or more and cover a side to its end."""
    if length <= tile:
        return [0]
    n = math.ceil((length - tile) / (tile * 3 // 4))  # steps between the first and the last
    return [i * (length - tile) // n for i in range(n + 1)]


def weights(side: int, margin: int) -> Tensor:
    """Of a tile's pixels: the distance to its nearest edge. Where two tiles overlap this blends
    them linearly, once it is divided by their sum.

    returns: (N,) N = side
    """
    there = torch.arange(1.0, side + 1)
    return (torch.minimum(there, there.flip(0)) - margin).clamp(min=1e-6)


def in_tiles(decode: Callable[[Tensor], Tensor], z: Tensor, *, tile: int, factor: int) -> Tensor:
    """Decode a latent, in tiles where it is larger than one.

    Where gradients are wanted, all tiles but the last are computed again for theirs. The last comes
    first on the way back, so there is never more than one tile's graph.

    z: (B, C, h, w)
    tile: codes a side of a tile
    factor: pixels a side of a code
    returns: (B, 3, H, W)
    """
    h, w = z.shape[-2:]
    if max(h, w) <= tile:
        return decode(z)
    total = z.new_zeros(len(z), 3, h * factor, w * factor)
    share = z.new_zeros(h * factor, w * factor)
    corners = [(y, x) for y in starts(h, tile) for x in starts(w, tile)]
    for y, x in corners:
        part = z[..., y : y + tile, x : x + tile]
        last = (y, x) == corners[-1]
        drawn = decode(part) if last else checkpoint(decode, part, use_reentrant=False)
        rows, columns = (weights(n, MARGIN * factor).to(z) for n in drawn.shape[-2:])
        weight = rows[:, None] * columns
        down, along = (slice(n * factor, (n + tile) * factor) for n in (y, x))
        total[..., down, along] += drawn * weight
        share[down, along] += weight
    return total / share

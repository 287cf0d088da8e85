"""Rotary position embedding (Su et al. 2021): a query and a key turn with their places.

Each pair of channels is a point of the plane, turned by an angle in proportion to the token's
place, so that the product of a query and a key depends on how far apart they are. In two dimensions
half of the pairs turn with the row and half with the column.

Places (T,) to angles (T, p); queries and keys (B, H, T, d) in and out. Read nothing before this.
"""

import torch
from torch import Tensor


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of channels by a place's angles.

    x: (B, H, T, d) queries or keys
    angles: (T, p) radians, p = d / 2 pairs
    returns: (B, H, T, d)
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)  # (T, d//2) each
    a, b = x.chunk(2, dim=-1)  # (B, H, T, d//2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)  # (B, H, T, d)


def rotary_angles(places: Tensor, *, ahead: int, grid: int, pairs: int) -> Tensor:
    """Angles for rotary positions in two dimensions, in the manner of Qwen2-VL (Wang et al. 2024).

    Caption tokens count as lying on a diagonal that ends where the picture begins.

    places: (T,) int64 in a stream of `ahead` tokens and a picture of `grid` codes a row
    pairs: pairs of channels that turn with the row, and as many with the column
    returns: (T, p) radians, p = 2 pairs
    """
    image = places - ahead  # raster place, below 0 in the caption
    end = torch.full_like(places, ahead)
    row = torch.where(image < 0, places, end + image // grid)
    column = torch.where(image < 0, places, end + image % grid)
    turns = 100 ** (-torch.arange(pairs, device=places.device) / pairs)  # (pairs,)
    return torch.cat([row[:, None] * turns, column[:, None] * turns], dim=1)  # (T, p)

"""A sliding window over grids of any size, for a model that was trained on small ones (Esser et al.
2021, section 3.2 and figure 3): each code is predicted from a window of g x g codes around it.

Codes to start from (B, n) in, a canvas of codes (B, H, W) and the places to fill out. Read nothing
before this file.
"""

import torch
from torch import Tensor

from minimodal.errors import UserError


def corner(place: tuple[int, int], size: tuple[int, int], *, window: int) -> tuple[int, int]:
    """The upper left corner of the window that a code is predicted from: the place is in its
    middle, but for the window staying inside of the picture."""
    (i, j), (H, W) = place, size
    top, left = (min(max(n - window // 2, 0), full - window) for n, full in ((i, H), (j, W)))
    return top, left


def make_canvas(
    start: Tensor, size: tuple[int, int], *, window: int, codes: int
) -> tuple[Tensor, list[int]]:
    """A grid with the given codes in it, and the places that are left to draw, row by row. A side
    shorter than the window is drawn as long as the window, and cut.

    start: (B, n) int64 the first n codes of a grid of this size, each below `codes`
    returns: (B, H, W) int64 codes, no side shorter than the window, and numbers of places
    """
    (B, n), (height, width) = start.shape, size
    if min(size) < 1:
        raise UserError(f"{height} x {width} codes: expected 1 or more a side")
    if n > height * width:
        raise UserError(f"{n} codes to start from: expected at most {height * width}")
    if n and not 0 <= int(start.min()) <= int(start.max()) < codes:
        raise UserError(f"codes to start from: expected 0 to {codes - 1}")
    H, W = max(height, window), max(width, window)
    canvas = torch.zeros(B, H, W, dtype=torch.int64, device=start.device)
    known = torch.zeros(H, W, dtype=torch.bool)
    places = torch.arange(n)
    i, j = places // width, places % width
    canvas[:, i, j], known[i, j] = start, True
    return canvas, (~known[:height]).flatten().nonzero().flatten().tolist()

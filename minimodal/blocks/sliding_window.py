"""A sliding window over grids of any size, for a model that was trained on small ones (Esser et al.
2021, section 3.2 and figure 3): each code is predicted from a window of g x g codes around it.

Codes to start from (B, n) in, a canvas of codes (B, H, W) and the places to fill out. Read
`transformer.py` before, for `KVCache`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minimodal.blocks.transformer import KVCache
from minimodal.errors import UserError

MOST_CACHES = 32  # windows whose keys and values are kept at a time


def corner(
    place: tuple[int, int], size: tuple[int, int], *, window: int, stride: int
) -> tuple[int, int]:
    """The upper left corner of the window that a code is predicted from.

    The place is in its middle, but for the window staying inside of the picture and moving in steps
    of `stride`.
    """
    found = []
    for here, full in zip(place, size, strict=True):
        # differs from the paper: the sliding window may move in steps of several codes
        # (`--stride`), which is faster.
        middle = (here - window // 2) // stride * stride
        found.append(min(max(middle, 0), full - window))
    return found[0], found[1]


class WindowCaches:
    """Keys and values of windows. A window keeps them while its rows stay the same: its next code
    costs only the codes that were drawn since."""

    def __init__(self, make: Callable[[], KVCache]) -> None:
        self.make, self.top = make, 0
        self.by_left: dict[int, KVCache] = {}

    def find(self, top: int, left: int, *, again: bool) -> KVCache:
        """The cache of a window; `again` where the next row of codes has windows of the same rows,
        so that those to the left will be of use once more."""
        if top != self.top:
            self.by_left, self.top = {}, top
        if left not in self.by_left:
            # Of too many the latest goes: every row begins with the earliest.
            if self.by_left and (not again or len(self.by_left) >= MOST_CACHES):
                self.by_left.popitem()
            self.by_left[left] = self.make()
        return self.by_left[left]


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

"""What of a stream of codes is given before the rest of it is drawn.

A picture all but a rectangle, or the first picture of a pair (Ramesh et al. 2021, section 3.3).
uint8 pictures (3, H, W) and a rectangle in pixels come in; codes (P, h, w) for P prompts and a
mask (h, w) of those that stay go out. Read nothing before.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minimodal.blocks.pixels import to_float
from minimodal.errors import UserError

Box = tuple[int, int, int, int]  # left, top, right and bottom in pixels


class Given(NamedTuple):
    """What a caller gives beside captions; mostly nothing.

    complete: (3, H, W) uint8 a picture of which all stays but a rectangle
    first: (…, 3, H, W) uint8 the first picture of the pairs, or one for each prompt
    """

    complete: Tensor | None = None
    redraw: Box | None = None  # the rectangle
    first: Tensor | None = None

    def check(self, pictures: int) -> None:
        """Refuse what does not go together, or not with a stream of so many pictures."""
        if self.first is not None and (self.complete is not None or self.redraw is not None):
            raise UserError("either the first picture of a pair or one to complete, not both")
        if self.redraw is not None and self.complete is None:
            raise UserError("a rectangle to redraw needs a picture to complete")
        if self.first is not None and pictures == 1:
            raise UserError(
                "this DALL·E draws from captions alone and takes no first picture (--first): that "
                "needs a run trained on pairs, such as --data shapes:edits"
            )
        if self.first is None and pictures > 1:
            raise UserError(
                "this DALL·E draws what becomes of a picture: give it that first picture "
                "(--first IMG)"
            )


def check_size(picture: Tensor, side: int, what: str) -> None:
    """Refuse a picture that has not the size that is drawn.

    picture: (3, H, W) uint8
    """
    if tuple(picture.shape) != (3, side, side):
        raise UserError(
            f"{what} has {picture.shape[-1]} x {picture.shape[-2]} pixels: expected {side} x "
            f"{side}, the size that is drawn"
        )


def outside(box: Box | None, *, grid: int, factor: int) -> Tensor:
    """Which codes stay where a rectangle is drawn anew; the lower half by default.

    A code is drawn again if any of its pixels is to be.
    grid, factor: codes a side, and pixels a side of each
    returns: (h, w) bool, h = grid, w = grid
    """
    f, side = factor, grid * factor
    left, top, right, bottom = box or (0, grid // 2 * f, side, side)
    if not (0 <= left < right <= side and 0 <= top < bottom <= side):
        raise UserError(
            f"the rectangle {left},{top},{right},{bottom} (left, top, right, bottom) is not "
            f"inside a picture of {side} x {side} pixels"
        )
    keep = torch.ones(grid, grid, dtype=torch.bool)
    keep[top // f : -(-bottom // f), left // f : -(-right // f)] = False
    return keep


@torch.no_grad()
def what_stays(
    given: Given, encode: Callable[[Tensor], Tensor], *, grid: int, factor: int, prompts: int,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """The codes that are given, and which of them stay: those outside of the rectangle, or all of
    a first picture, below which the second is still empty.

    Codes to the right of the rectangle and below it stay, but the drawing cannot know them: it
    reads in raster order.
    encode: pictures (B, 3, H, W) in [-1, 1] to codes (B, h, w)
    returns: (P, h, w) int64 codes, (h, w) bool, P = prompts
    """
    if given.complete is None and given.first is None:
        return None, None
    whole = given.first is not None
    pictures = given.first if whole else given.complete
    pictures = pictures if pictures.ndim == 4 else pictures[None]
    if len(pictures) not in (1, prompts):
        raise UserError(f"{len(pictures)} first pictures for {prompts} prompts")
    what = "the first picture" if whole else "the picture to complete"
    check_size(pictures[0], grid * factor, what)
    if not whole:
        keep = outside(given.redraw, grid=grid, factor=factor).to(device)
    codes = encode(to_float(pictures.to(device))).expand(prompts, -1, -1)
    if not whole:
        return codes, keep
    empty = torch.zeros_like(codes)
    keep = torch.cat([torch.ones_like(codes[0]), empty[0]]).bool()
    return torch.cat([codes, empty], dim=1), keep

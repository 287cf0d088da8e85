"""Inpainting: which codes of a stream are kept, and which are drawn.

Kept is a picture all but a rectangle, or the first picture of a pair (Ramesh et al. 2021, section
3.3), of which a caption says what becomes of it. uint8 pictures (3, H, W) and a rectangle in pixels
come in; codes (N, h, w) of the pictures to draw and a mask (h, w) of those that are kept go out.
Read `painter.py` before.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minimodal.blocks.painter import Painter
from minimodal.errors import UserError

Box = tuple[int, int, int, int]  # left, top, right and bottom in pixels
COMPLETE = "the picture to complete"


def pixels_of(cells: Tensor, side: int) -> Tensor:
    """A grid's cells as the pixels that each of them covers.

    cells: (h, w)
    side: pixels of a picture's width
    returns: (H, W) W = side
    """
    f = side // cells.shape[1]
    return cells.repeat_interleave(f, 0).repeat_interleave(f, 1)


class Given(NamedTuple):
    """What a caller gives beside captions; mostly nothing.

    complete: (3, H, W) uint8 a picture of which all stays but a rectangle, to whole codes
    first: (…, 3, H, W) uint8 the first picture of the pairs, or one for each prompt
    """

    complete: Tensor | None = None
    redraw: Box | None = None  # the rectangle; by default the lower half
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


NOTHING = Given()


class Kept(NamedTuple):
    """What is kept of the codes of pictures that are drawn; mostly nothing.

    codes: (N, h, w) int64
    keep: (h, w) bool, True where the codes are kept
    complete: (3, H, W) uint8 the picture whose own pixels are kept, not what its codes decode to
    """

    codes: Tensor
    keep: Tensor
    complete: Tensor | None = None

    def paste(self, drawn: Tensor) -> Tensor:
        """Put the pixels of the picture to complete over what was decoded.

        drawn: (B, 3, H, W) uint8
        returns: (B, 3, H, W) uint8
        """
        if self.complete is None:
            return drawn
        stays = pixels_of(self.keep, drawn.shape[-1])  # (H, W)
        return torch.where(stays, self.complete.to(drawn.device), drawn)


def nothing_kept(n: int, size: tuple[int, int], device: torch.device) -> Kept:
    """All of n pictures of h x w codes is to be drawn."""
    codes = torch.zeros(n, *size, dtype=torch.int64, device=device)
    return Kept(codes, torch.zeros(size, dtype=torch.bool, device=device))


def check_picture(
    picture: Tensor, size: tuple[int, int], what: str, *, dims: tuple[int, ...] = (3,)
) -> None:
    """Refuse what is no picture in bytes, such as floats or shades of grey, or of another size than
    is drawn.

    picture: (…, 3, H, W) uint8
    size: width and height in pixels
    dims: how many dimensions it may have
    """
    if not isinstance(picture, Tensor):
        found = type(picture).__name__
    elif picture.dtype == torch.uint8 and picture.ndim in dims and picture.shape[-3] == 3:
        (height, width), found = picture.shape[-2:], ""
    else:
        found = f"{picture.dtype} {tuple(picture.shape)}"
    if found:
        raise UserError(f"{what} is {found}: expected a torch.uint8 tensor (3, height, width)")
    if (width, height) != size:
        raise UserError(
            f"{what} has {width} x {height} pixels: expected {size[0]} x {size[1]}, the size that "
            "is drawn"
        )


def outside(box: Box | None, *, grid: int, factor: int) -> Tensor:
    """Which codes are kept where a rectangle is drawn anew; by default the lower half is.

    A code is drawn again if any of its pixels is to be.
    grid, factor: codes a side, and pixels a side of each
    returns: (h, w) bool, h = grid, w = grid
    """
    f, side = factor, grid * factor
    box = (0, grid // 2 * f, side, side) if box is None else box
    if not (isinstance(box, tuple | list) and [type(edge) for edge in box] == [int] * 4):
        raise UserError(f"the rectangle {box}: expected four ints, left, top, right and bottom")
    left, top, right, bottom = box
    if not (0 <= left < right <= side and 0 <= top < bottom <= side):
        raise UserError(
            f"the rectangle {left},{top},{right},{bottom} (left, top, right, bottom) is not "
            f"inside a picture of {side} x {side} pixels"
        )
    keep = torch.ones(grid, grid, dtype=torch.bool)
    keep[top // f : -(-bottom // f), left // f : -(-right // f)] = False
    return keep


def what_stays(
    given: Given, painter: Painter, *, grid: int, prompts: int, n: int, device: torch.device
) -> Kept:
    """Encode what is given, for n pictures per prompt: all outside of the rectangle is kept, or all
    of a first picture, below which the second is still empty.

    Codes to the right of the rectangle and below it are kept, but the drawing cannot know them: it
    reads in raster order.
    """
    if given.complete is None and given.first is None:
        return nothing_kept(prompts * n, (grid, grid), device)
    size = (grid * painter.factor,) * 2
    if given.first is None:
        check_picture(given.complete, size, COMPLETE)
        keep = outside(given.redraw, grid=grid, factor=painter.factor).to(device)
        codes = painter.encode(given.complete[None].to(device))  # (1, h, w)
        return Kept(codes.expand(prompts * n, -1, -1), keep, given.complete)
    check_picture(given.first, size, "the first picture", dims=(3, 4))
    first = given.first if given.first.ndim == 4 else given.first[None]
    if len(first) not in (1, prompts):
        raise UserError(f"{len(first)} first pictures for {prompts} prompts")
    codes = painter.encode(first.to(device)).expand(prompts, -1, -1)  # (P, h, w), P = prompts
    codes = codes.repeat_interleave(n, dim=0)  # (N, h, w)
    empty = torch.zeros_like(codes)  # the second picture, below the first
    keep = torch.cat([torch.ones_like(codes[0]), empty[0]]).bool()  # (2 h, w)
    return Kept(torch.cat([codes, empty], dim=1), keep)


def upper_rows(picture: Tensor, share: float, painter: Painter, *, grid: tuple[int, int]) -> Kept:
    """Encode a picture of which the upper share of the rows is kept: at least one and not all.

    picture: (3, H, W) uint8
    grid: height and width in codes
    """
    check_picture(picture, (grid[1] * painter.factor, grid[0] * painter.factor), COMPLETE)
    if not 0 < share < 1:
        raise UserError(f"keep {share}: expected a share between 0 and 1 of the picture's rows")
    rows = min(max(round(share * grid[0]), 1), grid[0] - 1)
    keep = (torch.arange(grid[0], device=picture.device) < rows)[:, None].expand(grid)  # (h, w)
    return Kept(painter.encode(picture[None]), keep, picture)

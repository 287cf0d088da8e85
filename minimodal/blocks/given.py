"""What of a stream of codes is given before the rest of it is drawn.

A picture all but a rectangle, or the first picture of a pair (Ramesh et al. 2021, section 3.3).
uint8 pictures (3, H, W) and a rectangle in pixels come in; codes (P, h, w) for P prompts and a
mask (h, w) of those that stay go out. Read nothing before.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minimodal.blocks.pixels import pixels_of, to_float
from minimodal.blocks.sampling import SamplingConfig
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


def check_counts(
    prompts: int, n: int, batch_size: int, *, generator: torch.Generator | None,
    seeds: list[int] | None,
) -> None:  # fmt: skip
    """Refuse a drawing of nothing, or with other random numbers than one source gives."""
    if n < 1 or batch_size < 1:
        raise UserError(f"{n} pictures a prompt, {batch_size} at a time: expected 1 or more")
    if not prompts:
        raise UserError("no prompts: expected at least one")
    if (generator is None) == (seeds is None):
        raise UserError("expected either a generator or seeds")
    if seeds is not None and len(seeds) != n * prompts:
        raise UserError(f"{len(seeds)} seeds for {n * prompts} pictures")
    if not all(0 <= seed < 2**63 for seed in seeds or []):
        raise UserError("a seed is a whole number from 0 to below 2^63")


def check_picture(picture: Tensor, what: str, *, dims: tuple[int, ...] = (3,)) -> None:
    """Refuse what is no picture in bytes, such as floats or shades of grey.

    picture: (…, 3, H, W) uint8
    dims: how many dimensions it may have
    """
    found = type(picture).__name__
    if isinstance(picture, Tensor):
        if picture.dtype == torch.uint8 and picture.ndim in dims and picture.shape[-3] == 3:
            return
        found = f"{picture.dtype} {tuple(picture.shape)}"
    raise UserError(f"{what} is {found}: expected a torch.uint8 tensor (3, height, width)")


def check_size(picture: Tensor, side: int, what: str) -> None:
    """Refuse a picture that has not the size that is drawn.

    picture: (3, H, W) uint8
    """
    if tuple(picture.shape) != (3, side, side):
        raise UserError(
            f"{what} has {picture.shape[-1]} x {picture.shape[-2]} pixels: expected {side} x "
            f"{side}, the size that is drawn"
        )


def negatives(
    negative: str | list[str] | None, prompts: list[str], sampling: SamplingConfig
) -> list[str]:
    """What each prompt's pictures should not show; [] where nothing is said of that."""
    if negative is None:
        return []
    against = [negative] * len(prompts) if isinstance(negative, str) else negative
    if len(against) != len(prompts):
        raise UserError(f"{len(against)} negative captions for {len(prompts)} prompts")
    if not all(caption.strip() for caption in against):
        raise UserError("a negative caption is empty; leave it out")
    if not sampling.guided:
        raise UserError(
            f"a negative caption counts with guidance alone, and it is {sampling.guidance:g}: "
            "expected more than 1, such as 2"
        )
    return against


def paste(painted: Tensor, complete: Tensor | None, keep: Tensor | None) -> Tensor:
    """A picture to complete as it was given, not as its codes say, where they stay.

    painted: (B, 3, H, W) uint8
    complete: (3, H, W) uint8
    keep: (h, w) bool
    returns: (B, 3, H, W) uint8
    """
    if complete is None:
        return painted
    stays = pixels_of(keep, painted.shape[-1])  # (H, W)
    return torch.where(stays, complete.to(painted.device), painted)


def outside(box: Box | None, *, grid: int, factor: int) -> Tensor:
    """Which codes stay where a rectangle is drawn anew; the lower half by default.

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
    what = "the first picture" if whole else "the picture to complete"
    check_picture(pictures, what, dims=(3, 4) if whole else (3,))
    pictures = pictures if pictures.ndim == 4 else pictures[None]
    if len(pictures) not in (1, prompts):
        raise UserError(f"{len(pictures)} first pictures for {prompts} prompts")
    check_size(pictures[0], grid * factor, what)
    if not whole:
        keep = outside(given.redraw, grid=grid, factor=factor).to(device)
    codes = encode(to_float(pictures.to(device))).expand(prompts, -1, -1)
    if not whole:
        return codes, keep
    empty = torch.zeros_like(codes)
    keep = torch.cat([torch.ones_like(codes[0]), empty[0]]).bool()
    return torch.cat([codes, empty], dim=1), keep

"""Cutouts: what CLIP sees of a picture that is optimised for it.

CLIP's gradient for one picture is mostly noise that the eye cannot see; averaged over many views
of it, only what survives being moved, turned and dimmed is left (Crowson et al. 2022). A view is
one projective map of the picture (crop, flip, affine, perspective: a 3 x 3 matrix), then colours,
blur, erasing and noise. All of it is differentiable, and all random numbers of a step are drawn
first: the views can then be made a few at a time, with the very same gradient.

pictures (B, 3, H, W) in [-1, 1] in, views (N, 3, S, S) out. Read nothing before this file.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.errors import UserError, check_choice, check_range


@dataclass(frozen=True)
class Views:
    """How views differ. 0 switches a change off; lengths are shares of the picture's side."""

    smallest: float = 1.0  # side of the smallest cutout; 1: the whole picture
    cut_pow: float = 1.0  # side = smallest + (1 - smallest) u^cut_pow: above 1 more small ones
    padding: float = 0.0  # how far a cutout may reach over the picture's edge
    fill: str = "border"  # what is there: border, reflection, or zeros (grey)
    flip: float = 0.0  # chance of left for right
    shift: float = 0.0
    scale: float = 0.0  # 0.1: from 0.9 to 1.1
    rotate: float = 0.0  # degrees to either side
    perspective: float = 0.0  # how much nearer one side may be
    brightness: float = 0.0  # added to pixels in [-1, 1]
    contrast: float = 0.0  # 0.1: times 0.9 to 1.1, about the view's mean
    saturation: float = 0.0  # the same about each pixel's grey
    hue: float = 0.0  # turns of the colour circle to either side, up to 0.5
    blur: float = 0.0  # largest deviation in pixels of the view
    erase: float = 0.0  # chance that a rectangle is grey
    noise: float = 0.0  # largest deviation

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise UserError(f"smallest cutout {self.smallest}: expected above 0, at most 1")
        if not 0 < self.cut_pow < math.inf:
            raise UserError(f"cut_pow {self.cut_pow}: expected a number above 0")
        check_choice("fill", self.fill, ("border", "reflection", "zeros"))
        check_range(self, 0, 1, "padding", "flip", "shift", "scale", "perspective", "erase", "hue")
        more = ("rotate", "brightness", "contrast", "saturation", "blur", "noise")
        check_range(self, 0, math.inf, *more)


# What leaves a caption of the Shapes world true: a flip would exchange left and right, a hue the
# colour's name, a turn square and diamond, and a cutout may lose an object or its size.
CAPTION_TRUE = Views(shift=1 / 16, scale=0.05, brightness=0.1, noise=0.1)
# Photographs, after Pixray: a car is a car in any part of the picture and seen from the left.
PHOTOGRAPHS = Views(
    smallest=0.25, padding=0.1, fill="reflection", flip=0.5, rotate=10, perspective=0.3,
    saturation=0.1, hue=0.05, contrast=0.1, noise=0.1,
)  # fmt: skip


class Draws(NamedTuple):
    """The random numbers of N views.

    map: (N, 3, 3) from a view's coordinates to the picture's, both from -1 to 1
    color: (N, 3, 3) a matrix for each pixel's colour
    contrast: (N,) factors
    brightness: (N,) what is added
    blur: (N,) deviations in pixels of the view
    erase: (N, 4) left, top, right and bottom, from -1 to 1
    noise: (N,) deviations
    seeds: (N,) int64 of the noise
    """

    map: Tensor
    color: Tensor
    contrast: Tensor
    brightness: Tensor
    blur: Tensor
    erase: Tensor
    noise: Tensor
    seeds: Tensor

    def part(self, first: int, stop: int) -> "Draws":
        """Those of some of the views."""
        return Draws(*(numbers[first:stop] for numbers in self))


def _matrices(rows: list[list[Tensor | float]]) -> Tensor:
    """Entries (N,), or the same number for all, as (N, 3, 3)."""
    n = next(len(entry) for row in rows for entry in row if isinstance(entry, Tensor))
    full = [[torch.as_tensor(e, dtype=torch.float32).expand(n) for e in row] for row in rows]
    return torch.stack([torch.stack(row, dim=-1) for row in full], dim=-2)


def cutout_sides(views: Views, u: Tensor) -> Tensor:
    """Sides of cutouts, as shares of the picture's.

    u: (N,) uniform between 0 and 1
    returns: (N,)
    """
    return views.smallest + (1 - views.smallest) * u**views.cut_pow


def projective_maps(views: Views, n: int, generator: torch.Generator) -> Tensor:
    """Where in the picture each view looks.

    returns: (n, 3, 3)
    """
    u = torch.rand(n, 11, generator=generator)  # the ninth is not used: fewer, other views
    s = 2 * u - 1  # to either side
    side = cutout_sides(views, u[:, 0])
    reach = 1 - side + 2 * views.padding  # of the cutout's centre, to either side
    crop = _matrices([[side, 0, reach * s[:, 1]], [0, side, reach * s[:, 2]], [0, 0, 1.0]])
    angle, zoom = s[:, 3] * math.radians(views.rotate), 1 + views.scale * s[:, 4]
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    moves = 2 * views.shift * s[:, 5:7]
    turn = _matrices([[cos, -sin, moves[:, 0]], [sin, cos, moves[:, 1]], [0, 0, 1.0]])
    mirror = 1 - 2 * (u[:, 7] < views.flip).float()
    lean = _matrices([[mirror, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    # Below 1 in sum, or the far side of the plane would come into view.
    tilt = views.perspective * s[:, 9:11] * 0.49
    far = _matrices([[1.0, 0, 0], [0, 1.0, 0], [tilt[:, 0], tilt[:, 1], 1.0]])
    return crop @ turn @ lean @ far


GREY = (0.299, 0.587, 0.114)


def color_maps(views: Views, n: int, generator: torch.Generator) -> Tensor:
    """Saturation and hue as one matrix of colours.

    A hue is a turn about the grey axis, linear and so differentiable; the usual one by way of HSV
    has corners.

    returns: (n, 3, 3)
    """
    s = 2 * torch.rand(n, 2, generator=generator) - 1
    grey = torch.tensor(GREY).expand(3, 3)  # each channel's grey
    keep = (1 + views.saturation * s[:, 0])[:, None, None]
    saturation = grey + keep * (torch.eye(3) - grey)
    a = 2 * math.pi * views.hue * s[:, 1]
    third, root = (1 - a.cos()) / 3, a.sin() / math.sqrt(3)
    same, next_, last = third + a.cos(), third - root, third + root
    hue = torch.stack([same, next_, last, last, same, next_, next_, last, same], dim=-1)
    return hue.view(n, 3, 3) @ saturation


def draw_views(views: Views, n: int, generator: torch.Generator) -> Draws:
    """All random numbers of n views, on the CPU, so that they are the same on every device."""
    maps, colors = projective_maps(views, n, generator), color_maps(views, n, generator)
    u = torch.rand(n, 9, generator=generator)
    s = 2 * u - 1
    # A rectangle of 1/5 to 1/2 of the side each way.
    sides = 0.4 + 0.6 * u[:, 3:5]
    corner = (2 - sides) * u[:, 5:7] - 1
    erased = (u[:, 7] < views.erase).float()[:, None]
    return Draws(
        map=maps,
        color=colors,
        contrast=1 + views.contrast * s[:, 0],
        brightness=views.brightness * s[:, 1],
        blur=views.blur * u[:, 2],
        erase=torch.cat([corner, corner + sides], dim=1) * erased,
        noise=views.noise * u[:, 8],
        seeds=torch.randint(2**62, (n,), generator=generator),
    )


def look(pictures: Tensor, draws: Draws, size: int, *, fill: str = "border") -> Tensor:
    """The geometric part of views: one projective map each.

    pictures: (N, 3, H, W) one for each view
    returns: (N, 3, S, S) S = size
    """
    N, side = len(pictures), min(pictures.shape[-2:])
    # A view of a large picture takes the mean of several samples a pixel: single ones would alias.
    finer = max(1, round(side / size))
    at = (torch.arange(size * finer, device=pictures.device) + 0.5) * 2 / (size * finer) - 1
    v, u = torch.meshgrid(at, at, indexing="ij")
    seen = torch.stack([u, v, torch.ones_like(u)], dim=-1).view(1, -1, 3)  # (1, S², 3)
    there = seen @ draws.map.to(pictures).mT  # (N, S², 3)
    # A view is square: of a longer picture it sees the middle, as CLIP's own preprocessing does.
    stretch = torch.tensor([side / pictures.shape[-1], side / pictures.shape[-2]]).to(pictures)
    grid = (there[..., :2] / there[..., 2:] * stretch).view(N, size * finer, size * finer, 2)
    found = F.grid_sample(pictures, grid, padding_mode=fill, align_corners=False)
    return F.avg_pool2d(found, finer) if finer > 1 else found


def blur(x: Tensor, deviations: Tensor) -> Tensor:
    """Gaussian blur, each view by a deviation of its own.

    x: (N, C, H, W)
    deviations: (N,) in pixels
    returns: (N, C, H, W)
    """
    N, C, H, W = x.shape
    reach = min(math.ceil(2 * float(deviations.max())), H - 1, W - 1)
    if reach < 1:
        return x
    at = torch.arange(-reach, reach + 1, device=x.device)
    own = deviations.to(x)[:, None]  # (N, 1)
    # As far as its own deviation reaches: a view must not depend on those beside it in its chunk.
    kernel = torch.exp(-at.square() / (2 * own.square() + 1e-6)) * (at.abs() <= (2 * own).ceil())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(C, 0)[:, None]  # (N*C, 1, k)
    flat = F.pad(x, (reach,) * 4, mode="replicate").view(1, N * C, H + 2 * reach, -1)
    flat = F.conv2d(flat, kernel[:, :, None], groups=N * C)
    return F.conv2d(flat, kernel[..., None], groups=N * C).view(N, C, H, W)


def recolor(x: Tensor, draws: Draws) -> Tensor:
    """Hue and saturation, contrast about the view's mean, brightness.

    x: (N, 3, H, W)
    returns: (N, 3, H, W)
    """
    x = torch.einsum("nij,njhw->nihw", draws.color.to(x), x)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    factor, offset = (n.to(x)[:, None, None, None] for n in (draws.contrast, draws.brightness))
    return mean + factor * (x - mean) + offset


def erase(x: Tensor, boxes: Tensor) -> Tensor:
    """A rectangle of each view in grey.

    x: (N, C, H, W)
    boxes: (N, 4) left, top, right and bottom, from -1 to 1
    returns: (N, C, H, W)
    """
    left, top, right, bottom = boxes.to(x)[:, :, None].unbind(1)  # (N, 1) each
    down, along = ((torch.arange(n).to(x) + 0.5) * 2 / n - 1 for n in x.shape[-2:])
    rows, columns = (top < down) & (down < bottom), (left < along) & (along < right)
    return x.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0)


def see(pictures: Tensor, draws: Draws, size: int, *, fill: str = "border") -> Tensor:
    """Make views.

    pictures: (N, 3, H, W) in [-1, 1], one for each view
    returns: (N, 3, S, S) S = size
    """
    x = look(pictures, draws, size, fill=fill)
    same = torch.allclose(draws.color, torch.eye(3), atol=1e-6) and bool(
        (draws.contrast == 1).all() and (draws.brightness == 0).all()
    )
    x = x if same else recolor(x, draws)  # what is switched off takes no time
    x = erase(blur(x, draws.blur), draws.erase) if bool(draws.erase.any()) else blur(x, draws.blur)
    if not bool(draws.noise.any()):
        return x
    # By a seed for each view: a view's noise is then the same in whatever chunk it is made.
    noise, generator = torch.empty(x.shape), torch.Generator()
    for one, seed in zip(noise, draws.seeds.tolist(), strict=True):
        one.normal_(generator=generator.manual_seed(seed))
    return x + (draws.noise[:, None, None, None] * noise).to(x)

"""What else is asked of a picture than that CLIP likes it: pulls with a name and a weight.

Each takes pictures (B, 3, H, W) in [-1, 1] and gives a number for each, 0 where nothing is wrong.
`first` and `mse` hold the drawer's parameters where they began. Read nothing before this file.
"""

import difflib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.blocks.guidance import great_circle
from minimodal.errors import UserError


def per_picture(x: Tensor) -> Tensor:
    """Means over all but the first axis.

    x: (B, …)
    returns: (B,)
    """
    return x.flatten(1).mean(dim=1)


def total_variation(x: Tensor) -> Tensor:
    """Mean squared step from a pixel to its neighbours (Mahendran & Vedaldi 2015).

    x: (B, 3, H, W)
    returns: (B,)
    """
    return per_picture(x.diff(dim=2).square()) + per_picture(x.diff(dim=3).square())


def smoothness(x: Tensor) -> Tensor:
    """Mean step, not squared: flat areas with sharp edges cost less than a slope of equal height
    spread over them would with squares.

    x: (B, 3, H, W)
    returns: (B,)
    """
    return per_picture(x.diff(dim=2).abs()) + per_picture(x.diff(dim=3).abs())


def saturation(x: Tensor) -> Tensor:
    """How far from colourful: minus Hasler & Süsstrunk's (2003) measure, at most 0.

    x: (B, 3, H, W)
    returns: (B,)
    """
    r, g, b = x.flatten(2).unbind(1)  # (B, H*W)
    red_green, yellow_blue = r - g, (r + g) / 2 - b
    spread = (red_green.var(1) + yellow_blue.var(1) + 1e-8).sqrt()
    mean = (red_green.mean(1).square() + yellow_blue.mean(1).square() + 1e-8).sqrt()
    return -(spread + 0.3 * mean)


def symmetry(x: Tensor) -> Tensor:
    """Mean squared difference from the mirror image.

    x: (B, 3, H, W)
    returns: (B,)
    """
    return per_picture((x - x.flip(3)).square())


def edge(x: Tensor) -> Tensor:
    """How far a margin of an eighth is from white: a motif stays off the picture's edge.

    x: (B, 3, H, W)
    returns: (B,)
    """
    H, W = x.shape[-2:]
    margin = torch.ones(H, W).to(x)
    margin[H // 8 : H - H // 8, W // 8 : W - W // 8] = 0
    return per_picture((x - 1).square() * margin) / margin.mean().clamp(min=1e-9)


def palette(x: Tensor, colors: Tensor) -> Tensor:
    """Mean squared distance of pixels from the nearest colour of a palette.

    x: (B, 3, H, W)
    colors: (P, 3) in [-1, 1]
    returns: (B,)
    """
    pixels = x.flatten(2).mT  # (B, H*W, 3)
    apart = (pixels[:, :, None] - colors.to(x)).square().sum(-1)  # (B, H*W, P)
    return apart.amin(dim=-1).mean(dim=1)


def from_start(parameters: list[Tensor], first: list[Tensor], *, how: str) -> Tensor:
    """How far the parameters have gone.

    parameters, first: (B, …) each
    how: "mse", or "sphere": half the squared angle, which forgives another contrast
    returns: (B,)
    """
    now, then = (torch.cat([p.flatten(1) for p in parts], dim=1) for parts in (parameters, first))
    if how == "mse":
        return per_picture((now - then).square())
    now, then = F.normalize(now, dim=1), F.normalize(then, dim=1)
    return great_circle(now, then).diagonal()


REGULARIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "tv": total_variation, "smoothness": smoothness, "saturation": saturation,
    "symmetry": symmetry, "edge": edge,
}  # fmt: skip
FROM_START = ("mse", "sphere")


def check_names(weights: dict[str, float]) -> None:
    """Refuse a regulariser that there is none of."""
    known = [*REGULARIZERS, *FROM_START, "palette"]
    for name in weights:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"regulariser {name}: expected one of {', '.join(known)}{hint}")

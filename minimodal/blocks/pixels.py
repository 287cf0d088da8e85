"""Pictures between the range of the models, [-1, 1], and bytes."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as bytes.

    images: (B, 3, H, W) float in [-1, 1]
    returns: (B, 3, H, W) uint8
    """
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Bytes to the range of the models.

    images: (B, 3, H, W) uint8
    returns: (B, 3, H, W) float32 in [-1, 1]
    """
    return images.float() / 127.5 - 1


def pixels_of(cells: Tensor, side: int) -> Tensor:
    """A grid's cells as the pixels that each of them covers.

    cells: (h, w)
    side: pixels of a picture's width
    returns: (H, W) W = side
    """
    f = side // cells.shape[1]
    return cells.repeat_interleave(f, 0).repeat_interleave(f, 1)

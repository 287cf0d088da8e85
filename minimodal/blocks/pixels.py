"""Pictures between the range of the models, [-1, 1], and bytes; and at other sizes."""

import torch
import torch.nn.functional as F
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


def resized(pictures: Tensor, size: int) -> Tensor:
    """Pictures at the size that a network reads.

    pictures: (B, 3, H, W) float
    returns: (B, 3, S, S) S = size
    """
    if pictures.shape[-2:] == (size, size):
        return pictures
    return F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)

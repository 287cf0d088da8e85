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

"""How CLIP reads a picture: which part of it, at which size, and what a pixel's numbers become.

A Pillow picture or uint8 pictures (B, 3, H, W) in, float32 (B, 3, H, W) out, by the means and
deviations of the original's training pictures. Read `images.py` before.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from minimodal.data.images import resize_then_crop

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of each colour channel
STD = (0.26862954, 0.26130258, 0.27577711)


class Preprocessing(NamedTuple):
    """How an original CLIP reads a picture."""

    resize: str = "shortest"  # the side that gets the model's size; "squash": both
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


ORIGINAL = Preprocessing()  # OpenAI's


@lru_cache(maxsize=8)
def statistics(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Both as (3, 1, 1) tensors; copied to a device once, since a copy waits for it."""
    means, deviations = torch.tensor(mean, device=device), torch.tensor(std, device=device)
    return means.view(3, 1, 1), deviations.view(3, 1, 1)


def normalize(images: Tensor, how: Preprocessing = ORIGINAL) -> Tensor:
    """uint8 pictures to CLIP's input.

    images: (B, 3, H, W) uint8
    returns: (B, 3, H, W) float32
    """
    # torch.compile warns of a cache, which it does not see.
    known = statistics.__wrapped__ if torch.compiler.is_compiling() else statistics
    mean, std = known(images.device, how.mean, how.std)
    return (images.float() / 255 - mean) / std


def clip_preprocess(picture: Image.Image, size: int, how: Preprocessing = ORIGINAL) -> Tensor:
    """What OpenAI's CLIP does to a picture: shorter side to `size`, centre, normalise.

    how: what another original does
    returns: (3, size, size) float32
    """
    pixels = resize_then_crop(picture, size, resize=how.resize, interpolation=how.interpolation)
    return normalize(torch.from_numpy(pixels)[None], how)[0]

"""What the tasks share: random numbers of a step, seeded starts, pictures in and out.

Pictures are uint8 (B, 3, H, W) here and float in [-1, 1] inside the models.
"""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from minimodal.data.sources import DataSource

EVALUATION_PICTURES = 512  # unseen ones that the scores of a run are measured on


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a module whose random start depends on the seed alone; nobody else's draws change."""
    # The constructors of torch.nn take no generator: the default one is lent and put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def draws(seed: int, step: int) -> np.random.Generator:
    """The random numbers of a step, the same on every process."""
    return np.random.default_rng((seed, step))


def flip_some(images: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Mirror the chosen pictures left to right.

    images: (B, 3, H, W) pictures
    flips: (B,) bool
    returns: (B, 3, H, W)
    """
    return np.where(flips[:, None, None, None], images[..., ::-1], images)


def all_pictures(source: DataSource, n: int) -> np.ndarray:
    """The first n pictures of a source, or all if it has fewer.

    returns: (N, 3, H, W) uint8
    """
    return source.images(np.arange(min(n, len(source))))


def tile(pictures: Tensor, columns: int) -> Tensor:
    """Pictures side by side.

    pictures: (N, 3, H, W) uint8, N a multiple of the columns
    returns: (3, rows*H, columns*W) uint8
    """
    return rearrange(pictures, "(r c) C H W -> C (r H) (c W)", c=columns)

"""What the tasks share: random numbers of a step, seeded starts, mirrored pictures."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn


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

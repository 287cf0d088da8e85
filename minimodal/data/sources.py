"""What a task knows of its data: a source of captioned pictures, and which of them a step is on.

`images(indices)` gives uint8 (B, 3, S, S), `captions(indices, rng)` one string for each.
`batch_indices` tells from (seed, t) alone which pictures step number t trains on: resuming needs a
step number and no replay. Where sources come from is in `loading.py`.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from minimodal.errors import UserError


class DataSource(Protocol):
    """Captioned pictures, whatever they come from."""

    name: str  # "shapes", "cifar10", "coco", "folder", …
    image_size: int  # S
    class_names: tuple[str, ...] | None
    labels: np.ndarray | None  # (N,) int64, with class_names
    has_captions: bool
    group: int  # so many consecutive pictures stay together in a batch

    def __len__(self) -> int:
        """N, the number of pictures."""

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Pictures as bytes. indices: (B,); returns: (B, 3, S, S) uint8"""

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One caption per picture, drawn by rng."""

    def all_captions(self, index: int) -> list[str]:
        """Every caption of a picture (or a few, where there is no end of them)."""

    def fingerprint(self) -> str:
        """A hash of all that decides the pictures and captions."""


def first_pictures(source: DataSource, n: int, *, some: int, flip: bool) -> Iterator[Tensor]:
    """A source's first n pictures as bytes, `some` at a time; with flip their mirror images after
    all of them."""
    for mirrored in (False, True) if flip else (False,):
        for start in range(0, n, some):
            images = source.images(np.arange(start, min(start + some, n)))
            images = images[..., ::-1] if mirrored else images
            yield torch.from_numpy(np.ascontiguousarray(images))


@lru_cache(maxsize=4)
def _epoch_order(groups: int, *, seed: int, epoch: int) -> np.ndarray:
    # Cached because a million-picture permutation takes longer than a step; still a pure function.
    order = np.random.default_rng((seed % 2**64, epoch)).permutation(groups)
    order.flags.writeable = False
    return order


def batch_indices(
    length: int, batch_size: int, step: int, *, seed: int, group: int = 1
) -> np.ndarray:
    """Which of `length` pictures are in batch number `step`; a pure function of its arguments.

    Each epoch is a seeded permutation of whole groups of `group` consecutive pictures (a last,
    incomplete group is left out); a batch may begin in one epoch and end in the next.
    returns: (B,) int64, B = batch_size
    """
    if batch_size < 1 or batch_size % group:
        raise UserError(f"batch size {batch_size}: expected a multiple of {group} pictures")
    groups, per_batch = length // group, batch_size // group
    if groups < 1:
        raise UserError(f"{length} pictures: expected at least {group} to train on")
    if step < 0:
        raise ValueError(f"step {step} is negative")
    epochs, places = np.divmod(step * per_batch + np.arange(per_batch), groups)
    chosen = np.empty(per_batch, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        chosen[here] = _epoch_order(groups, seed=seed, epoch=epoch)[places[here]]
    return (chosen[:, None] * group + np.arange(group)).reshape(-1)

"""What a task knows of its data: a source of captioned pictures, and which of them a step is on.

Of N pictures `images(indices)` gives uint8 (B, 3, S, S), `captions(indices, rng)` one string for
each and `all_captions(index)` every one of one picture (or a few, where there is no end of them);
`class_names` and `labels` (N,) may be None, `group` consecutive pictures stay together in a batch,
and `fingerprint()` is a hash of all that decides pictures and captions. `batch_indices` tells from
(seed, t) alone which pictures step number t trains on: resuming needs a step number and no replay.
Where sources come from is in `loading.py`.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minimodal.data.images import ImageSource
from minimodal.errors import UserError
from minimodal.shapes.source import WorldSource

DataSource = ImageSource | WorldSource


PATIENCE = 2.0  # seconds before a bar says how far something is


def first_pictures(source: DataSource, n: int, *, some: int, flip: bool) -> Iterator[Tensor]:
    """A source's first n pictures as bytes, `some` at a time; with flip their mirror images after
    all of them. On a terminal a bar shows what takes long."""
    parts = [(m, first) for m in range(1 + flip) for first in range(0, n, some)]
    for mirrored, first in tqdm(parts, unit=" pictures", unit_scale=some, delay=PATIENCE,
                                disable=None, leave=False):  # fmt: skip
        images = source.images(np.arange(first, min(first + some, n)))
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

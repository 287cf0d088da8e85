"""What keeps a training going where the memory is too small, and what makes it repeat exactly.

`fit` computes something of a training, such as a step; where the device has no memory for it, it
cuts the micro-batches into smaller ones and computes it again, or says what to do. A step is the
same in more parts, for every system, but for rounding. Read `prepare.py` before.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from minimodal.errors import UserError
from minimodal.training.prepare import Training, micro_rows

Found = TypeVar("Found")
FULL = re.compile("out of memory|ALLOC_FAILED|DefaultCPUAllocator")  # CUDA's words, the CPU's


def repeat_exactly() -> None:
    """Let operators give the same bits each time, also on CUDA, or refuse to run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)


def rows_at_once(training: Training) -> slice:
    """The rows of the first micro-batch, as small as they are by now."""
    parts = training.config.accumulate * training.parts
    return micro_rows(replace(training.config, accumulate=parts), training.here)[0]


def cut(batches: list[dict[str, Tensor]], parts: int) -> list[dict[str, Tensor]]:
    """Micro-batches in so many parts each, whose dicts are their own: a step writes into them."""
    return [
        dict(zip(batch, values, strict=True))
        for batch in batches
        for values in zip(*(x.chunk(parts) for x in batch.values()), strict=True)
    ]


def smaller(training: Training) -> None:
    """Cut micro-batches in at least twice as many parts; where that may not be, say what may."""
    config, size = training.config, training.config.batch_size
    size //= training.here.world * config.accumulate
    parts = next((n for n in range(2 * training.parts, size + 1) if size % n == 0), None)
    at_once = size // training.parts
    what = f"step {training.step}: out of memory with a micro-batch of {at_once}"
    if parts is None:
        raise UserError(f"{what}, the smallest there is: choose a smaller model")
    # The generator has moved when a discriminator's memory runs out: that step is half taken.
    if not config.auto_batch or training.moved:
        more = f"--accumulate {config.accumulate * parts}"
        more = more if training.moved or training.here.world > 1 else "--auto-batch"
        raise UserError(
            f"{what}: add {more}, which makes the same step of smaller ones, or choose a smaller "
            "--batch-size"
        )
    training.parts = parts
    for trained in training.phases:
        trained.optimizer.zero_grad()
    torch.cuda.empty_cache()
    print(f"{training.task.name}: {what}, on with {size // parts}", file=sys.stderr)


def fit(training: Training, compute: Callable[[], Found]) -> Found:
    """What `compute` gives, in micro-batches that the device has memory for."""
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not FULL.search(str(error)):
                raise
        smaller(training)  # here, where the error no longer holds what was computed

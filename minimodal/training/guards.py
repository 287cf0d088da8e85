"""What keeps a training going where the memory is too small, what makes it repeat exactly, and
where a number came from that is not finite.

`fit` computes something of a training, such as a step; where the device has no memory for it, it
cuts the micro-batches into smaller ones and computes it again, or says what to do. A step is the
same in more parts, for every system, but for rounding. Read `prepare.py` before.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from minimodal.errors import UserError
from minimodal.training import probe
from minimodal.training.prepare import PhaseLoss, Training, micro_rows, select
from minimodal.training.sharding import Nets, has_shares

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


def finite(value: Any) -> bool:
    """Whether all numbers of what a module gives are finite, or of this process's share of them."""
    tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    tensors = [x.to_local() if has_shares(x) else x for x in tensors]
    return all(bool(x.isfinite().all()) for x in tensors)


def passes_again(training: Training, batches: list[dict[str, Tensor]]) -> None:
    """The passes of the last step, without it; the gradients are left."""
    task, step = training.task, training.step - 1
    select(training.phases, training.phases[0])
    with torch.no_grad(), probe.autocast(training.here.device, training.config.precision):
        task.before_step(step, batches)
    for trained in training.phases:
        select(training.phases, trained)
        trained.optimizer.zero_grad()
        for batch in batches:
            with probe.autocast(training.here.device, training.config.precision):
                loss, _ = PhaseLoss(task, trained.phase)(batch, step)  # as it is, not compiled
            if loss.requires_grad:
                loss.backward()


def culprit(training: Training, batches: list[dict[str, Tensor]]) -> str:
    """What first gives a number that is not finite, by the passes of the last step once more: so
    steps that give none cost nothing. Where several processes train, all have to ask."""
    nets = {"model": training.task.model, **training.task.extra}
    weights = [(f"{net}.{name}", p) for net in nets for name, p in nets[net].named_parameters()]
    names = {m: f"{net}.{name}" for net in nets for name, m in nets[net].named_modules()}
    found: list[nn.Module] = []

    def watch(module: nn.Module, given: Any, output: Any) -> None:
        if not finite(output):
            found.append(module)

    with register_module_forward_hook(watch):
        passes_again(training, cut(batches, training.parts))
    if spoilt := [name for name, weight in weights if not finite(weight)]:
        return f"{spoilt[0]} was spoilt before: --log-every 1 finds the step that spoils it"
    if found and isinstance(found[0], (PhaseLoss, Nets)):
        return "every module gives finite numbers, but the loss or a part of it is not"
    if found:
        name = names.get(found[0], "frozen").rstrip(".")
        return f"{name} ({type(found[0]).__name__}) is the first to give what is not finite"
    # The backward pass comes to the last weights first.
    if bad := [name for name, weight in weights if not finite(weight.grad)]:
        return f"all is finite but gradients, that of {bad[-1]} first"
    return "all is finite in what this process computes"

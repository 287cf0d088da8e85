"""The training loop, once, for every system.

A `Task` says what differs between systems: its nets, its batches, its losses. `run` takes a task
and a `TrainConfig` to a run folder: gradient accumulation, clipping, bfloat16 autocast, averaged
weights (EMA), torch.compile, data-parallel processes, resuming, logs, evaluation, samples. The
list is closed; what a system needs beyond it belongs into its task.

Everything is a pure function of (seed, step), so a run needs no generator state: resumed, it takes
the same steps bit for bit. Read `train_step` first, then `run`; before, `checkpoint.py`.
"""

import contextlib
import copy
import math
import queue
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from minimodal.errors import UserError
from minimodal.training import checkpoint, distributed, probe
from minimodal.training.distributed import Distributed
from minimodal.training.optim import lr_at, make_optimizer
from minimodal.training.progress import Progress, Signals

FASTER = 1.1  # bfloat16 has to be faster by a tenth, or float32 is the better choice


@dataclass(frozen=True)
class TrainConfig:
    """How a system is trained; every field is a flag of train.py."""

    steps: int = 1000
    minutes: float = 0.0  # > 0: the run and its schedule last this long, whatever the steps
    batch_size: int = 32  # of the whole step: all micro-batches of all processes
    accumulate: int = 1  # micro-batches a step
    lr: float = 1e-3
    min_lr_ratio: float = 0.05  # the cosine ends at this share of lr
    warmup: int = 50  # steps
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0 = no clipping
    ema_decay: float = 0.0  # 0 = no averaged weights
    precision: str = "auto"  # auto, float32 or bfloat16
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 0  # 0 = at the end only; also the next two
    sample_every: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("accumulate", 1), ("log_every", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)}: expected at least {least}")
        for name in ("minutes", "warmup", "weight_decay", "clip_norm", "min_lr_ratio",
                     "evaluate_every", "sample_every", "checkpoint_every"):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} {getattr(self, name)}: expected 0 or more")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected from 0 to below 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"lr {self.lr}: expected a number above 0")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UserError(f"precision {self.precision}: expected auto, float32 or bfloat16")


@dataclass(frozen=True)
class Phase:
    """The nets that one optimiser moves; a GAN has two phases, others have one."""

    name: str
    nets: tuple[nn.Module, ...]
    lr_scale: float = 1.0
    betas: tuple[float, float] | None = None  # None: those of the TrainConfig


class Task(Protocol):
    """What a system says about its training.

    Randomness is made in `batch`, from (seed, step, row), so that N processes equal one; the
    engine sets `gather`, the identity on one process. Frozen helpers are the task's own business:
    neither `model` nor `extra` holds them.
    """

    name: str
    model: nn.Module  # what is saved; the EMA covers its weights and copies its buffers
    phases: tuple[Phase, ...]
    extra: dict[str, nn.Module]  # other nets that training changes: the discriminator
    gather: Callable[[Tensor], Tensor]

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Rows of the global batch of a step, on the CPU. Runs in a thread, ahead of time."""

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of the rows and detached metrics.

        It changes no weight and no buffer. Phases see the same `batch` dict one after another and
        may leave detached tensors there for the next. A loss without gradient skips the phase.
        """

    def after_step(self, step: int) -> dict[str, Tensor | float]:
        """What follows the optimisers, without gradients: codebooks, clamps; metrics."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores of a model (the averaged one where EMA is on, in eval mode), on rank 0 only."""

    def sample(self, model: nn.Module, step: int) -> Tensor | None:
        """A picture of what the model does, uint8 (3, H, W), on rank 0 only."""

    def config(self) -> dict[str, Any]:
        """The model's configuration, for config.json."""

    def save_files(self, out: Path) -> None:
        """Write files that the model needs beside its weights, such as a tokenizer."""


class Interrupted(SystemExit):
    """Ctrl-C or SIGTERM: the state is saved; the process ends with status 130."""

    def __init__(self) -> None:
        super().__init__(130)


class PhaseLoss(nn.Module):
    """A phase's loss as a module that holds exactly the phase's nets.

    DistributedDataParallel averages the gradients of the parameters of the module that it wraps,
    after a call of that module; compile() likewise covers what is called through it.
    """

    def __init__(self, task: Task, phase: Phase) -> None:
        super().__init__()
        self.nets = nn.ModuleList(phase.nets)
        self.loss, self.name = task.loss, phase.name

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss of this phase."""
        return self.loss(batch, self.name, step)


@dataclass
class Trained:
    """A phase with what trains it."""

    phase: Phase
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    module: nn.Module  # PhaseLoss, wrapped where there are several processes


@dataclass
class Training:
    """A task with all that its steps change."""

    task: Task
    config: TrainConfig
    here: Distributed
    phases: list[Trained]
    ema: nn.Module | None
    step: int = 0
    seconds: float = 0.0
    averaged: list[list[Tensor]] = field(default_factory=list)  # EMA's tensors, the model's

    @property
    def best(self) -> nn.Module:
        """The weights to evaluate, sample from and save."""
        return self.task.model if self.ema is None else self.ema

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, as torch.load(weights_only=True) can read it."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.task.model.state_dict(),
            "extra": {name: net.state_dict() for name, net in self.task.extra.items()},
            "optimizers": {t.phase.name: t.optimizer.state_dict() for t in self.phases},
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.task.model.load_state_dict(state["model"])
        for name, net in self.task.extra.items():
            net.load_state_dict(state["extra"][name])
        for trained in self.phases:
            trained.optimizer.load_state_dict(state["optimizers"][trained.phase.name])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def select(phases: list[Trained], now: Trained) -> None:
    """Let only the phase that runs collect gradients.

    The generator's loss passes through the discriminator, whose weights then need no gradient of
    their own: without this they would get one, at the cost of a third of its backward pass.
    """
    for trained in phases if len(phases) > 1 else ():
        for parameter in trained.parameters:
            parameter.requires_grad_(trained is now)


def train_step(training: Training, batches: list[dict], *, lr: float) -> dict[str, Tensor | float]:
    """One optimiser step of each phase over the micro-batches of this process; its metrics.

    The metrics of the first phase have their own names (with loss and grad_norm), those of the
    second begin with its name. Nothing here waits for the device.
    """
    config, step = training.config, training.step
    metrics: dict[str, Tensor | float] = {}
    for trained in training.phases:
        select(training.phases, trained)
        prefix = "" if trained is training.phases[0] else f"{trained.phase.name}_"
        sums: dict[str, Tensor] = {}
        for m, batch in enumerate(batches):
            last = m == len(batches) - 1
            skip = training.here.world > 1 and not last
            with trained.module.no_sync() if skip else contextlib.nullcontext():
                with probe.autocast(training.here.device, config.precision):
                    loss, values = trained.module(batch, step)
                if loss.requires_grad:
                    (loss / len(batches)).backward()
            for name, value in {**values, prefix + "loss": loss.detach()}.items():
                sums[name] = sums[name] + value if name in sums else value
        metrics |= {name: value / len(batches) for name, value in sums.items()}
        if loss.requires_grad:
            norm = clip_grad_norm_(trained.parameters, config.clip_norm or math.inf, foreach=True)
            metrics[prefix + "grad_norm"] = norm
            for group in trained.optimizer.param_groups:
                group["lr"] = lr * trained.phase.lr_scale
            trained.optimizer.step()
            trained.optimizer.zero_grad()
    with torch.no_grad():
        metrics |= training.task.after_step(step)
        if training.ema is not None:
            follow(training)
    return metrics


def follow(training: Training) -> None:
    """Move the averaged weights: θ' ← d θ' + (1 - d) θ with d = min(decay, (1 + s) / (10 + s)).

    Early on the average is short, or it would remember the random start for 1 / (1 - d) steps.
    Buffers are copied: a codebook is an average already, and counters have none.
    """
    step = training.step
    decay = min(training.config.ema_decay, (1 + step) / (10 + step))
    shadow, weights, copies, buffers = training.averaged
    torch._foreach_lerp_(shadow, weights, 1 - decay)
    if buffers:
        torch._foreach_copy_(copies, buffers)


class Batches:
    """The batches of the steps from `first` on, prepared by one thread, two steps ahead."""

    def __init__(self, task: Task, rows: list[slice], *, first: int, end: int | None, pin: bool):
        self.queue: queue.Queue = queue.Queue(maxsize=2)
        self.closed = threading.Event()
        work = lambda: self.work(task, rows, first, end, pin)  # noqa: E731
        self.thread = threading.Thread(target=work, name="batches", daemon=True)
        self.thread.start()

    def work(self, task: Task, rows: list[slice], step: int, end: int | None, pin: bool) -> None:
        """The thread: an error travels through the queue to whoever asks for the batch."""
        try:
            while not self.closed.is_set() and step != end:
                batches = [task.batch(step, part) for part in rows]
                if pin:
                    batches = [{k: v.pin_memory() for k, v in b.items()} for b in batches]
                self.put(batches)
                step += 1
        except BaseException as error:
            self.put(error)

    def put(self, item: list[dict] | BaseException) -> None:
        """Wait for room in the queue, but not for ever."""
        while not self.closed.is_set():
            with contextlib.suppress(queue.Full):
                return self.queue.put(item, timeout=0.1)

    def next(self, device: torch.device) -> list[dict[str, Tensor]]:
        """The micro-batches of the next step, on their way to the device."""
        item = self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return [{k: v.to(device, non_blocking=True) for k, v in b.items()} for b in item]

    def close(self) -> None:
        """End the thread."""
        self.closed.set()
        self.thread.join()

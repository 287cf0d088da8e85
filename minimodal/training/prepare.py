"""What happens between the command and the first step, and what a run consists of.

`Training` holds a task with all that its steps change: its `state` is what a checkpoint keeps.
`build` puts the nets on the device, `measure` learns from a few passes which precision is faster
and how many FLOPs a sample costs, `wrap` compiles and spreads over processes. Tensors pass
through in the task's own shapes: (b, ...) with the rows of this process's micro-batch first.
"""

import copy
import sys
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minimodal.errors import UserError
from minimodal.training import checkpoint, distributed, probe
from minimodal.training.contract import Phase, Task, TrainConfig
from minimodal.training.distributed import Distributed
from minimodal.training.optim import Spikes, Together, make_optimizer
from minimodal.training.pace import Pace
from minimodal.training.sharding import Nets, joined, load_shares, shard

FASTER = 1.1  # bfloat16 has to be faster by a tenth, or float32 is the better choice


class PhaseLoss(nn.Module):
    """A phase's loss as a module that holds exactly the phase's nets.

    DistributedDataParallel averages the gradients of the parameters of the module that it wraps,
    after a call of that module; compile() likewise covers what is called through it.
    """

    def __init__(self, task: Task, phase: Phase) -> None:
        super().__init__()
        self.nets = nn.ModuleList(phase.nets)
        self.task, self.name = task, phase.name

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss of this phase."""
        return self.task.whole(lambda: self.task.loss(batch, self.name, step))


@dataclass
class Trained:
    """A phase with what trains it."""

    phase: Phase
    parameters: list[nn.Parameter]
    optimizer: torch.optim.AdamW | Together
    module: nn.Module  # PhaseLoss, wrapped where there are several processes
    spikes: Spikes | None = None
    unused: bool = False  # some weights get no gradient


@dataclass
class Training:
    """A task with all that its steps change."""

    task: Task
    config: TrainConfig
    here: Distributed
    phases: list[Trained]
    ema: nn.Module | None
    pace: Pace
    step: int = 0
    seconds: float = 0.0
    parts: int = 1  # that `guards.fit` has cut each micro-batch into
    moved: bool = False  # an optimiser has, in this step
    averaged: list[list[Tensor]] = field(default_factory=list)  # EMA's tensors, the model's
    nets: Nets | None = None  # under FSDP all nets, of which this process has its share
    spare: nn.Module | None = None  # under FSDP what rank 0 puts the best weights together in

    @property
    def best(self) -> nn.Module:
        """The weights to evaluate, sample from and save."""
        return self.task.model if self.ema is None else self.ema

    def whole_best(self) -> nn.Module:
        """The same, whole on rank 0; under FSDP all ranks must ask."""
        if self.nets is None:
            return self.best
        weights = joined(self.best.state_dict())
        if self.spare is None:
            return self.best
        self.spare.load_state_dict(weights)
        return self.spare.to(self.here.device)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, as torch.load(weights_only=True) can read it; under FSDP
        whole on rank 0, and all ranks must ask."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "pace": self.pace.state(),
            "model": self.task.model.state_dict(),
            "extra": {name: net.state_dict() for name, net in self.task.extra.items()},
            "optimizers": {t.phase.name: t.optimizer.state_dict() for t in self.phases},
            "spikes": {t.phase.name: t.spikes.state_dict() for t in self.phases if t.spikes},
            "ema": None if self.ema is None else self.ema.state_dict(),
        }
        return state if self.nets is None else joined(state)

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.pace.restore(state["pace"], step=self.step, seconds=self.seconds)
        load_shares(self.task.model, state["model"])
        for name, net in self.task.extra.items():
            load_shares(net, state["extra"][name])
        for trained in self.phases:
            trained.optimizer.load_state_dict(state["optimizers"][trained.phase.name])
            if trained.spikes is not None:
                trained.spikes.load_state_dict(state["spikes"][trained.phase.name])
        if self.ema is not None:
            load_shares(self.ema, state["ema"])


def select(phases: list[Trained], now: Trained) -> None:
    """Let only the phase that runs collect gradients.

    The generator's loss passes through the discriminator, whose weights then need no gradient of
    their own: without this they would get one, at the cost of a third of its backward pass.
    """
    for trained in phases if len(phases) > 1 else ():
        for parameter in trained.parameters:
            parameter.requires_grad_(trained is now)


def micro_rows(config: TrainConfig, here: Distributed) -> list[slice]:
    """The rows of the global batch that each of this process's micro-batches takes."""
    parts = here.world * config.accumulate
    if config.batch_size % parts:
        raise UserError(
            f"batch size {config.batch_size} is not a multiple of {here.world} processes times "
            f"{config.accumulate} micro-batches: make it a multiple of {parts}"
        )
    size = config.batch_size // parts
    first = here.rank * config.accumulate
    return [slice(i * size, (i + 1) * size) for i in range(first, first + config.accumulate)]


def first_state(
    out: Path, description: dict[str, Any], *, here: Distributed, resume: bool, held: ExitStack
) -> dict[str, Any] | None:
    """The state to start from, the same on all ranks; None to start afresh. The folder is kept
    for this run until `held` is closed."""
    state, error = None, None
    if here.main:
        try:
            held.enter_context(checkpoint.lock(out))
            state = checkpoint.state_for(out, description, resume=resume)
        except UserError as problem:
            error = str(problem)
    error, step = distributed.from_main((error, state and state["step"]))
    if error is not None:
        raise UserError(error)
    if step is not None and not here.main:
        path = checkpoint.state_path(out, step)
        state = torch.load(path, map_location="cpu", weights_only=True)
    return state


def check_engines(task: Task, config: TrainConfig, here: Distributed) -> None:
    """Refuse what compiling or shares of weights would not leave exact."""
    if config.compile and len(task.phases) > 1:
        raise UserError(
            f"compile: {task.name} takes gradients within its loss (λ), which compiled graphs do "
            "not keep; leave --compile off"
        )
    if config.auto_batch and here.world > 1:
        raise UserError(
            "auto_batch: one of several processes cannot make its steps smaller by itself; give "
            "--accumulate instead"
        )
    if config.fsdp and config.compile:
        raise UserError("fsdp: weights that come and go are not compiled; leave --compile off")
    if config.fsdp and here.world == 1:
        raise UserError(
            "fsdp: one process has nothing to share weights with; start several, as in "
            "torchrun --nproc_per_node=2 train.py …, or leave --fsdp off"
        )
    if config.fsdp and here.device.type == "cpu" and torch.__version__ < "2.7":
        raise UserError(
            f"fsdp: on a CPU it needs torch 2.7, this is {torch.__version__}; leave --fsdp off"
        )
    if config.fsdp and task.moves_weights:
        raise UserError(
            f"fsdp: {task.moves_weights}, which needs whole weights; leave --fsdp off, torchrun "
            "alone shares the batch"
        )


def build(
    task: Task, config: TrainConfig, *, here: Distributed, most: int | None = None
) -> Training:
    """Put the nets on the device and give each phase its optimiser.

    most: steps, whatever the minutes leave room for
    """
    nets = (task.model, *task.extra.values())
    check_engines(task, config, here)
    for net in nets:
        net.train() if config.fsdp else net.to(here.device).train()
    ema = copy.deepcopy(task.model).eval().requires_grad_(False) if config.ema_decay > 0 else None
    sharded = spare = None
    if config.fsdp:  # a share at a time moves to the device
        spare = copy.deepcopy(task.model) if here.main else None
        task.whole = sharded = shard(Nets(nets), here)
        ema = ema and shard(ema, here)
    known = {id(p) for net in nets for p in net.parameters()}
    phases = []
    for phase in task.phases:
        found = {id(p): p for net in phase.nets for p in net.parameters() if p.requires_grad}
        if not found.keys() <= known:
            raise ValueError(f"phase {phase.name} trains nets that no checkpoint would hold")
        betas = phase.betas or (config.beta1, config.beta2)
        optimizer = make_optimizer(
            phase.nets, lr=config.lr, betas=betas, weight_decay=config.weight_decay,
            muon=config.optimizer == "muon",
        )  # fmt: skip
        spikes = Spikes(config.skip_spikes).to(here.device) if config.skip_spikes else None
        module = PhaseLoss(task, phase)
        phases.append(Trained(phase, list(found.values()), optimizer, module, spikes=spikes))
    task.gather = distributed.gather
    pace = Pace(config.steps, config.minutes, most=most)
    task.when = pace.when
    training = Training(task, config, here, phases, ema=ema, pace=pace, nets=sharded, spare=spare)
    if ema is not None:
        pairs = (ema.parameters(), task.model.parameters(), ema.buffers(), task.model.buffers())
        training.averaged = [list(tensors) for tensors in pairs]
    return training


def one_pass(training: Training, batch: dict[str, Tensor]) -> None:
    """Forward and backward of every phase without a step; notes which weights stay untouched."""
    batch = dict(batch)  # phases leave tensors in it
    for trained in training.phases:
        select(training.phases, trained)
        trained.optimizer.zero_grad()
        loss, _ = trained.module(batch, training.step)
        if loss.requires_grad:
            loss.backward()
        # Of a phase that rests at this step nothing is known; its nets are taken as used.
        untouched = any(p.grad is None for p in trained.parameters)
        trained.unused = loss.requires_grad and untouched


def choose_precision(training: Training, batch: dict[str, Tensor]) -> str:
    """What "auto" means on this device, in the same words for all ranks."""
    device = training.here.device
    if device.type == "cuda":
        # Cards before Ampere only emulate bfloat16.
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        why = "what this device does best"
    # One answer for all: in the passes that would follow they wait for each other.
    elif not distributed.from_main(probe.multiplies_bfloat16(device)):
        fast, why = False, "this device has no fast bfloat16 instructions"
    else:
        speed = probe.bfloat16_speed(lambda: one_pass(training, batch), device)
        fast = speed > FASTER
        why = f"bfloat16 is {speed:.2g} x float32 on this device"
    precision = "bfloat16" if fast else "float32"
    if training.here.main:
        print(f"{training.task.name}: {precision} ({why})", file=sys.stderr)
    return distributed.from_main(precision)


def measure(training: Training, rows: slice) -> tuple[str, float, float]:
    """What is learnt from a few passes that change nothing.

    returns: the precision, FLOPs of a sample, the device's peak FLOP/s
    """
    device, precision = training.here.device, training.config.precision
    batch = {k: v.to(device) for k, v in training.task.batch(training.step, rows).items()}
    with probe.unchanged([training.task.model, *training.task.extra.values()]):
        if precision == "auto":
            precision = choose_precision(training, batch)
        with probe.autocast(device, precision):
            flops = probe.count_flops(lambda: one_pass(training, batch))
    return precision, flops / (rows.stop - rows.start), probe.matmul_peak(device, precision)


def wrap(training: Training) -> None:
    """Compile the phases and let their gradients be averaged over the processes."""
    for trained in training.phases:
        if training.config.compile:
            trained.module.compile()  # in place: names of weights keep no prefix
        if training.here.world > 1 and training.nets is None:
            select(training.phases, trained)
            with warnings.catch_warnings():
                # Newer versions call it forward_sync_buffers, older ones do not know that name.
                warnings.simplefilter("ignore", FutureWarning)
                trained.module = DistributedDataParallel(
                    trained.module, broadcast_buffers=False, find_unused_parameters=trained.unused
                )


def exchange(training: Training, trained: Trained, now: bool) -> AbstractContextManager:
    """Whether the processes exchange gradients after this micro-batch or keep them for the last."""
    if training.nets is not None:
        training.nets.set_requires_gradient_sync(now)
    elif training.here.world > 1 and not now:
        return trained.module.no_sync()
    return nullcontext()

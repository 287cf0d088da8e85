"""The training loop, once, for every system.

A `Task` says what differs between systems: its nets, its batches, its losses. `run` takes a task
and a `TrainConfig` to a run folder: gradient accumulation, clipping, bfloat16 autocast, averaged
weights (EMA), torch.compile, data-parallel processes with all weights or a share each, resuming,
logs, evaluation, samples. The list is closed; what a system needs beyond it belongs into its task.

Everything is a pure function of (seed, step), so a run needs no generator state: resumed, it takes
the same steps bit for bit. Read `contract.py` and `prepare.py` before; what happens between steps
is in `between.py`.
"""

import contextlib
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minimodal.training import checkpoint, distributed, guards, probe
from minimodal.training.batches import Batches
from minimodal.training.between import (
    begin,
    check_finite,
    conclude,
    due,
    evaluate,
    finished,
    how_to_resume,
    log,
    sample,
    struck,
    summary,
)  # fmt: skip
from minimodal.training.contract import Task, TrainConfig
from minimodal.training.optim import lr_at
from minimodal.training.prepare import (
    Training,
    build,
    exchange,
    first_state,
    measure,
    micro_rows,
    select,
    wrap,
)  # fmt: skip
from minimodal.training.progress import Interrupted, Progress, Signals
from minimodal.training.sharding import whole


def train_step(
    training: Training, batches: list[dict], *, lr: float, look: bool = False
) -> dict[str, Tensor | float]:
    """One optimiser step of each phase over the micro-batches of this process; its metrics.

    Loss and grad_norm of the second phase begin with its name. Nothing here waits for the device,
    unless it is to `look`: a gradient that is not finite then ends the step before the weights
    take it.
    """
    config, step, training.moved = training.config, training.step, False
    metrics: dict[str, Tensor | float] = {}
    select(training.phases, training.phases[0])
    with torch.no_grad(), probe.autocast(training.here.device, config.precision):
        training.task.before_step(step, batches)
    for trained in training.phases:
        select(training.phases, trained)
        prefix = "" if trained is training.phases[0] else f"{trained.phase.name}_"
        sums: dict[str, Tensor] = {}
        for m, batch in enumerate(batches):
            with exchange(training, trained, m == len(batches) - 1):
                with probe.autocast(training.here.device, config.precision):
                    loss, values = trained.module(batch, step)
                if loss.requires_grad:
                    (loss / len(batches)).backward()
            for name, value in {**values, prefix + "loss": loss.detach()}.items():
                sums[name] = sums[name] + value if name in sums else value
        metrics |= {name: value / len(batches) for name, value in sums.items()}
        if loss.requires_grad:
            norm = clip_grad_norm_(trained.parameters, config.clip_norm or math.inf, foreach=True)
            norm = metrics[prefix + "grad_norm"] = whole(norm)
            if look and not math.isfinite(norm):
                return metrics
            if trained.spikes is not None:
                found = trained.spikes.watch(trained.optimizer, norm, step)
                metrics[prefix + "skipped_steps"] = found
            for group in trained.optimizer.param_groups:
                group["lr"] = lr * trained.phase.lr_scale
            training.moved = True
            with probe.autocast(training.here.device, config.precision):  # Muon multiplies matrices
                trained.optimizer.step()
            trained.optimizer.zero_grad()
    if not any(name.endswith("grad_norm") for name in metrics):
        raise ValueError(f"step {step}: no loss of {training.task.name} has a gradient")
    with torch.no_grad():
        found = training.task.after_step(step, batches)
        metrics |= {name: whole(value) for name, value in found.items()}
        if training.ema is not None:
            follow(training)
    return metrics


def fitting_step(training: Training, batches: list[dict], *, lr: float, look: bool) -> dict:
    """The same, of smaller micro-batches where the device has no memory for these."""

    def compute() -> dict:
        return train_step(training, guards.cut(batches, training.parts), lr=lr, look=look)

    return guards.fit(training, compute)


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


def loop(
    training: Training, out: Path, *,
    batches: Batches, progress: Progress, signals: Signals, writer: checkpoint.Writer, began: float,
) -> None:  # fmt: skip
    """Take steps until the run is done; leaves a saved state behind, however it ends."""
    config, here, pace = training.config, training.here, training.pace
    done = pace.progress(training.step)
    while done < 1:
        lr = lr_at(training.step, done, config)
        step = training.step + 1
        logging = step == 1 or due(config.log_every, step)
        look = logging or here.device.type == "cpu"  # on CUDA looking waits for the device
        taken = batches.next(here.device)
        metrics = fitting_step(training, taken, lr=lr, look=look)
        training.step = step
        before, now = training.seconds, time.perf_counter() - began
        stop, training.seconds = distributed.agree(signals.received, now)
        pace.revise(step, training.seconds)
        done = pace.progress(step)
        progress.step(step, done, samples=config.batch_size // here.world)
        ending = stop or done >= 1
        logging = logging or ending
        saving = ending or due(config.checkpoint_every, step)
        saving = saving or struck(config.checkpoint_minutes, before, training.seconds)
        if look or saving:
            check_finite(training, metrics, taken, writer=writer)
        if logging:
            log(training, metrics, out=out, lr=lr, progress=progress)
        with progress.pause():
            if not ending and due(config.evaluate_every, step):
                evaluate(training, out)
            if not ending and due(config.sample_every, step):
                sample(training, out)
            state = training.state() if saving else None
            if here.main and saving:
                # The end of a run writes the final weights.
                writer.save(state, weights=done < 1)
        writer.look()
        if ending:
            writer.wait()
        if stop:
            distributed.barrier()  # the others must not end before the state is saved
            raise Interrupted


def run(
    task: Task, config: TrainConfig, out: Path,
    *, data_spec: str, resume: bool = False, device: str = "auto", most: int | None = None,
    whole: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a task into the run folder `out`, where no other process may train meanwhile.

    most: steps, whatever the config's minutes leave room for
    whole: the time.time() at which all that this run is a part of will end, to be shown as the
        time left
    returns: the numbers of the last step, with the final evaluation
    """
    out, began = Path(out), time.perf_counter()
    here = distributed.start(device)
    if config.deterministic:
        guards.repeat_exactly()
    if here.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where float32 is multiplied
    rows = micro_rows(config, here)
    described = {"kind": task.name, "model": task.config(), "train": asdict(config)}
    described |= {"data": data_spec}
    with contextlib.ExitStack() as held:
        state = first_state(out, described, here=here, resume=resume, held=held)
        if state is not None:
            if config.precision == "auto":  # as measured when the run began
                stored = checkpoint.load_run_config(out)["train"]
                config = replace(config, precision=stored["precision"])
            began -= state["seconds"]  # the clock goes on
        training = build(task, config, here=here, most=most)
        if state is not None:
            training.restore(state)
            if (before := finished(training, out, data_spec)) is not None:
                return before
        precision, flops, peak = guards.fit(
            training, lambda: measure(training, guards.rows_at_once(training))
        )
        config = training.config = replace(config, precision=precision)
        if here.main:
            begin(training, out, described)
        wrap(training)
        end = None if config.minutes > 0 else config.steps
        done = training.pace.progress(training.step)
        progress = Progress(task.name, done, flops=flops, peak=peak, show=here.main, whole=whole)
        batches = Batches(task, rows, first=training.step, end=end, pin=here.device.type == "cuda")
        writer, words = checkpoint.Writer(out, keep=config.keep), ""
        try:
            with Signals(task.name) as signals:
                loop(training, out, batches=batches, progress=progress, signals=signals,
                     writer=writer, began=began)  # fmt: skip
        except Interrupted:
            command = how_to_resume(here.world, alone=whole is None)
            words = f"{task.name}: stopped after step {training.step}; the state is saved. "
            words += f"Go on with:\n  {command}"
            raise
        finally:
            batches.close()
            writer.close()
            progress.close(training.step, words=words)
        conclude(training, out)
        return distributed.from_main(summary(out, training.step))

"""The training loop, once, for every system.

A `Task` says what differs between systems: its nets, its batches, its losses. `run` takes a task
and a `TrainConfig` to a run folder: gradient accumulation, clipping, bfloat16 autocast, averaged
weights (EMA), torch.compile, data-parallel processes with all weights or a share each, resuming,
logs, evaluation, samples. The list is closed; what a system needs beyond it belongs into its task.

Everything is a pure function of (seed, step), so a run needs no generator state: resumed, it takes
the same steps bit for bit. Read `contract.py` and `prepare.py` before.
"""

import contextlib
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from minimodal.errors import UserError
from minimodal.files import make_folder
from minimodal.training import checkpoint, distributed, guards, probe
from minimodal.training.batches import Batches
from minimodal.training.contract import Interrupted, Phase, Task, TrainConfig
from minimodal.training.optim import lr_at
from minimodal.training.prepare import (
    Trained,
    Training,
    build,
    first_state,
    measure,
    micro_rows,
    select,
    wrap,
)  # fmt: skip
from minimodal.training.progress import Progress, Signals
from minimodal.training.sharding import whole

__all__ = ["Interrupted", "Phase", "Task", "TrainConfig", "run", "train_step"]


def exchange(training: Training, trained: Trained, now: bool) -> AbstractContextManager:
    """Whether the processes exchange gradients after this micro-batch or keep them for the last."""
    if training.nets is not None:
        training.nets.set_requires_gradient_sync(now)
    elif training.here.world > 1 and not now:
        return trained.module.no_sync()
    return contextlib.nullcontext()


def train_step(training: Training, batches: list[dict], *, lr: float) -> dict[str, Tensor | float]:
    """One optimiser step of each phase over the micro-batches of this process; its metrics.

    Loss and grad_norm of the second phase begin with its name. Nothing here waits for the device.
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


def fitting_step(training: Training, batches: list[dict], *, lr: float) -> dict:
    """The same, of smaller micro-batches where the device has no memory for these."""
    return guards.fit(
        training, lambda: train_step(training, guards.cut(batches, training.parts), lr=lr)
    )


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


# ---- between steps


def due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def struck(minutes: float, before: float, now: float) -> bool:
    """Whether a clock that strikes every so many minutes (0: never) has, between two seconds."""
    return minutes > 0 and now // (60 * minutes) > before // (60 * minutes)


def check_finite(
    training: Training, metrics: dict[str, Tensor | float], *, writer: checkpoint.Writer
) -> None:
    """Stop a run that has diverged, before it overwrites a good state; name what is not finite."""
    bad = [name for name, value in metrics.items() if not math.isfinite(float(value))]
    totals = [name for name in bad if name.endswith(("loss", "grad_norm"))]
    if totals:
        # The terms of a loss, which come before it, say more than the sum that they have spoilt.
        named = bad[: bad.index(totals[0])] or totals[:1]
        what = ", ".join(f"{name} is {float(metrics[name])}" for name in named)
        writer.wait()
        out = writer.out
        saved = any((out / "state").glob("step-*.pt"))
        raise UserError(
            f"step {training.step}: {what}; train again with a lower --lr (now "
            f"{training.config.lr:g}) in another --out; {out} "
            + ("keeps its last saved state" if saved else "has no saved state yet")
        )


def log(
    training: Training, metrics: dict[str, Tensor | float],
    *, out: Path, lr: float, progress: Progress,
) -> None:  # fmt: skip
    """Write the step's metrics, averaged over the ranks."""
    device = training.here.device
    values = [torch.as_tensor(v, dtype=torch.float32, device=device) for v in metrics.values()]
    means = distributed.mean_over_ranks(torch.stack([v.detach().reshape(()) for v in values]))
    numbers = dict(zip(metrics, means.tolist(), strict=True))
    speed = progress.measure(numbers["loss"]) * training.here.world
    if training.here.main:
        line = {"step": training.step, "seconds": round(training.seconds, 3)}
        line |= {"samples_per_second": round(speed, 3), "lr": lr}
        checkpoint.append_metrics(out, line | numbers)


@contextlib.contextmanager
def best_model(training: Training) -> Iterator[nn.Module]:
    """The weights that would be used, in eval mode, without gradients, in the run's precision;
    whole on rank 0, for which all ranks have to ask."""
    model = training.whole_best().eval()
    with torch.no_grad(), probe.autocast(training.here.device, training.config.precision):
        yield model
    model.train(model is training.task.model)
    if model is training.spare:
        model.to("cpu")


def evaluate(training: Training, out: Path, *, done: bool = False) -> None:
    """Write the scores of the weights that would be used: rank 0 does, with all ranks here."""
    with best_model(training) as model:
        if not training.here.main:
            return
        scores = training.task.evaluate(model)
    line = {"step": training.step, "seconds": round(training.seconds, 3)}
    line |= {name: float(value) for name, value in scores.items()}
    if scores or done:
        checkpoint.append_metrics(out, line | ({"done": True} if done else {}))


def sample(training: Training, out: Path) -> None:
    """Write a picture of what the weights that would be used do: as `evaluate`."""
    with best_model(training) as model:
        picture = training.task.sample(model, training.step) if training.here.main else None
    if picture is not None:
        image = Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
        path = out / "samples" / f"step-{training.step:08d}.png"
        make_folder(path.parent)
        checkpoint.write_atomically(path, lambda file: image.save(file, format="PNG"))


def say_what_is_missing(training: Training) -> None:
    """One line of what a run that has ended never came to, if anything."""
    last, task = training.pace.when(training.step - 1), training.task
    if missing := [what for what, first in task.events.items() if last < first]:
        print(f"{task.name}: ended at step {training.step} before {', before '.join(missing)}; "
              "--resume with more --steps or --minutes goes on", file=sys.stderr)  # fmt: skip


def conclude(training: Training, out: Path) -> None:
    """Write what a run leaves at its end; all ranks have to be here."""
    with best_model(training) as model:
        if training.here.main:
            checkpoint.save_weights(out, model)
    sample(training, out)
    evaluate(training, out, done=True)
    if training.here.main:
        say_what_is_missing(training)


def how_to_resume(world: int, *, alone: bool) -> str:
    """The command line that goes on with this run; the demo, of which one is a part, always does.

    alone: the run is no part of something larger
    """
    words = [word for word in sys.argv if word != "--resume"] + (["--resume"] if alone else [])
    if Path(words[0]).name == "__main__.py":  # python -m minimodal
        words[:1] = ["-m", "minimodal"]
    start = ["torchrun", f"--nproc_per_node={world}"] if world > 1 else ["python"]
    return shlex.join([*start, *words])


# ---- the loop


def loop(
    training: Training, out: Path, *,
    batches: Batches, progress: Progress, signals: Signals, writer: checkpoint.Writer, began: float,
) -> None:  # fmt: skip
    """Take steps until the run is done; leaves a saved state behind, however it ends."""
    config, here, pace = training.config, training.here, training.pace
    done = pace.progress(training.step)
    while done < 1:
        lr = lr_at(
            training.step, done, lr=config.lr, warmup=config.warmup,
            min_lr_ratio=config.min_lr_ratio,
        )  # fmt: skip
        metrics = fitting_step(training, batches.next(here.device), lr=lr)
        training.step += 1
        step = training.step
        before, now = training.seconds, time.perf_counter() - began
        stop, training.seconds = distributed.agree(signals.received, now)
        pace.revise(step, training.seconds)
        done = pace.progress(step)
        progress.step(step, done, samples=config.batch_size // here.world)
        ending = stop or done >= 1
        logging = ending or step == 1 or due(config.log_every, step)
        saving = ending or due(config.checkpoint_every, step)
        saving = saving or struck(config.checkpoint_minutes, before, training.seconds)
        # On the CPU looking costs nothing; on CUDA it would wait for the device.
        if logging or saving or here.device.type == "cpu":
            check_finite(training, metrics, writer=writer)
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


def summary(out: Path, step: int) -> dict[str, Any] | None:
    """All that metrics.jsonl says about the end of a finished run; None if it has not ended."""
    end = checkpoint.last_of_finished(out)
    if end is None or end["step"] != step:
        return None
    lines = [line for line in checkpoint.read_metrics(out) if line.get("step") == step]
    return {k: v for line in lines for k, v in line.items()}


def finished(training: Training, out: Path, data_spec: str) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do, with the files beside its weights written
    again, in case they were lost; None of any other."""
    if training.pace.progress(training.step) < 1:
        return None
    before = distributed.from_main(summary(out, training.step))
    if before is not None and training.here.main:
        print(f"{out} is done: {training.step} steps, nothing to resume", file=sys.stderr)
        if os.access(out, os.W_OK):
            training.task.save_files(out)
            stored = checkpoint.load_run_config(out)
            if stored.get("data") != data_spec:  # the same pictures at another place
                checkpoint.save_config(out, {**stored, "data": data_spec})
    return before


def begin(training: Training, out: Path, described: dict[str, Any]) -> None:
    """Write what a run says of itself before its first step, or the first that it takes again."""
    checkpoint.save_config(out, {**described, "train": asdict(training.config)})
    checkpoint.clean(out)
    checkpoint.truncate_metrics(out, training.step)
    training.task.save_files(out)


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
        writer = checkpoint.Writer(out, keep=config.keep)
        try:
            with Signals(task.name) as signals:
                loop(training, out, batches=batches, progress=progress, signals=signals,
                     writer=writer, began=began)  # fmt: skip
        except Interrupted:
            command = how_to_resume(here.world, alone=whole is None)
            progress.say(f"{task.name}: stopped after step {training.step}; the state is saved. "
                         f"Go on with:\n  {command}")  # fmt: skip
            raise
        finally:
            batches.close()
            writer.close()
            progress.close(training.step)
        conclude(training, out)
        return distributed.from_main(summary(out, training.step))

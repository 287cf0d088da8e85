"""What the engine does between steps and around them: logs, scores, samples, and how a run begins
and ends.

Each function takes the training as it stands and writes into its run folder. Read `engine.py`
before.
"""

import contextlib
import math
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from minimodal.errors import UserError
from minimodal.files import save_whole
from minimodal.training import checkpoint, distributed, guards, probe
from minimodal.training.prepare import Training
from minimodal.training.progress import Progress


def due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def struck(minutes: float, before: float, now: float) -> bool:
    """Whether a clock that strikes every so many minutes (0: never) has, between two seconds."""
    return minutes > 0 and now // (60 * minutes) > before // (60 * minutes)


def check_finite(
    training: Training, metrics: dict[str, Tensor | float], batches: list[dict[str, Tensor]],
    *, writer: checkpoint.Writer,
) -> None:  # fmt: skip
    """Stop a run that has diverged, before it overwrites a good state; name what is not finite,
    and keep the step's batch."""
    bad = [name for name, value in metrics.items() if not math.isfinite(float(value))]
    totals = [name for name in bad if name.endswith(("loss", "grad_norm"))]
    if totals:
        # The terms of a loss, which come before it, say more than the sum that they have spoilt.
        named = bad[: bad.index(totals[0])] or totals[:1]
        what = ", ".join(f"{name} is {float(metrics[name])}" for name in named)
        writer.wait()
        out = writer.out
        saved = any((out / "state").glob("step-*.pt"))
        kept, path = checkpoint.copied(batches), out / f"not-finite-{training.here.rank}.pt"
        checkpoint.write_atomically(path, lambda file: torch.save(kept, file))
        # A loss of one process alone tells the others nothing, a gradient does.
        together = training.here.world == 1 or any(name.endswith("norm") for name in totals)
        why = f"; {guards.culprit(training, batches)}" if together else ""
        raise UserError(
            f"step {training.step}: {what}{why}; the batch is in {path}; {out} "
            + ("keeps its last saved state" if saved else "has no saved state yet")
            + f"; train again with a lower --lr (now {training.config.lr:g}) in another --out"
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
        save_whole(path, lambda file: image.save(file, format="PNG"))


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

"""The run folder: written so that a run killed at any instant goes on from its last state.

    config.json          kind, model, train, data, versions, git_commit: rebuilds the model
    model.safetensors    the weights to use (averaged ones where EMA is on)
    state/step-N.pt      the newest two training states, with the SHA-256 in step-N.pt.sha256
    metrics.jsonl        one line a logged step

Every file is written under another name, flushed to the disk and renamed, so that a name always
stands for a whole file. A state is complete when it matches its checksum; the newest complete one
wins. `load_run_config` and `load_weights` are for those who use a trained model.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minimodal.drawing import make_folder
from minimodal.errors import UserError

# How long a run lasts and what it reports may change when it goes on; what it computes may not.
MAY_CHANGE = (
    "steps", "minutes", "log_every", "evaluate_every", "sample_every", "checkpoint_every",
    "known_tokens",  # of runs before words.json
)  # fmt: skip
KEPT_STATES = 2


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, then give it its name."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself has to reach the disk
    finally:
        os.close(folder)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


# ---- training states


def state_path(out: Path, step: int) -> Path:
    """Where the state after `step` steps is kept."""
    return out / "state" / f"step-{step:08d}.pt"


def checksum_path(state: Path) -> Path:
    """Where a state's checksum is kept."""
    return state.with_name(state.name + ".sha256")


def save_state(out: Path, state: dict[str, Any]) -> None:
    """Write a training state (it has a "step") and remove all but the newest two.

    The checksum gets its name first: a kill in between leaves a checksum without a state, which
    means nothing. The step never names a complete state already, since a run that goes on starts
    from the newest one.
    """
    path = state_path(out, state["step"])
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        torch.save(state, temporary)
        line = f"{digest(temporary)}  {path.name}\n"
        write_atomically(checksum_path(path), lambda t: t.write_text(line))

    write_atomically(path, write)
    for old in sorted(path.parent.glob("step-*.pt"))[:-KEPT_STATES]:
        old.unlink()
        checksum_path(old).unlink(missing_ok=True)


def damage(path: Path) -> str | None:
    """What is wrong with a state file; None for a complete one."""
    try:
        expected = checksum_path(path).read_text().split()[0]
    except (OSError, IndexError):
        return "it has no checksum"
    return None if digest(path) == expected else "it does not match its checksum"


def newest_state(out: Path) -> dict[str, Any] | None:
    """The newest complete training state of a run; None if there is none."""
    for path in sorted((out / "state").glob("step-*.pt"), reverse=True):
        wrong = damage(path)
        if wrong is None:
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # whatever the reader finds, an older state may do
                wrong = f"it cannot be read ({str(error).splitlines()[0]})"
        print(f"{path} is damaged and skipped: {wrong}", file=sys.stderr)
    return None


def state_for(out: Path, config: dict[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """What to start a run in `out` from; None to start afresh.

    Nothing that exists is lost: without `resume` the folder must not hold a run, and with it
    the run must have been started with the same configuration.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    if not resume:
        names = ("config.json", "model.safetensors", "metrics.jsonl", "state")
        if any((out / name).exists() for name in names):
            raise UserError(f"{out} holds a run already; use --resume or another --out")
        make_folder(out)
        return None
    state = newest_state(out)
    if state is not None:
        check_same(out, config)
    elif (out / "model.safetensors").exists():
        raise UserError(
            f"{out} has no complete training state to resume from; its model.safetensors can "
            "still be used: train in another --out"
        )
    else:
        print(f"{out} has no training state yet: starting from the beginning", file=sys.stderr)
    return state


def check_same(out: Path, config: dict[str, Any]) -> None:
    """Raise an error that names the first field in which `config` differs from the run's own."""
    stored = load_run_config(out, kind=config["kind"])
    new = json.loads(json.dumps(config))  # tuples become lists, as in the file
    pairs = [("data", stored.get("data"), new["data"])]
    for part in ("model", "train"):
        theirs = stored.get(part, {})
        names = new[part] if part == "train" else {**theirs, **new[part]}
        pairs += [(name, theirs.get(name), new[part].get(name)) for name in names]
    for name, before, now in pairs:
        if name in MAY_CHANGE or (name == "precision" and now == "auto"):
            continue
        if before != now:
            if isinstance(before, dict) and isinstance(now, dict):  # a part of the model's settings
                changed = next(n for n in {**before, **now} if before.get(n) != now.get(n))
                name, before, now = changed, before.get(changed), now.get(changed)
            raise UserError(
                f"{out} was trained with {name} {before}, not {now}; resume it with the same "
                "or train in another --out"
            )


def clean(out: Path) -> None:
    """Remove what a killed run left half written."""
    for folder in (out, out / "state"):
        for path in folder.glob(".*.tmp"):
            path.unlink()


# ---- weights and configuration


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, each in its own memory on the CPU."""
    return {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}


def save_weights(out: Path, module: nn.Module) -> None:
    """Write model.safetensors."""
    # safetensors refuses tensors that share memory, such as tied embeddings.
    tensors = {name: tensor.clone() for name, tensor in weights_of(module).items()}
    write_atomically(out / "model.safetensors", lambda path: save_file(tensors, path))


def git_commit() -> str | None:
    """The commit of the checkout that the package is in, if it is in one."""
    package = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = found.stdout.split("\n")
    # An installed copy may lie inside somebody else's repository.
    ours = found.returncode == 0 and Path(lines[0]) == package.parent
    return lines[1] if ours else None


def versions() -> dict[str, str | None]:
    """What the run was made with."""
    try:
        own = importlib.metadata.version("minimodal")
    except importlib.metadata.PackageNotFoundError:
        own = None
    return {"python": platform.python_version(), "torch": torch.__version__, "minimodal": own}


def save_config(out: Path, config: dict[str, Any]) -> None:
    """Write config.json, with the versions and the commit that make the run."""
    out.mkdir(parents=True, exist_ok=True)
    whole = {**config, "versions": versions(), "git_commit": git_commit()}
    text = json.dumps(whole, indent=2) + "\n"
    write_atomically(out / "config.json", lambda path: path.write_text(text))


def load_run_config(path: str | Path, *, kind: str | None = None) -> dict[str, Any]:
    """A run folder's config.json; with `kind` it must be a run of that kind."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(f"{path} is no run folder: it has no config.json; train.py writes one")
    try:
        config = json.loads(file.read_text())
        found = config["kind"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged: expected the JSON that train.py writes") from None
    if kind is not None and found != kind:
        raise UserError(f"{path} holds a trained {found}, not a {kind}; give a {kind} run")
    return config


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a run folder's model.safetensors, on the CPU."""
    file = Path(path) / "model.safetensors"
    if not file.is_file():
        load_run_config(path)  # says so if it is no run folder at all
        raise UserError(f"{path} has no model.safetensors yet: let it train up to a checkpoint")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        whole = any(damage(state) is None for state in (file.parent / "state").glob("step-*.pt"))
        way = "train.py with --resume writes it again from the run's newest state" if whole else (
            "the run has no whole state to write it from: get it from a copy, or train again in "
            "another --out"
        )  # fmt: skip
        raise UserError(f"{file} is damaged ({error}): {way}") from None


# ---- metrics


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a half-written last line is left out."""
    path = out / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def last_of_finished(out: Path) -> dict[str, Any] | None:
    """The last line of a run that has ended and has its weights; None of any other."""
    lines = read_metrics(out)
    ended = lines and lines[-1].get("done") and (out / "model.safetensors").exists()
    return lines[-1] if ended else None


def append_metrics(out: Path, line: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl; what is no number becomes null, which JSON has."""
    bad = {k: None for k, v in line.items() if isinstance(v, float) and not math.isfinite(v)}
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line | bad) + "\n")


def truncate_metrics(out: Path, step: int) -> None:
    """Drop the lines after `step`: the steps that a resumed run takes again."""
    kept = [line for line in read_metrics(out) if line.get("step", 0) <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_atomically(out / "metrics.jsonl", lambda path: path.write_text(text))

"""The run folder: written so that a run killed at any instant goes on from its last state.

    config.json          kind, model, train, data, versions, git_commit: rebuilds the model
    model.safetensors    the weights to use (averaged ones where EMA is on)
    state/step-N.pt      the newest training states (--keep), with the SHA-256 in step-N.pt.sha256
    metrics.jsonl        one line a logged step
    .lock                held by the process that trains, so that there is one

Every file is written under another name, flushed to the disk and renamed, so that a name always
stands for a whole file. A state is complete when it matches its checksum; the newest complete one
wins. `load_run_config` and `load_weights` are for those who use a trained model.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from minimodal.errors import UserError
from minimodal.files import asking, digest, make_folder, write_atomically

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

# How long a run lasts and what it reports may change when it goes on; what it computes may not.
MAY_CHANGE = (
    "steps", "minutes", "log_every", "evaluate_every", "sample_every", "checkpoint_every",
    "checkpoint_minutes", "keep", "fsdp", "auto_batch", "deterministic",
)  # fmt: skip


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Keep a folder for this process; the kernel lets go of it however the process ends."""
    if fcntl is None or (os.path.isdir(out) and not os.access(out, os.W_OK)):
        yield  # where nobody can write there is nothing to keep
        return
    make_folder(out)
    with contextlib.ExitStack() as opened:
        with asking("write", out / ".lock"):
            file = opened.enter_context(open(out / ".lock", "a+b", buffering=0))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"process {file.read().decode()} is training in {out}: wait until it ends, "
                    "stop it, or give another --out"
                ) from None
            except OSError as error:  # some network file systems
                print(f"{out} cannot be locked: {error.strerror}", file=sys.stderr)
            file.truncate(0)
            file.write(f"{os.getpid()} on {platform.node()}".encode())
        yield


# ---- training states


def state_path(out: Path, step: int) -> Path:
    """Where the state after `step` steps is kept."""
    return out / "state" / f"step-{step:08d}.pt"


def checksum_path(state: Path) -> Path:
    """Where a state's checksum is kept."""
    return state.with_name(state.name + ".sha256")


def save_state(out: Path, state: dict[str, Any], *, keep: int = 2) -> None:
    """Write a training state (it has a "step") and remove all but the newest `keep`.

    The checksum gets its name first: a kill in between leaves a checksum without a state, which
    means nothing. The step never names a complete state already, since a run that goes on starts
    from the newest one.
    """
    path = state_path(out, state["step"])
    make_folder(path.parent)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # of a path torch.save does not say what went wrong
            torch.save(state, file)
        line = f"{digest(temporary)}  {path.name}\n"
        write_atomically(checksum_path(path), lambda t: t.write_text(line))

    write_atomically(path, write)
    for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
        old.unlink()
        checksum_path(old).unlink(missing_ok=True)


def copied(value: Any) -> Any:
    """A state whose tensors are copies on the CPU, which later steps leave as they are."""
    cpu = torch.device("cpu")
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to(cpu, copy=True), value)


class Writer:
    """Writes training states in a thread of its own, one at a time, while the steps go on.

    A state is copied first. What the disk refuses is raised by whatever of the Writer is called
    next: the training then ends, with the state before whole.
    """

    def __init__(self, out: Path, *, keep: int = 2) -> None:
        self.out, self.keep, self.pending = out, keep, None
        self.pool = ThreadPoolExecutor(1, "checkpoint")

    def save(self, state: dict[str, Any], *, weights: bool) -> None:
        """Begin to write a state, and of it the weights to use into model.safetensors."""
        self.wait()
        self.pending = self.pool.submit(self.write, copied(state), weights)

    def write(self, state: dict[str, Any], weights: bool) -> None:
        """The thread's work."""
        save_state(self.out, state, keep=self.keep)
        if weights:
            write_weights(self.out, state["ema"] or state["model"])

    def look(self) -> None:
        """Raise what went wrong, if the writing has ended."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Let the writing end; raise what went wrong."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the thread, after what it has begun."""
        self.pool.shutdown()


def damage(path: Path) -> str | None:
    """What is wrong with a state file; None for a complete one."""
    try:
        expected = checksum_path(path).read_text(errors="replace").split()[0]
    except (FileNotFoundError, IndexError):
        return "it has no checksum"
    return None if digest(path) == expected else "it does not match its checksum"


def newest_state(out: Path) -> dict[str, Any] | None:
    """The newest complete training state of a run; None if there is none."""
    for path in sorted((out / "state").glob("step-*.pt"), reverse=True):
        with asking("read", path):
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
    names = ("config.json", "model.safetensors", "metrics.jsonl", "state")
    begun = any((out / name).exists() for name in names)
    if not begun and any(out.glob("*/config.json")):  # as the demo's, which would be one run then
        raise UserError(f"{out} is a folder of runs; give the new one a folder of its own by --out")
    if not resume:
        if begun:
            raise UserError(f"{out} holds a run already; use --resume or another --out")
        make_folder(out)
        return None
    state = newest_state(out)
    if state is not None:
        check_same(out, config)
    elif (out / "model.safetensors").exists():
        raise UserError(
            f"{out} has no complete training state to resume from; its model.safetensors can "
            "still be used, if it is whole: train in another --out"
        )
    else:
        print(f"{out} has no training state yet: starting from the beginning", file=sys.stderr)
    return state


def settings(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """What a run depends on: what the flags say, what the model is, and the hash of its data."""
    model = dict(config.get("model", {}))
    training = dict(model.pop("training", {}))
    data = training.pop("data", None)
    return {"data": config.get("data"), **config.get("train", {}), **training}, model, data


def as_flag(name: str, value: Any) -> str:
    """A setting as it is written on a command line."""
    value = ("no", "yes")[value] if isinstance(value, bool) else value
    value = ",".join(map(str, value)) if isinstance(value, list) else value
    return f"--{name.replace('_', '-')} {'none' if value in ('', None) else value}"


def check_same(out: Path, config: dict[str, Any]) -> None:
    """Raise an error that names the flags by which `config` differs from the run's own."""
    before, model, data = settings(load_run_config(out, kind=config["kind"]))
    # As in the file: tuples become lists.
    now, new_model, new_data = settings(json.loads(json.dumps(config)))
    if now.get("precision") == "auto":
        now["precision"] = before.get("precision")
    if data is not None and data == new_data:  # the pictures decide, not where they lie
        now |= {"data": before["data"], "limit": before["limit"]}
    end = "resume it with the same or train in another --out"
    end = end if data == new_data else f"its pictures or captions were others; {end}"
    # What the model is follows from flags, which say it better.
    for old, new in ((before, now), (model, new_model)):
        names = [name for name in {**old, **new} if name not in MAY_CHANGE]
        names = [name for name in names if old.get(name) != new.get(name)]
        inside = "vqgan" if "vqgan" in names else "data"  # what only hashes tell apart
        if inside == "vqgan" or (data != new_data and not {"data", "limit"} & {*names}):
            raise UserError(f"--{inside} holds something else than when {out} was trained; {end}")
        if names:
            then, here = (" ".join(as_flag(n, part.get(n)) for n in names) for part in (old, new))
            raise UserError(f"{out} was trained with {then}, not {here}; {end}")


def clean(out: Path) -> None:
    """Remove what a killed run left half written."""
    for folder in (out, out / "state"):
        for path in folder.glob(".*.tmp"):
            path.unlink()


# ---- weights and configuration


def write_weights(out: Path, tensors: dict[str, Tensor]) -> None:
    """Write model.safetensors."""
    # safetensors refuses tensors that share memory, such as tied embeddings.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # Not save_file: its files are for their owner alone.
    write_atomically(out / "model.safetensors", lambda path: path.write_bytes(save(tensors)))


def save_weights(out: Path, module: nn.Module) -> None:
    """Write a module's weights as model.safetensors."""
    write_weights(out, module.state_dict())


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
    """Write config.json, with the versions and the commit that make the run, or that it names."""
    make_folder(out)
    whole = {**config, "versions": versions(), "git_commit": git_commit(), **config}
    text = json.dumps(whole, indent=2) + "\n"
    write_atomically(out / "config.json", lambda path: path.write_text(text))


def load_run_config(path: str | Path, *, kind: str | None = None) -> dict[str, Any]:
    """A run folder's config.json; with `kind` it must be a run of that kind."""
    file = Path(path) / "config.json"
    with asking("read", file):
        try:
            text = file.read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path} is no run folder: it has no config.json; train.py writes one"
            ) from None
    try:
        config = json.loads(text)
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
    with asking("read", file), open(file, "rb"):
        pass  # a locked file is said to be one here; safetensors would say that it is not there
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
    """The lines of metrics.jsonl; what is none, such as a half-written one, is left out."""
    path = out / "metrics.jsonl"
    with asking("read", path):
        text = path.read_text(errors="replace") if path.exists() else ""
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def last_of_finished(out: Path) -> dict[str, Any] | None:
    """The last line of a run that has ended and has its weights; None of any other."""
    lines = read_metrics(out)
    try:
        with safe_open(out / "model.safetensors", "pt"):  # looks whether all of it is there
            return lines[-1] if lines and lines[-1].get("done") else None
    except (SafetensorError, OSError):
        return None


def append_metrics(out: Path, line: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl; what is no number becomes null, which JSON has."""
    bad = {k: None for k, v in line.items() if isinstance(v, float) and not math.isfinite(v)}
    path = out / "metrics.jsonl"
    with asking("write", path), open(path, "a") as file:
        file.write(json.dumps(line | bad) + "\n")


def truncate_metrics(out: Path, step: int) -> None:
    """Drop the lines after `step`: the steps that a resumed run takes again."""
    kept = [line for line in read_metrics(out) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_atomically(out / "metrics.jsonl", lambda path: path.write_text(text))

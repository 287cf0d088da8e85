"""How many lines one reads to follow a batch to the loss, for CLIP, VQGAN and DALL·E.

python benchmarks/reading.py            (in a checkout; nothing has to be trained)

The rule: begin with the system's task and follow the imports of the package, at the top of each
file, through the systems, `blocks/` and `training/tasks/`, as far as the tokenizer and the door of
the data (`data/sources.py`). Of the files found, those count of which something runs while
`Task.batch` and `Task.loss` work, in trainings of a few steps with default options: on the Shapes
world, and on a folder of pictures, which have one codebook. A file counts whole, with the options
in it that no default needs. The engine's loop and its contract are counted with each system.

Left out is what a reader of the loss takes on trust: where pictures come from (worlds, CIFAR,
folders), errors, files, scores, the machinery around the loop (checkpoints, processes, reports).
"""

import ast
import sys
import tempfile
import threading
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from minimodal.cli.train import main as train

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minimodal"
FOLLOWED = ("clip", "vqgan", "dalle", "blocks", "training/tasks")
DOORS = ("data/sources.py", "data/tokenizer.py")  # read, but not followed
LOOP = ("training/engine.py", "training/contract.py")
SHORT = "--steps 6 --batch-size 8 --device cpu --precision float32".split()
EVENTS = "--warm-start 1 --discriminator-start 2 --gan-start 3 --gan-ramp 1".split()  # all of a GAN


def imported(name: str) -> list[str]:
    """The files of the package that a file imports at its top."""
    found = []
    for node in ast.parse((PACKAGE / name).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minimodal"):
            base = node.module.replace(".", "/").removeprefix("minimodal").strip("/")
            for one in (base, *(f"{base}/{alias.name}".strip("/") for alias in node.names)):
                found += [
                    file
                    for file in (f"{one}.py", f"{one}/__init__.py")
                    if one and (PACKAGE / file).is_file()
                ]
    return found


def followed(task: str) -> set[str]:
    """The files that a reader comes to from a task's file."""
    found, ahead = set(), [task]
    while ahead:
        name = ahead.pop()
        place = name.removesuffix(".py")
        inside = any(place == one or place.startswith(f"{one}/") for one in FOLLOWED)
        if name not in found and (inside or name in DOORS):
            found.add(name)
            ahead += imported(name) if inside else []
    return found


def running(arguments: list[str]) -> set[str]:
    """The files of the package that run within `batch` and `loss` of a training's task."""
    found: set[str] = set()
    tasks = str(PACKAGE / "training" / "tasks")

    def watch(frame, event: str, _) -> None:
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(str(PACKAGE)):
            return
        outer = frame
        while outer is not None:
            code = outer.f_code
            if code.co_name in ("batch", "loss") and code.co_filename.startswith(tasks):
                found.add(Path(name).relative_to(PACKAGE).as_posix())
                return
            outer = outer.f_back

    threading.setprofile(watch)  # batches are made in a thread, ahead of time
    sys.setprofile(watch)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
            status = train(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if status:
        raise SystemExit(said.getvalue())
    return found


def write_pictures(folder: Path) -> None:
    """A few captioned pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")


def measure(here: Path) -> dict[str, set[str]]:
    """For each system the files that a reader of its loss opens."""
    write_pictures(here / "pictures")
    ran: dict[str, set[str]] = {"clip": set(), "vqgan": set(), "dalle": set()}
    for number, spec in enumerate(("shapes", f"folder:{here / 'pictures'}")):
        more = {
            "vqgan": EVENTS,
            "clip": [],
            "dalle": ["--vqgan", str(here / f"vqgan{number}"), "--pool", "32"],
        }
        for system, flags in more.items():
            out = str(here / f"{system}{number}")
            ran[system] |= running([system, "--data", spec, "--out", out, *SHORT, *flags])
    return {
        system: followed(f"training/tasks/{system}.py") & files for system, files in ran.items()
    }


def main() -> None:
    """Print a table for each system, the longest file first."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    for system, names in found.items():
        files = {*names, *LOOP}
        lines = {name: len((PACKAGE / name).read_text().splitlines()) for name in files}
        print(f"{system}: {sum(lines.values()):,} lines in {len(lines)} files")
        for name in sorted(lines, key=lambda one: -lines[one]):
            print(f"  {lines[name]:4} {name}")


if __name__ == "__main__":
    main()

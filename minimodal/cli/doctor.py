"""`python -m minimodal doctor [SPEC]`: is all here, how fast is it, and is the data as wanted.

Says what is installed, what the machine has and what it reaches in a product of matrices, whether
each system learns one batch by heart, and of a data SPEC how many pictures and captions it has,
which files are broken or were not used (the readers of `data/` name them while they read), and
which pictures and captions there are twice.
"""

import argparse
import hashlib
import io
import json
import statistics
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minimodal.data.loading import open_data
from minimodal.data.sources import first_pictures
from minimodal.training.between import begin
from minimodal.training.checkpoint import git_commit, save_weights, versions
from minimodal.training.distributed import Distributed, pick_device, usable_cores
from minimodal.training.engine import train_step
from minimodal.training.prepare import build
from minimodal.training.probe import matmul_peak
from minimodal.training.recipes import SYSTEMS, recipe_for, scale_events

ABOUT = "whether all is installed and learns, how fast this machine is, what is wrong with data"
IMAGE_SIZE = 64  # at which pictures are read
LOOKED_AT = 20_000  # pictures of each split: the Shapes world has no end of them
TWICE = 0.02  # share of pictures that are there twice from which on it is worth a word
STEPS, BATCH = 30, 4  # in which each system learns a batch of so many pictures, at these sizes
SMALL = {"channels": 32, "width": 64, "depth": 1, "vision_depth": 1, "text_depth": 1}
LEARNT = 0.8  # of the first loss: what learns is below it in the end
PEAK_SIZE = 512  # of the matrices: large enough for a CPU's full speed, quick where it is slow


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", nargs="?", metavar="SPEC", help="data to look at, as for train.py")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--json", action="store_true", help="print one JSON object instead of words")


def machine(device: torch.device) -> dict[str, Any]:
    """What there is and how fast it is."""
    n = 0 if device.type == "cuda" else PEAK_SIZE
    peaks = {p: matmul_peak(device, p, n=n) for p in ("float32", "bfloat16")}
    found = {
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "float32_tflops": peaks["float32"] / 1e12,
        "bfloat16_tflops": peaks["bfloat16"] / 1e12,
    }
    if device.type == "cuda":
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def overfit(device: torch.device, folder: Path) -> dict[str, list[float]]:
    """The first and the last loss of each system on one batch; where one needs another, it is
    given that, as it has become. `folder`: where their runs may lie."""
    runs: dict[str, Path] = {}
    found = {}
    for name, system in SYSTEMS.items():
        usual = recipe_for(name, "shapes")
        small = {field: size for field, size in SMALL.items() if hasattr(usual.model, field)}
        engine = replace(usual.engine, steps=STEPS, batch_size=BATCH, precision="float32")
        recipe = usual._replace(model=replace(usual.model, **small), engine=engine)
        recipe = scale_events(name, recipe, usual)
        task = system.build(recipe, "shapes:400", runs, device.type)
        training = build(task, engine, here=Distributed(device))
        batch = {k: v.to(device) for k, v in task.batch(0, slice(BATCH)).items()}
        losses = []
        for step in range(STEPS):
            training.step = step
            losses.append(train_step(training, [dict(batch)], lr=engine.lr)["loss"])
        found[name] = [float(losses[0]), float(losses[-1])]
        runs[name] = folder / name
        begin(training, runs[name], {"kind": name, "model": task.config(), "data": "shapes:400"})
        save_weights(runs[name], task.model)
    return found


def look_at(spec: str, split: str) -> dict[str, Any]:
    """What a split holds, by counting."""
    source = open_data(spec, image_size=IMAGE_SIZE, split=split)
    n = min(len(source), LOOKED_AT)
    parts = first_pictures(source, n, some=256, flip=False)
    different = {hashlib.sha1(picture.numpy()).digest() for part in parts for picture in part}
    captions = [source.all_captions(i) for i in range(n)] if source.has_captions else []
    words = [len(caption.split()) for several in captions for caption in several]
    common = Counter(several[0] for several in captions if several).most_common(1)
    return {
        "pictures": len(source),
        "looked_at": n,
        "pictures_twice": n - len(different),
        "captions": len(words),
        "different_captions": len({c for several in captions for c in several}),
        "words": [min(words), statistics.median(words), max(words)] if words else None,
        "most_common": list(common[0]) if common and common[0][1] > 1 else None,
        "classes": len(source.class_names or []),
    }


def learns(losses: list[float]) -> bool:
    """Whether the last loss is far enough below the first; NaN is not."""
    return losses[1] < LEARNT * losses[0]


def advice(found: dict[str, Any]) -> list[str]:
    """What to do about it, a line each."""
    here, lines = found["machine"], []
    for name, losses in found.get("losses", {}).items():
        if not learns(losses):
            lines.append(f"{name} does not learn: run python -m pytest, which says more")
    if here["device"] == "cpu" and here["threads"] > here["cores"]:
        lines.append(
            f"{here['threads']} threads share {here['cores']} cores and wait for each other: "
            f"set OMP_NUM_THREADS={here['cores']}"
        )
    if here["bfloat16_tflops"] < here["float32_tflops"]:
        lines.append("bfloat16 is slow here: leave --precision at auto, or choose float32")
    for split, data in found.get("data", {}).items():
        if data["pictures_twice"] > TWICE * data["looked_at"]:
            lines.append(
                f"{split}: {data['pictures_twice']} pictures are there twice: remove copies, or "
                "scores on unseen pictures may be of seen ones"
            )
        common = data["most_common"]
        if common and not data["classes"] and common[1] > 0.1 * data["looked_at"]:
            lines.append(f"{split}: {common[1]} pictures have the caption {common[0]!r}: "
                         "a CLIP cannot tell them apart")  # fmt: skip
        if not data["captions"]:
            lines.append(f"{split}: no captions: it can train a vqgan and a vqgan-prior only")
    return lines


def as_words(found: dict[str, Any]) -> str:
    had, here = found["versions"], found["machine"]
    lines = [
        "minimodal {minimodal}, python {python}, torch {torch}".format(**had),
        f"{here['device']}: {here['cores']} cores, {here['threads']} threads; products of matrices "
        f"{here['float32_tflops']:.3g} TFLOP/s in float32, {here['bfloat16_tflops']:.3g} in "
        "bfloat16" + "".join(f"; {name}" for name in here.get("gpus", [])),
    ]
    for name, losses in found.get("losses", {}).items():
        what = "learns" if learns(losses) else "does not learn"
        lines.append(f"{name}: {what}; loss {losses[0]:.3g} to {losses[1]:.3g} in {STEPS} steps")
    for split, data in found.get("data", {}).items():
        looked = data["looked_at"]
        line = f"{split}: {data['pictures']} pictures"
        line += f" (the first {looked} looked at)" if looked < data["pictures"] else ""
        line += f", {data['pictures_twice']} of them copies" if data["pictures_twice"] else ""
        line += f", {data['classes']} classes" if data["classes"] else ""
        if data["captions"]:
            least, middle, most = data["words"]
            line += (f"; {data['captions']} captions, {data['different_captions']} different, of "
                     f"{least} to {most} words, {middle:g} in the middle")  # fmt: skip
        lines.append(line)
    return "\n".join(lines + [f"- {line}" for line in found["advice"]])


def run(arguments: argparse.Namespace) -> int:
    found: dict[str, Any] = {"versions": versions(), "git_commit": git_commit()}
    if arguments.data is not None:  # first: a mistyped path is soon found
        found["data"] = {split: look_at(arguments.data, split) for split in ("train", "val")}
    device = torch.device(pick_device(arguments.device))
    found["machine"] = machine(device)
    # What is printed on the way to a training belongs to no run that anybody will see.
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        found["losses"] = overfit(device, Path(folder))
    found["advice"] = advice(found)
    print(json.dumps(found) if arguments.json else as_words(found))
    if not arguments.json and not found["advice"]:
        print("nothing to mend", file=sys.stderr)
    return 0 if all(map(learns, found["losses"].values())) else 1

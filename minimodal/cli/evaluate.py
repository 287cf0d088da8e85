"""`python -m minimodal evaluate RUN`: a run's scores again, or on other data.

The scores go to the terminal and, with a manifest that says what they were measured on and how,
into RUN/evaluation.json. A folder of runs (the demo's) gives the scoreboard of all of them. Read
`evaluation/on_data.py` and `evaluation/scoreboard.py` for what is measured.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from minimodal.cli.demo import score_stages
from minimodal.cli.which_clip import add_merges_flag
from minimodal.clip import CLIP
from minimodal.dalle import DALLE
from minimodal.data.loading import open_data, parse_spec, split_spec
from minimodal.drawing import make_folder
from minimodal.errors import UserError
from minimodal.evaluation.inception import load_inception
from minimodal.evaluation.judge import load_judge
from minimodal.evaluation.on_data import Evaluation, Networks, clip_on_data, vqgan_on_data
from minimodal.evaluation.scoreboard import (
    clip_scores,
    dalle_scores,
    format_scoreboard,
    rounded,
    vqgan_scores,
)
from minimodal.evaluation.search import fingerprint
from minimodal.evaluation.zero_shot import read_lines
from minimodal.runs import load
from minimodal.training.checkpoint import versions, write_atomically
from minimodal.training.distributed import pick_device
from minimodal.vqgan import VQGAN

ABOUT = "scores of a run or an original CLIP, with a manifest of how they were measured"
PARTS = ("vqgan", "clip", "dalle")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of evaluate."""
    add = parser.add_argument
    add("target", type=Path, metavar="RUN",
        help="a run, a demo folder, or an original CLIP checkpoint")  # fmt: skip
    add("--data", metavar="SPEC", help="what to measure on (default: the data of the run)")
    add("--limit", type=int, metavar="N", help="at most N pictures of each split (default: all)")
    add("--templates", type=Path, metavar="FILE",
        help="captions of classes, one a line, {} for the name (default: as trained)")  # fmt: skip
    add("--clip", type=Path, metavar="RUN|CHECKPOINT",
        help="of a VQGAN: distances between true and painted pictures on this CLIP's "
             "features (default: none)")  # fmt: skip
    add("--inception", type=Path, metavar="FILE",
        help="the same on pytorch-fid's Inception, for rFID (default: none)")  # fmt: skip
    add("--judge", type=Path, metavar="FILE",
        help="of a VQGAN on CIFAR-10: does this ResNet-20 still see the class? "
             "(default: none)")  # fmt: skip
    add_merges_flag(parser)
    add("--seed", type=int, default=0, metavar="S", help="of the Shapes world (default: 0)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--out", type=Path, metavar="JSON",
        help="where scores and manifest go (default: RUN/evaluation.json)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of words")


def on_shapes(model: VQGAN | CLIP | DALLE, arguments: argparse.Namespace) -> Evaluation:
    """The scores of the Shapes world."""
    how = {"captions": "full captions of unseen scenes", "world_seed": arguments.seed}
    if isinstance(model, VQGAN):
        return Evaluation(vqgan_scores(model, seed=arguments.seed), how)
    if isinstance(model, CLIP):
        return Evaluation(clip_scores(model, seed=arguments.seed), how)
    sampling = model.run["model"]["sampling"]
    beside = arguments.target.parent / "clip"
    clip = load(beside, kind="clip").to(model.rows.device) if beside.is_dir() else None
    scores = dalle_scores(model, clip, seed=arguments.seed, sampling=sampling)
    return Evaluation(scores, how | {"sampling": sampling})


def networks(arguments: argparse.Namespace, device: torch.device) -> Networks:
    """The networks of a command line that judge a VQGAN's pictures."""
    clip = inception = judge = None
    if arguments.clip is not None:
        clip = load(arguments.clip, kind="clip", merges=arguments.merges).to(device)
    if arguments.inception is not None:
        inception = load_inception(arguments.inception).to(device)
    if arguments.judge is not None:
        judge = load_judge(arguments.judge).to(device)
    return Networks(clip, inception, judge)


def measure(model: VQGAN | CLIP | DALLE, spec: str, arguments: argparse.Namespace) -> Evaluation:
    """The scores of a model on a data SPEC."""
    parts = [parse_spec(part) for part in split_spec(spec)]
    if parts[0].kind == "shapes":
        return on_shapes(model, arguments)
    if isinstance(model, DALLE):
        raise UserError(
            f"--data {spec}: nothing can check what a DALL·E draws of it; only the Shapes world "
            "has an oracle"
        )
    size, limit = model.config.image_size, arguments.limit
    val = open_data(spec, image_size=size, split="val", limit=limit)
    if isinstance(model, VQGAN):
        found = vqgan_on_data(model, val, networks(arguments, model.last_layer.device))
    else:
        templates = read_lines(arguments.templates) if arguments.templates else None
        train = (
            open_data(spec, image_size=size, split="train", limit=limit)
            if val.labels is not None
            else val
        )
        found = clip_on_data(model, train, val, templates=templates)
    data = {"data_hash": val.fingerprint(), "pictures": len(val), "split": "val"}
    return Evaluation(found.scores, data | found.manifest)


def evaluate_one(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """One model: its scores and their manifest."""
    model = load(arguments.target, merges=arguments.merges).to(device)
    spec = arguments.data or model.run.get("data")
    if spec is None:
        raise UserError(f"{arguments.target} is no run of ours: say on what with --data SPEC")
    kind = model.run["kind"]
    if kind == "vqgan-prior":
        raise UserError(
            f"{arguments.target} is a vqgan-prior: its loss on unseen pictures is in its "
            "metrics.jsonl, and there is nothing more to measure"
        )
    if arguments.templates and kind != "clip":
        raise UserError(f"--templates are for a clip; {arguments.target} is a {kind}")
    for name in ("clip", "inception", "judge"):
        if getattr(arguments, name) and kind != "vqgan":
            raise UserError(f"--{name} judges a vqgan; {arguments.target} is a {kind}")
    found = measure(model, spec, arguments)
    manifest = {"run": str(arguments.target), "kind": kind, "data": spec}
    manifest |= {"model_hash": fingerprint(model), "versions": versions()}
    return {"scores": rounded(found.scores), "manifest": manifest | found.manifest}


def is_demo(folder: Path) -> bool:
    """Whether a folder holds runs and is none itself."""
    inside = any((folder / part / "config.json").exists() for part in PARTS)
    return inside and not (folder / "config.json").exists()


def write(result: dict[str, Any], place: Path) -> None:
    """Write the result as JSON, whole or not at all."""
    make_folder(place.parent)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    try:
        write_atomically(place, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}") from None


def run(arguments: argparse.Namespace) -> None:
    """Measure, write, print."""
    target = arguments.target
    device = pick_device(arguments.device)
    if not target.exists():
        raise UserError(f"{target}: no such run; `python train.py demo` makes runs/demo")
    if is_demo(target):
        if arguments.data not in (None, "shapes"):
            raise UserError(f"{target} holds several runs: give one of them with --data")
        board = score_stages(target, arguments.seed, device)
        manifest = {"run": str(target), "data": "shapes", "world_seed": arguments.seed}
        result = {"scores": board, "manifest": manifest | {"versions": versions()}}
        words = format_scoreboard(board)
    else:
        result = evaluate_one(arguments, device)
        lines = result["scores"].items()
        words = "\n".join(f"{name:28s} {value:8.4g}" for name, value in lines)
    place = arguments.out or (target / "evaluation.json" if target.is_dir() else None)
    if place is not None:
        write(result, place)
    print(json.dumps(result) if arguments.json else words)
    if place is not None:
        print(f"with how it was measured in {place}", file=sys.stderr)

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

from minimodal.blocks.diffusion import Sampler
from minimodal.cli.common import add_merges_flag, check_seed
from minimodal.cli.demo import score_stages
from minimodal.cli.plan import STAGES
from minimodal.cli.pool import pool_of, prior_of
from minimodal.cli.unclip import load_unclip, prior_beside
from minimodal.clip import CLIP
from minimodal.dalle import DALLE
from minimodal.data.cifar import class_captions
from minimodal.data.loading import open_data, parse_spec, split_spec
from minimodal.errors import UserError
from minimodal.evaluation.edits import edit_scores, edit_with
from minimodal.evaluation.guided import guided_scores, searching
from minimodal.evaluation.judge import Judge, load_judge
from minimodal.evaluation.on_data import (
    Evaluation,
    class_scores,
    clip_on_data,
    distance_of_drawn,
    recall_of_captions,
    vqgan_on_data,
)
from minimodal.evaluation.scoreboard import (
    baseline_scores,
    clip_scores,
    dalle_scores,
    draw_with,
    format_scoreboard,
    nearest_captions,
    reconstruct,
    rounded,
    vqgan_scores,
)
from minimodal.evaluation.unclip import draw_with as draw_with_unclip
from minimodal.evaluation.unclip import unclip_scores
from minimodal.files import make_folder, write_json
from minimodal.runs import load
from minimodal.shapes.worlds import WORLDS, World
from minimodal.training.checkpoint import versions
from minimodal.training.distributed import pick_device
from minimodal.unclip.decoder import Decoder
from minimodal.uses.search import fingerprint
from minimodal.uses.unclip import UnCLIP
from minimodal.uses.zero_shot import read_lines
from minimodal.vqgan import VQGAN
from minimodal.vqgan_clip.guide import Guide
from minimodal.vqgan_clip.search import SearchConfig

ABOUT = "scores of a run or an original CLIP, with a manifest of how they were measured"
Model = VQGAN | CLIP | DALLE | Decoder
# Flags that are of some systems only.
DRAWING = ("vqgan", "dalle", "decoder")
KINDS = {"templates": ("clip",), "clip": DRAWING, "judge": DRAWING, "pictures": ("vqgan",)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", type=Path, metavar="RUN",
        help="a run, a demo folder, or an original CLIP checkpoint")  # fmt: skip
    add("--data", metavar="SPEC", help="what to measure on (default: the data of the run)")
    add("--limit", type=int, metavar="N", help="at most N pictures of each split (default: all)")
    add("--templates", type=Path, metavar="FILE",
        help="captions of classes, one a line, {} for the name (default: as trained)")  # fmt: skip
    add("--clip", type=Path, metavar="RUN|CHECKPOINT",
        help="Fréchet distance between true and drawn pictures on this CLIP's features; of a "
             "DALL·E or unCLIP: does it find the captions? (default: none)")  # fmt: skip
    add("--pictures", type=Path, metavar="DIR",
        help="of a VQGAN: write DIR/originals and DIR/reconstructions (default: none)")  # fmt: skip
    add("--judge", type=Path, metavar="FILE",
        help="on CIFAR-10, of all that draws: does this ResNet-20 see the class? "
             "(default: none)")  # fmt: skip
    add("-n", type=int, metavar="N",
        help="pictures that are drawn for a score (default: 500, with --method 50)")  # fmt: skip
    add("--method", choices=("vqgan-clip",),
        help="of a demo folder: score its VQGAN+CLIP, beside what it has to beat "
             "(default: none)")  # fmt: skip
    add_merges_flag(parser)
    add("--seed", type=int, default=0, metavar="S", help="of the Shapes world (default: 0)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--out", type=Path, metavar="JSON",
        help="where scores and manifest go (default: RUN/evaluation.json)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of words")


def unclip_of(model: Decoder, arguments: argparse.Namespace) -> tuple[UnCLIP, Sampler]:
    """A decoder's run with the prior beside it."""
    prior = prior_beside(arguments.target)
    return load_unclip(arguments.target, str(model.no_embedding.device), prior=prior)


def on_shapes(model: Model, world: World, arguments: argparse.Namespace) -> Evaluation:
    for name in ("clip", "judge", "pictures", "limit"):
        if getattr(arguments, name):
            raise UserError(f"--{name} is for other data; the Shapes world has an oracle")
    if world is not WORLDS["shapes"] and isinstance(model, CLIP | Decoder):
        raise UserError("shapes:hard has scores for a vqgan and a dalle")
    seed, n = arguments.seed, arguments.n
    how = {"captions": "full captions of unseen scenes", "world_seed": seed}
    if isinstance(model, VQGAN):
        return Evaluation(vqgan_scores(model, seed=seed, world=world), how)
    if isinstance(model, CLIP):
        return Evaluation(clip_scores(model, seed=seed), how)
    if isinstance(model, Decoder):
        unclip, sampler = unclip_of(model, arguments)
        scores = unclip_scores(unclip, sampler, seed=seed, n=n)
        return Evaluation(scores, how | {"sampling": sampler._asdict()})
    sampling = model.run["model"]["sampling"]
    if model.config.pictures > 1:
        scores = edit_scores(
            edit_with(model, sampling), size=model.config.grid * model.painter.factor,
            reconstruct=lambda pictures: reconstruct(model.painter.vqgan, pictures).pictures,
            seed=seed, n=n,
        )  # fmt: skip
        how["captions"] = "edits of unseen scenes"
    else:
        beside = arguments.target.parent / "clip"
        clip = load(beside, kind="clip").to(model.rows.device) if beside.is_dir() else None
        scores = dalle_scores(model, clip, seed=seed, n=n, sampling=sampling, world=world)
        baselines = baseline_scores(seed=seed, n=n, world=world)
        scores |= {f"baseline_{name}": value for name, value in baselines.items()}
    return Evaluation(scores, how | {"sampling": sampling})


def drawn_on_data(
    model: DALLE | Decoder, spec: str, arguments: argparse.Namespace,
    clip: CLIP | None, judge: Judge | None,
) -> Evaluation:  # fmt: skip
    """Pictures drawn from text before a judge (classes) or a CLIP (captions)."""
    seed, n = arguments.seed, arguments.n
    if isinstance(model, DALLE):
        sampling, reader = model.run["model"]["sampling"], model
        draw, size = draw_with(model, sampling), model.config.grid * model.painter.factor
    else:
        unclip, how = unclip_of(model, arguments)
        sampling, reader = how._asdict(), unclip.clip
        draw, size = draw_with_unclip(unclip, how), model.config.image_size
    val = open_data(spec, image_size=size, split="val", limit=arguments.limit)
    scores: dict[str, float] = {}
    pictures: dict[str, int] = {}
    if judge is not None:
        if val.class_names is None:
            raise UserError(f"--judge knows the classes of CIFAR-10, and {spec} has none")
        captions = [f"a photo of {class_captions(name)[0]}" for name in val.class_names]
        each = max(1, n // len(captions))
        pictures["judge"] = each * len(captions)
        scores |= class_scores(draw, val.class_names, captions, judge, each=each, seed=seed)
    else:
        captions = [val.all_captions(i)[0] for i in range(min(n, len(val)))]
    room = reader.config.text_length
    long = sum(len(reader.tokenizer.encode(reader.words.readable(c))) > room for c in captions)
    if long:
        print(f"{long} of {len(captions)} captions are cut to {room} tokens", file=sys.stderr)
    if clip is not None:
        distinct = list(dict.fromkeys(captions))
        pictures |= {"clip": len(distinct), "clip_frechet": min(n, len(val))}
        scores |= recall_of_captions(draw, clip, distinct, seed=seed)
        scores |= distance_of_drawn(draw, clip, val, n=n, seed=seed)
    manifest = {"sampling": sampling, "data_hash": val.fingerprint(), "pictures": pictures}
    return Evaluation(scores, manifest | {"captions_cut": long})


def measure(model: Model, spec: str, arguments: argparse.Namespace) -> Evaluation:
    parts = [parse_spec(part) for part in split_spec(spec)]
    edits = parts[0].part == "edits"
    if edits != (isinstance(model, DALLE) and model.config.pictures > 1):
        raise UserError(f"--data {spec}: shapes:edits is for a dalle that was trained on it, alone")
    if parts[0].kind == "shapes":
        return on_shapes(model, WORLDS[parts[0].part or "shapes"], arguments)
    clip = judge = None
    device = next(model.parameters()).device
    if arguments.clip is not None:
        how = {"merges": arguments.merges, "activation": arguments.activation}
        clip = load(arguments.clip, kind="clip", **how).to(device)
    if arguments.judge is not None:
        judge = load_judge(arguments.judge).to(device)
    if isinstance(model, DALLE | Decoder):
        if judge is None and clip is None:
            raise UserError(
                f"--data {spec}: only the Shapes world has an oracle; say who looks at the "
                "pictures with --clip, or --judge for CIFAR-10"
            )
        return drawn_on_data(model, spec, arguments, clip, judge)
    size, limit = model.config.image_size, arguments.limit
    val = open_data(spec, image_size=size, split="val", limit=limit)
    if isinstance(model, VQGAN):
        found = vqgan_on_data(model, val, clip=clip, judge=judge, folder=arguments.pictures)
        if arguments.pictures is not None:
            print(f"{arguments.pictures}: {len(val)} originals and their reconstructions",
                  file=sys.stderr)  # fmt: skip
    else:
        templates = read_lines(arguments.templates) if arguments.templates else None
        train = val  # of captions nothing is fitted
        if val.labels is not None:
            train = open_data(spec, image_size=size, split="train", limit=limit)
        found = clip_on_data(model, train, val, templates=templates)
    data = {"data_hash": val.fingerprint(), "pictures": len(val), "split": "val"}
    return Evaluation(found.scores, data | found.manifest)


def evaluate_one(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """One model: its scores and their manifest."""
    activation = None if arguments.clip else arguments.activation  # it is --clip's
    model = load(arguments.target, merges=arguments.merges, activation=activation).to(device)
    spec = arguments.data or model.run.get("data")
    if spec is None:
        raise UserError(f"{arguments.target} is no run of ours: say on what with --data SPEC")
    kind = model.run["kind"]
    if kind in ("vqgan-prior", "prior", "upsampler"):
        raise UserError(
            f"{arguments.target} holds a trained {kind}: its scores on unseen pictures are in its "
            "metrics.jsonl, and there is nothing more to measure"
        )
    for flag, kinds in KINDS.items():
        if getattr(arguments, flag) and kind not in kinds:
            wanted = " or ".join(kinds)
            raise UserError(f"--{flag} is for a {wanted}; {arguments.target} is a {kind}")
    folder = arguments.pictures
    if folder is not None and folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"--pictures {folder}: there is something already; give a new folder")
    found = measure(model, spec, arguments)
    manifest = {"run": str(arguments.target), "kind": kind, "data": spec}
    manifest |= {"model_hash": fingerprint(model), "versions": versions()}
    return {"scores": rounded(found.scores), "manifest": manifest | found.manifest}


def score_guided(folder: Path, seed: int, device: str, *, n: int) -> dict[str, dict[str, float]]:
    """VQGAN+CLIP of a demo folder, the pool it begins with, DALL·E, and the nearest caption."""
    prior, clip = prior_of(folder, device), load(folder / "clip", kind="clip").to(device)
    pool = pool_of(folder, prior, [Guide(clip, ())])

    systems = {
        "vqgan_clip": searching(prior, clip, pool, SearchConfig()),
        "best_of_pool": searching(prior, clip, pool, None),
    }
    if (folder / "dalle" / "config.json").exists():
        dalle = load(folder / "dalle", kind="dalle").to(device)
        systems["dalle"] = draw_with(dalle, dalle.run["model"]["sampling"])
    systems["nearest_caption"] = nearest_captions(seed=seed)
    return guided_scores(systems, n=n, seed=seed)


def run(arguments: argparse.Namespace) -> None:
    target = arguments.target
    check_seed(arguments.seed)
    arguments.n = (50 if arguments.method else 500) if arguments.n is None else arguments.n
    if arguments.n < 1:
        raise UserError(f"-n {arguments.n}: expected 1 or more pictures")
    device = pick_device(arguments.device)
    if not target.exists():
        raise UserError(f"{target}: no such run; `python -m minimodal train demo` makes runs/demo")
    alone = (target / "config.json").exists()
    if not alone and any((target / part / "config.json").exists() for part in STAGES):  # a demo's
        flag = "--pictures" if arguments.pictures else "--data"
        if arguments.pictures or arguments.data not in (None, "shapes"):
            raise UserError(f"{target} holds several runs: give one of them with {flag}")
        score = score_guided if arguments.method else score_stages
        board = score(target, arguments.seed, device, n=arguments.n)
        manifest = {"run": str(target), "data": "shapes", "world_seed": arguments.seed}
        result = {"scores": board, "manifest": manifest | {"versions": versions()}}
        words = format_scoreboard(board)
    elif arguments.method:
        raise UserError(f"--method {arguments.method} needs a demo folder, with vqgan and clip")
    else:
        result = evaluate_one(arguments, device)
        lines = result["scores"].items()
        words = "\n".join(f"{name:28s} {value:8.4g}" for name, value in lines)
    place = arguments.out or (target / "evaluation.json" if target.is_dir() else None)
    if place is not None:
        make_folder(place.parent)
        write_json(place, result)
    print(json.dumps(result) if arguments.json else words)
    if place is not None:
        print(f"with how it was measured in {place}", file=sys.stderr)

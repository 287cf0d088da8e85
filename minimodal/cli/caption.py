"""`python -m minimodal caption IMG …`: what a DALL·E says that a picture shows.

The same weights that draw: of `--labels` the one that explains the picture most, or without them a
caption of its own. Read `minimodal/evaluation/reading.py` before.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.pixels import to_float
from minimodal.cli.common import check_seed
from minimodal.cli.which_clip import shown
from minimodal.dalle import DALLE
from minimodal.data.images import centre_square, open_rgb
from minimodal.errors import UserError
from minimodal.evaluation.reading import caption_scores, describe
from minimodal.runs import dalle_folder, load
from minimodal.training.distributed import pick_device

ABOUT = "what a DALL·E says that pictures show"
MOST = 1024  # candidates that are written at once: more than help, less than memory holds


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = parser.add_argument
    add("pictures", nargs="+", metavar="IMG", help="picture files; the middle square is read")
    add("--run", type=Path, default=Path("runs/demo"), metavar="RUN",
        help="a demo folder or a dalle run (default: runs/demo)")  # fmt: skip
    add("--labels", metavar="A,B,…",
        help="captions to choose from (default: none, it writes its own)")  # fmt: skip
    add("--candidates", type=int, default=64, metavar="N",
        help="captions that each round of the search writes (default: 64)")  # fmt: skip
    add("--rounds", type=int, default=8, metavar="R", help="rounds of the search (default: 8)")
    add("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    add("--allow-unseen", action="store_true",
        help="labels may have words, too, that no caption of the training had")  # fmt: skip
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--json", action="store_true", help="print one JSON object instead of words")
    parser.set_defaults(rest="pictures")


def labels_of(arguments: argparse.Namespace) -> list[str]:
    """The labels of a command line, none where it has none."""
    if arguments.labels is None:
        return []
    labels = [" ".join(label.split()) for label in arguments.labels.split(",")]
    if not all(labels):
        raise UserError(f"--labels '{arguments.labels}': expected captions such as 'a cat,a dog'")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(f"--labels: '{twice[:60]}' comes up twice")
    return labels


@torch.no_grad()
def codes_of(dalle: DALLE, paths: list[str], device: str) -> Tensor:
    """Pictures as the stream reads them.

    returns: (B, h, w) int64
    """
    if dalle.config.pictures > 1:
        raise UserError("this DALL·E is of pairs: its captions say what becomes of a picture")
    side = dalle.config.grid * dalle.factor
    pixels = np.stack([centre_square(open_rgb(path), side) for path in paths])
    return dalle.encode_pictures(to_float(torch.from_numpy(pixels).to(device)))


def run(arguments: argparse.Namespace) -> None:
    """Caption and print."""
    labels = labels_of(arguments)
    check_seed(arguments.seed)
    for name in ("candidates", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: expected 1 or more")
    if arguments.candidates > MOST:
        raise UserError(
            f"--candidates {arguments.candidates}: expected {MOST} or fewer; more --rounds try more"
        )
    device = pick_device(arguments.device)
    dalle = load(dalle_folder(arguments.run), kind="dalle").to(device)
    if not arguments.allow_unseen:
        dalle.words.check(labels)
    dalle.tokenize(labels or [""])  # too long ones are refused before any picture is read
    codes = codes_of(dalle, arguments.pictures, device)
    found = []
    if labels:
        shares = caption_scores(dalle, codes, labels).softmax(-1).tolist()
        for row in shares:
            ordered = sorted(zip(row, labels, strict=True), reverse=True)
            found.append({"caption": ordered[0][1], "probabilities": {x: p for p, x in ordered}})
    else:
        generator = torch.Generator(device).manual_seed(arguments.seed)
        for one in codes:
            best = describe(
                dalle, one, generator=generator, n=arguments.candidates, rounds=arguments.rounds
            )
            found.append({"caption": best.caption, "log_likelihood": best.score})
    if arguments.json:
        files = zip(arguments.pictures, found, strict=True)
        print(json.dumps({"pictures": [{"file": name, **one} for name, one in files]}))
        return
    for name, one in zip(arguments.pictures, found, strict=True):
        print(f"{shown(name)}  {shown(one['caption'])}")
        for label, probability in one.get("probabilities", {}).items():
            print(f"  {probability:6.1%}  {shown(label)}")

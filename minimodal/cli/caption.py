"""`python -m minimodal caption IMG …`: what a DALL·E says that a picture shows.

The same weights that draw: of `--labels` the one that explains the picture most, or without them a
caption of its own. Read `minimodal/uses/reading.py` before.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from minimodal.cli.common import check_seed, read_each, read_labels
from minimodal.data.images import centre_square, open_rgb
from minimodal.errors import UserError
from minimodal.runs import find, load
from minimodal.training.distributed import pick_device
from minimodal.uses.reading import caption_scores, describe

ABOUT = "what a DALL·E says that pictures show"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pictures", nargs="+", metavar="IMG", help="picture files; the middle square is read")
    add("--run", type=Path, default=Path("runs/demo"), metavar="RUN",
        help="a demo folder or a dalle run (default: runs/demo)")  # fmt: skip
    add("--labels", metavar="A,B,…",
        help="captions to choose from (default: none, it writes its own)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    add("--allow-unseen", action="store_true",
        help="labels may have words, too, that no caption of the training had")  # fmt: skip
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--json", action="store_true", help="print one JSON object instead of words")
    parser.set_defaults(rest="pictures")


def run(arguments: argparse.Namespace) -> int:
    labels = [] if arguments.labels is None else read_labels(arguments.labels)
    check_seed(arguments.seed)
    device = pick_device(arguments.device)
    dalle = load(find(arguments.run, "dalle", flag="--run"), kind="dalle").to(device)
    if not arguments.allow_unseen:
        dalle.words.check(labels)
    dalle.tokenize(labels or [""])  # too long ones are refused before any picture is read
    if dalle.config.pictures > 1:
        raise UserError("this DALL·E is of pairs: its captions say what becomes of a picture")
    side = dalle.config.grid * dalle.painter.factor
    read, refused = read_each(arguments.pictures, lambda name: centre_square(open_rgb(name), side))
    names, pixels = [name for name, _ in read], np.stack([square for _, square in read])
    codes = dalle.painter.encode(torch.from_numpy(pixels).to(device))  # (B, h, w)
    found = []
    if labels:
        shares = caption_scores(dalle, codes, labels).softmax(-1).tolist()
        for row in shares:
            ordered = sorted(zip(row, labels, strict=True), reverse=True)
            found.append({"caption": ordered[0][1], "probabilities": {x: p for p, x in ordered}})
    else:
        generator = torch.Generator(device).manual_seed(arguments.seed)
        for one in codes:
            best = describe(dalle, one, generator=generator)
            found.append({"caption": best.caption, "log_likelihood": best.score})
    status = 1 if refused else 0
    if arguments.json:
        pictures = [{"file": name, **one} for name, one in zip(names, found, strict=True)]
        print(json.dumps({"pictures": pictures, "left_out": refused}))
        return status
    for name, one in zip(names, found, strict=True):
        print(f"{name}  {one['caption']}")
        for label, probability in one.get("probabilities", {}).items():
            print(f"  {probability:6.1%}  {label}")
    return status

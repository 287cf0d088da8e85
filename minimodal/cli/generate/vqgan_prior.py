"""`python generate.py [CLASS …] --method vqgan-prior`: pictures from VQGAN's second stage.

Prompts are names of classes, or there are none. With `--size` a sliding window draws larger
pictures than those of the training, with `--complete` the upper part of a picture is kept. Read
`minimodal/vqgan_prior.py` before.
"""

import argparse
from pathlib import Path

from minimodal.cli.common import Parser, read_picture
from minimodal.cli.generate.shared import Drawn, add_sampling_flags, requested, sampling_of
from minimodal.errors import UserError
from minimodal.runs import find
from minimodal.runs import load as load_run
from minimodal.vqgan_prior import VQGANPrior


def add_flags(parser: Parser) -> None:
    add_sampling_flags(parser)
    add = parser.add_argument
    add("--size", metavar="WxH",
        help="width and height in pixels, such as 96x64 (default: as trained)")  # fmt: skip
    add("--complete", type=Path, metavar="IMG",
        help="a picture whose upper part is kept (default: none)")  # fmt: skip
    add("--keep", type=float, metavar="P",
        help="share of the picture to --complete that is kept (default: 0.5)")  # fmt: skip


def read_size(text: str | None) -> tuple[int, int] | None:
    """`96x64`, or `96` for a square, as width and height."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--size {text}: expected pixels such as 96 or 96x64")
    width, height = int(parts[0]), int(parts[-1])
    if max(width, height) > 4096:
        raise UserError(f"--size {text}: expected 4096 pixels a side or fewer")
    return width, height


def load(arguments: argparse.Namespace, device: str) -> VQGANPrior:
    """The model of a command line, with what it asks for checked."""
    if arguments.keep is not None and arguments.complete is None:
        raise UserError("--keep is how much of a picture stays: give one with --complete IMG")
    sampling_of(arguments, {})  # refuses what is out of range
    path = find(arguments.run, "vqgan-prior", flag="--run")
    prior = load_run(path, kind="vqgan-prior").to(device)
    for name in arguments.prompts:
        prior.label_of(name)
    return prior


def draw(arguments: argparse.Namespace, prior: VQGANPrior, device: str) -> Drawn:
    size, complete = read_size(arguments.size), None
    if arguments.complete is not None:
        complete = read_picture(arguments.complete)
        size = size or (complete.shape[2], complete.shape[1])
    own = prior.run["model"].get("sampling", {})
    own = own if arguments.prompts else own | {"guidance": 1.0}  # by no class
    with requested(arguments, device) as request:
        pictures = prior.draw(
            arguments.prompts, request, sampling_of(arguments, own), size=size, complete=complete,
            keep=0.5 if arguments.keep is None else arguments.keep,
        )  # fmt: skip
    return Drawn(pictures.cpu(), seeds=arguments.seeds)

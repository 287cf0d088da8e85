"""`python generate.py [CLASS …] --method vqgan-prior`: pictures from VQGAN's second stage.

Prompts are names of classes, or there are none. With `--size` a sliding window draws larger
pictures than those of the training, with `--complete` the upper part of a picture is kept. Read
`minimodal/vqgan_prior.py` before.
"""

import argparse
import sys

from torch import Tensor
from tqdm import tqdm

from minimodal.cli.common import randomness, read_picture
from minimodal.errors import UserError
from minimodal.runs import find, load
from minimodal.vqgan_prior import VQGANPrior


def add_prior_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that only this method has."""
    add = parser.add_argument_group("vqgan-prior").add_argument
    add("--size", metavar="WxH",
        help="width and height in pixels, such as 96x64 (default: as trained)")  # fmt: skip
    add("--keep", type=float, metavar="P",
        help="how much of the picture to --complete stays (default: 0.5, upper half)")  # fmt: skip
    add("--stride", type=int, default=1, metavar="S",
        help="the sliding window moves S codes at a time: faster (default: 1)")  # fmt: skip


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


def load_prior(arguments: argparse.Namespace, device: str) -> VQGANPrior:
    """The model of a command line, with what it is asked for checked."""
    if arguments.keep is not None and arguments.complete is None:
        raise UserError("--keep is how much of a picture stays: give one with --complete IMG")
    prior = load(find(arguments.run, "vqgan-prior", flag="--run"), kind="vqgan-prior").to(device)
    for name in arguments.prompts:
        prior.label_of(name)
    return prior


def draw_prior(arguments: argparse.Namespace, prior: VQGANPrior, device: str) -> Tensor:
    """All pictures, on the CPU.

    returns: (N, 3, H, W) uint8
    """
    size, complete = read_size(arguments.size), None
    if arguments.complete is not None:
        complete = read_picture(arguments.complete)
        size = size or (complete.shape[2], complete.shape[1])
    own = prior.run["model"].get("sampling", {})
    guidance = own.get("guidance", 1.0) if arguments.prompts else 1.0
    chosen = {
        "temperature": own.get("temperature", 1.0)
        if arguments.temperature is None
        else arguments.temperature,
        "guidance": guidance if arguments.guidance is None else arguments.guidance,
    }
    bar = tqdm(total=100, unit="%", file=sys.stderr, disable=None, leave=False)
    with bar:
        return prior.generate(
            arguments.prompts,
            arguments.n,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_p=arguments.min_p,
            size=size,
            complete=complete,
            keep=0.5 if arguments.keep is None else arguments.keep,
            stride=arguments.stride,
            progress=lambda done: bar.update(int(100 * done) - bar.n),
            **chosen,
            **randomness(arguments, device),
        ).cpu()

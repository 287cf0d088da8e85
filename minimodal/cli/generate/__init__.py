"""`python generate.py PROMPT …`: pictures for prompts, as a labelled grid and one by one.

Each method is a module with `add_flags(parser)`, `load(arguments, device)`, which refuses wrong
flags before anything is read, and `draw(arguments, loaded, device)`; METHODS lists them. The
command line is read for --method first, so that only the flags of that method exist. What the
methods share is in `shared.py`.
"""

import argparse
from collections.abc import Sequence

from minimodal.cli.common import Parser, run_command
from minimodal.cli.generate import dalle, unclip, vqgan_clip, vqgan_prior
from minimodal.cli.generate.shared import add_common_flags, check, show
from minimodal.files import folders
from minimodal.training.distributed import pick_device

ABOUT = "draw pictures for prompts"
METHODS = {"dalle": dalle, "vqgan-prior": vqgan_prior, "vqgan-clip": vqgan_clip, "unclip": unclip}


def make_parser(method: str, prog: str = "generate.py") -> Parser:
    """The flags of generate.py with a method, and no others."""
    parser = Parser(prog=prog, description=f"{ABOUT}; these are the flags of --method {method}")
    parser.add_argument("--method", choices=METHODS, default="dalle",
        help="which system draws; each has flags of its own (default: dalle)")  # fmt: skip
    add_common_flags(parser)
    METHODS[method].add_flags(parser)
    return parser


def read_arguments(argv: Sequence[str], prog: str) -> argparse.Namespace:
    """A command line, by the parser of the method that it names."""
    first = Parser(prog=prog, add_help=False)
    first.add_argument("--method", choices=METHODS, default="dalle")
    method = first.parse_known_args(argv)[0].method
    parser = make_parser(method, prog)
    for other in METHODS:
        for flag in make_parser(other).flags():
            known = parser.elsewhere.get(flag)
            parser.elsewhere[flag] = f"{known} or {other}" if known else f"--method {other}"
    return parser.parse_args(argv)


def generate(arguments: argparse.Namespace) -> None:
    check(arguments)
    device, method = pick_device(arguments.device), METHODS[arguments.method]
    loaded = method.load(arguments, device)
    out, gif = arguments.out, getattr(arguments, "gif", None) or arguments.out
    # Made before the drawing, which takes longest; those that stay empty go again.
    with folders(out.with_suffix(""), out.parent, gif.parent):
        show(arguments, method.draw(arguments, loaded, device))


def main(argv: Sequence[str] | None = None, *, prog: str = "generate.py") -> int:
    return run_command(lambda argv: generate(read_arguments(argv, prog)), argv)

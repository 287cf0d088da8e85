"""`python generate.py PROMPT …`: pictures from DALL·E. With `--first` a run on pairs draws what a
prompt makes of that picture ("the same in red"). Read `dalle.DALLE.draw` before.
"""

import argparse
from pathlib import Path

from minimodal.blocks.given import Given
from minimodal.cli.common import Parser, read_picture
from minimodal.cli.generate.shared import (
    Drawn,
    add_complete_flags,
    add_rerank_flags,
    add_sampling_flags,
    check_complete,
    choose,
    clip_for,
    judged,
    requested,
    sampling_of,
)
from minimodal.clip import CLIP
from minimodal.dalle import DALLE
from minimodal.errors import UserError
from minimodal.runs import find
from minimodal.runs import load as load_run


def add_flags(parser: Parser) -> None:
    add_sampling_flags(parser)
    add_rerank_flags(parser)
    add = parser.add_argument
    add("--truncate", action="store_true", help="cut prompts that are too long")
    add("--allow-unseen", action="store_true",
        help="draw for words, too, that no caption of the training had")  # fmt: skip
    add_complete_flags(parser)
    add("--first", type=Path, metavar="IMG",
        help="first picture of a pair, with a run on pairs (default: none)")  # fmt: skip


def load(arguments: argparse.Namespace, device: str) -> tuple[DALLE, CLIP | None]:
    """The DALL·E of a command line and the CLIP that chooses, with what it asks for checked."""
    if not arguments.prompts:
        raise UserError("no PROMPT; say what to draw, such as 'a red circle'")
    check_complete(arguments)
    if arguments.first and (arguments.complete or arguments.rerank):
        other = "--complete" if arguments.complete else "--rerank"
        raise UserError(f"--first and {other} do not go together: leave one of them out")
    sampling_of(arguments, {})  # refuses what is out of range
    folder = find(arguments.run, "dalle", flag="--run")
    dalle = load_run(folder, kind="dalle").to(device)
    return dalle, clip_for(arguments, folder.parent / "clip", device)


def draw(arguments: argparse.Namespace, loaded: tuple[DALLE, CLIP | None], device: str) -> Drawn:
    dalle, clip = loaded
    model = dalle.run["model"]
    sampling = sampling_of(arguments, model.get("sampling", {}))
    if sampling.guidance != 1 and model.get("training", {}).get("caption_dropout") == 0:
        raise UserError(
            f"--guidance {sampling.guidance:g}: the run never saw an empty caption "
            "(caption_dropout 0), which guidance compares with; give --guidance 1"
        )
    complete = read_picture(arguments.complete) if arguments.complete else None
    first = read_picture(arguments.first) if arguments.first else None
    with requested(arguments, device) as request:
        pictures = dalle.draw(
            arguments.prompts, request, sampling, given=Given(complete, arguments.redraw, first),
            truncate=arguments.truncate, allow_unseen=arguments.allow_unseen,
        ).cpu()  # fmt: skip
    drawn = choose(arguments, clip, pictures)
    verdicts = judged(str(dalle.run["data"]), arguments.prompts, drawn.pictures, first=first)
    return drawn._replace(verdicts=verdicts)

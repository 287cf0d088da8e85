"""`python train.py SYSTEM …`: flags to a recipe, a recipe to a task, off it goes.

Every field of a recipe's dataclasses is a flag (`code_width` is `--code-width`), so `--help` shows
all there is, with the values that the recipe for the given --data has. Read
`training/recipes/` and `engine.run` for what happens then.
"""

import argparse
import dataclasses
import inspect
import os
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimodal.cli.common import Parser, run_command
from minimodal.cli.demo import add_demo_flags, run_demo
from minimodal.data.loading import KINDS, parse_spec, split_spec
from minimodal.errors import UserError
from minimodal.runs import find
from minimodal.training import distributed, guards
from minimodal.training.checkpoint import load_run_config
from minimodal.training.contract import Recipe
from minimodal.training.engine import run
from minimodal.training.progress import keep_on_where_stderr_fails
from minimodal.training.recipes import SYSTEMS, recipe_for, scale_events
from minimodal.training.report import write_report

ABOUT = "train a system, or all of them on the demo"


def field_notes(kind: type) -> dict[str, str]:
    """The comment beside each field of a dataclass, which is its help text."""
    kinds = [k for k in reversed(kind.__mro__) if dataclasses.is_dataclass(k)]  # a base's first
    lines = [line for k in kinds for line in inspect.getsource(k).splitlines()]
    found = (re.match(r"    (\w+): .*?= .*?  # (.+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def numbers(text: str) -> tuple[int, ...]:
    """`1,2,2` as a tuple."""
    return tuple(int(part) for part in text.split(",") if part)


def whole(text: str) -> int:
    """A whole number of a size that models and generators can hold."""
    if not re.fullmatch(r"\s*[+-]?\d{1,10}\s*", text) or abs(int(text)) >= 2**32:
        raise argparse.ArgumentTypeError(f"'{text[:60]}': expected a whole number below 2^32")
    return int(text)


def truth(text: str) -> bool:
    """yes and no, in the usual spellings."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"'{text}' is neither yes nor no")
    return words[text.lower()]


def add_fields(parser: argparse.ArgumentParser, title: str, values: Any, leave: Sequence[str]):
    """A flag for each field of a dataclass instance, its value as the default."""
    group = parser.add_argument_group(title)
    notes, types = field_notes(type(values)), typing.get_type_hints(type(values))
    for field in dataclasses.fields(values):
        if field.name in leave:
            continue
        value, kind = getattr(values, field.name), types[field.name]
        kind = int if kind == (int | None) else kind
        converter = {int: whole, bool: truth, tuple[int, ...]: numbers}.get(kind, kind)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        shown = "none" if shown in ("", None) else shown
        shown = ("no", "yes")[value] if kind is bool else shown  # as it would be given
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=converter,
            default=value,
            nargs="?" if kind is bool else None,  # --fsdp alone says yes
            const=True if kind is bool else None,
            metavar={int: "N", float: "X", bool: "yes|no", str: "NAME"}.get(kind, "N,N,…"),
            help=f"{notes.get(field.name, '').replace('%', '%%')} (default: {shown})".strip(),
        )


def add_system(commands: Any, system: str, recipe: Recipe) -> None:
    """The parser of one system, with a recipe's values as defaults."""
    about, needs = SYSTEMS[system].about, SYSTEMS[system].needs
    about += "".join(f"; needs a trained --{need}" for need in needs)
    parser = commands.add_parser(system, help=about, description=about)
    add = parser.add_argument
    add("--data", required=True, metavar="SPEC",
        help=f"{'|'.join(KINDS)}[:PATH][:N], or several with commas, see README")  # fmt: skip
    add("--out", required=True, type=Path, metavar="RUN", help="the run's folder")
    for need in needs:
        add(f"--{need}", required=True, type=Path, metavar="RUN|CHECKPOINT",
            help="a trained run or an original checkpoint")  # fmt: skip
    add("--resume", action="store_true", help="go on from the last saved state")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_fields(parser, "engine", recipe.engine, ())
    add_fields(parser, "training", recipe.training, ())
    add_fields(parser, "model", recipe.model, SYSTEMS[system].decided)


def kind_of(spec: str) -> str:
    """The kind of data that a SPEC names, to choose a recipe by: "cifar10", "shapes", "hard", …"""
    kind, _, rest = spec.partition(":")
    world = rest.split(":")[0]
    return world if kind == "shapes" and world in ("hard", "edits") else kind


def spec_kind(argv: Sequence[str]) -> str:
    """The kind of data that a command line names, to choose a recipe by; shapes if none."""
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    finder.add_argument("--data", default="shapes")
    try:
        known, _ = finder.parse_known_args(argv)
    except argparse.ArgumentError:
        return "shapes"  # the real parser will say what is wrong
    return kind_of(known.data)


def make_parser(argv: Sequence[str], prog: str = "train.py") -> Parser:
    """The parser of train.py for this command line's kind of data."""
    parser = Parser(prog=prog, description=ABOUT)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_demo_flags(commands.add_parser("demo", help="every stage on the Shapes world, then scores"))
    for system in SYSTEMS:
        add_system(commands, system, recipe_for(system, spec_kind(argv)))
    return parser


def chosen(part: Any, arguments: argparse.Namespace) -> Any:
    names = [f.name for f in dataclasses.fields(part) if hasattr(arguments, f.name)]
    return dataclasses.replace(part, **{name: getattr(arguments, name) for name in names})


def place_events(system: str, recipe: Recipe, given: Recipe, out: Path | None) -> Recipe:
    """When a training's events happen: as the flags say, or as in the run that is resumed from
    `out`, or at the same places of the run as in the given recipe."""
    placed = scale_events(system, recipe, given)
    if out is None or not (out / "config.json").is_file():
        return placed
    stored = load_run_config(out, kind=system)["model"].get("training", {})
    kept = {
        event: stored[event]
        for event in SYSTEMS[system].events
        if event in stored and getattr(recipe.training, event) == getattr(given.training, event)
    }
    return placed._replace(training=dataclasses.replace(placed.training, **kept))


def train(arguments: argparse.Namespace) -> None:
    system = arguments.command
    for part in split_spec(arguments.data):
        path = parse_spec(part).path  # before anything slow
        if path and Path(path).resolve() == arguments.out.resolve():
            raise UserError(f"--out {arguments.out} is the data folder: choose one for the run")
    kind, needs = kind_of(arguments.data), SYSTEMS[system].needs
    if kind == "edits" and kind not in SYSTEMS[system].recipes:
        raise UserError(
            f"--data {arguments.data}: pairs of pictures are for a dalle; use shapes for a {system}"
        )
    distributed.pick_device(arguments.device)
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) and not arguments.resume:
        raise UserError(
            "torchrun --max-restarts starts the same command again where a process has died: add "
            "--resume, which goes on from the last saved state, or starts where there is none"
        )
    if arguments.deterministic:  # before anything starts CUDA
        guards.repeat_exactly()
    given = recipe_for(system, kind)
    recipe = Recipe(*(chosen(part, arguments) for part in given))
    recipe = place_events(system, recipe, given, arguments.out if arguments.resume else None)
    runs = {
        need: find(getattr(arguments, need.replace("-", "_")), need, flag=f"--{need}")
        for need in needs
    }
    run(
        SYSTEMS[system].build(recipe, arguments.data, runs, arguments.device),
        recipe.engine,
        arguments.out,
        data_spec=arguments.data,
        resume=arguments.resume,
        device=arguments.device,
    )
    # A finished run may lie where nothing can be written.
    if distributed.start(arguments.device).main and os.access(arguments.out, os.W_OK):
        write_report(arguments.out)
        print(f"{arguments.out / 'report.html'}: curves, samples, scores", file=sys.stderr)


def main(argv: Sequence[str] | None = None, *, prog: str = "train.py") -> int:
    def command(argv: Sequence[str]) -> None:
        keep_on_where_stderr_fails()
        arguments = make_parser(argv, prog).parse_args(argv)
        if arguments.command == "demo":
            run_demo(arguments)
        else:
            train(arguments)

    return run_command(command, argv)

"""`python -m minimodal COMMAND …`: what one can do with a trained model.

Each command is a module with `add_flags(parser)` and `run(arguments)`; COMMANDS lists them.
"""

import argparse
from collections.abc import Sequence

from minimodal.cli import caption, classify, evaluate, reconstruct, search
from minimodal.cli.common import Parser, run_command

COMMANDS = {
    "classify": classify,
    "search": search,
    "reconstruct": reconstruct,
    "caption": caption,
    "evaluate": evaluate,
}


class WordsAnywhere(Parser):
    """A parser whose list of words may go on after a flag: `search FOLDER -k 3 "a cat"`.

    argparse fills such a list once, before the flag, and hands later words back as unknown.
    """

    def parse_known_args(self, args=None, namespace=None) -> tuple[argparse.Namespace, list[str]]:
        """As argparse; words without a dash go to the list that the command names as `rest`."""
        found, unknown = super().parse_known_args(args, namespace)
        if hasattr(found, "rest") and not any(word.startswith("-") for word in unknown):
            setattr(found, found.rest, [*getattr(found, found.rest), *unknown])
            unknown = []
        return found, unknown


def make_parser() -> Parser:
    """The parser of all commands."""
    about = "Use trained models; train.py makes them, generate.py draws."
    parser = WordsAnywhere(prog="python -m minimodal", description=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_flags(commands.add_parser(name, help=module.ABOUT, description=module.ABOUT))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""

    def command(argv: Sequence[str]) -> None:
        arguments = make_parser().parse_args(argv)
        COMMANDS[arguments.command].run(arguments)

    return run_command(command, argv)

"""`python -m minimodal COMMAND …`, or `minimodal COMMAND …`: all that one can do.

Each command is a module with `add_flags(parser)` and `run(arguments)`, which may return the exit
status; COMMANDS lists them. SCRIPTS are those that have a file beside the package, too.
"""

import argparse
import sys
from collections.abc import Sequence

from minimodal.cli import caption, classify, doctor, evaluate, generate, reconstruct, search, train
from minimodal.cli.common import STATUSES, Parser, run_command

COMMANDS = {
    "classify": classify,
    "search": search,
    "reconstruct": reconstruct,
    "caption": caption,
    "evaluate": evaluate,
    "doctor": doctor,
}
SCRIPTS = {"train": train, "generate": generate}
PROGRAM = "python -m minimodal"


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
    about = "Train models, draw with them and use them. " + STATUSES
    parser = WordsAnywhere(prog=PROGRAM, description=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in SCRIPTS.items():
        commands.add_parser(name, help=module.ABOUT)
    for name, module in COMMANDS.items():
        module.add_flags(commands.add_parser(name, help=module.ABOUT, description=module.ABOUT))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in SCRIPTS:
        return SCRIPTS[argv[0]].main(argv[1:], prog=f"{PROGRAM} {argv[0]}")

    def command(argv: Sequence[str]) -> int | None:
        arguments = make_parser().parse_args(argv)
        return COMMANDS[arguments.command].run(arguments)

    return run_command(command, argv)

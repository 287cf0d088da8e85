"""What every command shares: errors as one line, exit statuses, a parser that suggests.

Status 0: done; 2: bad input, said in one line on stderr; 130: stopped by Ctrl-C.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from minimodal.data.images import open_rgb
from minimodal.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and an unknown flag names the closest known one."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # values, too: -5,0,3,6 and -1e-3

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse, with a suggestion for a misspelt flag."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            first = unknown[0].split("=")[0]
            known = self.flags(found)
            close = [flag for flag in known if flag.startswith(first)]  # was it shortened?
            close = close or difflib.get_close_matches(first, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unknown argument {unknown[0]}{hint}")
        return found

    def flags(self, found: argparse.Namespace) -> list[str]:
        """All flags of this parser and of the chosen command."""
        known = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(getattr(found, action.dest, None))
                known += list(chosen._option_string_actions) if chosen else []
        return known


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Run a command on its arguments; returns the exit status."""
    try:
        command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # a reader that has gone is noticed here, not while Python shuts down
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone; closing stdout again at exit must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def check_seed(seed: int) -> None:
    """Refuse a --seed that not every generator takes."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: expected from 0 to 2^63 - 1")


def randomness(arguments: argparse.Namespace, device: str) -> dict:
    """What --seeds or --seed say, as the settings of a `generate`."""
    if arguments.seeds:
        return {"seeds": arguments.seeds}
    return {"generator": torch.Generator(device).manual_seed(arguments.seed)}


def read_picture(path: str | os.PathLike) -> Tensor:
    """A picture file in its own size.

    returns: (3, H, W) uint8
    """
    return torch.from_numpy(np.array(open_rgb(path))).permute(2, 0, 1).contiguous()

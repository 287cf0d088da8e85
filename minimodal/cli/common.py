"""What commands share: errors as one line, exit statuses, a parser that suggests, the flags of a
CLIP and the model that they mean, labels, and what becomes of pictures that cannot be read.
"""

import argparse
import difflib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from minimodal import __version__
from minimodal.clip import CLIP
from minimodal.data.images import open_rgb
from minimodal.errors import UserError
from minimodal.runs import find, load
from minimodal.training.distributed import pick_device
from minimodal.uses.zero_shot import check_labels

STATUSES = (
    "Exit status 0: done; 1: done, but for pictures that cannot be read, each named on stderr; "
    "2: nothing done, and one line on stderr says why; 130: stopped by Ctrl-C."
)
HOME = re.compile(r"(?:^|(?<=\w[=:,]))~(?=/)")  # in --out=~/x and folder:~/x no shell fills it in
BETWEEN = re.compile(r"[;|，、]")  # what some put between labels instead of a comma
Found = TypeVar("Found")


def some_path(text: str) -> Path:
    """A path, which must not be nothing: that would be the folder one stands in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty, expected the name of a file or folder")
    return Path(text)


def say_error(message: object) -> None:
    """The one line of an error, also where a value in it has several."""
    print("error:", " ".join(str(message).splitlines()), file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and an unknown flag names the closest known one."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.add_argument("--version", action="version", version=f"minimodal {__version__}")
        self.elsewhere: dict[str, str] = {}  # flags that exist in other company, and in which
        self.register("type", Path, some_path)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # values, too: -5,0,3,6 and -1e-3

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        say_error(f"{message} (see {self.prog} --help)")
        sys.exit(2)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """As argparse, but where stdout is full it is noticed here, not while Python shuts down."""
        sys.stdout.flush()
        super().exit(status, message)

    def parse_known_args(self, args=None, namespace=None) -> tuple[argparse.Namespace, list[str]]:
        """As argparse; with no argument where there is something to say, help comes first."""
        args = sys.argv[1:] if args is None else args
        if not args and any(a.required or not a.option_strings for a in self._actions):
            self.print_help()
        return super().parse_known_args(args, namespace)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse, with a suggestion for a misspelt flag."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            first = unknown[0].split("=")[0]
            if first in self.elsewhere:
                self.error(f"{first} is for {self.elsewhere[first]}")
            known = self.flags(found)
            close = [flag for flag in known if flag.startswith(first)]  # was it shortened?
            close = close or difflib.get_close_matches(first, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unknown argument {unknown[0]}{hint}")
        return found

    def flags(self, found: argparse.Namespace | None = None) -> list[str]:
        """All flags of this parser and of the chosen command."""
        known = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(getattr(found, action.dest, None))
                known += list(chosen._option_string_actions) if chosen else []
        return known


def run_command(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None) -> int:
    """Run a command on its arguments; returns its exit status."""
    sys.stdout = sys.stdout or io.StringIO()  # None where the caller has closed it
    sys.stderr = sys.stderr or io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names and labels that its encoding lacks: \\u…
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # errors say what matters
    argv = sys.argv[1:] if argv is None else argv
    try:
        status = command([HOME.sub(os.path.expanduser("~"), word) for word in argv]) or 0
        sys.stdout.flush()  # a reader that has gone is noticed here, not while Python shuts down
    except UserError as error:
        say_error(error)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, or a reader that has gone
        try:
            sys.stdout.flush()
        except OSError:  # closing it at exit must not fail a second time
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # nobody there to tell
            return 1
        say_error(f"{error.filename or 'output'}: {error.strerror or error}")
        return 2
    return status


# --- flags that several commands have ------------------------------------------------------------


def add_merges_flag(parser: argparse.ArgumentParser) -> None:
    """--merges and --activation, of an original CLIP."""
    parser.add_argument("--merges", type=Path, metavar="PATH",
        help="bpe_simple_vocab_16e6.txt.gz or merges.txt, the tokenizer of an original CLIP "
             "(default: the one beside the checkpoint, or in an installed package)")  # fmt: skip
    parser.add_argument("--activation", choices=("gelu", "quick_gelu"),
        help="what an original CLIP computes with (default: what its file or those beside it "
             "say)")  # fmt: skip


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """--clip, --merges, --activation, --allow-unseen and --device."""
    parser.add_argument("--clip", type=Path, default=Path("runs/demo/clip"),
        metavar="RUN|CHECKPOINT",
        help="a clip run, a demo folder or an original CLIP (default: runs/demo/clip)")  # fmt: skip
    add_merges_flag(parser)
    parser.add_argument("--allow-unseen", action="store_true",
        help="words, too, that no caption of the CLIP's training had")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def load_clip(arguments: argparse.Namespace) -> CLIP:
    """The CLIP of a command line, on its device."""
    device = pick_device(arguments.device)  # before the loading, which takes longer
    path = find(arguments.clip, "clip", flag="--clip")
    how = arguments.activation
    return load(path, kind="clip", merges=arguments.merges, activation=how).to(device)


def read_labels(text: str) -> list[str]:
    """`cat,dog` as labels, of which there have to be several to choose from."""
    if not text.strip():
        raise UserError("--labels is empty; give labels such as --labels 'cat,dog'")
    labels = check_labels(text.split(","))
    if len(labels) == 1:
        raise UserError(
            f"'{labels[0][:60]}' alone is 100 % of any picture: give others, with commas between "
            "them"
        )
    if odd := next(filter(BETWEEN.search, labels), None):
        print(f"--labels: '{odd[:60]}' is taken for one: commas part labels", file=sys.stderr)
    return labels


def read_each(
    names: Sequence[str], read: Callable[[str], Found]
) -> tuple[list[tuple[str, Found]], list[str]]:
    """Each file with what `read` makes of it, and what is wrong with those that cannot be read.

    Their errors go to stderr, too; where no file is left they are a `UserError`.
    """
    found, refused = [], []
    for name in names:
        try:
            found.append((name, read(name)))
        except UserError as error:
            refused.append(str(error))
    if not found:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise UserError(refused[0] + more)
    for message in refused:
        print(f"left out: {message}", file=sys.stderr)
    return found, refused


def check_name(place: Path, flag: str = "--out", suffix: str = ".png") -> None:
    """Refuse what cannot be the name of a picture that is written."""
    if place.suffix.lower() != suffix:
        raise UserError(f"{flag} {place}: expected a name that ends in {suffix}")
    if place.is_dir():
        raise UserError(f"{flag} {place} is a folder; give the name of a picture in it")


def check_seed(seed: int) -> None:
    """Refuse a --seed that not every generator takes."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: expected from 0 to 2^63 - 1")


def read_picture(path: str | os.PathLike) -> Tensor:
    """A picture file in its own size.

    returns: (3, H, W) uint8
    """
    return torch.from_numpy(np.array(open_rgb(path))).permute(2, 0, 1).contiguous()

"""`python -m minimodal classify IMG … --labels "cat,dog"`: which label goes with a picture.

Pictures are read upright and in RGB, whatever is transparent on white. Read
`evaluation/zero_shot.py` for what happens to them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from minimodal.cli.which_clip import add_clip_flags, load_clip, shown
from minimodal.data.images import open_rgb
from minimodal.errors import UserError
from minimodal.evaluation.zero_shot import (
    BATCH,
    ZeroShotClassifier,
    check_labels,
    check_templates,
    read_lines,
)

ABOUT = "which of some labels goes with a picture"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = parser.add_argument
    add("pictures", nargs="+", metavar="IMG", help="picture files")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", metavar="A,B,…",
        help="what there is to choose from (no default: this or --labels-file)")  # fmt: skip
    labels.add_argument("--labels-file", type=Path, metavar="FILE",
        help="the labels, one a line (no default)")  # fmt: skip
    add("--template", action="append", metavar="TEXT",
        help="a caption with {} for the label; several are averaged (default: what fits the "
             "CLIP's training data, 'a photo of a {}' for an original)")  # fmt: skip
    add("--templates", type=Path, metavar="FILE",
        help="templates, one a line (default: none)")  # fmt: skip
    add("--top", type=int, metavar="K", help="show the K likeliest labels (default: all)")
    add("--json", action="store_true", help="print one JSON object instead of words")
    add_clip_flags(parser)
    parser.set_defaults(rest="pictures")


def labels_of(arguments: argparse.Namespace) -> list[str]:
    """The labels of a command line."""
    if arguments.labels_file is not None:
        return check_labels(read_lines(arguments.labels_file))
    if not arguments.labels.strip():
        raise UserError("--labels is empty; give labels such as --labels 'cat,dog'")
    return check_labels(arguments.labels.split(","))


def templates_of(arguments: argparse.Namespace) -> list[str] | None:
    """The templates of a command line; None where it has none."""
    given = list(arguments.template or [])
    if arguments.templates is not None:
        given += read_lines(arguments.templates)
    return check_templates(given) if given else None


def classified(classifier: ZeroShotClassifier, paths: list[Path]) -> Iterator[Tensor]:
    """The probabilities (N,) of each picture in turn; a few pictures are in memory at once."""
    for first in range(0, len(paths), BATCH):
        yield from classifier.probabilities([open_rgb(p) for p in paths[first : first + BATCH]])


def run(arguments: argparse.Namespace) -> None:
    """Classify and print."""
    labels, templates = labels_of(arguments), templates_of(arguments)
    if arguments.top is not None and arguments.top < 1:
        raise UserError(f"--top {arguments.top}: expected 1 or more labels")
    paths = [Path(name) for name in arguments.pictures]
    for path in paths:  # before the model is loaded
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file"
            raise UserError(f"{path}: {what}; give picture files")
    classifier = ZeroShotClassifier(load_clip(arguments), labels, templates)
    best_first = []
    for row in classified(classifier, paths):  # all, before a word is printed
        order = row.argsort(descending=True, stable=True)[: arguments.top].tolist()
        best_first.append([(classifier.labels[i], float(row[i])) for i in order])
    told(arguments, classifier, best_first)


def told(
    arguments: argparse.Namespace,
    classifier: ZeroShotClassifier,
    best_first: list[list[tuple[str, float]]],
) -> None:
    """Print each picture's labels, in words or as JSON."""
    if arguments.json:
        pictures = [
            {"file": name, "label": found[0][0], "probabilities": dict(found)}
            for name, found in zip(arguments.pictures, best_first, strict=True)
        ]
        made = {"clip": str(arguments.clip), "templates": classifier.templates}
        print(json.dumps(made | {"pictures": pictures}))
        return
    for name, found in zip(arguments.pictures, best_first, strict=True):
        width = max(len(label) for label, _ in found)
        print(shown(name))
        for label, probability in found:
            print(f"  {shown(label):{width}}  {probability:6.1%}")

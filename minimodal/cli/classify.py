"""`python -m minimodal classify IMG … --labels "cat,dog"`: which label goes with a picture.

Pictures are read as `CLIP.preprocess` does; `uses/zero_shot.py` has what happens to them.
"""

import argparse
import json
from pathlib import Path

from torch import Tensor

from minimodal.cli.common import check_choice, read_each, read_labels
from minimodal.cli.which_clip import add_clip_flags, load_clip
from minimodal.data.images import opened
from minimodal.errors import UserError
from minimodal.uses.zero_shot import (
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
        return check_choice(check_labels(read_lines(arguments.labels_file)), "one a line")
    return read_labels(arguments.labels)


def templates_of(arguments: argparse.Namespace) -> list[str] | None:
    """The templates of a command line; None where it has none."""
    given = list(arguments.template or [])
    if arguments.templates is not None:
        given += read_lines(arguments.templates)
    return check_templates(given) if given else None


def run(arguments: argparse.Namespace) -> int:
    """Classify and print; returns the exit status."""
    labels, templates = labels_of(arguments), templates_of(arguments)
    if arguments.top is not None and arguments.top < 1:
        raise UserError(f"--top {arguments.top}: expected 1 or more labels")
    clip = load_clip(arguments)
    if not arguments.allow_unseen:
        clip.words.check([*labels, *(template.format("") for template in templates or [])])
    classifier = ZeroShotClassifier(clip, labels, templates)

    def probabilities(name: str) -> Tensor:
        with opened(name) as picture:
            image = clip.preprocess(picture)
        return classifier.logits(image[None])[0].float().softmax(-1)  # (N,)

    found, refused = read_each(arguments.pictures, probabilities)
    best_first = []
    for name, row in found:
        order = row.argsort(descending=True, stable=True)[: arguments.top].tolist()
        best_first.append((name, [(classifier.labels[i], float(row[i])) for i in order]))
    told(arguments, classifier, best_first, refused)
    return 1 if refused else 0


def told(
    arguments: argparse.Namespace,
    classifier: ZeroShotClassifier,
    best_first: list[tuple[str, list[tuple[str, float]]]],
    refused: list[str],
) -> None:
    """Print each picture's labels, in words or as JSON."""
    if arguments.json:
        pictures = [
            {"file": name, "label": found[0][0], "probabilities": dict(found)}
            for name, found in best_first
        ]
        made = {"clip": str(arguments.clip), "templates": classifier.templates}
        print(json.dumps(made | {"pictures": pictures, "left_out": refused}))
        return
    for name, found in best_first:
        width = max(len(label) for label, _ in found)
        print(name)
        for label, probability in found:
            print(f"  {label:{width}}  {probability:6.1%}")

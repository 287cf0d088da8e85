"""`python -m minimodal classify IMG … --labels "cat,dog"`: which label goes with a picture.

Pictures are read as `CLIP.preprocess` does; `uses/zero_shot.py` has what happens to them.
"""

import argparse
import json
from pathlib import Path

from minimodal.cli.common import add_clip_flags, load_clip, read_each, read_labels
from minimodal.data.images import opened
from minimodal.uses.zero_shot import ZeroShotClassifier, check_templates, read_lines

ABOUT = "which of some labels goes with a picture"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pictures", nargs="+", metavar="IMG", help="picture files")
    add("--labels", required=True, metavar="A,B,…", help="what to choose from (no default)")
    add("--template", action="append", default=[], metavar="TEXT",
        help="a caption with {} for the label; several are averaged (default: what fits the "
             "CLIP's training data, 'a photo of a {}' for an original)")  # fmt: skip
    add("--templates", type=Path, metavar="FILE",
        help="templates, one a line (default: none)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of words")
    add_clip_flags(parser)
    parser.set_defaults(rest="pictures")


def run(arguments: argparse.Namespace) -> int:
    labels, templates = read_labels(arguments.labels), arguments.template
    if arguments.templates is not None:
        templates = templates + read_lines(arguments.templates)
    if templates:
        check_templates(templates)
    clip = load_clip(arguments)
    if not arguments.allow_unseen:
        clip.words.check([*labels, *(template.format("") for template in templates)])
    classifier = ZeroShotClassifier(clip, labels, templates or None)

    def likeliest(name: str) -> dict[str, float]:
        with opened(name) as picture:
            row = classifier.probabilities([picture])[0]  # (N,)
        order = row.argsort(descending=True, stable=True).tolist()
        return {classifier.labels[i]: float(row[i]) for i in order}

    read, refused = read_each(arguments.pictures, likeliest)
    if arguments.json:
        pictures = [
            {"file": name, "label": next(iter(likely)), "probabilities": likely}
            for name, likely in read
        ]
        made = {"clip": str(arguments.clip), "templates": classifier.templates}
        print(json.dumps(made | {"pictures": pictures, "left_out": refused}))
        return 1 if refused else 0
    for name, likely in read:
        width = max(map(len, likely))
        print(name)
        for label, probability in likely.items():
            print(f"  {label:{width}}  {probability:6.1%}")
    return 1 if refused else 0

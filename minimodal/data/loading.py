"""From a data SPEC on the command line to a source of pictures and captions.

    shapes | shapes:hard | shapes:edits | cifar10:PATH | cifar100:PATH |
    coco:PATH[:train2017|val2017|…] | folder:PATH | tar:PATH-{000..099}.tar

each with an optional `:N` behind it, for N pictures only; several with commas between are trained
on together and scored on the first. `open_data` gives an object with
`images(indices)` uint8 (B, 3, S, S), pairs of `shapes:edits` (B, 3, 2*S, S), and
`captions(indices, rng)`: the worlds draw them when asked, ImageSource (images.py) has them in
memory or in shards. Read sources.py, shapes/worlds.py, cifar.py, folder.py and tar.py before.
"""

import difflib
import os
import re
from typing import NamedTuple

from minimodal.data.cifar import open_cifar
from minimodal.data.folder import PARTS, open_coco, open_folder
from minimodal.data.images import join_sources
from minimodal.data.sources import DataSource
from minimodal.data.tar import open_tar, shards_of
from minimodal.errors import UserError
from minimodal.shapes.source import ENDLESS
from minimodal.shapes.worlds import WORLDS

KINDS = ("shapes", "cifar10", "cifar100", "coco", "folder", "tar")
FORMS = (
    "shapes, shapes:hard, shapes:edits, cifar10:PATH, cifar100:PATH, "
    "coco:PATH[:train2017|val2017|…], folder:PATH, "
    "tar:PATH.tar, tar:PATH-{000..099}.tar"
)


class Spec(NamedTuple):
    """A data SPEC, taken apart."""

    kind: str
    path: str = ""
    part: str | None = None  # of COCO; "hard" or "edits" of shapes
    limit: int | None = None


def split_spec(spec: str) -> list[str]:
    """The parts of "cifar10:A,cifar10:B"; a comma in a path is none between parts."""
    return re.split(rf",(?=(?:{'|'.join(KINDS)})(?::|,|$))", spec)


def _count(text: str, spec: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) == 0:
        raise UserError(f"--data {spec}: {text!r} is not a number of pictures, 1 or more")
    return int(text)


def parse_spec(spec: str) -> Spec:
    """Take a data SPEC apart; the path must exist, and may itself contain colons."""
    kind, colon, rest = spec.partition(":")
    if kind not in KINDS:
        close = difflib.get_close_matches(kind.lower(), KINDS, n=1, cutoff=0.5)
        own = f"for your own pictures write folder:{spec}; " * os.path.isdir(spec)
        hint = f"did you mean {close[0]}? " if close else own
        raise UserError(f"--data {spec}: unknown kind of data {kind!r}; {hint}known are {FORMS}")
    if kind == "shapes":
        world, more, number = rest.partition(":")
        if world in WORLDS and world != "shapes":
            return Spec(kind, part=world, limit=_count(number, spec) if more else None)
        return Spec(kind, limit=_count(rest, spec) if colon else None)
    if not rest:
        raise UserError(f"--data {spec}: a path is missing, write {kind}:PATH")
    try:
        os.fsencode(rest)
    except UnicodeEncodeError:
        raise UserError(f"--data {spec!a}: the path has letters that no file can have") from None
    pieces = rest.split(":")
    for cut in range(len(pieces), 0, -1):  # the longest path that exists
        path, tail = os.path.expanduser(":".join(pieces[:cut])), pieces[cut:]
        first = next(iter(shards_of(path)), path) if kind == "tar" else path
        if os.path.exists(first):
            break
    else:
        path = re.sub(rf"(:({'|'.join(PARTS)}))?(:\d+)?$", "", rest)
        raise UserError(f"--data {spec}: no such {'file' if kind == 'tar' else 'folder'}, {path}")
    if kind != "tar" and not os.path.isdir(path):
        raise UserError(
            f"--data {spec}: {path} is a file, expected a folder; of tar shards write tar:PATH, "
            "other archives unpack"
        )
    part = tail.pop(0) if kind == "coco" and tail and tail[0] in PARTS else None
    if len(tail) > 1:
        raise UserError(f"--data {spec}: cannot read {':'.join(tail)!r} after the path {path}")
    return Spec(kind, path, part, _count(tail[0], spec) if tail else None)


def open_data(
    spec: str, *, image_size: int, split: str = "train", limit: int | None = None, seed: int = 0
) -> DataSource:
    """Open what a data SPEC names, at `image_size`; `split` is "train" or "val".

    `limit`, and `:N` in the SPEC, keep the first N of a seeded shuffle (the smaller where both
    are given; all where there are fewer). `seed` also decides a split that the data does not have:
    use the same one for both splits.
    """
    if split not in ("train", "val"):
        raise UserError(f"split {split!r}: expected train or val")
    if not isinstance(image_size, int) or image_size < 1:
        raise UserError(f"image size {image_size!r}: expected a number of pixels, 1 or more")
    if limit is not None:
        limit = _count(str(limit), f"{spec} with limit={limit}")
    parts = split_spec(spec)
    if len(parts) > 1:
        kinds = [parse_spec(part).kind for part in parts]
        if "shapes" in kinds:
            raise UserError(f"--data {spec}: shapes is endless by itself and joins no other data")
        if "tar" in kinds:
            raise UserError(f"--data {spec}: shards join no other data: number them in one series")
        wanted = parts if split == "train" else parts[:1]
        common = {"image_size": image_size, "split": split, "limit": limit, "seed": seed}
        return join_sources([open_data(part, **common) for part in wanted])
    kind, path, part, limit_in_spec = parse_spec(spec)
    limit = min((n for n in (limit, limit_in_spec) if n is not None), default=None)
    if kind == "shapes":
        world, length = WORLDS[part or kind].source, limit or ENDLESS
        return world(seed, split=split, image_size=image_size, length=length)
    common = {"image_size": image_size, "split": split, "limit": limit, "seed": seed}
    if kind.startswith("cifar"):
        return open_cifar(path, int(kind.removeprefix("cifar")), **common)
    if kind == "coco":
        return open_coco(path, part, **common)
    return open_tar(path, **common) if kind == "tar" else open_folder(path, **common)

"""A folder of your own pictures, at any depth, with captions in any of the common forms.

    cat.jpg + cat.txt     every line that is not empty is a caption; also cat.caption, cat.jpg.txt,
                          cat.json with a caption in it, and text/cat.txt for images/cat.jpg
    captions.jsonl, metadata.csv, …    a table of pictures and captions, see captions.py
    cats/1.jpg            without any caption: a folder for each class, with CIFAR's templates

All captions that are found for a picture count. Broken entries are skipped and named, more than
5 % stop with a list. Pictures without a caption are left out, unless none has any: such a folder
can train a VQGAN. The split is that of the captions or of folders called train and val (or test);
where there is neither, a tenth, chosen by a hash of the names, is "val". Every reading ends with
one line of what was used and what was not.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from minimodal.data.captions import TABLES, TEXTS, Pictures, read_beside, read_table, split_named
from minimodal.data.cifar import class_captions
from minimodal.data.images import (
    ImageSource,
    first_n,
    inside,
    load_images,
    skip_or_stop,
    split_by_name,
)
from minimodal.data.listing import SUFFIXES, kind_of, list_files, told
from minimodal.errors import UserError

ADD_CAPTIONS = (
    "Add a .txt file beside each picture (cat.txt for cat.jpg), or a captions.jsonl with lines"
    ' such as {"image": "cat.jpg", "caption": "a cat"}, or a captions.csv with the columns'
    " image,caption"
)
# A line of YOLO's box files, which lie where captions do: a class and four or more numbers.
BOXES = re.compile(r"\d+( [\d.e+-]+){4,}")


class Folder(NamedTuple):
    """What is in a folder."""

    captions: dict[str, list[str]]  # of each picture, by relative file name, sorted
    splits: dict[str, str]  # of the pictures whose captions say it
    sources: dict[str, None]  # the files or kinds of files that had captions, in order
    unused: Counter[str]
    reasons: list[str]  # why tables are not used


# --- captions ------------------------------------------------------------------------------------


def _picture_of(root: Path, near: str, image: str, pictures: Pictures) -> str | None:
    found = pictures.find(image, near=near)
    if found is None:
        try:  # named by its exact path it may have any suffix, or none, or be hidden
            exact = str(PurePosixPath(near, inside(image)))
        except ValueError:
            return None
        found = exact if os.path.isfile(root / exact) else None
    return found


def _read_table(root: Path, name: str, *, pictures: Pictures, found: Folder) -> bool:
    """Add what a caption file says; False for one that says nothing of any picture here, which
    is an error where it is called captions."""
    near, stem = str(PurePosixPath(name).parent), PurePosixPath(name).stem
    broken, missing, good = [], [], []
    try:
        for line in read_table(root / name):
            picture = None if line.error else _picture_of(root, near, line.image, pictures)
            if line.error:
                broken.append(f"line {line.number}: {line.error}")
            elif picture is None:
                missing.append(f"line {line.number}: no such picture, {line.image!r}")
            else:
                good.append((picture, line))
    except UserError as error:
        if stem == "captions":
            raise
        broken.append(str(error))
    if not good and stem != "captions":
        found.reasons.append(f"{name}: {[*broken, *missing, 'no entries'][0]}")
        return False
    total = len(good) + len(broken) + len(missing)
    skip_or_stop(broken, total, what=f"{root / name}, lines", missing=missing)
    for picture, line in good:
        found.captions.setdefault(picture, []).extend(line.captions)
        split = line.split or found.splits.get(picture) or split_named(stem)
        if split:
            found.splits[picture] = split
    found.sources[name] = None
    return True


def _read_texts(root: Path, names: Sequence[str], *, pictures: Pictures, found: Folder) -> None:
    """Add the files beside pictures; JSON without a caption in it is counted, not broken."""
    broken, total = [], 0
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        try:
            texts = read_beside(root / name)
        except (OSError, ValueError, RecursionError) as error:
            if suffix == ".json":
                found.unused[".json without a caption"] += 1
            else:
                broken.append(f"{name}, line 1: {error}")
                total += 1
            continue
        total += 1
        if texts and all(BOXES.fullmatch(text) for text in texts):
            found.unused[f"{suffix} of boxes, not captions"] += 1
            continue
        for picture in pictures.beside(name):
            found.captions[picture] += texts
        found.sources[suffix] = None
    skip_or_stop(broken, total, what=f"{root}, captions beside pictures")


def read_folder(path: str | os.PathLike) -> Folder:
    """What is in and below a folder: pictures, their captions, and all that is neither."""
    root = Path(path)
    listing = list_files(root)
    names = [name for name in listing.files if name.lower().endswith(SUFFIXES)]
    found = Folder({name: [] for name in names}, {}, {}, listing.unread, [])
    pictures, beside, left = Pictures(names), [], []
    for name in listing.files:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in TEXTS and pictures.beside(name):
            beside.append(name)
        elif suffix not in TABLES or not _read_table(root, name, pictures=pictures, found=found):
            left.append(name)
    _read_texts(root, beside, pictures=pictures, found=found)
    for name in left:
        if name not in found.captions:
            text = PurePosixPath(name).suffix.lower() in TEXTS
            found.unused[kind_of(name) + " without a picture" * text] += 1
    return found._replace(captions=dict(sorted(found.captions.items())))


# --- classes and splits --------------------------------------------------------------------------


class Layout(NamedTuple):
    """What the folders that pictures lie in say, one entry a picture."""

    splits: list[str]  # "train", "val", "test", or "" for all
    classes: list[str]  # "" for all where folders are no classes


def read_layout(names: Sequence[str], stated: dict[str, str]) -> Layout:
    """Splits and classes by folders: train/cats/1.jpg, below whatever folders all share."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    shared = len(os.path.commonprefix(folders))
    folders = [parts[shared:] for parts in folders]
    by_folder = [split_named(parts[0]) if parts else "" for parts in folders]
    if all(by_folder):
        folders = [parts[1:] for parts in folders]
    splits = [stated.get(name) or split for name, split in zip(names, by_folder, strict=True)]
    if not all(splits) or "train" not in splits or len(set(splits)) < 2:
        splits = [""] * len(names)
    classes = [parts[0] if len(parts) == 1 else "" for parts in folders]
    if not all(classes) or len(set(classes)) < 2:
        classes = [""] * len(names)
    # "001.Crow" and "n0123-crow" are numbered names.
    bare = {name: re.sub(r"^n?\d+[._ -]+", "", name) or name for name in classes}
    distinct = len(set(bare.values())) == len(bare)
    return Layout(splits, [bare[name] for name in classes] if distinct else classes)


def choose_split(names: Sequence[str], layout: Layout, split: str, *, seed: int) -> np.ndarray:
    """Indices of a split: the one that is stated, else a tenth as "val" (test where that is all).

    returns: (M,) int64, ascending
    """
    if not any(layout.splits):
        return split_by_name(names, split, seed=seed)
    wanted = "test" if split == "val" and "val" not in layout.splits else split
    return np.flatnonzero(np.array(layout.splits) == wanted)


# --- the source ----------------------------------------------------------------------------------


def open_folder(
    path: str | os.PathLike,
    *,
    image_size: int = 256,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    workers: int = 2,
) -> ImageSource:
    """A folder of pictures as a data source; `has_captions` is False where it has none at all."""
    path = Path(path)
    found = read_folder(path)
    captions, unused = found.captions, found.unused
    if not captions:
        there = f"; there are {told(unused)}" if unused else ""
        raise UserError(
            f"{path}: no pictures ({' '.join(SUFFIXES)}) in this folder or below{there}; give the"
            " folder that contains them"
        )
    names = [name for name, texts in captions.items() if texts] or list(captions)
    unused["pictures without a caption"] += len(captions) - len(names)
    layout = read_layout(names, found.splits)
    classes = [] if captions[names[0]] else sorted(set(layout.classes) - {""})
    if classes:
        captions = {n: class_captions(c) for n, c in zip(names, layout.classes, strict=True)}
    if "val" in layout.splits:
        unused["pictures of the test split"] += layout.splits.count("test")
    chosen = choose_split(names, layout, split, seed=seed)
    chosen = chosen[first_n(len(chosen), limit, seed=seed)]
    files = [path / names[i] for i in chosen]
    loaded = load_images(
        files, image_size, workers=workers, what=f"folder {path}", total=len(names)
    )
    kept = chosen[loaded.kept]
    unused["broken pictures"] += len(loaded.broken)
    source = ImageSource(
        name="folder",
        pixels=loaded.images,
        caption_lists=[captions[names[i]] for i in kept],
        labels=np.array([classes.index(layout.classes[i]) for i in kept]) if classes else None,
        class_names=tuple(name.replace("_", " ") for name in classes) or None,
        add_captions=ADD_CAPTIONS,
    )
    tell(path, split, source, of=len(names), found=found, stated=any(layout.splits))
    return source


def tell(
    path: Path, split: str, source: ImageSource, *, of: int, found: Folder, stated: bool
) -> None:
    """Say on stderr what was used of a folder and what was not, in one line."""
    where = ", ".join([*found.sources][:5]) + ", …" * (len(found.sources) > 5)
    if source.class_names:
        where = f"the names of {len(source.class_names)} folders, as classes"
    number = sum(map(len, source.caption_lists))
    rule = "as its folders or captions say" if stated else "a tenth, by name, is val"
    line = f"{path}, {split}: {len(source):,} of {of:,} pictures ({rule}), {number:,} captions"
    line += f" from {where}" * (number > 0)
    if +found.unused:
        line += f"; not used: {told(+found.unused)}"
    if found.reasons:
        line += f"; {found.reasons[0]}" + "; …" * (len(found.reasons) > 1)
    print(line, file=sys.stderr)

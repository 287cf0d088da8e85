"""A folder of your own pictures, at any depth, with captions in any common form; and COCO.

    cat.jpg + cat.txt     every line that is not empty is a caption; also cat.caption, cat.jpg.txt,
                          cat.json with a caption in it, and text/cat.txt for images/cat.jpg
    captions.jsonl, metadata.csv, …    a table of pictures and captions, see captions.py
    cats/1.jpg            where there is no caption at all: a folder a class, with CIFAR's templates

All captions that are found for a picture count. Broken entries are skipped and named, more than
5 % stop with a list. Pictures without a caption are left out, unless none has any: such a folder
can train a VQGAN. The split is that of the captions or of folders called train and val or test;
where there is neither, a tenth, chosen by a hash of the names, is "val". Every reading ends with
one line of what was used and what was not.
"""

import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimodal.data.captions import SISTERS, Pictures, read_table, split_named, texts_in
from minimodal.data.cifar import class_captions
from minimodal.data.images import ImageSource, first_n, load_images, skip_or_stop, split_by_name
from minimodal.data.listing import SUFFIXES, TABLES, TEXTS, kind_of, list_files, suffix_of, told
from minimodal.errors import UserError

ADD_CAPTIONS = (
    "Add a .txt file beside each picture (cat.txt for cat.jpg), or a captions.jsonl with lines"
    ' such as {"image": "cat.jpg", "caption": "a cat"}, or a captions.csv with the columns'
    " image,caption"
)
CAPTIONS = tuple(f"captions{suffix}" for suffix in TABLES if suffix != ".txt")  # nothing else
# A line of YOLO's box files, which lie where captions do: a class and four or more numbers.
BOXES = re.compile(r"\d+( [\d.e+-]+){4,}")


class Folder(NamedTuple):
    """What is in a folder."""

    captions: dict[str, list[str]]  # of each picture, by relative file name
    splits: dict[str, str]  # of the pictures whose captions say it
    sources: dict[str, None]  # the files or kinds of files that had captions, in order
    unused: Counter[str]


def _read_table(file: Path, near: str, pictures: Pictures, *, found: Folder, must: bool) -> bool:
    """Add what a caption file says; False for one that says nothing of any picture here, which is
    an error where it must."""
    broken, missing, good = [], [], []
    word = "entry" if suffix_of(file.name) == ".json" else "line"
    try:
        for line in read_table(file):
            picture = pictures.find(line.image, near=near)
            if line.error:
                broken.append(f"{word} {line.number}: {line.error}")
            elif picture is None:
                missing.append(f"{word} {line.number}: no such picture, {line.image!r}")
            else:
                good.append((picture, line))
    except UserError as error:
        if must:
            raise
        broken.append(str(error).removeprefix(f"{file}, "))
    if not good and not must:
        if suffix_of(file.name) not in TEXTS:  # of a kind that holds nothing but tables
            print(f"{file}: not used: {[*broken, *missing, 'empty'][0]}", file=sys.stderr)
        return False
    total = len(good) + len(broken) + len(missing)
    if total == 0:
        raise UserError(f"{file}: has no entries with a picture and a caption; mend or remove it")
    skip_or_stop(broken, total, what=f"{file}, captions", missing=missing)
    for picture, line in good:
        found.captions.setdefault(picture, []).extend(line.captions)
        split = line.split or found.splits.get(picture) or split_named(file.stem)
        if split:
            found.splits[picture] = split
    found.sources[file.name] = None
    return True


def _read_beside(root: Path, names: Sequence[str], pictures: Pictures, *, found: Folder) -> None:
    """Add the files beside pictures; JSON without a caption in it is counted, not broken."""
    broken = []
    for name in names:
        suffix = suffix_of(name)
        try:
            texts = texts_in((root / name).read_bytes(), suffix)
        except (OSError, ValueError, RecursionError) as error:
            if suffix == ".json":
                found.unused[".json without a caption"] += 1
            else:
                broken.append(f"{name}, line 1: {error}")
            continue
        if texts and all(BOXES.fullmatch(text) for text in texts):
            found.unused[f"{suffix} of boxes"] += 1
            continue
        for picture in pictures.beside(name):
            found.captions[picture] += texts
        found.sources[suffix] = None
    skip_or_stop(broken, len(names), what=f"{root}, captions beside pictures")


def read_folder(path: str | os.PathLike, table: Path | None = None) -> Folder:
    """What is in and below a folder: pictures, their captions, and all that is neither.

    `table`: the one file that has the captions, wherever it lies
    """
    root, (files, unread) = Path(path), list_files(Path(path))
    pictures, beside = Pictures(files), []
    found = Folder({n: [] for n in files if suffix_of(n) in SUFFIXES}, {}, {}, unread)
    if table is not None:
        _read_table(table, "", pictures, found=found, must=True)
    for name in files:
        suffix, text = suffix_of(name), ""
        if table is None and suffix in TEXTS and pictures.beside(name):
            beside.append(name)
            continue
        if table is None and suffix in TABLES:
            near, must = posixpath.dirname(name), posixpath.basename(name) in CAPTIONS
            if _read_table(root / name, near, pictures, found=found, must=must):
                continue
            text = " without a picture" * (suffix in TEXTS)
        unread[kind_of(name) + text] += suffix not in SUFFIXES
    _read_beside(root, beside, pictures, found=found)
    return found._replace(captions=dict(sorted(found.captions.items())), unused=+unread)


def read_layout(names: Sequence[str], stated: dict[str, str]) -> tuple[list[str], list[str]]:
    """The split and the class of each picture by folders such as train/cats/1.jpg, below those
    that all share; an empty list where folders do not say it of all pictures."""
    folders = [name.split("/")[:-1] for name in names]
    shared = len(os.path.commonprefix(folders))
    folders = [parts[shared:] for parts in folders]
    by_folder = [split_named(parts[0]) if parts else "" for parts in folders]
    if all(by_folder):
        folders = [parts[1:] for parts in folders]
    splits = [stated.get(name) or split for name, split in zip(names, by_folder, strict=True)]
    known = all(splits) and "train" in splits and len(set(splits)) > 1
    classes = ["/".join(parts) for parts in folders if len(parts) == 1]
    # images/ and masks/ are no classes.
    sisters = any(SISTERS.match(f"{label.lower()}/") for label in classes)
    in_classes = len(classes) == len(names) and len(set(classes)) > 1 and not sisters
    return splits if known else [], classes if in_classes else []


def say_used(
    what: str, captions: Sequence[Sequence[str]], total: int,
    *, rule: str, where: str, unused: Counter[str],
) -> None:  # fmt: skip
    """One line of how many pictures of how many are used, with captions from where, what is not."""
    line = f"{what}: {len(captions):,} of {total:,} pictures{rule}"
    line += f", {sum(map(len, captions)):,} captions from {where}" if where else ", no captions"
    print(line + f"; not used: {told(unused)}" * any(unused.values()), file=sys.stderr)


def open_folder(
    path: str | os.PathLike, *, image_size: int = 256, split: str = "train",
    limit: int | None = None, seed: int = 0, table: Path | None = None, name: str = "folder",
) -> ImageSource:  # fmt: skip
    """A folder of pictures as a data source; `has_captions` is False where it has none at all.

    `split` may be "all", too; `table` as in `read_folder`, `name` that of the source
    """
    found = read_folder(path, table)
    captions, unused = found.captions, found.unused
    if not captions:
        there = f"; there are {told(unused)}" * bool(unused)
        raise UserError(
            f"{path}: no pictures ({' '.join(SUFFIXES)}) in this folder or below{there}; give the"
            " folder that contains them"
        )
    names = [file for file, texts in captions.items() if texts] or list(captions)
    unused["pictures without a caption"] += len(captions) - len(names)
    splits, classes = read_layout(names, found.splits)
    where = ", ".join([*found.sources][:5]) + ", …" * (len(found.sources) > 5)
    if captions[names[0]]:
        classes = []
    elif classes:
        captions = {n: class_captions(label) for n, label in zip(names, classes, strict=True)}
        where = f"the names of {len(set(classes))} folders, as classes"
    chosen, rule = np.arange(len(names)), ""
    if split != "all" and not splits:
        chosen, rule = split_by_name(names, split, seed=seed), " (a tenth, by name, is val)"
    elif split != "all":
        held = "val" if "val" in splits else "test"
        chosen = np.flatnonzero(np.array(splits) == (held if split == "val" else split))
        rule = f" (the folders or captions say what is train and {held})"
        unused["pictures of test"] += splits.count("test") * (held == "val")
    chosen = chosen[first_n(len(chosen), limit, seed=seed)]
    files = [Path(path, names[i]) for i in chosen]
    loaded = load_images(files, image_size, what=f"{name} {path}", total=len(names))
    unused["broken pictures"] += len(loaded.broken)
    kept, labels = chosen[loaded.kept], sorted(set(classes))
    lists = [captions[names[i]] for i in kept]
    say_used(f"{path}, {split}", lists, len(names), rule=rule, where=where, unused=unused)
    return ImageSource(
        name=name,
        pixels=loaded.images,
        caption_lists=lists,
        labels=np.searchsorted(labels, [classes[i] for i in kept]) if labels else None,
        class_names=tuple(label.replace("_", " ") for label in labels) or None,
        add_captions=ADD_CAPTIONS,
    )


# --- COCO ----------------------------------------------------------------------------------------

PARTS = ("train2017", "val2017", "train2014", "val2014")


def open_coco(
    path: str | os.PathLike, part: str | None = None, *, image_size: int = 256,
    split: str = "train", limit: int | None = None, seed: int = 0,
) -> ImageSource:  # fmt: skip
    """COCO captions (Lin et al., 2014; Chen et al., 2015), as the official archives unpack:

    PATH/annotations/captions_train2017.json    PATH/train2017/*.jpg    or all of them
    PATH/annotations/captions_val2017.json      PATH/val2017/*.jpg      with 2014

    The split "train" is train2017 and "val" is val2017 (2014 where there is no train2017). Where
    that is not there, a tenth of the training pictures takes its place and is kept out of "train".
    `part` ("train2017" or "val2017", …) overrides the split.
    """
    path = Path(path)
    table = "annotations/captions_{}.json"
    has = [p for p in PARTS if (path / table.format(p)).is_file() and (path / p).is_dir()]
    year = "2014" if "train2014" in has and "train2017" not in has else "2017"
    divide = part is None and f"val{year}" not in has
    wanted = part or (f"train{year}" if divide else f"{split}{year}")
    if wanted not in has:
        hint = f"; coco:{path}:{has[0]} uses the part that is there" if has else ""
        raise UserError(
            f"{path}: expected {table.format(wanted)} and a folder {wanted} with the"
            f" pictures: the COCO archives, unpacked in one place{hint}; folder:{path} reads"
            " captions in other forms, such as Karpathy's"
        )
    return open_folder(
        path / wanted, image_size=image_size, split=split if divide else "all", limit=limit,
        seed=seed, table=path / table.format(wanted), name="coco",
    )  # fmt: skip

"""COCO captions (Lin et al., 2014; Chen et al., 2015), as the official archives unpack.

    PATH/annotations/captions_train2017.json    PATH/train2017/*.jpg    or all of them
    PATH/annotations/captions_val2017.json      PATH/val2017/*.jpg      with 2014

The JSON lists `images` (id, file_name) and `annotations` (image_id, caption), about five captions
a picture; all are used, one drawn a step. Pictures without a caption, and those that are listed
and not there, are left out and counted. The split "train" is train2017 and "val" is val2017. Where
val2017 is not there, a tenth of train2017 takes its place and is kept out of "train"; 2014 counts
where there is no train2017. A source of pictures uint8 (N, 3, S, S) comes out. Read images.py
before.
"""

import json
import os
import sys
from pathlib import Path

from minimodal.data.images import (
    ImageSource,
    clean_caption,
    first_n,
    inside,
    load_images,
    skip_or_stop,
    split_by_name,
)
from minimodal.data.listing import kind_of, list_files, told
from minimodal.errors import UserError

PARTS = ("train2017", "val2017", "train2014", "val2014")


def _has_part(path: Path, part: str) -> bool:
    return (path / "annotations" / f"captions_{part}.json").is_file() and (path / part).is_dir()


def read_captions(path: str | os.PathLike) -> dict[str, list[str]]:
    """The captions in a COCO annotation file, by file name; [] for a picture that has none.

    Broken entries are skipped and counted; more than 5 % of them are a `UserError`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); unpack it again") from error
    images, annotations = (
        content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")
    )
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise UserError(f"{path}: has no lists `images` and `annotations`: not a COCO caption file")
    names, broken = {}, []
    for i, image in enumerate(images):
        try:
            names[image["id"]] = inside(image["file_name"])
        except (TypeError, KeyError, ValueError) as error:
            broken.append(f"images[{i}] ({type(error).__name__}: {error})")
    skip_or_stop(broken, len(images), what=f"{path}, images")
    captions: dict[str, list[str]] = {name: [] for name in names.values()}
    broken = []
    for i, annotation in enumerate(annotations):
        try:
            captions[names[annotation["image_id"]]].append(clean_caption(annotation["caption"]))
        except KeyError as error:
            broken.append(f"annotations[{i}] (no {error} in it or in images)")
        except (TypeError, ValueError) as error:
            broken.append(f"annotations[{i}] ({error})")
    skip_or_stop(broken, len(annotations), what=f"{path}, annotations")
    return captions


def open_coco(
    path: str | os.PathLike,
    part: str | None = None,
    *,
    image_size: int = 256,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    workers: int = 2,
) -> ImageSource:
    """COCO captions as a data source; `part` ("train2017" or "val2017") overrides the split."""
    path = Path(path)
    year = "2014" if _has_part(path, "train2014") and not _has_part(path, "train2017") else "2017"
    wanted = part or f"{split}{year}"
    divide = part is None and not _has_part(path, f"val{year}")
    if divide:
        wanted = f"train{year}"
    if not _has_part(path, wanted):
        has = [part for part in PARTS if _has_part(path, part)]
        hint = f"; {has[0]} is there, coco:{path}:{has[0]} uses it" if has else ""
        raise UserError(
            f"{path}: expected annotations/captions_{wanted}.json and a folder {wanted} with the"
            f" pictures: the COCO archives, unpacked in one place{hint}; folder:{path} reads"
            " captions in other forms, such as Karpathy's"
        )
    file = path / "annotations" / f"captions_{wanted}.json"
    captions = read_captions(file)
    files, unused = list_files(path / wanted)
    unused.update(kind_of(name) + " without a caption" for name in files if name not in captions)
    captioned = [name for name, texts in captions.items() if texts]
    unused["pictures without a caption"] += len(captions) - len(captioned)
    if not captioned:
        raise UserError(f"{file}: has no caption; get it anew from where COCO is published")
    names = sorted(set(captioned) & set(files))
    missing = sorted(set(captioned) - set(files))
    skip_or_stop([], len(captioned), what=f"{path / wanted}, pictures", missing=missing)
    total = len(names)
    if divide:
        names = [names[i] for i in split_by_name(names, split, seed=seed)]
    names = [names[i] for i in first_n(len(names), limit, seed=seed)]
    loaded = load_images(
        [path / wanted / name for name in names], image_size, workers=workers,
        what=f"coco {wanted}", total=total,
    )  # fmt: skip
    lists = [captions[names[i]] for i in loaded.kept]
    unused["broken pictures"] += len(loaded.broken)
    rule = " (a tenth, by name, is val)" * divide
    line = f"{path / wanted}, {split}: {len(lists):,} of {len(captions):,} pictures{rule},"
    line += f" {sum(map(len, lists)):,} captions"
    print(line + f"; not used: {told(+unused)}" * bool(+unused), file=sys.stderr)
    return ImageSource(name="coco", pixels=loaded.images, caption_lists=lists)

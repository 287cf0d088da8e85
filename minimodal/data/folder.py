"""A folder of your own pictures, at any depth, with captions in one of three forms.

    cat.jpg + cat.txt     every line that is not empty is a caption
    captions.jsonl        one object a line, {"image": "a/cat.jpg", "caption": "a cat"}
    captions.csv          a header, then one row a caption: image,caption

The picture's key may be image, file, file_name or path, the caption's caption, captions or text
(in JSON also a list of them); paths are relative to the caption file and stay below it. All
captions that are found for a picture count. Broken lines are skipped and named, more than 5 % stop
with a list. Pictures without a caption are left out, unless none has any: such a folder can train
a VQGAN. There is no official split: a tenth, chosen by a hash of the names, is "val".
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from minimodal.data.images import (
    SUFFIXES,
    ImageSource,
    clean_caption,
    files_below,
    first_n,
    inside,
    load_images,
    skip_or_stop,
    split_by_name,
)
from minimodal.errors import UserError

IMAGE_KEYS = ("image", "file", "file_name", "path")
CAPTION_KEYS = ("caption", "captions", "text")
ADD_CAPTIONS = (
    "Add a .txt file beside each picture (cat.txt for cat.jpg), or a captions.jsonl with lines"
    ' such as {"image": "cat.jpg", "caption": "a cat"}, or a captions.csv with the columns'
    " image,caption"
)


class Line(NamedTuple):
    """One line of a caption file: either a picture with captions, or what is wrong with it."""

    number: int
    image: str = ""
    captions: tuple[str, ...] = ()
    error: str = ""


def _entry(number: int, *, image: object, captions: object) -> Line:
    texts = captions if isinstance(captions, list) else [captions]
    # In a list an empty caption among others does no harm.
    texts = [text for text in texts if text != ""] or [""]
    try:
        return Line(number, inside(image), tuple(clean_caption(text) for text in texts))
    except ValueError as error:
        return Line(number, error=str(error))


def _value(record: dict, keys: tuple[str, ...]) -> object:
    for key in keys:
        if key in record:
            return record[key]
    raise ValueError(f"no {' or '.join(repr(key) for key in keys)}")


def read_jsonl(path: Path) -> Iterator[Line]:
    """The lines of a captions.jsonl; empty ones are passed over."""
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            record = json.loads(raw.decode("utf-8-sig"))
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
            image, captions = _value(record, IMAGE_KEYS), _value(record, CAPTION_KEYS)
        except UnicodeDecodeError:
            yield Line(number, error="not UTF-8")
        except json.JSONDecodeError as error:
            yield Line(number, error=f"not JSON: {error.msg}")
        except (ValueError, RecursionError) as error:
            yield Line(number, error=str(error))
        else:
            yield _entry(number, image=image, captions=captions)


def read_csv(path: Path) -> Iterator[Line]:
    """The rows of a captions.csv under their header; empty ones are passed over."""
    # An escaped byte survives to clean_caption or the file system, and is refused there by line.
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
    except csv.Error as error:
        raise UserError(f"{path}, line 1: not a CSV header ({error})") from None
    columns = {name: i for i, name in reversed(list(enumerate(header)))}
    try:
        image_at, caption_at = _value(columns, IMAGE_KEYS), _value(columns, CAPTION_KEYS)
    except ValueError as error:
        raise UserError(f"{path}, line 1: {error} among the columns {header}") from None
    while True:
        before = rows.line_num
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed swallows the rest of the file: each line is lost.
            for number in range(before + 1, rows.line_num + 1):
                yield Line(number, error=str(error))
            continue
        if len(row) == len(header):
            yield _entry(rows.line_num, image=row[image_at], captions=row[caption_at])
        elif row:
            yield Line(rows.line_num, error=f"{len(row)} fields, the header has {len(header)}")


def _read_caption_file(root: Path, name: str, *, captions: dict[str, list[str]]) -> None:
    folder = PurePosixPath(name).parent
    read = {"captions.jsonl": read_jsonl, "captions.csv": read_csv}[PurePosixPath(name).name]
    total, broken = 0, []
    for line in read(root / name):
        total += 1
        image = str(folder / line.image)
        if line.error:
            broken.append(f"line {line.number}: {line.error}")
        elif image not in captions and not os.path.isfile(root / image):
            broken.append(f"line {line.number}: no such picture, {line.image!r}")
        else:
            captions.setdefault(image, []).extend(line.captions)
    skip_or_stop(broken, total, what=f"{root / name}, lines")


def _read_text_files(root: Path, names: list[str], *, captions: dict[str, list[str]]) -> None:
    texts = {name for name in names if name.lower().endswith(".txt")}
    by_stem = {name[:-4]: name for name in texts}
    total, broken = 0, []
    for image in list(captions):
        name = by_stem.get(str(PurePosixPath(image).with_suffix("")))
        if name is None:
            continue
        total += 1
        try:
            lines = (root / name).read_bytes().decode("utf-8-sig").splitlines()
            captions[image] += [clean_caption(line) for line in lines if line.strip()]
        except (OSError, ValueError) as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            broken.append(f"{name}, line 1: {reason}")
    skip_or_stop(broken, total, what=f"{root}, .txt files")


def read_folder(path: str | os.PathLike) -> dict[str, list[str]]:
    """The captions of every picture in and below a folder, by relative file name, sorted."""
    root = Path(path)
    names = files_below(root)
    captions: dict[str, list[str]] = {name: [] for name in names if name.lower().endswith(SUFFIXES)}
    for name in names:
        if PurePosixPath(name).name in ("captions.jsonl", "captions.csv"):
            _read_caption_file(root, name, captions=captions)
    _read_text_files(root, names, captions=captions)
    return dict(sorted(captions.items()))


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
    captions = read_folder(path)
    if not captions:
        raise UserError(
            f"{path}: no pictures ({' '.join(SUFFIXES)}) in this folder or below; give the folder"
            " that contains them"
        )
    names = [name for name, texts in captions.items() if texts] or list(captions)
    if len(names) < len(captions):
        bare = len(captions) - len(names)
        print(f"{path}: left out {bare} of {len(captions)} without a caption", file=sys.stderr)
    total = len(names)
    names = [names[i] for i in split_by_name(names, split, seed=seed)]
    names = [names[i] for i in first_n(len(names), limit, seed=seed)]
    files = [path / name for name in names]
    loaded = load_images(files, image_size, workers=workers, what=f"folder {path}", total=total)
    return ImageSource(
        name="folder",
        pixels=loaded.images,
        caption_lists=[captions[names[i]] for i in loaded.kept],
        add_captions=ADD_CAPTIONS,
    )

"""Captions in files: tables of pictures and captions, and texts beside the pictures.

    x.jsonl   an object a line                 {"file_name": "a/cat.jpg", "text": "a cat"}
    x.json    a list of such objects, a mapping {"cat.jpg": "a cat"} (or a list of captions, or
              an object), COCO's `images` and `annotations`, Karpathy's `sentences`
    x.csv …   a header and rows, or pairs of a picture and a caption without one; between the
              fields , ; a tab or |

Which columns are meant is decided by their names alone (IMAGE_KEYS, CAPTION_KEYS). A `Line` comes
out for each entry, and `Pictures.find` says which picture of the folder it speaks of. Bytes are
UTF-8, or UTF-16 with its mark in front. Read images.py before.
"""

import csv
import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from minimodal.data.images import clean_caption
from minimodal.data.listing import SUFFIXES
from minimodal.errors import UserError

# The first one that an entry has counts.
IMAGE_KEYS = (
    *("image", "file", "file_name", "path", "filename", "image_name", "img", "image_path"),
    *("img_path", "filepath", "file_path", "image_file", "picture", "photo", "key"),
    *("image_id", "name", "id"),
)
CAPTION_KEYS = (
    *("caption", "captions", "text", "texts", "title", "prompt", "description", "sentence"),
    *("sentences", "raw", "comment"),
)
DELIMITERS = ",;\t|"
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".token")
TEXTS = (".txt", ".caption", ".captions", ".json")  # beside a picture
SPLITS = {"train": "train", "restval": "train", "training": "train", "val": "val", "valid": "val",
          "validation": "val", "dev": "val", "test": "test", "testing": "test"}  # fmt: skip
# Folders that say what kind of file they hold: images/a/cat.jpg and text/a/cat.txt belong together.
SISTERS = re.compile(
    r"(?<![^/])(images?|imgs?|pictures|photos|jpe?gs?|texts?|txts?|captions?|labels?)/"
)


class Line(NamedTuple):
    """One entry of a caption file: a picture with captions, or what is wrong with it."""

    number: int
    image: str = ""
    captions: tuple[str, ...] = ()
    error: str = ""
    split: str = ""


def decode_text(content: bytes) -> str:
    """Bytes as text; what is not UTF-8 stays as surrogates, which `clean_caption` refuses."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    return content.decode("utf-8-sig", "surrogateescape")


def split_named(text: object) -> str:
    """The split that a word such as "train2014" names: "train", "val", "test" or ""."""
    words = re.split(r"[^a-z]+", str(text).lower())
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else ""


# --- one entry -----------------------------------------------------------------------------------


def _plain(key: object) -> str:
    return re.sub(r"[\s_-]+", "_", str(key).strip().lower())


def _plain_keys(record: dict) -> dict:
    return {_plain(key): value for key, value in reversed(record.items())}  # the first one wins


def _value(record: dict, keys: tuple[str, ...]) -> object:
    for key in keys:
        if key in record:
            return record[key]
    raise ValueError(f"no {' or '.join(repr(key) for key in keys[:4])} (…)")


def caption_texts(value: object) -> tuple[str, ...]:
    """The captions in a field: a text, an object with one, or a list; ValueError for any other."""
    texts = value if isinstance(value, list) else [value]
    # In a list an empty caption among others does no harm.
    texts = [text for text in texts if text != ""] or [""]
    return tuple(
        clean_caption(_value(_plain_keys(text), CAPTION_KEYS) if isinstance(text, dict) else text)
        for text in texts
    )


def _entry(number: int, record: object) -> Line:
    try:
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        record = _plain_keys(record)
        image, captions = _value(record, IMAGE_KEYS), _value(record, CAPTION_KEYS)
        if type(image) is int and image == record.get("image_id", record.get("id")):
            image = str(image)  # as COCO has it: 139 stands for 000000000139.jpg
        if not isinstance(image, str) or not image.strip():
            raise ValueError("an empty picture name")
        split = split_named(record.get("split", ""))
        return Line(number, image.strip(), caption_texts(captions), split=split)
    except ValueError as error:
        return Line(number, error=str(error))


# --- tables --------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> Iterator[Line]:
    """The lines of a JSON Lines file; empty ones are passed over."""
    for number, raw in enumerate(decode_text(path.read_bytes()).split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield _entry(number, json.loads(raw))
        except json.JSONDecodeError as error:
            yield Line(number, error=f"not JSON: {error.msg}")
        except RecursionError as error:
            yield Line(number, error=str(error))


def _records(content: object) -> Iterable[object]:
    if not isinstance(content, dict):
        return content if isinstance(content, list) else []
    images, annotations = content.get("images"), content.get("annotations")
    if isinstance(images, list) and isinstance(annotations, list):  # COCO
        names = {str(i.get("id")): i.get("file_name") for i in images if isinstance(i, dict)}
        return [
            {**a, "image": names.get(str(a.get("image_id")))} if isinstance(a, dict) else a
            for a in annotations
        ]
    lists = [v for v in content.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(lists) == 1 and not any(key.lower().endswith(SUFFIXES) for key in content):
        return lists[0]
    return [
        {**(value if isinstance(value, dict) else {"caption": value}), "image": name}
        for name, value in content.items()
    ]


def read_json(path: Path) -> Iterator[Line]:
    """The entries of a JSON file, numbered from 1."""
    try:
        content = json.loads(decode_text(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None
    for number, record in enumerate(_records(content), start=1):
        yield _entry(number, record)


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _without_number(name: str) -> str:
    return re.sub(r"#\d+$", "", name.strip())  # Flickr8k's 12.jpg#0, the first caption of 12.jpg


def read_csv(path: Path) -> Iterator[Line]:
    """The rows of a table of text; empty ones are passed over."""
    text = decode_text(path.read_bytes())
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    for delimiter in DELIMITERS:
        header = [_plain(cell) for cell in _fields(first, delimiter)]
        if set(header) & set(IMAGE_KEYS) and set(header) & set(CAPTION_KEYS):
            named = True
            break
        bare = _fields(first, delimiter)
        if len(bare) > 1 and _without_number(bare[0]).lower().endswith(SUFFIXES):
            named, header = False, ["image", *[""] * (len(bare) - 2), "caption"]
            break
    else:
        delimiter = max(DELIMITERS, key=lambda d: len(_fields(first, d)))
        raise UserError(
            f"{path}, line 1: no column of pictures ({', '.join(IMAGE_KEYS[:4])}, …) and captions"
            f" ({', '.join(CAPTION_KEYS[:4])}, …) among {_fields(first, delimiter)}"
        )
    # Between tabs and without a header, as Flickr30k has it, a " is a letter like any other.
    raw = csv.QUOTE_NONE if delimiter == "\t" and not named else csv.QUOTE_MINIMAL
    stream = io.StringIO(text, newline="")
    rows = csv.reader(stream, delimiter=delimiter, quoting=raw, strict=True)
    if named:
        next(rows)
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
            record = dict(reversed(list(zip(header, row, strict=True))))
            image = next(key for key in IMAGE_KEYS if key in record)
            yield _entry(rows.line_num, {**record, image: _without_number(record[image])})
        elif row:
            yield Line(rows.line_num, error=f"{len(row)} fields, the header has {len(header)}")


def read_table(path: Path) -> Iterator[Line]:
    """The entries of a caption file of any of the forms in TABLES."""
    suffix = path.suffix.lower()
    read = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json}.get(suffix, read_csv)
    return read(path)


def read_beside(path: Path) -> tuple[str, ...]:
    """The captions in a text or JSON file beside a picture; ValueError where it has others."""
    text = decode_text(path.read_bytes())
    if path.suffix.lower() == ".json":
        return caption_texts(json.loads(text))
    return tuple(clean_caption(line) for line in text.splitlines() if line.strip())


# --- which picture -------------------------------------------------------------------------------


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


class Pictures:
    """The pictures of a folder, to be found by what caption files call them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._by_name: dict[str, set[str]] = {}  # a/CAT.jpg under cat.jpg and cat
        self._by_stem: dict[str, list[str]] = {}
        self._by_sister: dict[str, set[str]] = {}
        for name in sorted(self.names):
            last = _folded(PurePosixPath(name).name)
            number = re.search(r"(?:^|_)0*(\d+)$", _stem(last))
            for key in {last, _stem(last), *([f"#{number[1]}"] if number else [])}:
                self._by_name.setdefault(key, set()).add(name)
            self._by_stem.setdefault(_stem(name), []).append(name)
            for key in (name, _stem(name)):
                self._by_sister.setdefault(SISTERS.sub("", _folded(key)), set()).add(name)

    def find(self, name: str, *, near: str = "") -> str | None:
        """The one picture that a caption file in the folder `near` calls `name`; None if in doubt.

        An exact path comes first. Otherwise the last part must agree (whatever the case and the
        form of its accents, and also without suffix), and the folders as far as both have any:
        /home/me/photos/cat.jpg is photos/cat.jpg, or cat.jpg.
        """
        exact = str(PurePosixPath(near, name.replace("\\", "/")))
        if exact in self.names:
            return exact
        *folders, last = [p for p in _folded(name).split("/") if p not in ("", ".", "..")] or [""]
        found = self._by_name.get(last) or self._by_name.get(f"#{last.lstrip('0') or '0'}", ())
        fits = []
        for picture in found:
            own = _folded(picture).split("/")[:-1]
            pairs = zip(reversed(own), reversed(folders), strict=False)
            if all(a == b for a, b in pairs):
                fits.append(picture)
        below = [picture for picture in fits if picture.startswith(f"{near}/")]
        best = below if below else fits
        return best[0] if len(best) == 1 else None

    def beside(self, name: str) -> list[str]:
        """The pictures that a text file belongs to: cat.txt or cat.jpg.txt beside cat.jpg, and
        text/cat.txt for images/cat.jpg."""
        stem = _stem(name)
        if stem in self.names:
            return [stem]
        if stem in self._by_stem:
            return self._by_stem[stem]
        sisters = self._by_sister.get(SISTERS.sub("", _folded(stem)), set())
        return list(sisters) if len(sisters) == 1 else []

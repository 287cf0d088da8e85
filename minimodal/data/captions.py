"""Captions in files: tables of pictures and captions, and texts beside the pictures.

    x.jsonl    an object per line, {"file_name": "a/cat.jpg", "text": "a cat"}
    x.json     a list of such objects, a mapping {"cat.jpg": "a cat"}, COCO's, Karpathy's
    x.csv …    a header and rows, or pairs of picture and caption without one; with , ; tab or |

Only the names of columns decide which are meant (IMAGE_KEYS, CAPTION_KEYS). A `Line` comes out for
each entry; `Pictures` tells which picture it speaks of. Files are UTF-8, or UTF-16 with a mark.
"""

import csv
import io
import json
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from minimodal.data.listing import SUFFIXES, suffix_of
from minimodal.errors import UserError

# The first one that an entry has counts.
IMAGE_KEYS = tuple(
    "image file file_name path filename image_name img image_path img_path filepath file_path "
    "image_file picture photo key image_id name id".split()
)
CAPTION_KEYS = tuple(
    "caption captions text texts title prompt description sentence sentences raw comment".split()
)
SPLITS = {"train": "train", "restval": "train", "training": "train", "val": "val", "valid": "val",
          "validation": "val", "dev": "val", "test": "test", "testing": "test"}  # fmt: skip
# Folders that only say what kind of file they hold: images/a/cat.jpg and text/a/cat.txt.
SISTERS = re.compile(r"(?<![^/])(images?|imgs?|pictures|photos|texts?|txts?|captions?|labels?)/")


class Line(NamedTuple):
    """One entry of a caption file: a picture with captions, or what is wrong with it."""

    number: int
    image: str = ""
    captions: tuple[str, ...] = ()
    error: str = ""
    split: str = ""


def clean_caption(text: object) -> str:
    """One caption on one line; ValueError where it is empty or not text that can be encoded."""
    if not isinstance(text, str):
        raise ValueError(f"a caption is {type(text).__name__}, not text")
    caption = " ".join(text.split())
    if not caption:
        raise ValueError("an empty caption")
    # JSON may hold half a surrogate pair, which no tokenizer can read.
    if re.search(r"[\ud800-\udfff]", caption):
        raise ValueError("a caption is not valid Unicode: save the file as UTF-8")
    if "\0" in caption:
        raise ValueError("a caption holds zero bytes: save the file as UTF-8")
    return caption


def as_text(content: bytes) -> str:
    """Bytes as text; what is not UTF-8 stays as surrogates, which `clean_caption` refuses."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    return content.decode("utf-8-sig", "surrogateescape")


def split_named(text: object) -> str:
    """The split that a name such as "train2014" speaks of: "train", "val", "test" or ""."""
    found = {SPLITS[w] for w in re.split(r"[^a-z]+", str(text).lower()) if w in SPLITS}
    return found.pop() if len(found) == 1 else ""


@lru_cache(maxsize=4096)  # every entry has the same few
def _plain(key: str) -> str:
    return re.sub(r"[\s_-]+", "_", key.strip().lower())


def _value(record: dict, keys: tuple[str, ...]) -> object:
    plain = {_plain(key): value for key, value in reversed(record.items())}  # the first one wins
    for key in keys:
        if key in plain:
            return plain[key]
    raise ValueError(f"no {' or '.join(map(repr, keys[:4]))} (…)")


def caption_texts(value: object) -> tuple[str, ...]:
    """The captions in a field: a text, an object with one, or a list; ValueError for any other."""
    texts = value if isinstance(value, list) else [value]
    texts = [_value(text, CAPTION_KEYS) if isinstance(text, dict) else text for text in texts]
    # In a list an empty caption among others does no harm.
    return tuple(map(clean_caption, [text for text in texts if text != ""] or [""]))


def _bare(name: str) -> str:
    return re.sub(r"#\d+$", "", name.strip())  # Flickr8k's 12.jpg#0 is caption 0 of 12.jpg


def _entry(number: int, record: object) -> Line:
    try:
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        image, captions = _value(record, IMAGE_KEYS), _value(record, CAPTION_KEYS)
        if not isinstance(image, str) or not image.strip():
            raise ValueError("no picture name")
        split = split_named(record.get("split"))
        return Line(number, _bare(image), caption_texts(captions), split=split)
    except ValueError as error:
        return Line(number, error=str(error))


def read_jsonl(path: Path) -> Iterator[Line]:
    """The lines of a JSON Lines file; empty ones are passed over."""
    for number, raw in enumerate(as_text(path.read_bytes()).split("\n"), start=1):
        try:
            if raw.strip():
                yield _entry(number, json.loads(raw))
        except (ValueError, RecursionError) as error:
            yield Line(number, error=f"not JSON: {error}")


def _records(content: object) -> Iterable[object]:
    if not isinstance(content, dict):
        return content if isinstance(content, list) else []
    lists = {k: v for k, v in content.items() if isinstance(v, list) and suffix_of(k) == ""}
    if "images" in lists and "annotations" in lists:  # COCO
        names = {str(i["id"]): i.get("file_name") for i in lists["images"]
                 if isinstance(i, dict) and "id" in i}  # fmt: skip
        return [{**a, "image": names.get(str(a.get("image_id")))} if isinstance(a, dict) else a
                for a in lists["annotations"]]  # fmt: skip
    of_objects = [v for v in lists.values() if v and isinstance(v[0], dict)]
    if len(of_objects) == 1:
        return of_objects[0]
    return [{**(v if isinstance(v, dict) else {"caption": v}), "image": k}
            for k, v in content.items()]  # fmt: skip


def read_json(path: Path) -> Iterator[Line]:
    """The entries of a JSON file, numbered from 1."""
    try:
        content = json.loads(as_text(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None
    for number, record in enumerate(_records(content), start=1):
        yield _entry(number, record)


def read_csv(path: Path) -> Iterator[Line]:
    """The rows of a table of text; empty ones are passed over."""
    text = as_text(path.read_bytes())
    # Excel's own first line, `sep=;`, is no row.
    excel = re.match(r'"?sep=([,;\t|])"?(?:\r\n|\r|\n)', text, re.IGNORECASE)
    text, above = (text[excel.end() :], 1) if excel else (text, 0)
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    seen: list[list[str]] = []
    for delimiter in excel[1] if excel else ",;\t|":
        try:
            header = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
        except csv.Error as error:  # a field of 128 KB or more: no table
            raise UserError(f"{path}, line 1: {error}") from None
        named = all({*map(_plain, header)} & {*keys} for keys in (IMAGE_KEYS, CAPTION_KEYS))
        if named or len(header) > 1 and suffix_of(_bare(header[0])) in SUFFIXES:
            break
        seen.append(header)
    else:
        raise UserError(
            f"{path}, line {1 + above}: no column of pictures ({', '.join(IMAGE_KEYS[:4])}, …) and"
            f" captions ({', '.join(CAPTION_KEYS[:4])}, …) among {max(seen, key=len)}"
        )
    header = header if named else ["image", *map(str, range(len(header) - 2)), "caption"]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        before = rows.line_num
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed swallows the rest of the file: each line is lost.
            for number in range(before + 1, rows.line_num + 1):
                yield Line(number + above, error=str(error))
            continue
        if named and before == 0:
            continue
        if len(row) == len(header):
            yield _entry(rows.line_num + above, dict(zip(header, row, strict=True)))
        elif row:
            wrong = f"{len(row)} fields, the header has {len(header)}"
            yield Line(rows.line_num + above, error=wrong)


def read_table(path: Path) -> Iterator[Line]:
    """The entries of a caption file of any form."""
    readers = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json}
    return readers.get(suffix_of(path.name), read_csv)(path)


def texts_in(content: bytes, suffix: str) -> tuple[str, ...]:
    """The captions in a text or JSON file of one picture; ValueError where they are not any."""
    text = as_text(content)
    if suffix == ".json":
        return caption_texts(json.loads(text))
    return tuple(clean_caption(line) for line in text.splitlines() if line.strip())


# --- which picture -------------------------------------------------------------------------------


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


class Pictures:
    """The pictures among the files of a folder, by all that caption files may call them."""

    def __init__(self, files: Iterable[str]) -> None:
        self.files = frozenset(files)
        self._called: dict[str, set[str]] = defaultdict(set)  # a/CAT.jpg under cat.jpg and cat
        self._beside: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for name in filter(lambda name: suffix_of(name) in SUFFIXES, self.files):
            for key in (name, _stem(name)):
                folded = _folded(key)
                self._called[posixpath.basename(folded)].add(name)
                self._beside[(key,)].add(name)
                self._beside["sister", SISTERS.sub("", folded)].add(name)

    def find(self, name: str, *, near: str = "") -> str | None:
        """The one picture that a caption file in the folder `near` calls `name`; None if in doubt.

        An exact path comes first. Otherwise the last part must agree (in any case and form of
        accents, or without suffix), and the folders as far as both have any.
        """
        exact = posixpath.normpath(posixpath.join(near, name.replace("\\", "/")))
        if exact in self.files:
            return exact
        parts = [part for part in _folded(name).split("/") if part not in ("", ".", "..")]
        fits = []
        for picture in self._called.get("".join(parts[-1:]), ()):
            folders = zip(_folded(picture).split("/")[-2::-1], parts[-2::-1], strict=False)
            fits += [picture] if all(a == b for a, b in folders) else []
        best = [picture for picture in fits if picture.startswith(f"{near}/")] or fits
        return best[0] if len(best) == 1 else None

    def beside(self, name: str) -> list[str]:
        """The pictures that a text file belongs to: cat.txt or cat.jpg.txt beside cat.jpg, and
        text/cat.txt for images/cat.jpg."""
        stem = _stem(name)
        for key in ((stem,), ("sister", SISTERS.sub("", _folded(stem)))):
            found = self._beside.get(key, ())
            if len({_stem(picture) for picture in found}) == 1:
                return sorted(found)
        return []

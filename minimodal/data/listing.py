"""What lies in a folder: the files that can be read, and a count of all others, by kind.

Pipes, sockets, devices and dangling links are counted and never opened: reading one may take for
ever. What this project drew itself (grids, and all of a run) is no data, so that a run or a grid
may lie beside one's pictures.
"""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from PIL import features

AVIF = (".avif",) if features.check("avif") else ()  # in Pillow from 11.3 on
JPEGS = (".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp")
SUFFIXES = (*JPEGS, ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", *AVIF)
TEXTS = (".txt", ".caption", ".captions", ".json")  # captions beside a picture
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".token")
# What a drawn picture says in its first bytes; drawing.py writes it.
DRAWN = "drawn by minimodal"
ADVICE = {
    **dict.fromkeys((".heic", ".heif", ".avif", ".jxl"), " (save as JPEG)"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z"), " (unpack)"),
    ".parquet": " (export as CSV)",
}


def suffix_of(name: str) -> str:
    """The suffix in lower case, ".jpg" of a/B.JPG."""
    return os.path.splitext(name)[1].lower()


def kind_of(name: str) -> str:
    """The suffix, with what to do about such files where that is known."""
    suffix = suffix_of(name)
    return suffix + ADVICE.get(suffix, "") or "without a suffix"


def told(counts: Counter[str]) -> str:
    """Counts in words, most first: "3 .mp4, 1 .cr2"."""
    return ", ".join(f"{number:,} {kind}" for kind, number in counts.most_common() if number)


def _why_not(file: Path) -> str:
    """Why a file is not read; "" where it is."""
    if not file.is_file():
        return "pipes, sockets or devices" if file.exists() else "dangling links"
    if suffix_of(file.name) in (".png", ".gif"):
        # What cannot be read is named by whoever reads pictures.
        with suppress(OSError), open(file, "rb") as opened:
            return "drawn grids" if DRAWN.encode() in opened.read(1024) else ""
    return ""


def list_files(folder: Path) -> tuple[list[str], Counter[str]]:
    """All files in and below a folder that can be read, as sorted relative a/b.png, and how much
    else there is of each kind; hidden ones are passed over."""
    found, unread, seen = [], Counter(), set()
    locked = "folders that cannot be opened"
    walk = os.walk(folder, followlinks=True, onerror=lambda error: unread.update([locked]))
    for here, folders, files in walk:
        place, real = Path(here), os.path.realpath(here)
        weights = {"model.safetensors", "state"} & {*folders, *files}
        is_run = place != folder and "config.json" in files and weights
        unread["run folders"] += bool(is_run)
        if is_run or real in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        # "._a.jpg" and "__MACOSX" are what a Mac's archives add: not pictures, whatever the suffix
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        unread["folders named as pictures"] += sum(suffix_of(f) in SUFFIXES for f in folders)
        for name in files:
            if not name.startswith("."):
                why = _why_not(place / name)
                unread[why] += 1
                found += [] if why else [(place.relative_to(folder) / name).as_posix()]
    del unread[""]
    return sorted(found), unread

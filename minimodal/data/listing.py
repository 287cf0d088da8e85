"""What lies in a folder: the files that can be read, and a count of all that cannot, by kind.

`list_files` walks through a folder and the folders in it. Pipes, sockets, devices and dangling
links are counted and never opened: reading one may take for ever. What this project drew itself
(grids, the samples of a run) is no data, so that a run or a grid may lie beside one's pictures.
`told` puts such counts into words, for the one line that ends every reading of a folder.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import features

JPEGS = (".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp")
AVIF = (".avif",) if features.check("avif") else ()  # in Pillow from 11.3 on
OTHERS = (".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
SUFFIXES = (*JPEGS, *OTHERS, ".ppm", ".pgm", ".pbm", ".pnm", *AVIF)
# Files that people keep captions in.
CAPTIONS = (".txt", ".caption", ".captions", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".token")
# What a drawn picture says in its first bytes; drawing.py writes it.
DRAWN = "drawn by minimodal"
ADVICE = {
    ".heic": "save as JPEG",
    ".heif": "save as JPEG",
    ".avif": "save as JPEG, or install Pillow 11.3",
    ".parquet": "export as CSV",
    ".tar": "unpack",
    ".zip": "unpack",
}


class Listing(NamedTuple):
    """The files in and below a folder, and how much else there is of each kind."""

    files: list[str]  # sorted relative a/b.png
    unread: Counter[str]


def kind_of(name: str) -> str:
    """The kind of a file for a count: its suffix, with what to do about it where that is known."""
    suffix = PurePosixPath(name).suffix.lower()
    return f"{suffix} ({ADVICE[suffix]})" if suffix in ADVICE else suffix or "without a suffix"


def told(counts: Counter[str]) -> str:
    """Counts in words, most first: "3 .mp4, 1 .cr2"."""
    return ", ".join(f"{number:,} {kind}" for kind, number in counts.most_common())


def _drawn(file: Path) -> bool:
    if file.suffix.lower() not in (".png", ".gif"):
        return False
    try:
        with open(file, "rb") as opened:
            return DRAWN.encode() in opened.read(1024)
    except OSError:  # whoever reads the picture will say why it cannot be read
        return False


def _odd(file: Path) -> str:
    """Why a name in a folder is no file that can be read; "" where it is one."""
    if file.is_file():
        return ""
    return "pipes, sockets or devices" if file.exists() else "dangling links"


def _is_run(folders: Iterable[str], files: Iterable[str]) -> bool:
    return "config.json" in files and not {"model.safetensors", "state"}.isdisjoint(
        [*folders, *files]
    )


def list_files(folder: Path) -> Listing:
    """All files in and below a folder that can be read; hidden ones are passed over."""
    found, unread, seen = [], Counter(), set()

    def locked(error: OSError) -> None:
        unread["folders that cannot be opened"] += 1

    for here, folders, files in os.walk(folder, followlinks=True, onerror=locked):
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        place = Path(here)
        if place != folder and _is_run(folders, files):
            unread["run folders"] += 1
            folders.clear()
            continue
        # "._a.jpg" and "__MACOSX" are what a Mac's archives add: not pictures, whatever the suffix
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        unread["folders named like a picture"] += sum(f.lower().endswith(SUFFIXES) for f in folders)
        for name in files:
            if name.startswith("."):
                continue
            why = _odd(place / name) or ("grids drawn here" if _drawn(place / name) else "")
            if why:
                unread[why] += 1
            else:
                found.append((place.relative_to(folder) / name).as_posix())
    return Listing(sorted(found), +unread)  # + drops what was counted 0 times

"""Files and folders, written whole or not at all, and what the system says in plain words.

Paths in, nothing out but the files themselves; every refusal is a `UserError` of one line. Nothing
to read before.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minimodal.errors import UserError


def make_folder(folder: Path) -> None:
    """See to it that there is a folder to write into, and those on the way to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        places = (folder, *folder.parents)
        file = next((place for place in places if place.is_file()), folder)
        raise UserError(f"cannot write into {folder}: {file} is a file, not a folder") from None
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write into {folder}: permission denied")


@contextmanager
def folders(*wanted: Path) -> Iterator[None]:
    """Make folders for what a block of code writes; those that it leaves empty go again."""
    places = {place for folder in wanted for place in (folder, *folder.parents)}
    missing = [place for place in places if not os.path.exists(place)]
    try:
        for folder in wanted:
            make_folder(folder)
        yield
    finally:
        for place in sorted(missing, key=lambda place: -len(place.parts)):  # the inner ones first
            with suppress(OSError):  # never made, or not empty
                place.rmdir()


@contextmanager
def asking(what: str, path: Path) -> Iterator[None]:
    """Put into words what the system refuses while a block reads or writes `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save has trouble of its own to tell; what the disk said came before it.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(f"cannot {what} {path}: {reason.strerror or reason}") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    try:
        with asking("read", path):
            return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not JSON") from None


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, then give it its name. Where the disk is full or refuses,
    that is an error, and what was there before is still whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with asking("write", path):
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except Exception:
            temporary.unlink(missing_ok=True)  # it may have filled the disk
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself has to reach the disk
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people and programs, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def save_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all; folders on the way are made."""
    make_folder(path.parent)
    write_atomically(path, save)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()

"""What a frozen model makes of the training's pictures, kept in a file; and a copy of that model.

Arrays (N, …) in and out. Codes (`codes.py`) and embeddings (`embeddings.py`) are kept like this.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimodal.errors import UserError
from minimodal.files import make_folder, save_whole, write_atomically


def place_of(folder: Path, *described: object) -> Path:
    """The file in a folder for what depends on all that is described."""
    words = " ".join(map(str, described))
    return folder / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.npy"


def cached(
    path: Path, make: Callable[[], Tensor], *, shape: tuple[int, ...], dtype: type, what: str,
    write: bool,
) -> Tensor:  # fmt: skip
    """What `make` makes, once; the file's name stands for all that it depends on.

    The file is mapped into memory, not read: of millions of pictures a batch touches its own.
    what: "8 pictures into codes", for the line that says what takes so long
    """
    if path.exists():
        try:
            kept = np.lib.format.open_memmap(path, mode="c")
        except (ValueError, OSError, EOFError) as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it, and the pictures are encoded again"
            ) from None
        if kept.shape == shape and kept.dtype == dtype:
            return torch.from_numpy(kept)
        print(f"{path} holds {kept.dtype} {kept.shape}, where {np.dtype(dtype)} {shape} is "
              "expected: it is made anew", file=sys.stderr)  # fmt: skip
    print(f"turning {what}, once (kept in {path})", file=sys.stderr)
    made = make()
    if write:
        try:
            save_whole(path, lambda file: write_array(file, made.numpy()))
        except UserError as error:  # beside someone else's checkpoint, perhaps, or on a full disk
            print(f"{error}; next time the pictures are encoded again", file=sys.stderr)
    return made


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a NumPy file; np.save itself would add .npy to the name."""
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def copy_files(run: Path, out: Path, *names: str) -> None:
    """Copy a run's files into the folder `out`, each atomically."""
    make_folder(out)
    for name in names:
        source, copy = run / name, out / name
        if source.resolve() != copy.resolve():
            write_atomically(copy, lambda path, source=source: shutil.copyfile(source, path))

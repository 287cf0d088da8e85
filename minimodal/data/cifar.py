"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in their official "Python version" layout.

PATH is the unpacked folder, or the one that contains it:

    cifar-10-batches-py/   data_batch_1 … data_batch_5, test_batch, batches.meta
    cifar-100-python/      train, test, meta

The files are pickles, and a pickle can run any program when it is opened. `read_pickle` therefore
understands only dicts, lists, bytes, numbers and plain numeric arrays, and builds the arrays with
the few lines below instead of with the code that the file names; anything else is refused by name.

The pictures, uint8 (N, 3, 32, 32), have a class and no captions: captions are templates filled
with the class name. The official test rows are the split "val". Read images.py before.
"""

import math
import os
import pickle
import re
from pathlib import Path

import numpy as np

from minimodal.data.images import ImageSource, first_n, resize_all
from minimodal.errors import UserError

TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "a small photo of {}",
    "a blurry photo of {}",
    "a low resolution photo of {}",
)


# --- pickles -------------------------------------------------------------------------------------


class _Dtype:
    """Stands for numpy's dtype: booleans, integers and floats only."""

    def __init__(self, code, *_) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not (isinstance(code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]", code)):
            raise ValueError(f"an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        if state[1] in (b">", ">"):
            self.dtype = self.dtype.newbyteorder(">")


def _array(buffer, dtype: _Dtype, shape, order: str) -> np.ndarray:
    # Checked before numpy allocates: the shape comes from the file, the bytes are there.
    if math.prod(shape) * dtype.dtype.itemsize != len(buffer) or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} in {len(buffer)} bytes")
    return np.frombuffer(buffer, dtype.dtype).reshape(shape, order=order)


class _Array:
    """Stands for the empty array that a pickle makes first and fills afterwards."""

    array: np.ndarray

    def __init__(self, *_) -> None:
        pass

    def __setstate__(self, state) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _latin1(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes into the old protocol 2.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: _Dtype, data: bytes):
    return _array(data, dtype, (1,), "C")[0].item()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str):
        # numpy.core before numpy 2, numpy._core since; the official files have the former.
        allowed = {
            "numpy.ndarray": "ndarray",  # only ever an argument of _reconstruct, which ignores it
            "numpy.dtype": _Dtype,
            "numpy.core.multiarray._reconstruct": _Array,
            "numpy.core.multiarray.scalar": _scalar,
            "numpy.core.numeric._frombuffer": _array,
            "_codecs.encode": _latin1,
        }
        wanted = f"{module}.{name}"
        try:
            return allowed[wanted.replace("numpy._core.", "numpy.core.", 1)]
        except KeyError:
            raise UserError(
                f"{self.path}: refused, because it asks for {wanted!r}, which no CIFAR file needs"
                " and which may run a program; get the file anew from where CIFAR is published"
            ) from None


def _plain(value):
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def read_pickle(path: str | os.PathLike) -> dict:
    """The dict in a CIFAR file, keys and names as str; code in the file is refused, not run."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, path).load()
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} and not a dict")
        return {_plain(key): _plain(value) for key, value in content.items()}
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; unpack the whole CIFAR archive") from None
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise UserError(
            f"{path}: not a CIFAR file, or a damaged one ({error}); unpack the archive again"
        ) from error


# --- pictures, labels, names ---------------------------------------------------------------------


def _read_batch(path: Path, label_key: str, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(path)
    try:
        data, labels = np.asarray(content["data"]), np.asarray(content[label_key])
    except KeyError as error:
        raise UserError(f"{path}: has no {error}; a CIFAR file has data and {label_key}") from None
    except ValueError as error:
        raise UserError(f"{path}: its {label_key} are no list of numbers ({error})") from None
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise UserError(f"{path}: data is {data.dtype} {data.shape}, expected uint8 (N, 3072)")
    if labels.shape != (len(data),) or labels.size and labels.dtype.kind not in "iu":
        raise UserError(f"{path}: {label_key} is not one whole number for each of {len(data)} rows")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"{path}: a label is outside 0 … {classes - 1}")
    return data.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _find_folder(path: Path, folder: str, *, meta: str) -> Path:
    for candidate in (path / folder, path):
        if (candidate / meta).is_file():
            return candidate
    raise UserError(
        f"{path}: no {folder}/{meta} in it: expected the folder that the CIFAR archive"
        " (Python version) unpacks to, or the folder around it"
    )


def class_captions(name: str) -> tuple[str, ...]:
    """The captions of a class: "aquarium_fish" gives "a photo of an aquarium fish", ..."""
    name = name.replace("_", " ")
    # "a uniform", "a unicycle": the letter is a vowel and the sound is not.
    sounds_as_vowel = re.match(r"[aeio]|u(?!ni|se|te)", name, re.IGNORECASE)
    article = "an " if sounds_as_vowel else "a "
    noun = name if name == "cattle" else article + name  # the one class that has no singular
    return tuple(template.format(noun) for template in TEMPLATES)


def open_cifar(
    path: str | os.PathLike,
    classes: int,
    *,
    image_size: int = 32,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
) -> ImageSource:
    """CIFAR-10 (`classes` 10) or CIFAR-100 (100, fine labels) as a data source."""
    if classes == 10:
        folder = _find_folder(Path(path), "cifar-10-batches-py", meta="batches.meta")
        meta, names_key, label_key = folder / "batches.meta", "label_names", "labels"
        # As many as there are: parts of the data set are in use, too.
        train = [folder / f"data_batch_{i}" for i in range(1, 6)]
        train = [file for file in train if file.exists()] or train[:1]
        files = train if split == "train" else [folder / "test_batch"]
    else:
        folder = _find_folder(Path(path), "cifar-100-python", meta="meta")
        meta, names_key, label_key = folder / "meta", "fine_label_names", "fine_labels"
        files = [folder / ("train" if split == "train" else "test")]
    names = read_pickle(meta).get(names_key)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{meta}: has no {names_key}, the list of class names")
    batches = [_read_batch(file, label_key, classes=len(names)) for file in files]
    pixels = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    if len(pixels) == 0:
        raise UserError(f"{files[0]}: has no pictures; unpack the archive again")
    chosen = first_n(len(pixels), limit, seed=seed)
    captions = [class_captions(name) for name in names]
    return ImageSource(
        name=f"cifar{classes}",
        pixels=resize_all(pixels[chosen], image_size),
        caption_lists=[captions[label] for label in labels[chosen]],
        labels=labels[chosen],
        class_names=tuple(name.replace("_", " ") for name in names),
    )

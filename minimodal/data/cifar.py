"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in their official "Python version" layout.

PATH is the unpacked folder, or the one that contains it:

    cifar-10-batches-py/   data_batch_1 … data_batch_5, test_batch, batches.meta
    cifar-100-python/      train, test, meta

The pictures, uint8 (N, 3, 32, 32), have a class and no captions: captions are templates filled
with the class name. The official test rows are the split "val". Read images.py and pickles.py
before, which reads such files without running what they say.
"""

import os
import re
from pathlib import Path

import numpy as np

from minimodal.data.images import ImageSource, first_n, resize_all
from minimodal.data.pickles import ARRAYS, Array, Restricted
from minimodal.errors import UserError

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "a small photo of {}",
             "a blurry photo of {}", "a low resolution photo of {}")  # fmt: skip


def _plain(value):
    if isinstance(value, Array):
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
            content = Restricted(file, ARRAYS, encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} and not a dict")
        return {_plain(key): _plain(value) for key, value in content.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; unpack the whole CIFAR archive") from None
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise UserError(
            f"{path}: not a CIFAR file, or a damaged one ({error}); unpack the archive again"
        ) from error


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


def class_captions(name: str) -> tuple[str, ...]:
    """The captions of a class: "aquarium_fish" gives "a photo of an aquarium fish", ..."""
    name = name.replace("_", " ")
    # "a uniform", "a unicycle": the letter is a vowel and the sound is not.
    sounds_as_vowel = re.match(r"[aeio]|u(?!ni|se|te)", name, re.IGNORECASE)
    article = "an " if sounds_as_vowel else "a "
    noun = name if name == "cattle" else article + name  # the one class that has no singular
    return tuple(template.format(noun) for template in TEMPLATES)


def open_cifar(
    path: str | os.PathLike, classes: int, *, image_size: int = 32, split: str = "train",
    limit: int | None = None, seed: int = 0,
) -> ImageSource:  # fmt: skip
    """CIFAR-10 (`classes` 10) or CIFAR-100 (100, fine labels) as a data source."""
    within, meta = "cifar-10-batches-py", "batches.meta"
    names_key, label_key, train, test = "label_names", "labels", "data_batch_[1-5]", "test_batch"
    if classes == 100:
        within, meta = "cifar-100-python", "meta"
        names_key, label_key, train, test = "fine_label_names", "fine_labels", "train", "test"
    folders = [folder for folder in (Path(path, within), Path(path)) if (folder / meta).is_file()]
    if not folders:
        raise UserError(
            f"{path}: no {within}/{meta} in it: expected the folder that the CIFAR archive"
            " (Python version) unpacks to, or the folder around it"
        )
    names = read_pickle(folders[0] / meta).get(names_key)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{folders[0] / meta}: has no {names_key}, the list of class names")
    wanted = train if split == "train" else test
    # As many as there are: parts of the data set are in use, too.
    files = sorted(folders[0].glob(wanted)) or [folders[0] / wanted.replace("[1-5]", "1")]
    batches = [_read_batch(file, label_key, classes=len(names)) for file in files]
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
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

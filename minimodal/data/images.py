"""Picture files become uint8 arrays, and arrays with captions become a data source.

`load_images` decodes a whole data set, up front and in memory, so that a broken file is named at
once; more than 5 % of them stop with a list. `ImageSource` is what CIFAR, COCO, a folder and shards
turn into: pictures uint8 (N, 3, S, S) and, for each, the captions it has. Read nothing before;
`loading.py` shows how it is used.
"""

import hashlib
import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from minimodal.data.listing import AVIF
from minimodal.errors import UserError

# Named one by one, because Pillow knows more: it would hand an EPS file to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(["AVIF"] if AVIF else []))
# What the largest cameras of phones make. Pillow's own limit (89 million) makes room for it.
MAX_PIXELS = 210_000_000
Image.MAX_IMAGE_PIXELS = max(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or 0)
BROKEN_SHARE = 0.05
VALIDATION_SHARE = 0.1


# --- one picture ---------------------------------------------------------------------------------


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, turned as its EXIF says: what is transparent becomes white, 16
    bits become 8."""
    picture.load()  # here, where what is damaged is an error
    with suppress(Exception):  # damaged EXIF beside sound pixels: keep them as they lie
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 bits per channel")
    if picture.mode.startswith("I"):
        # 16 bits per pixel ("I" in older Pillow). convert() would clip at 255: all white.
        levels = np.asarray(picture).astype(np.float64) / 257
        picture = Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    if picture.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture of a known kind, or an empty or damaged one"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # str(error) would repeat the path
    return str(error) or type(error).__name__


@contextmanager
def opened(source: str | os.PathLike | bytes | BinaryIO) -> Iterator[Image.Image]:
    """A picture file (a path, its bytes, or opened) as `Image.open` gives it, in its mode and not
    turned. What cannot be read, there or in the body, is a `UserError` naming the file."""
    is_path = isinstance(source, (str, os.PathLike))
    try:
        if is_path and os.path.exists(source) and not os.path.isfile(source):
            raise ValueError("is a folder" if os.path.isdir(source) else "is no file")  # a pipe
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                most = MAX_PIXELS // 10**6
                raise ValueError(f"{width} x {height} pixels, more than {most} million")
            yield picture
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error…
        name = os.fspath(source) if is_path else "picture"
        raise UserError(f"{name}: cannot be read as a picture: {_reason(error)}") from error


def open_rgb(source: str | os.PathLike | bytes, *, at_least: int | None = None) -> Image.Image:
    """Read a picture file (a path, or its bytes) as an upright RGB picture on white.

    `at_least`: the shorter side that the caller will resize to; a large JPEG is then decoded
    smaller, but not below twice that. Whatever cannot be read is a `UserError` naming the file.
    """
    with opened(source) as picture:
        if at_least is not None:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size in a fraction of the time;
            # twice the wanted size leaves the final, better filter enough to work on.
            picture.draft(None, (2 * at_least, 2 * at_least))
        return upright_rgb(picture)


def centre_square(picture: Image.Image, size: int) -> np.ndarray:
    """Resize the largest centred square of a picture (bicubic, antialiased).

    returns: (3, S, S) uint8, S = size
    """
    # Resizing the square alone, and not the picture before cropping, keeps the memory bounded:
    # a 1 x 100,000 strip would otherwise become size x 100,000 * size.
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    square = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(square).transpose(2, 0, 1).copy()  # Pillow's own memory is read-only


def resize_then_crop(
    picture: Image.Image, size: int, *, resize: str = "shortest", interpolation: str = "bicubic"
) -> np.ndarray:
    """Resize the shorter side (antialiased), crop the centre: as torchvision does it.

    With `resize` "longest" that side is resized and the rest black, with "squash" both sides are.
    Resizing comes before the change to RGB, which counts for palettes and transparency.
    returns: (3, S, S) uint8, S = size
    """
    short, long = sorted(picture.size)
    longer = int(size * long / short)
    wanted = (size, longer) if picture.width <= picture.height else (longer, size)
    if resize != "shortest":
        sides = [max(1, round(side * size / long)) for side in picture.size]
        wanted = (size, size) if resize == "squash" else tuple(sides)
    if wanted[0] * wanted[1] > MAX_PIXELS:
        raise UserError(f"a picture of {picture.width} x {picture.height} is too long and thin")
    if picture.size != wanted:
        picture = picture.resize(wanted, Image.Resampling[interpolation.upper()])
    # What is missing is black and the odd pixel of it is right or below, as OpenCLIP pads.
    left, top = (
        round((side - size) / 2) if side > size else -((size - side) // 2) for side in wanted
    )
    cropped = picture.crop((left, top, left + size, top + size)).convert("RGB")
    return np.asarray(cropped).transpose(2, 0, 1).copy()


def decode(source: str | os.PathLike | bytes, size: int) -> np.ndarray:
    """Read a picture file (a path, or its bytes), crop the centred square, resize it.

    returns: (3, S, S) uint8, S = size
    """
    return centre_square(open_rgb(source, at_least=size), size)


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """Resize pictures that are in memory; the same array when they have that size already.

    images: (N, 3, H, W) uint8
    returns: (N, 3, S, S) uint8, S = size
    """
    if images.shape[2:] == (size, size):
        return images
    out = np.empty((len(images), 3, size, size), np.uint8)
    for i, image in enumerate(images):
        out[i] = centre_square(Image.fromarray(image.transpose(1, 2, 0).copy()), size)
    return out


# --- many pictures -------------------------------------------------------------------------------


def _listed(names: Sequence[str], most: int) -> str:
    return "; ".join(names[:most]) + ("; …" if len(names) > most else "")


def skip_or_stop(
    broken: Sequence[str], total: int, *, what: str, missing: Sequence[str] = ()
) -> None:
    """Name the broken ones among `total` on stderr; more than 5 % of them are a `UserError`.

    `missing`: those whose files are not there. Nobody can mend them, so any number is left out.
    """
    if len(broken) > BROKEN_SHARE * total:
        raise UserError(
            f"{what}: {len(broken)} of {total} are broken, more than {BROKEN_SHARE:.0%}:"
            f" {_listed(broken, 10)}. Mend or remove them."
        )
    if missing and len(missing) + len(broken) == total:
        raise UserError(f"{what}: no picture is where they say: {_listed(missing, 10)}")
    if broken:
        some = _listed(broken, 100)
        print(f"{what}: skipped {len(broken)} broken of {total}: {some}", file=sys.stderr)
    if missing:
        text = f"left out {len(missing)} of {total}, whose pictures are not there"
        print(f"{what}: {text}: {_listed(missing, 5)}", file=sys.stderr)


class LoadedImages(NamedTuple):
    """What `load_images` read: M pictures of N files."""

    images: np.ndarray  # (M, 3, S, S) uint8
    kept: np.ndarray  # (M,) int64, which of the N paths they are
    broken: list[tuple[str, str]]  # (path, reason) of the other N - M


def _check_memory(count: int, size: int, *, what: str) -> None:
    needed = count * 3 * size * size
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a Unix
        return
    if needed > memory:
        raise UserError(
            f"{what}: {count} pictures of {size} x {size} take {needed / 2**30:.0f} GiB, and this"
            f" machine has {memory / 2**30:.0f}: lower the image size, or add :N to the data SPEC"
            " to use N pictures"
        )


def load_images(
    paths: Sequence[str | os.PathLike], size: int, *, workers: int = 2, what: str = "pictures",
    total: int | None = None,
) -> LoadedImages:  # fmt: skip
    """Decode picture files into one array, with threads; skip and name the broken ones.

    `what` says in messages which data set this is. More broken files than 5 % of
    `total` are a `UserError`: how many the data set has, where the paths are a part of it only.
    """
    _check_memory(len(paths), size, what=what)
    Image.init()  # Pillow loads its plugins on first use, which is better done before the threads
    images = np.empty((len(paths), 3, size, size), np.uint8)

    def read(i: int) -> str | None:
        try:
            images[i] = decode(paths[i], size)
        except Exception as error:
            return _reason(error.__cause__ or error)
        return None

    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(read, range(len(paths)))  # None: no bar where stderr is no terminal
        reasons = list(tqdm(results, f"reading {what}", len(paths), disable=None, leave=False))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, do not decode the rest first
    broken = [(os.fspath(p), r) for p, r in zip(paths, reasons, strict=True) if r is not None]
    named = [f"{path} ({reason})" for path, reason in broken]
    skip_or_stop(named, max(len(paths), total or 0), what=f"{what}, pictures")
    # Few of a large set, and yet most of those that were asked for.
    if 2 * len(named) > len(paths):
        raise UserError(
            f"{what}: {len(named)} of the {len(paths)} pictures chosen are broken, such as"
            f" {named[0]}. Mend or remove them."
        )
    kept = np.array([i for i, reason in enumerate(reasons) if reason is None], np.int64)
    for to, i in enumerate(kept):  # close the gaps in place: a copy would double the memory
        if to < i:
            images[to] = images[i]
    return LoadedImages(images[: len(kept)], kept, broken)


# --- which pictures ------------------------------------------------------------------------------


def _hash_fraction(name: str, seed: int) -> float:
    # NFC: the same name is stored in another form on a Mac, and must land in the same split.
    text = f"{seed}:{unicodedata.normalize('NFC', name)}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_by_name(names: Sequence[str], split: str, *, seed: int = 0) -> np.ndarray:
    """Indices of the "train" or "val" part (a tenth), decided by a hash of each name.

    A name keeps its part however many others there are, in whatever order. Both parts have at
    least one name; a single name is in both.
    returns: (M,) int64, ascending
    """
    if len(names) < 2:
        return np.arange(len(names))
    fractions = np.array([_hash_fraction(name, seed) for name in names])
    is_val = fractions < VALIDATION_SHARE
    if not is_val.any():
        is_val[fractions.argmin()] = True
    if is_val.all():
        is_val[fractions.argmax()] = False
    return np.flatnonzero(is_val == (split == "val"))


def first_n(count: int, limit: int | None, *, seed: int = 0) -> np.ndarray:
    """The first `limit` of a seeded shuffle of `count` indices: a larger limit only adds to it.

    returns: (min(count, limit),) int64, ascending
    """
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed % 2**64).permutation(count)[:limit])


# --- the data source -----------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class ImageSource:
    """Pictures in memory, each with zero or more captions.

    pixels: (N, 3, S, S) uint8
    labels: (N,) int64 or None
    """

    name: str
    pixels: np.ndarray
    caption_lists: Sequence[Sequence[str]]  # one sequence per picture; none has any, or all have
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    add_captions: str = ""  # for a source without captions: how the user can add them
    hashed: str = ""  # the fingerprint, where it is known or was asked for
    group: int = field(default=1, init=False)

    @property
    def image_size(self) -> int:
        """Height and width of every picture."""
        return self.pixels.shape[2]

    @property
    def has_captions(self) -> bool:
        """False where only a system without text, such as the VQGAN, can train."""
        return len(self.caption_lists) > 0 and len(self.caption_lists[0]) > 0

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Copies of the pictures at these indices.

        indices: (B,) int64
        returns: (B, 3, S, S) uint8
        """
        return self.pixels[indices]

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One caption for each index, drawn among the picture's own.

        indices: (B,) int64
        """
        draws = rng.random(len(indices))  # one number per picture, however many captions it has
        lists = map(self.all_captions, indices)
        return [texts[int(draw * len(texts))] for texts, draw in zip(lists, draws, strict=True)]

    def all_captions(self, index: int) -> list[str]:
        """Every caption of one picture."""
        if not self.has_captions:
            raise UserError(f"{self.name}: these pictures have no captions. {self.add_captions}")
        return list(self.caption_lists[index])

    def fingerprint(self) -> str:
        """Sha256 (hex) of the pictures, captions and labels: two sources with it are the same."""
        if not self.hashed:
            labels = None if self.labels is None else self.labels.tolist()
            text = [self.name, self.pixels.shape, self.class_names, labels]
            digest = hashlib.sha256(json.dumps(text).encode())
            digest.update(np.ascontiguousarray(self.pixels).data)
            for captions in self.caption_lists:
                digest.update(json.dumps(list(captions)).encode() + b"\n")
            self.hashed = digest.hexdigest()
        return self.hashed


def join_sources(sources: Sequence[ImageSource]) -> ImageSource:
    """Several sources as one; classes stay where all have the same."""
    first = sources[0]
    if len({source.has_captions for source in sources}) > 1:
        raise UserError("some of the data has captions and some has none")
    alike = all(source.class_names == first.class_names for source in sources)
    labels = [source.labels for source in sources if source.labels is not None]
    keep = alike and len(labels) == len(sources)
    return ImageSource(
        name=first.name,
        pixels=np.concatenate([source.pixels for source in sources]),
        caption_lists=[captions for source in sources for captions in source.caption_lists],
        labels=np.concatenate(labels) if keep else None,
        class_names=first.class_names if keep else None,
        add_captions=first.add_captions,
    )

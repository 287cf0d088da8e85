"""Tar shards in WebDataset's form as a data source: pictures are read when a batch needs them.

    tar:PATH.tar    tar:PATH-{000..099}.tar

The files of a sample have the same name up to the first dot: a picture (.jpg, .png, .webp, …),
captions (.txt, one a line; where there is none, .json with a "caption") and a class (.cls, used
where no sample has a caption). Opening goes through the shards once and keeps the captions and
where each picture lies. Nothing is unpacked onto the disk and no link followed. Pictures uint8
(B, 3, S, S) come out. Read images.py and folder.py before.
"""

import hashlib
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from minimodal.data import images
from minimodal.data.captions import texts_in
from minimodal.data.cifar import class_captions
from minimodal.data.folder import say_used
from minimodal.data.listing import SUFFIXES, told
from minimodal.errors import UserError

NAME = re.compile(r"((?:.*/)?[^./]+)(\.[^/]+)", re.DOTALL)  # of a sample, and the suffix
PACKED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
MOST = 2**28  # bytes of a file: what a header claims may be nonsense
HEAD = 1024  # bytes of a file by which it is known again


@dataclass
class Found:
    """What shards hold: of each sample its name, (shard, start, size) of its picture, …"""

    names: list[str] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)  # (n, 3) int64 a shard
    captions: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    seen: "hashlib._Hash" = field(default_factory=hashlib.sha256)


def shards_of(path: str) -> list[str]:
    """The files that x-{000..099}.tar stands for; without braces the one file."""
    braces = re.search(r"\{(\d{1,6})\.\.(\d{1,6})\}", path)
    if braces is None:
        return [path]
    before, after, (first, last) = path[: braces.start()], path[braces.end() :], braces.groups()
    return [f"{before}{n:0{len(first)}}{after}" for n in range(int(first), int(last) + 1)]


def members(tar: tarfile.TarFile, file: BinaryIO, found: Found) -> Iterator[tarfile.TarInfo]:
    """The files of a shard, up to where it is damaged or cut, which is noted."""
    size, last, wrong = os.fstat(file.fileno()).st_size, -1, "damaged or cut"
    while True:
        try:
            member = tar.next()
        except Exception as error:  # of hostile headers tarfile raises ValueError, OverflowError…
            wrong = str(error)
            break
        tar.members.clear()  # where it would keep them all
        if member is None:  # for tarfile all that is no header is the end; it should be zeros
            file.seek(tar.offset)
            if file.read(512) == bytes(512):
                return
            break
        if not last < member.offset < member.offset_data <= size - member.size <= size:
            break
        last = member.offset
        if member.isreg() and not member.issparse():
            yield member
        elif not member.isdir():
            found.unused["links, devices or sparse files"] += 1
    found.broken.append(f"{file.name} ({wrong} at byte {tar.offset})")


def read_file(suffix: str, file: BinaryIO, place: tuple[int, ...]) -> tuple[str, Any]:
    """What a file of a sample is, "picture", ".txt", …, and what of it is kept; ValueError where
    it is of no use."""
    if place[-1] > MOST:
        raise ValueError(f"{place[-1]} bytes, more than {MOST}")
    if suffix in SUFFIXES:
        with images.opened(file):
            return "picture", place
    content = file.read()
    if suffix == ".cls":
        return suffix, " ".join(content.decode().split())
    return suffix, texts_in(content, suffix)


def read_shard(path: Path, number: int, found: Found) -> None:
    """Add what a shard holds."""
    samples: dict[str, dict[str, Any]] = {}
    with open(path, "rb") as file:
        if way := PACKED.get(file.read(2)):
            raise UserError(f"{path} is compressed, nothing in it can be jumped to: {way} it first")
        file.seek(0)
        try:
            tar = tarfile.TarFile(fileobj=file)
        except Exception as error:
            found.broken.append(f"{path} (no tar file: {error})")
            return
        for member in members(tar, file, found):
            named = NAME.fullmatch(member.name)
            key, suffix = named.groups() if named else (member.name, "without a suffix")
            suffix = ascii(suffix.lower())[1:-1]
            if suffix not in (*SUFFIXES, ".txt", ".json", ".cls"):
                found.unused[suffix] += 1
                continue
            sample, content = samples.setdefault(key, {}), tar.extractfile(member)
            try:
                what, kept = read_file(suffix, content, (number, member.offset_data, member.size))
                sample[what] = kept
                content.seek(0)
                found.seen.update(f"{path.name} {member.name!a} {member.size} ".encode())
                found.seen.update(content.read(HEAD))
            except (ValueError, RecursionError) as error:
                if suffix == ".json":
                    found.unused[".json without a caption"] += 1
                else:
                    found.broken.append(f"{path}: {member.name!a} ({error})")
    whole = {key: sample for key, sample in samples.items() if "picture" in sample}
    found.unused["samples without a picture"] += len(samples) - len(whole)
    found.names += [f"{path.name}/{key}" for key in whole]
    found.places.append(np.array([s["picture"] for s in whole.values()], np.int64).reshape(-1, 3))
    found.captions += [s.get(".txt") or s.get(".json", ()) for s in whole.values()]
    found.labels += [s.get(".cls", "") for s in whole.values()]


class Pixels:
    """Pictures in shards as if they were an array (N, 3, S, S), decoded when asked for."""

    def __init__(self, shards: list[Path], names: list[str], places: np.ndarray, size: int) -> None:
        """places: (N, 3) int64, shard, start and size of each picture"""
        self.shards, self.names, self.places = shards, names, places
        self.shape, self.broken = (len(names), 3, size, size), set()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        pictures = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for k, i in enumerate(indices.tolist()):
            shard, start, size = self.places[i].tolist()
            # Opened each time: of thousands of shards a process may not keep all open.
            with open(self.shards[shard], "rb") as file:
                file.seek(start)
                content = file.read(size)
            try:
                pictures[k] = images.decode(content, self.shape[3])
            except UserError as error:  # damaged behind its beginning, and said once
                pictures[k] = 127  # not another picture, whose caption would be a wrong one
                if i not in self.broken:
                    print(f"{self.names[i]!a}: {error}; grey stands in its place", file=sys.stderr)
                self.broken.add(i)
                if len(self.broken) > images.BROKEN_SHARE * len(self):
                    share = f"{len(self.broken)} of {len(self)} pictures are broken, more than"
                    last = f"{images.BROKEN_SHARE:.0%}, the last {self.names[i]!a}"
                    raise UserError(f"{share} {last}. Mend or remove them.") from None
        return pictures


def open_tar(
    path: str | os.PathLike, *, image_size: int = 256, split: str = "train",
    limit: int | None = None, seed: int = 0,
) -> images.ImageSource:  # fmt: skip
    """Shards as a data source; a tenth, by name, is the split "val"."""
    shards, found = [Path(shard) for shard in shards_of(os.fspath(path))], Found()
    if missing := [shard for shard in shards if not shard.is_file()]:
        some = f"{len(missing)} of {len(shards)} files are not there"
        raise UserError(f"{path}: {some}: {missing[0]}")
    for number, shard in enumerate(tqdm(shards, f"opening {path}", disable=None, leave=False)):
        read_shard(shard, number, found)
    names, captions, unused = found.names, found.captions, found.unused
    images.skip_or_stop(found.broken, len(names) + len(found.broken), what=f"tar {path}")
    if not names:
        there = f"; there are {told(unused)}" * any(unused.values())
        raise UserError(f"{path}: no pictures ({' '.join(SUFFIXES)}){there}")
    unused["broken files"] += len(found.broken)
    used = np.array([bool(texts) for texts in captions])
    where, classes = ".txt or .json", sorted(set(found.labels))
    if used.any():
        classes = []
        unused["pictures without a caption"] += len(names) - int(used.sum())
    else:
        used[:] = True
        classes = classes if len(classes) > 1 and "" not in classes else []
        where = f".cls, {len(classes)} classes" if classes else ""
    among = np.flatnonzero(used)
    chosen = images.split_by_name([names[i] for i in among], split, seed=seed)
    chosen = among[chosen[images.first_n(len(chosen), limit, seed=seed)]]
    labels = np.searchsorted(classes, [found.labels[i] for i in chosen]) if classes else None
    lists = [class_captions(found.labels[i]) if classes else captions[i] for i in chosen]
    rule = " (a tenth, by name, is val)"
    say_used(f"{path}, {split}", lists, len(among), rule=rule, where=where, unused=unused)
    places = np.concatenate(found.places)[chosen]
    # Of all that opening has seen, and of which pictures were chosen.
    hashed = hashlib.sha256(f"{found.seen.hexdigest()} {image_size}".encode() + places.tobytes())
    return images.ImageSource(
        name="tar",
        pixels=Pixels(shards, [names[i] for i in chosen], places, image_size),
        caption_lists=lists,
        labels=labels,
        class_names=tuple(label.replace("_", " ") for label in classes) or None,
        add_captions="Give each picture's sample a .txt of the same name",
        hashed=hashed.hexdigest(),
    )

"""Find pictures by words and by pictures: an index of a folder, searched exactly.

    q = Σ w_j u_j / |Σ w_j u_j|     over the unit vectors u of prompts and pictures
    s_i = q · x_i                   cosine with picture i; the k largest, best first

`refresh` embeds the pictures of a folder and keeps the rows x in one file, `index.safetensors`:
"embeddings" (N, E) float32 and "manifest", the JSON (as bytes) of which row is which file. One
file, because it gets its name in one step: a kill leaves the old index or the new one, and never
the rows of one beside the names of the other. The next call reads only what is new or changed,
and maps the rows into memory instead of reading them. `top_k` goes through them block by block.

CLIP and a folder in; names, rows (N, E) and scores out. Read `clip.py` before.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from minimodal.clip import CLIP
from minimodal.data.images import opened
from minimodal.data.listing import SUFFIXES, TABLES, TEXTS, kind_of, list_files, suffix_of, told
from minimodal.errors import UserError
from minimodal.files import save_whole

VERSION = 2  # of the file and of how pictures are read
FILE = "index.safetensors"
BATCH = 64  # pictures that the encoder sees at once
Stamp = tuple[int, int]  # size and time of change (ns): a file with the same is the same


# --- exact search --------------------------------------------------------------------------------


def combine(units: Tensor, weights: Sequence[float]) -> Tensor:
    """One query out of several: q = Σ w_j u_j / |Σ w_j u_j|.

    units: (P, E) unit vectors
    returns: (E,) a unit vector
    """
    summed = torch.tensor(weights, dtype=torch.float64) @ units.double()  # (E,)
    length = summed.norm()
    # Relative to the weights: rounding leaves about 1e-7 of what cancels.
    if length <= 1e-6 * sum(map(abs, weights)):
        raise UserError("with these weights the prompts and pictures cancel out; change a weight")
    return (summed / length).float()


# --- pictures to rows ----------------------------------------------------------------------------


def _digest(tensor: Tensor) -> bytes:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).digest()


def fingerprint(model: nn.Module) -> str:
    """Sha256 (hex) of a model's configuration and tensors: two with it give the same results."""
    tensors = model.state_dict()
    described = {
        "config": dataclasses.asdict(model.config),
        "tensors": [(name, str(t.dtype), list(t.shape)) for name, t in tensors.items()],
    }
    found = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    with ThreadPoolExecutor() as pool:  # large models have gigabytes, and hashing frees the GIL
        for digest in pool.map(_digest, tensors.values()):
            found.update(digest)
    return found.hexdigest()


def read_picture(clip: CLIP, path: Path) -> Tensor | str:
    """A picture file as `clip.preprocess(Image.open(path))` makes it, or why it cannot be read.

    returns: (3, H, W) float32, normalised
    """
    try:
        with opened(path) as picture:
            return clip.preprocess(picture)
    except UserError as error:
        return str(error).removeprefix(f"{path}: cannot be read as a picture: ")


@torch.no_grad()
def embed_files(clip: CLIP, paths: Sequence[Path]) -> Iterator[Tensor | str]:
    """For each file in turn its unit vector (E,), or why there is none."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(paths), BATCH):
            read = list(pool.map(lambda p: read_picture(clip, p), paths[first : first + BATCH]))
            sound = [i for i, picture in enumerate(read) if not isinstance(picture, str)]
            if sound:
                images = torch.stack([read[i] for i in sound]).to(clip.logit_scale.device)
                rows = F.normalize(clip.encode_image(images).float(), dim=-1)  # (B, E)
                for i, row in zip(sound, rows.cpu(), strict=True):
                    # No number would be the largest of all in every search.
                    read[i] = row if row.isfinite().all() else "its embedding is not finite"
            yield from read


def embed_queries(clip: CLIP, paths: Sequence[Path]) -> Tensor:
    """Unit vectors of pictures that are asked for; one that cannot be read is a `UserError`.

    returns: (N, E) float32
    """
    rows = list(embed_files(clip, paths))
    for path, row in zip(paths, rows, strict=True):
        if isinstance(row, str):
            raise UserError(f"{path}: cannot be read as a picture: {row}")
    return torch.stack(rows)


# --- the index and its file ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The pictures of a folder.

    embeddings: (N, E) float32, unit vectors
    """

    embeddings: Tensor
    stamps: dict[str, Stamp]  # of each row's file, by its name in the folder; in the rows' order
    broken: dict[str, str]  # files that cannot be read, and why; they are tried again each time


class Changes(NamedTuple):
    """What `refresh` found: pictures that it embedded, pictures that are no longer there."""

    new: int
    removed: int


def write_index(path: Path, index: Index, model: str) -> None:
    """Write an index whole or not at all; the search goes on where it cannot be kept."""
    described = {
        "version": VERSION,
        "model": model,
        "pictures": [[name, *stamp] for name, stamp in index.stamps.items()],
    }
    text = json.dumps(described).encode()
    manifest = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    tensors = {"embeddings": index.embeddings, "manifest": manifest}
    try:
        # Not save_file: its files are for their owner alone.
        save_whole(path, lambda file: file.write_bytes(save(tensors)))
    except UserError as error:
        print(f"the index cannot be kept: {error}", file=sys.stderr)


def read_index(path: Path, model: str, *, width: int) -> Index:
    """The index in a file, an empty one (of `width` E) where there is none that can be used.

    The rows stay on the disk and are mapped into memory.
    """
    if path.exists():
        try:
            stored = load_file(path)
            embeddings, manifest = stored["embeddings"], json.loads(bytes(stored["manifest"]))
            stamps = {name: (int(size), int(time)) for name, size, time in manifest["pictures"]}
            fits = embeddings.dtype == torch.float32 and embeddings.shape == (len(stamps), width)
            same = manifest["version"] == VERSION and manifest["model"] == model
            if same and fits:
                return Index(embeddings, stamps, {})
            why = "is damaged" if same else "is of another model or version"
        except Exception:  # a damaged file can raise nearly anything
            why = "is damaged"
        print(f"the index {path} {why}: it is made again", file=sys.stderr)
    return Index(torch.empty(0, width), {}, {})


# --- bringing an index up to date ----------------------------------------------------------------


def scan(folder: Path) -> dict[str, Stamp]:
    """The pictures in and below a folder, sorted by name."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give the folder of the pictures to search")
    found, (files, unread) = {}, list_files(folder)
    for name in files:
        if suffix_of(name) not in SUFFIXES:
            unread[kind_of(name)] += suffix_of(name) not in (*TABLES, *TEXTS)  # they may be there
            continue
        try:
            status = os.stat(folder / name)
        except OSError:  # removed a moment ago, or a link to nowhere
            continue
        found[name] = (status.st_size, status.st_mtime_ns)
    if not found:
        there = f"; there are {told(unread)}" if any(unread.values()) else ""
        raise UserError(f"{folder}: no pictures in it; expected files {', '.join(SUFFIXES)}{there}")
    if any(unread.values()):
        print(f"{folder}: {len(found):,} pictures; not read: {told(unread)}", file=sys.stderr)
    return found


def merge(stored: Index, present: dict[str, Stamp], found: dict[str, Tensor | str]) -> Index:
    """What is still right of a stored index together with what was found since, sorted by name."""
    kept = {
        name: row
        for row, (name, stamp) in enumerate(stored.stamps.items())
        if present.get(name) == stamp
    }
    rows = {name: row for name, row in found.items() if not isinstance(row, str)}
    broken = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if not rows and len(kept) == len(stored.stamps):
        return dataclasses.replace(stored, broken=broken)  # the rows stay mapped, not copied
    names = sorted([*kept, *rows])
    place = kept | {name: len(stored.embeddings) + i for i, name in enumerate(rows)}
    every = torch.cat([stored.embeddings, *(row[None] for row in rows.values())])  # (M, E)
    embeddings = every[torch.tensor([place[name] for name in names], dtype=torch.int64)]
    return Index(embeddings, {name: present[name] for name in names}, broken)


def tell_broken(index: Index, folder: Path) -> None:
    """Name the pictures that are left out; an error where they are all."""
    if not index.broken:
        return
    named = [f"{name} ({reason})" for name, reason in list(index.broken.items())[:5]]
    listed = "; ".join(named) + ("; …" if len(index.broken) > 5 else "")
    if not index.stamps:
        raise UserError(f"{folder}: none of its pictures can be read: {listed}")
    total = len(index.broken) + len(index.stamps)
    print(f"{folder}: skipped {len(index.broken)} broken of {total}: {listed}", file=sys.stderr)


def refresh(clip: CLIP, folder: Path) -> tuple[Index, Changes]:
    """The index of a folder, up to date, with what changed; kept for the next time.

    It lies beside the folder. Ctrl-C keeps what is embedded by then.
    """
    present, model, whole = scan(folder), fingerprint(clip), folder.resolve()
    path = whole.parent / f".{whole.name}.minimodal" / FILE
    stored = read_index(path, model, width=clip.config.embed_width)
    wanted = [name for name, stamp in present.items() if stored.stamps.get(name) != stamp]
    found: dict[str, Tensor | str] = {}
    rows = embed_files(clip, [folder / name for name in wanted])
    # disable=None: no bar where stderr is no terminal
    bar = tqdm(rows, total=len(wanted), unit="picture", disable=None, leave=False)
    try:
        for name, row in zip(wanted, bar, strict=True):
            found[name] = row
    finally:
        index = merge(stored, present, found)
        if index.embeddings is not stored.embeddings:
            write_index(path, index, model)
    tell_broken(index, folder)
    new = len(found) - len(index.broken)
    return index, Changes(new, sum(name not in present for name in stored.stamps))

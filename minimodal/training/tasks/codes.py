"""Pictures as codes, once: what every model that is trained on a VQGAN's codes needs.

uint8 pictures (B, 3, H, W) of a data source in, codes (N, h, w) out, kept in a file beside the
VQGAN. Read `minimodal/vqgan.py` before.
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minimodal.blocks.pixels import to_float
from minimodal.data.loading import DataSource
from minimodal.errors import UserError
from minimodal.files import make_folder, write_atomically
from minimodal.training.checkpoint import save_config, save_weights
from minimodal.training.tasks.common import EVALUATION_PICTURES
from minimodal.vqgan import VQGAN


class Encoded(NamedTuple):
    """A trained VQGAN and what it makes of a data source.

    codes: (N, h, w) int32 of the training pictures; mirror images, if any, behind them
    """

    train: DataSource
    val: DataSource
    vqgan: VQGAN
    run: Path  # where the VQGAN is from: a run folder or an original checkpoint
    digest: str  # of its weights
    codes: Tensor
    pictures: int  # that the codes are of, mirror images not counted

    def inputs(self) -> dict[str, Any]:
        """What a training on the codes depends on."""
        data = self.train.fingerprint()
        return {"pictures": len(self.codes), "vqgan": self.digest, "data": data}


@torch.no_grad()
def tokenize_pictures(
    vqgan: VQGAN, source: DataSource, *, n: int, flip: bool, device: torch.device
) -> Tensor:
    """The codes of a source's first n pictures.

    Of pairs, pictures (B, 3, 2*S, S), each is encoded by itself; their codes lie one above the
    other as they do.
    returns: (N, h, w) int32; with flip the mirror images follow, N = 2 n
    """
    # What 32 pictures need fits a CPU's cache; 256 at once take it twice the time.
    some = 32 if device.type == "cpu" else 256
    codes = []
    for mirrored in (False, True) if flip else (False,):
        for start in range(0, n, some):
            images = source.images(np.arange(start, min(start + some, n)))
            images = images[..., ::-1] if mirrored else images
            x = to_float(torch.from_numpy(np.ascontiguousarray(images)).to(device))
            single = rearrange(x, "B C (p S) T -> (B p) C S T", S=x.shape[-1])
            grids = vqgan.encode(single).indices.cpu().int()
            codes.append(rearrange(grids, "(B p) h w -> B (p h) w", B=len(x)))
    return torch.cat(codes)


def unseen_codes(encoded: Encoded, device: torch.device) -> Tensor:
    """The codes of the pictures that scores are measured on.

    returns: (N, h, w) int32
    """
    n = min(EVALUATION_PICTURES, len(encoded.val))
    vqgan = encoded.vqgan.to(device)
    return tokenize_pictures(vqgan, encoded.val, n=n, flip=False, device=device)


def cached_codes(
    path: Path, vqgan: VQGAN, source: DataSource, *, n: int, flip: bool, write: bool
) -> Tensor:
    """`tokenize_pictures`, once: kept in a file whose name stands for the weights and the data.

    The file is mapped into memory, not read: of millions of pictures a batch touches its own.
    returns: (N, h, w) int32
    """
    if path.exists():
        try:
            kept = np.lib.format.open_memmap(path, mode="c")
        except (ValueError, OSError, EOFError) as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it, and the pictures are encoded again"
            ) from None
        w, (height, width) = vqgan.config.grid, source.images(np.arange(1)).shape[2:]
        shape = (n * (2 if flip else 1), w * height // width, w)  # of pairs h = 2 w
        if kept.shape == shape and kept.dtype == np.int32:
            return torch.from_numpy(kept)
        print(f"{path} holds {kept.dtype} {kept.shape}, where int32 {shape} is expected: it is "
              "made anew", file=sys.stderr)  # fmt: skip
    print(f"turning {n} pictures into codes, once (kept in {path})", file=sys.stderr)
    device = vqgan.last_layer.device
    codes = tokenize_pictures(vqgan, source, n=n, flip=flip, device=device)
    if write:
        try:
            make_folder(path.parent)
            write_atomically(path, lambda file: write_array(file, codes.numpy()))
        except UserError as error:  # beside someone else's checkpoint, perhaps, or on a full disk
            print(f"{error}; next time the pictures are encoded again", file=sys.stderr)
    return codes


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a NumPy file; np.save itself would add .npy to the name."""
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def copy_vqgan(encoded: Encoded, out: Path) -> None:
    """Copy the VQGAN into the run `out`, which then works wherever it is moved.

    Of a run its files, of an original checkpoint the converted weights.
    """
    vqgan, run = encoded.vqgan, encoded.run
    make_folder(out / "vqgan")
    if not run.is_dir():
        model = {**asdict(vqgan.config), "training": {}}
        save_config(out / "vqgan", {"kind": "vqgan", "model": model, "data": "", "train": {}})
        keep = vqgan.discriminator
        vqgan.discriminator = None  # no part of what draws
        save_weights(out / "vqgan", vqgan)
        vqgan.discriminator = keep
        return
    for name in ("config.json", "model.safetensors"):
        source, copy = run / name, out / "vqgan" / name
        if source.resolve() != copy.resolve():
            write_atomically(copy, lambda path, source=source: shutil.copyfile(source, path))

"""Pictures as codes, once: what every model that is trained on a VQGAN's codes needs.

uint8 pictures (B, 3, H, W) of a data source in, codes (N, h, w) out, kept in a file beside the
VQGAN. Read `minimodal/vqgan.py` before.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minimodal.blocks.pixels import to_float
from minimodal.data.sources import DataSource, first_pictures
from minimodal.files import make_folder
from minimodal.training.checkpoint import save_config, write_weights
from minimodal.training.tasks.cached import cached, copy_files
from minimodal.training.tasks.unseen import EVALUATION_PICTURES
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
    for images in first_pictures(source, n, some=some, flip=flip):
        x = to_float(images.to(device))
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

    write: whether this process does: several would take each other's files away
    returns: (N, h, w) int32
    """
    w, (height, width) = vqgan.config.grid, source.images(np.arange(1)).shape[2:]
    return cached(
        path,
        lambda: tokenize_pictures(
            vqgan, source, n=n, flip=flip, device=vqgan.last_layer.device
        ),
        shape=(n * (1 + flip), w * height // width, w),  # of pairs h = 2 w
        dtype=np.int32, what=f"{n} pictures into codes", write=write,
    )  # fmt: skip


def copy_vqgan(encoded: Encoded, out: Path) -> None:
    """Copy the VQGAN into the run `out`, which then works wherever it is moved.

    Of a run its files, of an original checkpoint the converted weights.
    """
    vqgan, run = encoded.vqgan, encoded.run
    make_folder(out / "vqgan")
    if not run.is_dir():
        model = {**asdict(vqgan.config), "training": {}}
        save_config(out / "vqgan", {"kind": "vqgan", "model": model, "data": "", "train": {}})
        weights = vqgan.state_dict().items()  # the discriminator is no part of what draws
        write_weights(
            out / "vqgan", {k: v for k, v in weights if not k.startswith("discriminator.")}
        )
        return
    copy_files(run, out / "vqgan", "config.json", "model.safetensors")

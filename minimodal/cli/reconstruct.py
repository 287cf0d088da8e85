"""`python -m minimodal reconstruct IMG …`: pictures through a VQGAN's codes and back.

A grid of before, after and their difference, with PSNR, SSIM and the codes used; for a run or an
original checkpoint, for pictures of any size. Read `minimodal/vqgan.py` before.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.cli.common import check_png, read_each
from minimodal.data.images import open_rgb
from minimodal.drawing import grid, save_png
from minimodal.errors import UserError
from minimodal.evaluation.metrics import psnr, ssim
from minimodal.files import make_folder
from minimodal.runs import find, load
from minimodal.training.distributed import pick_device
from minimodal.vqgan import VQGAN

ABOUT = "pictures through a VQGAN's codes and back: before, after, difference, PSNR, SSIM"
DEFAULT, LONGEST, GAIN = Path("runs/demo/vqgan"), 512, 4
SMALLEST = 8  # pixels a side; SSIM's window is 7


class Pair(NamedTuple):
    """A picture before and after, with its codes.

    before: (3, H, W) uint8
    after: (3, H, W) uint8
    indices: (h, w) int64
    """

    before: Tensor
    after: Tensor
    indices: Tensor


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of reconstruct."""
    add = parser.add_argument
    add("pictures", nargs="+", metavar="IMG", help="picture files")
    add("--vqgan", type=Path, default=DEFAULT, metavar="RUN|CHECKPOINT",
        help=f"a run, a demo folder or an original checkpoint (default: {DEFAULT})")  # fmt: skip
    add("--size", type=int, metavar="N",
        help="resize the longer side to N pixels first (default: as they are, "
             f"but at most {LONGEST})")  # fmt: skip
    add("--out", type=Path, default=Path("reconstructions.png"), metavar="PNG",
        help="the grid (default: reconstructions.png)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--json", action="store_true", help="print one JSON object instead of words")
    parser.set_defaults(rest="pictures")


def read_picture(name: str, size: int | None) -> Tensor:
    """A picture at the size that it is reconstructed at.

    returns: (3, H, W) uint8
    """
    picture = original = open_rgb(name)
    longer = max(picture.size)
    wanted = size or min(longer, LONGEST)
    if wanted != longer:
        if size is None:
            print(f"{name}: shrunk to {wanted} pixels, --size N for another", file=sys.stderr)
        width, height = (max(1, round(side * wanted / longer)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    if min(picture.size) < SMALLEST:
        shrunk = f", and {picture.width} x {picture.height} at --size {wanted}"
        raise UserError(
            f"{name} is {original.width} x {original.height} pixels"
            f"{shrunk if wanted != longer else ''}: expected {SMALLEST} or more a side"
        )
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def pad_to_multiple(images: Tensor, factor: int) -> Tensor:
    """Repeat the last row and column until the factor divides both sides.

    images: (B, 3, H, W) float
    returns: (B, 3, H', W')
    """
    H, W = images.shape[-2:]
    return F.pad(images, (0, -W % factor, 0, -H % factor), mode="replicate")


@torch.no_grad()
def reconstruct(vqgan: VQGAN, picture: Tensor) -> Pair:
    """One picture, padded for the network and cropped back.

    picture: (3, H, W) uint8
    """
    H, W = picture.shape[-2:]
    x = to_float(picture[None].to(vqgan.last_layer.device))
    codes = vqgan.encode(pad_to_multiple(x, vqgan.config.factor))
    after = to_uint8(vqgan.decode(codes.z))[0, :, :H, :W].cpu()
    return Pair(picture, after, codes.indices[0].cpu())


def on_canvas(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture in the middle of a light ground, so that all tiles have one size.

    picture: (3, H, W) uint8
    returns: (3, height, width) uint8
    """
    H, W = picture.shape[-2:]
    canvas = torch.full((3, height, width), 248, dtype=torch.uint8)
    top, left = (height - H) // 2, (width - W) // 2
    canvas[:, top : top + H, left : left + W] = picture
    return canvas


def difference(pair: Pair) -> Tensor:
    """After minus before on middle gray, several times as strong.

    returns: (3, H, W) uint8
    """
    change = (pair.after.int() - pair.before.int()) * GAIN
    return (change + 128).clamp(0, 255).byte()


def scores(name: str, pair: Pair, size: int) -> dict:
    """What is said of one picture."""
    before, after = pair.before[None], pair.after[None]
    return {
        "file": name,
        "width": pair.before.shape[-1],
        "height": pair.before.shape[-2],
        "psnr": round(psnr(after, before), 3),
        "ssim": round(ssim(after, before), 4),
        "codes": pair.indices.numel(),
        "different_codes": len(pair.indices.unique()),
        "codebook": size,
    }


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct, draw the grid, print; returns the exit status."""
    if arguments.size is not None and arguments.size < SMALLEST:
        raise UserError(f"--size {arguments.size}: expected {SMALLEST} pixels or more")
    check_png(arguments.out)
    device = pick_device(arguments.device)
    read, refused = read_each(arguments.pictures, lambda name: read_picture(name, arguments.size))
    vqgan = load(find(arguments.vqgan, "vqgan", flag="--vqgan"), kind="vqgan").to(device)
    make_folder(arguments.out.parent)
    pairs = [reconstruct(vqgan, picture) for _, picture in read]
    size = vqgan.quantizer.size
    found = [scores(name, pair, size) for (name, _), pair in zip(read, pairs, strict=True)]
    height = max(pair.before.shape[-2] for pair in pairs)
    width = max(pair.before.shape[-1] for pair in pairs)
    tiles, captions = [], []
    for score, pair in zip(found, pairs, strict=True):
        kinds = (pair.before, pair.after, difference(pair))
        tiles += [on_canvas(tile, height, width) for tile in kinds]
        words = f"PSNR {score['psnr']:.1f} dB, SSIM {score['ssim']:.3f}"
        captions += [Path(score["file"]).name, words, f"difference x {GAIN}"]
    save_png(grid(torch.stack(tiles), captions, columns=3), arguments.out)
    used = len(torch.cat([pair.indices.flatten() for pair in pairs]).unique())
    if arguments.json:
        made = {"vqgan": str(arguments.vqgan), "grid": str(arguments.out), "codes_used": used}
        print(json.dumps(made | {"codebook": size, "pictures": found, "left_out": refused}))
        return 1 if refused else 0
    for score in found:
        print(f"{score['file']}  PSNR {score['psnr']:.2f} dB  SSIM {score['ssim']:.4f}  "
              f"{score['different_codes']} different codes of {score['codes']}")  # fmt: skip
    print(f"{arguments.out}: before, after, difference; {used} of {size} codes used")
    return 1 if refused else 0

"""`python -m minimodal reconstruct IMG …`: pictures through a VQGAN's codes and back.

A grid of before, after and their difference, with PSNR, SSIM and the codes used; for a run or an
original checkpoint, for pictures of any size. Read `minimodal/vqgan.py` before.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minimodal.cli.common import check_name, read_each
from minimodal.data.images import open_rgb
from minimodal.drawing import grid, save_png
from minimodal.errors import UserError
from minimodal.evaluation.metrics import psnr, ssim
from minimodal.evaluation.scoreboard import reconstruct
from minimodal.files import make_folder
from minimodal.runs import find, load
from minimodal.training.distributed import pick_device
from minimodal.vqgan import VQGAN

ABOUT = "pictures through a VQGAN's codes and back: before, after, difference, PSNR, SSIM"
DEFAULT, LONGEST, GAIN = Path("runs/demo/vqgan"), 512, 4
SMALLEST = 8  # pixels a side; SSIM's window is 7
LARGEST = 16384  # as a picture of 210 million pixels, the largest that is read


def add_flags(parser: argparse.ArgumentParser) -> None:
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


def sized(name: str, size: int | None) -> np.ndarray:
    """A picture file at the size that it is reconstructed at.

    returns: (H, W, 3) uint8
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
    return np.array(picture)


def there_and_back(vqgan: VQGAN, picture: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """A picture before and after, and its codes. Its last row and column are repeated until the
    network's factor divides both sides, and cut off again.

    picture: (H, W, 3) uint8
    returns: (3, H, W) uint8, (3, H, W) uint8, (h, w) int64
    """
    H, W, factor = *picture.shape[:2], vqgan.config.factor
    padded = np.pad(picture, ((0, -H % factor), (0, -W % factor), (0, 0)), mode="edge")
    images = torch.from_numpy(padded).permute(2, 0, 1)[None]
    again = reconstruct(vqgan, images)
    return images[0, :, :H, :W], again.pictures[0, :, :H, :W], again.indices[0]


def tiles_of(before: Tensor, after: Tensor, height: int, width: int) -> list[Tensor]:
    """Before, after and their difference on gray, each in the middle of a light ground.

    before: (3, H, W) uint8
    after: (3, H, W) uint8
    """
    H, W = before.shape[-2:]
    difference = ((after.int() - before.int()) * GAIN + 128).clamp(0, 255).byte()
    left, top = (width - W) // 2, (height - H) // 2
    ground = (left, width - W - left, top, height - H - top)
    return [F.pad(tile, ground, value=248) for tile in (before, after, difference)]


def run(arguments: argparse.Namespace) -> int:
    if arguments.size is not None and not SMALLEST <= arguments.size <= LARGEST:
        raise UserError(f"--size {arguments.size}: expected {SMALLEST} to {LARGEST} pixels")
    check_name(arguments.out)
    device = pick_device(arguments.device)
    read, refused = read_each(arguments.pictures, lambda name: sized(name, arguments.size))
    vqgan = load(find(arguments.vqgan, "vqgan", flag="--vqgan"), kind="vqgan").to(device)
    make_folder(arguments.out.parent)
    height, width = (max(picture.shape[side] for _, picture in read) for side in (0, 1))
    size, used, found, tiles, captions = vqgan.quantizer.size, set(), [], [], []
    for name, picture in read:
        before, after, indices = there_and_back(vqgan, picture)
        codes = set(indices.flatten().tolist())
        used |= codes
        one = {
            "file": name, "width": picture.shape[1], "height": picture.shape[0],
            "psnr": round(psnr(after[None], before[None]), 3),
            "ssim": round(ssim(after[None], before[None]), 4),
            "codes": indices.numel(), "different_codes": len(codes), "codebook": size,
        }  # fmt: skip
        found.append(one)
        tiles += tiles_of(before, after, height, width)
        words = f"PSNR {one['psnr']:.1f} dB, SSIM {one['ssim']:.3f}"
        captions += [Path(name).name, words, f"difference x {GAIN}"]
    save_png(grid(torch.stack(tiles), captions, columns=3), arguments.out)
    if arguments.json:
        made = {"vqgan": str(arguments.vqgan), "grid": str(arguments.out), "codes_used": len(used)}
        print(json.dumps(made | {"codebook": size, "pictures": found, "left_out": refused}))
        return 1 if refused else 0
    for one in found:
        print(f"{one['file']}  PSNR {one['psnr']:.2f} dB  SSIM {one['ssim']:.4f}  "
              f"{one['different_codes']} different codes of {one['codes']}")  # fmt: skip
    print(f"{arguments.out}: before, after, difference; {len(used)} of {size} codes used")
    return 1 if refused else 0

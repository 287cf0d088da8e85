"""VQGAN's reconstructions of CIFAR-10 and DALL·E's pictures before an independent judge.

python train.py vqgan --data cifar10:PATH --out runs/cifar-vqgan --minutes 10     # and dalle
python benchmarks/cifar.py --data PATH --judge cifar10_resnet20.safetensors
"""

import argparse
from pathlib import Path

import torch

import minimodal
from minimodal.blocks.pixels import to_uint8
from minimodal.data.cifar import class_captions
from minimodal.data.loading import open_data
from minimodal.evaluation.judge import load_judge
from minimodal.evaluation.metrics import psnr
from minimodal.training.tasks.common import all_pictures


@torch.no_grad()
def main() -> None:
    """Print one line a system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's Python archive")
    parser.add_argument("--judge", required=True, type=Path, help="ResNet-20's safetensors")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="(default: runs)")
    parser.add_argument("-n", type=int, default=50, help="pictures a class (default: 50)")
    given = parser.parse_args()
    test = open_data(f"cifar10:{given.data}", image_size=32, split="val")
    images, labels = torch.from_numpy(all_pictures(test, len(test))), torch.from_numpy(test.labels)
    judge = load_judge(given.judge)

    vqgan = minimodal.load(given.runs / "cifar-vqgan")
    parts = [part.float() / 127.5 - 1 for part in images.split(100)]
    again = torch.cat([to_uint8(vqgan.decode(vqgan.encode(part).z)) for part in parts])
    print(f"VQGAN: PSNR {psnr(again, images):.2f} dB on {len(images)} test pictures; the judge "
          f"agrees with {judge.agreement(images, labels):.3f} of the labels of the originals and "
          f"{judge.agreement(again, labels):.3f} of those of the reconstructions")  # fmt: skip

    dalle = minimodal.load(given.runs / "cifar-dalle")
    names = [class_captions(name)[0] for name in test.class_names]  # "an airplane", …
    prompts = [f"a photo of {name}" for name in names]
    sampling = dalle.run["model"]["sampling"]
    drawn = dalle.generate(
        prompts, given.n, generator=torch.Generator().manual_seed(0), batch_size=50, **sampling
    )
    asked = torch.arange(len(names)).repeat_interleave(given.n)
    print(f"DALL·E: the judge sees the class asked for in {judge.agreement(drawn, asked):.3f} of "
          f"{len(drawn)} pictures (chance 0.1)")  # fmt: skip


if __name__ == "__main__":
    main()

"""Are pictures that a sliding window drew seamless? The discriminator's verdict at window borders.

python benchmarks/seams.py --prior runs/cifar-prior --vqgan runs/cifar-vqgan [-n 32]

Draws pictures of three times the trained width and height and lets the patch discriminator that was
trained with the VQGAN judge every part of them. At a multiple of the trained size a tiling would
have its seams; the mean verdict of the parts across such lines is compared with that of all others,
and so is the difference of neighbouring pixels, for pictures of the window and for tiled ones (nine
pictures side by side), which do have seams.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import minimodal
from minimodal.blocks.discriminator import PatchDiscriminator
from minimodal.blocks.painter import Request
from minimodal.blocks.pixels import to_float
from minimodal.blocks.sampling import SamplingConfig
from minimodal.drawing import grid, save_png
from minimodal.training.checkpoint import load_run_config, newest_state


def load_discriminator(run: Path) -> PatchDiscriminator:
    """The discriminator of a vqgan run's last training state."""
    training = load_run_config(run, kind="vqgan")["model"]["training"]
    judge = PatchDiscriminator(
        channels=training["discriminator_channels"],
        depth=training["discriminator_depth"],
    )
    judge.load_state_dict(newest_state(run)["extra"]["discriminator"])
    return judge.eval()


def across(logits: Tensor, judge: PatchDiscriminator, size: int, trained: int) -> Tensor:
    """Which verdicts look at both sides of a line at a multiple of the trained size.

    logits: (N, 1, h, w)
    returns: (h, w) bool
    """
    h = logits.shape[-1]
    step, field = size / h, judge.receptive_field
    centres = (torch.arange(h) + 0.5) * step  # of the part that a verdict sees, about
    lines = torch.arange(trained, size, trained)
    near = ((centres[:, None] - lines).abs() < field / 4).any(dim=1)
    return near[:, None] | near[None, :]


def jump(pictures: Tensor, trained: int, factor: int) -> Tensor:
    """How much neighbours differ across the lines, over how much they do at other borders of codes.

    pictures: (N, 3, H, W) uint8
    returns: (N,)
    """
    x = pictures.float()
    across_columns = (x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2))  # (N, W-1)
    across_rows = (x[..., 1:, :] - x[..., :-1, :]).abs().mean(dim=(1, 3))  # (N, H-1)
    steps = (across_columns + across_rows) / 2
    lines = torch.arange(trained, x.shape[-1], trained) - 1
    borders = torch.arange(factor, x.shape[-1], factor) - 1  # between any two codes
    other = borders[~torch.isin(borders, lines)]
    return steps[:, lines].mean(dim=1) / steps[:, other].mean(dim=1)


@torch.no_grad()
def main() -> None:
    """Print the verdicts and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", type=Path, required=True)
    parser.add_argument("--vqgan", type=Path, required=True)
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("seams.png"))
    given = parser.parse_args()
    prior, judge = minimodal.load(given.prior), load_discriminator(given.vqgan)
    trained = prior.config.grid * prior.painter.factor
    size = 3 * trained
    how, cooler = torch.Generator().manual_seed(0), SamplingConfig(temperature=0.9)
    whole = prior.draw(None, Request(given.n, how), cooler, size=(size, size))
    parts = prior.draw(None, Request(9 * given.n, how), cooler)
    rows = parts.view(given.n, 3, 3, 3, trained, trained).permute(0, 3, 1, 4, 2, 5)
    tiled = rows.reshape(given.n, 3, size, size)
    for name, pictures in (("sliding window", whole), ("tiles side by side", tiled)):
        logits = torch.cat([judge(to_float(part)) for part in pictures.split(16)])
        mask = across(logits, judge, size, trained)
        # Verdicts at the picture's edge look at padding; they are left out on both sides.
        edge = int(judge.receptive_field / 2 / (size / logits.shape[-1])) + 1
        inner, lines = logits[..., edge:-edge, edge:-edge], mask[edge:-edge, edge:-edge]
        gap = inner[..., lines].mean(dim=(1, 2)) - inner[..., ~lines].mean(dim=(1, 2))  # (N,)
        ratio = jump(pictures, trained, prior.painter.factor)
        error = given.n**0.5
        print(f"{name:20s} verdict at lines minus elsewhere {gap.mean():6.3f} +- "
              f"{gap.std() / error:.3f}; jump across lines {ratio.mean():.3f} +- "
              f"{ratio.std() / error:.3f} of that elsewhere")  # fmt: skip
    shown = torch.cat([whole[:4], tiled[:4]])
    words = ["sliding window"] * 4 + ["nine pictures"] * 4
    save_png(grid(shown, words, columns=4, tile=192), given.out)
    print(given.out)


if __name__ == "__main__":
    main()

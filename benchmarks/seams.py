"""Are pictures that a sliding window drew seamless? The discriminator's verdict at window borders.

python benchmarks/seams.py --prior runs/cifar-prior --vqgan runs/cifar-vqgan [-n 32] [--stride 4]

Draws pictures of three times the trained width and height and lets the patch discriminator that was
trained with the VQGAN judge every part of them. At a multiple of the trained size a tiling would
have its seams; the mean verdict of the parts across such lines is compared with that of all others,
for pictures of the window and for tiled ones (nine pictures side by side), which do have seams.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import minimodal
from minimodal.blocks.discriminator import PatchDiscriminator
from minimodal.blocks.pixels import to_float
from minimodal.drawing import grid, save_png
from minimodal.training.checkpoint import load_run_config, newest_state


def load_discriminator(run: Path) -> PatchDiscriminator:
    """The discriminator of a vqgan run's last training state."""
    training = load_run_config(run, kind="vqgan")["model"]["training"]
    judge = PatchDiscriminator(
        channels=training["discriminator_channels"],
        depth=training["discriminator_depth"],
        refine=training["discriminator_refine"],
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


@torch.no_grad()
def main() -> None:
    """Print the verdicts and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", type=Path, required=True)
    parser.add_argument("--vqgan", type=Path, required=True)
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("seams.png"))
    given = parser.parse_args()
    prior, judge = minimodal.load(given.prior), load_discriminator(given.vqgan)
    trained = prior.config.grid * prior.factor
    size = 3 * trained
    how = dict(generator=torch.Generator().manual_seed(0), temperature=0.9)
    whole = prior.generate(None, given.n, size=(size, size), stride=given.stride, **how)
    parts = prior.generate(None, 9 * given.n, **how)
    rows = parts.view(given.n, 3, 3, 3, trained, trained).permute(0, 3, 1, 4, 2, 5)
    tiled = rows.reshape(given.n, 3, size, size)
    for name, pictures in (("sliding window", whole), ("tiles side by side", tiled)):
        logits = torch.cat([judge(to_float(part)) for part in pictures.split(16)])
        mask = across(logits, judge, size, trained)
        at, elsewhere = logits[..., mask], logits[..., ~mask]
        error = logits.mean(dim=(1, 2, 3)).std() / given.n**0.5
        print(f"{name:20s} verdict at lines {at.mean():7.3f}, elsewhere {elsewhere.mean():7.3f} "
              f"(standard error {error:.3f})")  # fmt: skip
    shown = torch.cat([whole[:4], tiled[:4]])
    words = ["sliding window"] * 4 + ["nine pictures"] * 4
    save_png(grid(shown, words, columns=4, tile=192), given.out)
    print(given.out)


if __name__ == "__main__":
    main()

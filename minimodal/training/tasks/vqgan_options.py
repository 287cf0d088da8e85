"""What VQGAN's training can do beside its default, and which settings it refuses.

Noise and schedule of DALL·E 1's relaxed codes (`--quantizer gumbel`), a network's view of the
difference between pictures (`--perceptual`), λ of several micro-batches (`--accumulate`). A reader
of the default training needs none of it. Read `tasks/vqgan.py` before.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.discriminator import Pulls, balance
from minimodal.blocks.perceptual import PerceptualDistance
from minimodal.blocks.vqgan_checks import check_size
from minimodal.errors import UserError
from minimodal.vqgan import VQGANConfig


def check_training(training: Any) -> None:
    """Refuse values of a VQGANTraining that no training can have."""
    for name in ("warm_start", "warm_mse", "gumbel_kl", "perceptual_weight", "gan_weight",
                 "discriminator_start", "gan_ramp", "discriminator_lr", "gumbel_steps",
                 "perceptual_layers", "perceptual_shift"):  # fmt: skip
        if not 0 <= getattr(training, name) < math.inf:
            raise UserError(f"{name} {getattr(training, name)}: expected 0 or more")
    check_size(channels=training.discriminator_channels, depth=training.discriminator_depth)
    if not 0 < training.gumbel_temperature <= 1:
        raise UserError(f"gumbel_temperature {training.gumbel_temperature}: expected 0 to 1")
    if training.gan_start < training.discriminator_start and training.gan_weight > 0:
        raise UserError(
            f"gan_start {training.gan_start} is before discriminator_start "
            f"{training.discriminator_start}: an untrained discriminator has nothing to say"
        )
    if training.perceptual_heads and not training.perceptual:
        raise UserError("perceptual_heads are for a VGG16: give its file as perceptual")


def check_pictures(
    training: Any, image_size: int, perceptual: PerceptualDistance | None = None
) -> None:
    """Refuse a VQGANTraining whose networks are too large for the pictures."""
    seen = 0 if perceptual is None else perceptual.size or image_size
    if seen and training.perceptual_shift >= seen:
        raise UserError(
            f"perceptual_shift {training.perceptual_shift}: expected less than {seen}, the "
            "pixels of the pictures that are compared"
        )
    halvings = training.discriminator_depth
    if image_size // 2**halvings - 1 - training.discriminator_refine < 1:
        raise UserError(
            f"discriminator_depth {halvings}: pictures of {image_size} pixels are too "
            "small for so many halvings"
        )


def gumbel_noise(config: VQGANConfig, rows: range, *, seed: int, step: int) -> Tensor:
    """Noise of the Gumbel distribution for some rows of a step's batch.

    rows: of the global batch; each has a generator, so that N processes draw what one does
    returns: (b, K, h, w) float32
    """
    shape = (config.codes[0], config.grid, config.grid)
    rngs = (np.random.default_rng((seed, step, row)) for row in rows)
    noise = np.stack([rng.gumbel(size=shape).astype(np.float32) for rng in rngs])
    return torch.from_numpy(noise)


def gumbel_schedule(training: Any, step: float) -> tuple[float, float]:
    """Gumbel's temperature, falling from 1 by a constant factor a step, and its KL weight."""
    done = min(1.0, step / max(1, training.gumbel_steps))
    return training.gumbel_temperature**done, training.gumbel_kl * done


def moved_distance(
    perceptual: PerceptualDistance, decoded: Tensor, images: Tensor, *, most: int, seed: int,
    step: int,
) -> Tensor:  # fmt: skip
    """What a network sees of the difference, both pictures moved by up to `most` pixels.

    decoded: (B, 3, H, W)
    images: (B, 3, H, W) in [-1, 1]
    returns: ()
    """
    down, right = np.random.default_rng((seed, step, 1)).integers(-most, most + 1, 2)
    return perceptual(decoded, images, shift=(int(down), int(right)))


def joint_weight(
    batches: list[dict], pulls_of: Callable[[dict], Pulls], *, average: Callable[[Tensor], Tensor]
) -> Tensor:
    """λ of all micro-batches of all processes, at the price of one more pass of each.

    pulls_of: where both losses of a micro-batch pull
    average: mean of a gradient over the processes
    returns: ()
    """
    # differs from the paper: λ is that of the global batch, whatever `--accumulate` and the number
    # of processes.
    with torch.enable_grad():
        found = [pulls_of(batch)[1:] for batch in batches]
    means = (torch.stack(several).mean(dim=0) for several in zip(*found, strict=True))
    return balance(*(average(gradient) for gradient in means))

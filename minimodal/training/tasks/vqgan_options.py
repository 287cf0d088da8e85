"""What VQGAN's training can do beside its default, and which settings it refuses.

Where codes are placed, noise and schedule of DALL·E 1's relaxed codes (`--quantizer gumbel`), a
network's view of the difference between pictures (`--perceptual`), λ of several micro-batches
(`--accumulate`). A reader of the losses needs none of it. Read `tasks/vqgan.py` before.
"""

from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimodal.blocks.discriminator import balance, generator_loss, pull
from minimodal.blocks.perceptual import PerceptualDistance
from minimodal.blocks.pixels import to_float
from minimodal.blocks.vqgan_checks import check_size
from minimodal.data.sources import batch_indices
from minimodal.errors import UserError, check_range
from minimodal.training.contract import Recipe


def check_training(training: Any) -> None:
    """Refuse values of a VQGANTraining that no training can have."""
    check_range(
        training, 0, inf, "warm_start", "warm_mse", "gumbel_kl", "perceptual_weight", "gan_weight",
        "discriminator_start", "gan_ramp", "discriminator_lr", "gumbel_steps", "perceptual_layers",
        "perceptual_shift",
    )  # fmt: skip
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
    if image_size // 2**halvings < 2:
        raise UserError(
            f"discriminator_depth {halvings}: pictures of {image_size} pixels are too "
            "small for so many halvings"
        )


def place_codes(task: Any, step: int) -> None:
    """Put the codes where the encoder's latents of real pictures are, unless they are there."""
    source, model = task.train, task.model
    if task.placed or any(counts.any() for counts in model.quantizer.usage_counts):
        task.placed = True
        return
    images = source.images(batch_indices(len(source), 1024, 0, seed=task.seed, group=source.group))
    parts = torch.from_numpy(images).to(model.last_layer.device).split(128)
    latents = task.whole(lambda: torch.cat([model.latents(to_float(part)) for part in parts]))
    model.quantizer.start(latents.float(), task.draws(step))


class Gumbel:
    """What the training of relaxed codes adds: noise, and a schedule of temperature and KL term."""

    def __init__(self, recipe: Recipe) -> None:
        config, self.training, self.seed = recipe.model, recipe.training, recipe.engine.seed
        self.shape = (config.codes[0], config.grid, config.grid)

    def noise(self, rows: range, step: int) -> Tensor:
        """Noise of the Gumbel distribution for some rows of a step's batch.

        rows: of the global batch; each has a generator, so that N processes draw what one does
        returns: (b, K, h, w) float32
        """
        rngs = (np.random.default_rng((self.seed, step, row)) for row in rows)
        noise = np.stack([rng.gumbel(size=self.shape).astype(np.float32) for rng in rngs])
        return torch.from_numpy(noise)

    def schedule(self, step: float) -> tuple[float, float]:
        """The temperature, falling from 1 by a constant factor a step, and the KL term's weight."""
        done = min(1.0, step / max(1, self.training.gumbel_steps))
        return self.training.gumbel_temperature**done, self.training.gumbel_kl * done


def moved_distance(task: Any, decoded: Tensor, images: Tensor, step: int) -> Tensor:
    """What a network sees of the difference, both pictures moved by a few pixels.

    decoded: (B, 3, H, W)
    images: (B, 3, H, W) in [-1, 1]
    returns: ()
    """
    most = task.training.perceptual_shift
    down, right = np.random.default_rng((task.seed, step, 1)).integers(-most, most + 1, 2)
    return task.perceptual(decoded, images, shift=(int(down), int(right)))


def joint_weight(task: Any, batches: list[dict], step: int) -> None:
    """Leave λ of all micro-batches of all processes in each, at the price of one more pass: their
    own would make another step of them."""

    def ends(batch: dict) -> tuple[Tensor, Tensor]:
        images = to_float(batch["images"])
        decoded = task.reconstruct(images, batch, step).pictures
        reconstruction, _ = task.reconstruction_loss(decoded, images, step)
        adversarial = generator_loss(task.discriminator(decoded).float())
        losses = (reconstruction, adversarial)
        return tuple(pull(loss, decoded, task.model.last_layer)[1] for loss in losses)

    # differs from the paper: λ is that of the global batch, whatever `--accumulate` and the number
    # of processes.
    with torch.enable_grad():
        found = task.whole(lambda: [ends(batch) for batch in batches])
    means = (torch.stack(several).mean(dim=0) for several in zip(*found, strict=True))
    weight = balance(*(task.average(gradient) for gradient in means))
    for batch in batches:
        batch["lambda"] = weight

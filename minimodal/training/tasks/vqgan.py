"""VQGAN's training: reconstruction, commitment, and the game with the patch discriminator.

Phase one moves encoder and decoder, phase two the discriminator, on the same pictures. The order
of events is a plain autoencoder (warm start), k-means places the codes, the discriminator learns
alone, and only then its verdict reaches the generator, at a weight that grows to its full size.
Read `minimodal/vqgan.py` before.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.blocks.discriminator import (
    PatchDiscriminator,
    adversarial_ramp,
    generator_loss,
    hinge_loss,
    weigh,
)
from minimodal.blocks.perceptual import PerceptualDistance
from minimodal.blocks.pixels import to_float
from minimodal.data.sources import DataSource, batch_indices
from minimodal.evaluation.metrics import perplexity
from minimodal.training.contract import Phase, Recipe, Task
from minimodal.training.tasks.common import draws, flip_some, seeded
from minimodal.training.tasks.unseen import reconstructions, vqgan_scores
from minimodal.training.tasks.vqgan_options import (
    Gumbel,
    check_pictures,
    check_training,
    joint_weight,
    moved_distance,
    place_codes,
)
from minimodal.vqgan import VQGAN, Reconstruction


@dataclass(frozen=True)
class VQGANTraining:
    """What VQGAN's training has beyond the engine's settings."""

    # differs from the paper: the first steps train a plain autoencoder, on whose latents k-means
    # places the codes: 9 % of them are used without that and the moving of dead ones, all of them
    # with both (docs/results.md).
    warm_start: int = 500  # steps as a plain autoencoder, then k-means places the codes
    warm_mse: float = 8.0  # weight of the squared error beside L1 in these steps
    gumbel_steps: int = 3000  # steps over which gumbel's temperature falls and its KL term grows
    gumbel_temperature: float = 0.0625  # at the end; 1 at the start
    gumbel_kl: float = 5e-4  # weight of the KL term at the end
    perceptual: str = ""  # compare pictures by a CLIP (run or checkpoint) or a VGG16 file
    perceptual_heads: str = ""  # LPIPS's channel weights, for VGG16
    perceptual_weight: float = 1.0  # of that comparison beside L1
    perceptual_layers: int = 2  # of a CLIP, counted from the picture; 0: all
    perceptual_shift: int = 3  # compare pictures moved by up to so many pixels
    discriminator_start: int = 3000  # steps before D begins to learn
    gan_start: int = 4000  # steps before D's verdict reaches the generator
    gan_ramp: int = 500  # steps over which its weight grows to gan_weight
    # differs from the paper: a GAN weight of 0.1 instead of 1, since the pictures are small.
    gan_weight: float = 0.1  # 0: no discriminator
    discriminator_channels: int = 32  # of its first layer
    discriminator_depth: int = 2  # its layers that halve the picture
    discriminator_lr: float = 0.5  # share of lr
    flip: bool = False  # mirror half of the pictures

    def __post_init__(self) -> None:
        check_training(self)


class VQGANTask(Task):
    """Reconstruction, commitment and the patch discriminator's game."""

    name = "vqgan"

    def __init__(
        self, recipe: Recipe, train: DataSource, val: DataSource,
        *, perceptual: PerceptualDistance | None = None,
    ) -> None:  # fmt: skip
        config, training, seed = recipe.model, recipe.training, recipe.engine.seed
        check_pictures(training, config.image_size, perceptual)
        super().__init__(recipe, seeded(lambda: VQGAN(config), seed))
        self.train, self.val, self.perceptual = train, val, perceptual
        self.discriminator = seeded(
            lambda: PatchDiscriminator(
                channels=training.discriminator_channels, depth=training.discriminator_depth
            ),
            seed,
        )
        lr, betas = training.discriminator_lr, (0.5, 0.9)
        self.phases = (
            Phase("generator", (self.model,)),
            Phase("discriminator", (self.discriminator,), lr_scale=lr, betas=betas),
        )
        self.extra = {"discriminator": self.discriminator}
        self.warm_start = training.warm_start if self.model.quantizer.needs_start else 0
        self.placed = not self.model.quantizer.needs_start  # the codes, as far as has been looked
        self.gumbel = Gumbel(recipe) if config.quantizer == "gumbel" else None
        if config.quantizer == "gradient":
            self.moves_weights = "dead codes of --quantizer gradient are moved by hand"
        self.events = {"its codes were in use": self.warm_start}
        if training.gan_weight > 0:
            self.events["its discriminator learned"] = training.discriminator_start
            self.events["its discriminator took part"] = training.gan_start + 1

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Pictures of a step."""
        indices = batch_indices(len(self.train), self.batch_size, step, seed=self.seed)
        images = self.train.images(indices[rows])
        if self.training.flip:
            images = flip_some(images, draws(self.seed, step).random(len(indices))[rows] < 0.5)
        batch = {"images": torch.from_numpy(np.ascontiguousarray(images))}
        if self.gumbel is not None:
            batch["noise"] = self.gumbel.noise(range(len(indices))[rows], step)
        return batch

    def before_step(self, step: int, batches: list[dict]) -> None:
        """Place the codes, unless the end of a warm start has; find λ for several micro-batches."""
        if self.when(step) >= self.warm_start:
            place_codes(self, step)
        if len(batches) > 1 and self.game_weight(step) > 0:
            joint_weight(self, batches, step)

    def game_weight(self, step: int) -> float:
        """The weight of the generator's adversarial term at a step, beside λ."""
        start, ramp = self.training.gan_start, self.training.gan_ramp
        return adversarial_ramp(self.when(step), start=start, ramp=ramp) * self.training.gan_weight

    def reconstruct(self, images: Tensor, batch: dict, step: int) -> Reconstruction:
        """The generator's pass at a step; pictures in float32.

        images: (B, 3, H, W) in [-1, 1]
        """
        if self.gumbel is None:
            found = self.model(images, quantize=self.when(step) >= self.warm_start)
        else:
            temperature, _ = self.gumbel.schedule(self.when(step))
            found = self.model(images, noise=batch["noise"], temperature=temperature)
        return found._replace(pictures=found.pictures.float())

    def reconstruction_loss(
        self, decoded: Tensor, images: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L1, and beside it what a network sees of the difference.

        decoded: (B, 3, H, W)
        images: (B, 3, H, W) in [-1, 1]
        returns: (), and its terms
        """
        # differs from the paper: L1, as in the original's code, instead of the squared error of
        # equation 4.
        loss = F.l1_loss(decoded, images)
        terms = {"l1": loss.detach()}
        if self.perceptual is not None:
            distance = moved_distance(self, decoded, images, step)
            loss = loss + self.training.perceptual_weight * distance
            terms["perceptual"] = distance.detach()
        return loss, terms

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, or the discriminator's on what the generator just decoded."""
        images = to_float(batch["images"])
        if phase == "discriminator":
            return self.discriminator_loss(images, batch["decoded"], step)
        decoded, codes, latents = self.reconstruct(images, batch, step)
        batch["decoded"], batch["latents"] = decoded.detach(), latents.detach().float()
        reconstruction, metrics = self.reconstruction_loss(decoded, images, step)
        weight = 1.0 if self.gumbel is None else self.gumbel.schedule(self.when(step))[1]
        metrics["kl" if self.gumbel else "commitment"] = codes.loss.detach()
        loss = reconstruction + weight * codes.loss
        if self.when(step) < self.warm_start:
            # L1 alone is content with the background for long: it pays nothing for a faint trace
            # of a small object, where the squared error does.
            loss = loss + self.training.warm_mse * F.mse_loss(decoded, images)
        if self.game_weight(step) > 0:
            adversarial = generator_loss(self.discriminator(decoded).float())
            term, balance = weigh(
                reconstruction, adversarial, decoded, self.model.last_layer,
                average=self.average, weight=batch.get("lambda"),
            )  # fmt: skip
            loss = loss + self.game_weight(step) * balance * term
            metrics |= {"lambda": balance, "adversarial": adversarial.detach()}
        return loss, metrics

    def discriminator_loss(
        self, images: Tensor, decoded: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The game's loss; no gradient before the discriminator's start, so the phase rests."""
        if self.when(step) < self.training.discriminator_start or self.training.gan_weight == 0:
            return images.new_zeros(()), {}
        real, fake = self.discriminator(torch.cat([images, decoded])).float().chunk(2)
        metrics = {"d_real": real.mean().detach(), "d_fake": fake.mean().detach()}
        return hinge_loss(real, fake), metrics

    def average(self, gradient: Tensor) -> Tensor:
        """The mean of a gradient over the processes."""
        return self.gather(gradient[None]).mean(dim=0)

    def after_step(self, step: int, batches: list[dict]) -> dict[str, Tensor | float]:
        """The codes follow the encoder; at the end of the warm start k-means places them."""
        if self.when(step) < self.warm_start:
            if self.when(step + 1) >= self.warm_start:
                place_codes(self, step)
            return {}
        latents = self.gather(torch.cat([batch["latents"] for batch in batches]))
        quantizer = self.model.quantizer
        dead = self.whole(lambda: quantizer.update(latents, self.draws(step)))
        metrics = {"dead_codes": dead}
        for name, counts in zip(("", "_2"), quantizer.usage_counts, strict=False):
            metrics[f"perplexity{name}"] = perplexity(counts)
        return metrics

    def draws(self, step: int) -> torch.Generator:
        """A generator of the step; on the CPU, the same on every process and device."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def evaluate(self, model: VQGAN) -> dict[str, float]:
        """PSNR of unseen pictures, and how their codes are used."""
        return vqgan_scores(model, self.val)

    def sample(self, model: VQGAN, step: int) -> Tensor:
        """Pictures and their reconstructions side by side."""
        return reconstructions(model, self.val)

    def save_files(self, out: Path) -> None:
        """No files beside the weights; says what the discriminator will look at."""
        if self.training.gan_weight > 0:
            field, size = self.discriminator.receptive_field, self.model.config.image_size
            print(f"vqgan: of the discriminator a verdict sees {field} of {size} pixels a side",
                  file=sys.stderr)  # fmt: skip

"""VQGAN's training: reconstruction, commitment, and the game with the patch discriminator.

Phase one moves encoder and decoder, phase two the discriminator, on the same pictures. The order
of events is a plain autoencoder (warm start), k-means places the codes, the discriminator learns
alone, and only then its verdict reaches the generator, at a weight that grows to its full size.
Read `minimodal/vqgan.py` before.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.quantizer import usage
from minimodal.dalle import to_uint8
from minimodal.data.loading import DataSource, batch_indices
from minimodal.errors import UserError
from minimodal.evaluation.metrics import psnr
from minimodal.training.contract import Phase
from minimodal.training.tasks.common import (
    EVALUATION_PICTURES,
    all_pictures,
    draws,
    flip_some,
    identity,
    seeded,
    tile,
    to_float,
)
from minimodal.vqgan import (
    VQGAN,
    PatchDiscriminator,
    VQGANConfig,
    adaptive_weight,
    adversarial_ramp,
    generator_loss,
    hinge_loss,
)


@dataclass(frozen=True)
class VQGANTraining:
    """What VQGAN's training has beyond the engine's settings."""

    warm_start: int = 500  # steps as a plain autoencoder, then k-means places the codes
    warm_mse: float = 8.0  # weight of the squared error beside L1 in these steps
    discriminator_start: int = 3000  # steps before D begins to learn
    gan_start: int = 4000  # steps before D's verdict reaches the generator
    gan_ramp: int = 500  # steps over which its weight grows to gan_weight
    gan_weight: float = 0.1  # differs from the paper (1): small pictures, no perceptual loss
    discriminator_channels: int = 32
    discriminator_depth: int = 2
    discriminator_lr: float = 0.5  # share of lr
    flip: bool = False  # mirror half of the pictures


class VQGANTask:
    """Reconstruction, commitment and the patch discriminator's game."""

    name = "vqgan"

    def __init__(
        self,
        config: VQGANConfig,
        training: VQGANTraining,
        *,
        train: DataSource,
        val: DataSource,
        batch_size: int,
        seed: int,
    ) -> None:
        if training.gan_start < training.discriminator_start:
            raise UserError(
                f"gan_start {training.gan_start} is before discriminator_start "
                f"{training.discriminator_start}: an untrained discriminator has nothing to say"
            )
        self.training, self.train, self.val = training, train, val
        self.batch_size, self.seed = batch_size, seed
        self.model = seeded(lambda: VQGAN(config), seed)
        self.discriminator = seeded(
            lambda: PatchDiscriminator(
                channels=training.discriminator_channels, depth=training.discriminator_depth
            ),
            seed,
        )
        self.phases = (
            Phase("generator", (self.model,)),
            Phase(
                "discriminator",
                (self.discriminator,),
                lr_scale=training.discriminator_lr,
                betas=(0.5, 0.9),
            ),
        )
        self.extra: dict[str, nn.Module] = {"discriminator": self.discriminator}
        self.gather: Callable[[Tensor], Tensor] = identity

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Pictures of a step."""
        indices = batch_indices(len(self.train), self.batch_size, step, seed=self.seed)
        images = self.train.images(indices[rows])
        if self.training.flip:
            images = flip_some(images, draws(self.seed, step).random(len(indices))[rows] < 0.5)
        return {"images": torch.from_numpy(np.ascontiguousarray(images))}

    def before_step(self, step: int, batches: list[dict]) -> None:
        """Nothing: each picture's loss is its own."""

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, or the discriminator's on what the generator just painted."""
        images = to_float(batch["images"])
        if phase == "discriminator":
            return self.discriminator_loss(images, batch["painted"], step)
        painted, codes, latents = self.model(images, quantize=step >= self.training.warm_start)
        painted = painted.float()
        batch["painted"], batch["latents"] = painted.detach(), latents.detach().float()
        reconstruction = F.l1_loss(painted, images)
        loss = reconstruction + codes.loss
        if step < self.training.warm_start:
            # L1 alone is content with the background for long: it pays nothing for a faint trace
            # of a small object, where the squared error does.
            loss = loss + self.training.warm_mse * F.mse_loss(painted, images)
        metrics = {"l1": reconstruction.detach(), "commitment": codes.loss.detach()}
        ramp = adversarial_ramp(step, start=self.training.gan_start, ramp=self.training.gan_ramp)
        if ramp > 0:
            adversarial = generator_loss(self.discriminator(painted).float())
            weight = adaptive_weight(
                reconstruction, adversarial, self.model.last_layer, average=self.average
            )
            loss = loss + ramp * self.training.gan_weight * weight * adversarial
            metrics |= {"lambda": weight, "adversarial": adversarial.detach()}
        return loss, metrics

    def discriminator_loss(
        self, images: Tensor, painted: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge loss; no gradient before the discriminator's start, so that the phase rests."""
        if step < self.training.discriminator_start:
            return images.new_zeros(()), {}
        real = self.discriminator(images).float()
        fake = self.discriminator(painted).float()
        metrics = {"d_real": real.mean().detach(), "d_fake": fake.mean().detach()}
        return hinge_loss(real, fake), metrics

    def average(self, gradient: Tensor) -> Tensor:
        """The mean of a gradient over the processes."""
        return self.gather(gradient[None]).mean(dim=0)

    def after_step(self, step: int, batches: list[dict]) -> dict[str, Tensor | float]:
        """The codes follow the encoder; at the end of the warm start k-means places them."""
        # The codebooks draw on the CPU, the same on every process and device.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        if step == self.training.warm_start - 1:
            images = self.train.images(
                batch_indices(len(self.train), 1024, 0, seed=self.seed, group=self.train.group)
            )
            device = self.model.last_layer.device
            parts = torch.from_numpy(images).split(128)
            latents = torch.cat([self.model.latents(to_float(p.to(device))) for p in parts])
            self.model.quantizer.start(latents, generator)
        if step < self.training.warm_start:
            return {}
        latents = self.gather(torch.cat([batch["latents"] for batch in batches]))
        return {"revived": self.model.quantizer.update(latents, generator)}

    @torch.no_grad()
    def evaluate(self, model: VQGAN) -> dict[str, float]:
        """PSNR of unseen pictures, and how their codes are used."""
        images = torch.from_numpy(all_pictures(self.val, EVALUATION_PICTURES))
        device = model.last_layer.device
        painted, indices = [], []
        for part in images.split(64):
            x = to_float(part.to(device))
            codes = model.encode(x)
            painted.append(to_uint8(model.decode(codes.z)).cpu())
            indices.append(codes.indices.cpu())
        scores = {"val_psnr": psnr(torch.cat(painted), images)}
        parts = model.quantizer.factors(torch.cat(indices))
        for name, part, size in zip(("", "_2"), parts, model.config.codes, strict=False):
            used = usage(part, size)
            scores |= {f"codes_used{name}": used.share, f"perplexity{name}": used.perplexity}
        return scores

    @torch.no_grad()
    def sample(self, model: VQGAN, step: int) -> Tensor:
        """Pictures and their reconstructions side by side."""
        images = torch.from_numpy(all_pictures(self.val, 32))
        images = images[: len(images) // 4 * 4] if len(images) >= 4 else images[:1]
        x = to_float(images.to(model.last_layer.device))
        painted = to_uint8(model.decode(model.encode(x).z)).cpu()
        pairs = torch.stack([images, painted], dim=1).flatten(0, 1)
        return tile(pairs, 8 if len(pairs) % 8 == 0 else 2)

    def config(self) -> dict[str, Any]:
        """The model's configuration and what else shaped the training."""
        training = {**asdict(self.training), "data": self.train.fingerprint()}
        return {**asdict(self.model.config), "training": training}

    def save_files(self, out: Path) -> None:
        """Nothing beside the weights."""

"""VQGAN's training: reconstruction, commitment, and the game with the patch discriminator.

Phase one moves encoder and decoder, phase two the discriminator, on the same pictures. The order
of events is a plain autoencoder (warm start), k-means places the codes, the discriminator learns
alone, and only then its verdict reaches the generator, at a weight that grows to its full size.
Read `minimodal/vqgan.py` before.
"""

import math
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
    balance,
    check_size,
    generator_loss,
    hinge_loss,
    pulls,
    weigh,
)
from minimodal.blocks.perceptual import PerceptualDistance
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.quantizer import perplexity, usage
from minimodal.data.loading import DataSource, batch_indices
from minimodal.errors import UserError
from minimodal.evaluation.metrics import psnr
from minimodal.training.contract import Phase, Recipe, Task
from minimodal.training.tasks.common import (
    EVALUATION_PICTURES,
    all_pictures,
    draws,
    flip_some,
    seeded,
    tile,
)
from minimodal.vqgan import VQGAN, Reconstruction


@dataclass(frozen=True)
class VQGANTraining:
    """What VQGAN's training has beyond the engine's settings."""

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
    discriminator_refine: bool = False  # one more layer without halving, as the original has
    discriminator_lr: float = 0.5  # share of lr
    flip: bool = False  # mirror half of the pictures

    def __post_init__(self) -> None:
        for name in ("warm_start", "warm_mse", "gumbel_kl", "perceptual_weight", "gan_weight",
                     "discriminator_start", "gan_ramp", "discriminator_lr", "gumbel_steps",
                     "perceptual_layers", "perceptual_shift"):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} {getattr(self, name)}: expected 0 or more")
        check_size(channels=self.discriminator_channels, depth=self.discriminator_depth)
        if not 0 < self.gumbel_temperature <= 1:
            raise UserError(f"gumbel_temperature {self.gumbel_temperature}: expected 0 to 1")
        if self.gan_start < self.discriminator_start and self.gan_weight > 0:
            raise UserError(
                f"gan_start {self.gan_start} is before discriminator_start "
                f"{self.discriminator_start}: an untrained discriminator has nothing to say"
            )
        if self.perceptual_heads and not self.perceptual:
            raise UserError("perceptual_heads are for a VGG16: give its file as perceptual")


class VQGANTask(Task):
    """Reconstruction, commitment and the patch discriminator's game."""

    name = "vqgan"

    def __init__(
        self, recipe: Recipe, train: DataSource, val: DataSource,
        *, perceptual: PerceptualDistance | None = None,
    ) -> None:  # fmt: skip
        config, training, seed = recipe.model, recipe.training, recipe.engine.seed
        seen = 0 if perceptual is None else perceptual.size or config.image_size
        if seen and training.perceptual_shift >= seen:
            raise UserError(
                f"perceptual_shift {training.perceptual_shift}: expected less than {seen}, the "
                "pixels of the pictures that are compared"
            )
        halvings, refine = training.discriminator_depth, training.discriminator_refine
        if config.image_size // 2**halvings - 1 - refine < 1:
            raise UserError(
                f"discriminator_depth {halvings}: pictures of {config.image_size} pixels are too "
                "small for so many halvings"
            )
        super().__init__(recipe, seeded(lambda: VQGAN(config), seed))
        self.train, self.val, self.perceptual = train, val, perceptual
        self.discriminator = seeded(
            lambda: PatchDiscriminator(
                channels=training.discriminator_channels, depth=halvings, refine=refine
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
        self.extra = {"discriminator": self.discriminator}
        self.warm_start = training.warm_start if self.model.quantizer.needs_start else 0
        if config.quantizer == "gradient":
            self.moves_weights = "dead codes of --quantizer gradient are moved by hand"
        self.placed = False  # the codes, as far as has been looked
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
        config = self.model.config
        if config.quantizer == "gumbel":
            shape = (config.codes[0], config.grid, config.grid)
            # A generator for each row, so that N processes draw what one does.
            rngs = [np.random.default_rng((self.seed, step, r)) for r in range(len(indices))[rows]]
            noise = np.stack([rng.gumbel(size=shape).astype(np.float32) for rng in rngs])
            batch["noise"] = torch.from_numpy(noise)  # (b, K, h, w)
        return batch

    def before_step(self, step: int, batches: list[dict]) -> None:
        """Without a warm start the codes are placed on what the untrained encoder says. And of
        several micro-batches λ is taken once: their own would make another step of them."""
        if not self.placed and self.when(step) >= self.warm_start:
            self.placed = True
            if not any(counts.any() for counts in self.model.quantizer.usage_counts):
                self.place_codes(step)
        if len(batches) > 1 and self.game_weight(step) > 0:
            weight = self.whole(lambda: self.joint_weight(batches, step))
            for batch in batches:
                batch["lambda"] = weight

    def schedule(self, step: int) -> tuple[float, float]:
        """Gumbel's temperature, falling from 1 by a constant factor a step, and its KL weight."""
        done = min(1.0, self.when(step) / max(1, self.training.gumbel_steps))
        return self.training.gumbel_temperature**done, self.training.gumbel_kl * done

    def game_weight(self, step: int) -> float:
        """The weight of the generator's adversarial term at a step, beside λ."""
        start, ramp = self.training.gan_start, self.training.gan_ramp
        return adversarial_ramp(self.when(step), start=start, ramp=ramp) * self.training.gan_weight

    def reconstruct(self, images: Tensor, batch: dict, step: int) -> Reconstruction:
        """The generator's pass at a step; pictures in float32.

        images: (B, 3, H, W) in [-1, 1]
        """
        found = self.model(
            images,
            quantize=self.when(step) >= self.warm_start,
            noise=batch.get("noise"),
            temperature=self.schedule(step)[0],
        )
        return found._replace(pictures=found.pictures.float())

    def reconstruction_loss(
        self, decoded: Tensor, images: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L1, and beside it what a network sees of the difference.

        decoded: (B, 3, H, W)
        images: (B, 3, H, W) in [-1, 1]
        returns: (), and its terms
        """
        l1 = F.l1_loss(decoded, images)
        if self.perceptual is None:
            return l1, {"l1": l1.detach()}
        most = self.training.perceptual_shift
        down, right = np.random.default_rng((self.seed, step, 1)).integers(-most, most + 1, 2)
        distance = self.perceptual(decoded, images, shift=(int(down), int(right)))
        terms = {"l1": l1.detach(), "perceptual": distance.detach()}
        return l1 + self.training.perceptual_weight * distance, terms

    def adversarial_loss(self, decoded: Tensor) -> Tensor:
        """The generator's side of the game.

        decoded: (B, 3, H, W)
        returns: ()
        """
        return generator_loss(self.discriminator(decoded).float())

    @torch.enable_grad()
    # differs from the paper: λ is that of the global batch, whatever `--accumulate` and the number
    # of processes.
    def joint_weight(self, batches: list[dict], step: int) -> Tensor:
        """λ of all micro-batches of all processes, at the price of one more pass of each.

        returns: ()
        """
        found = []
        for batch in batches:
            images = to_float(batch["images"])
            decoded = self.reconstruct(images, batch, step).pictures
            reconstruction, _ = self.reconstruction_loss(decoded, images, step)
            adversarial = self.adversarial_loss(decoded)
            found.append(pulls(reconstruction, adversarial, decoded, self.model.last_layer)[1:])
        means = (torch.stack(several).mean(dim=0) for several in zip(*found, strict=True))
        return balance(*(self.average(gradient) for gradient in means))

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, or the discriminator's on what the generator just decoded."""
        images = to_float(batch["images"])
        if phase == "discriminator":
            return self.discriminator_loss(images, batch["decoded"], step)
        decoded, codes, latents = self.reconstruct(images, batch, step)
        batch["decoded"], batch["latents"] = decoded.detach(), latents.detach().float()
        reconstruction, metrics = self.reconstruction_loss(decoded, images, step)
        gumbel = self.model.config.quantizer == "gumbel"
        metrics["kl" if gumbel else "commitment"] = codes.loss.detach()
        loss = reconstruction + (self.schedule(step)[1] if gumbel else 1.0) * codes.loss
        if self.when(step) < self.warm_start:
            # L1 alone is content with the background for long: it pays nothing for a faint trace
            # of a small object, where the squared error does.
            loss = loss + self.training.warm_mse * F.mse_loss(decoded, images)
        if self.game_weight(step) > 0:
            adversarial = self.adversarial_loss(decoded)
            game = weigh(
                reconstruction, adversarial, decoded, self.model.last_layer,
                average=self.average, weight=batch.get("lambda"),
            )  # fmt: skip
            loss = loss + self.game_weight(step) * game.weight * game.term
            metrics |= {"lambda": game.weight, "adversarial": adversarial.detach()}
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
                self.place_codes(step)
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

    def place_codes(self, step: int) -> None:
        """Put the codes where the encoder's latents of real pictures are."""
        quantizer = self.model.quantizer
        if not quantizer.needs_start:
            return
        images = self.train.images(
            batch_indices(len(self.train), 1024, 0, seed=self.seed, group=self.train.group)
        )
        device = self.model.last_layer.device
        parts = torch.from_numpy(images).split(128)
        latents = self.whole(
            lambda: torch.cat([self.model.latents(to_float(p.to(device))) for p in parts])
        )
        quantizer.start(latents.float(), self.draws(step))

    @torch.no_grad()
    def evaluate(self, model: VQGAN) -> dict[str, float]:
        """PSNR of unseen pictures, and how their codes are used."""
        images = torch.from_numpy(all_pictures(self.val, EVALUATION_PICTURES))
        device = model.last_layer.device
        codes = [model.encode(to_float(part.to(device))) for part in images.split(64)]
        decoded = torch.cat([to_uint8(model.decode(part.z)).cpu() for part in codes])
        scores = {"val_psnr": psnr(decoded, images)}
        parts = model.quantizer.factors(torch.cat([part.indices.cpu() for part in codes]))
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
        decoded = to_uint8(model.decode(model.encode(x).z)).cpu()
        pairs = torch.stack([images, decoded], dim=1).flatten(0, 1)
        return tile(pairs, 8 if len(pairs) % 8 == 0 else 2)

    def save_files(self, out: Path) -> None:
        """No files beside the weights; says what the discriminator will look at."""
        if self.training.gan_weight > 0:
            field, size = self.discriminator.receptive_field, self.model.config.image_size
            print(f"vqgan: of the discriminator a verdict sees {field} of {size} pixels a side",
                  file=sys.stderr)  # fmt: skip

"""The training of unCLIP's up-sampler: take noise away from pictures that are known when small.

Read `minimodal/unclip/upsampler.py` before.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.blocks.diffusion import training_times
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.data.sources import DataSource, batch_indices
from minimodal.errors import check_range
from minimodal.evaluation.metrics import psnr
from minimodal.training.contract import Recipe, Task
from minimodal.training.tasks.common import draws, flip_some, seeded
from minimodal.training.tasks.unseen import all_pictures, tile
from minimodal.unclip.upsampler import Upsampler, shrink


@dataclass(frozen=True)
class UpsamplerTraining:
    """What an up-sampler's training has beyond the engine's settings."""

    flip: bool = False  # mirror half of the pictures
    blur: float = 0.6  # half of the small pictures are blurred, by up to so many pixels

    def __post_init__(self) -> None:
        check_range(self, 0, 4, "blur")


class UpsamplerTask(Task):
    """Denoising of pictures that are known when small."""

    name = "upsampler"

    def __init__(self, recipe: Recipe, train: DataSource, val: DataSource) -> None:
        super().__init__(recipe, seeded(lambda: Upsampler(recipe.model), recipe.engine.seed))
        self.train, self.val = train, val

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Pictures and all random numbers of the step."""
        rng, B = draws(self.seed, step), self.batch_size
        numbers = rng.random((B, 4), dtype=np.float32)[rows]
        shape = (B, 3, self.model.config.image_size, self.model.config.image_size)
        noise = rng.standard_normal(shape, dtype=np.float32)[rows]
        indices = batch_indices(len(self.train), B, step, seed=self.seed)[rows]
        images = self.train.images(indices)
        if self.training.flip:
            images = flip_some(images, numbers[:, 3] < 0.5)
        return {
            "images": torch.from_numpy(np.ascontiguousarray(images)),
            "numbers": torch.from_numpy(numbers),
            "noise": torch.from_numpy(noise),
        }

    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of what is said of noised pictures."""
        c, x = self.model.config, to_float(batch["images"])
        u = batch["numbers"]
        blur = torch.where(u[:, 1] < 0.5, u[:, 2] * self.training.blur, 0.0)  # (B,)
        small = shrink(x, c.small_size, blur=blur)
        t = training_times(u[:, 0], c)
        return self.model.loss(x, small, noise=batch["noise"], t=t), {}

    def again(self, model: Upsampler, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Unseen pictures, what they are when small, and what they become of that again.

        returns: (n, 3, H, W), (n, 3, h, w), (n, 3, H, W) uint8
        """
        device = next(model.parameters()).device
        true = torch.from_numpy(all_pictures(self.val, n)).to(device)
        x = to_float(true)
        small = to_uint8(shrink(x, model.config.small_size, blur=torch.zeros_like(x[:, 0, 0, 0])))
        generator = torch.Generator(device).manual_seed(self.seed)
        large = [model.enlarge(some, generator=generator) for some in small.split(16)]
        return true, small, torch.cat(large)

    @torch.no_grad()
    def evaluate(self, model: Upsampler) -> dict[str, float]:
        """PSNR of unseen pictures that were made small and enlarged again, and of enlarging them
        by bicubic interpolation, which draws no edge."""
        true, small, large = self.again(model, 64)
        smooth = F.interpolate(to_float(small), size=true.shape[-1], mode="bicubic")
        return {"psnr": psnr(large, true), "psnr_bicubic": psnr(to_uint8(smooth), true)}

    @torch.no_grad()
    def sample(self, model: Upsampler, step: int) -> Tensor:
        """16 unseen pictures, and below each what it becomes when made small and enlarged again."""
        true, _, large = self.again(model, 16)
        columns = max(n for n in (1, 2, 4, 8) if len(true) % n == 0)
        both = zip(true.split(columns), large.split(columns), strict=True)
        return tile(torch.cat([part for pair in both for part in pair]).cpu(), columns)

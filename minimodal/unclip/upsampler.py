"""unCLIP's up-sampler: diffusion from a small picture to a larger one (Ramesh et al. 2022, 2.1).

A U-Net without attention takes noise away from a large picture, told the time and the small
picture, enlarged. In training the small picture is blurred now and then, so that what a decoder
draws, which is never quite a picture made smaller, is no surprise.

uint8 pictures (B, 3, h, w) in, (B, 3, H, W) out. Read `decoder.py` before.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.conv import patches
from minimodal.blocks.diffusion import DiffusionConfig, Path, Sampler, diffusion_loss, walk
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.sampling import Generators, normal
from minimodal.blocks.unet import UNet, time_features
from minimodal.errors import UserError

ENLARGING = Sampler(steps=8)


@dataclass(frozen=True)
class UpsamplerConfig(DiffusionConfig):
    """The shape of an up-sampler, and how it diffuses."""

    image_size: int = 64
    small_size: int = 32  # of the pictures that it enlarges
    patch: int = 2  # pixels of a patch x patch square become channels before the first layer
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)  # width at each resolution, in units of channels
    depth: int = 1  # residual blocks at each resolution
    width: int = 128  # of the time

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.small_size, self.patch, self.channels, self.depth, self.width)
        if min(*sizes, len(self.multipliers), *self.multipliers) < 1:
            raise UserError("an up-sampler's sizes are numbers of 1 or more")
        if self.image_size % self.small_size or self.image_size == self.small_size:
            raise UserError(
                f"image_size {self.image_size}: expected a multiple of small_size "
                f"{self.small_size}, such as {2 * self.small_size}"
            )
        least = self.patch * 2 ** (len(self.multipliers) - 1)
        if self.image_size % least:
            raise UserError(f"image size {self.image_size} is not a multiple of {least}")


def shrink(pictures: Tensor, size: int, *, blur: Tensor) -> Tensor:
    """Pictures made smaller, by the mean of each square, and blurred by a Gaussian 3 x 3 kernel.

    pictures: (B, 3, H, W)
    blur: (B,) its deviation in pixels; 0: none
    returns: (B, 3, h, w) h = w = size
    """
    small = F.avg_pool2d(pictures, pictures.shape[-1] // size)  # (B, 3, h, w)
    offsets = torch.arange(-1, 2, device=small.device)
    exponent = -offsets.square() / (2 * blur[:, None].square().clamp(min=1e-4))  # (B, 3)
    weights = exponent.exp() / exponent.exp().sum(dim=1, keepdim=True)  # (B, 3)
    padded = F.pad(small, (1, 1, 1, 1), mode="replicate")
    weights = weights[:, :, None, None, None]
    rows = sum(weights[:, i] * padded[:, :, i : i + size] for i in range(3))
    return sum(weights[:, i] * rows[:, :, :, i : i + size] for i in range(3))


class Upsampler(nn.Module):
    """A U-Net that is told a small picture."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        c = self.config = config
        self.of_time = nn.Sequential(nn.Linear(c.width, c.width), nn.SiLU())
        self.unet = UNet(
            6 * c.patch**2,
            3 * c.patch**2,
            channels=c.channels,
            multipliers=c.multipliers,
            depth=c.depth,
            attention=(False,) * len(c.multipliers),
            width=c.width,
        )

    def forward(self, x_t: Tensor, t: Tensor, small: Tensor) -> Tensor:
        """What is said of noised pictures: x, ε or v, as the configuration has it.

        x_t: (B, 3, H, W)
        t: (B,)
        small: (B, 3, h, w)
        returns: (B, 3, H, W)
        """
        c = self.config
        larger = F.interpolate(small, size=x_t.shape[-2:], mode="bicubic")  # (B, 3, H, W)
        both = [patches(one, patch=c.patch) for one in (x_t, larger)]  # (B, P, H', W') each
        x = torch.cat(both, dim=1)  # (B, 2*P, H', W')
        x = self.unet(x, self.of_time(time_features(t, c.width)))  # (B, P, H', W')
        return F.pixel_shuffle(x, c.patch)  # (B, 3, H, W)

    def loss(self, x: Tensor, small: Tensor, *, noise: Tensor, t: Tensor) -> Tensor:
        """How wrong the network is about x_t (`diffusion_loss`).

        x: (B, 3, H, W) in [-1, 1]
        small: (B, 3, h, w)
        noise: (B, 3, H, W)
        t: (B,)
        returns: ()
        """
        x_t = Path(self.config.path).noised(x, noise, t)  # (B, 3, H, W)
        return diffusion_loss(self.forward(x_t, t, small), x, noise, t, self.config)

    @torch.no_grad()
    def enlarge(
        self, pictures: Tensor, *, generator: Generators, how: Sampler = ENLARGING
    ) -> Tensor:
        """Small pictures to large ones, without guidance, as in the paper.

        pictures: (B, 3, h, w) uint8
        returns: (B, 3, H, W) uint8
        """
        c, small = self.config, to_float(pictures)
        if small.shape[-1] != c.small_size or small.shape[-2] != c.small_size:
            raise UserError(
                f"pictures of {small.shape[-1]} x {small.shape[-2]} pixels: this up-sampler "
                f"enlarges those of {c.small_size} x {c.small_size}"
            )
        path = Path(c.path)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            found = self.forward(x_t, t, small).float()
            return path.estimate(x_t, t, found, c.predicts).x

        like = small.new_empty(len(small), 3, c.image_size, c.image_size)
        return to_uint8(walk(denoise, normal(like, generator), how, path, generator=generator))

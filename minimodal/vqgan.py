"""VQGAN: pictures as grids of codes (Esser, Rombach & Ommer 2021, "Taming Transformers").

A CNN encoder turns a picture into a grid of latents, a codebook rounds each latent to one of K
codes, a CNN decoder paints the picture back, and a patch discriminator says of every *part* of it
whether it looks real. Section 3.1 of the paper.

pictures (B, 3, H, W) in [-1, 1] → Codes with indices (B, h, w) → pictures (B, 3, H, W), where
h = H / f. Read `blocks/conv.py` and `blocks/quantizer.py` before.

With two codebooks (`codes=(structure, appearance)`) a position's code has two factors: the first
is computed from what no change of colours alters, the second from what no shuffling of pixels
alters. Neither rule knows what is in the pictures; see `StructureEncoder`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.conv import (
    Downsample,
    PixelAttention,
    PositionNorm,
    ResidualBlock,
    Upsample,
    group_norm,
    make_norm,
)
from minimodal.blocks.quantizer import Codes, Quantizer
from minimodal.errors import UserError


@dataclass(frozen=True)
class VQGANConfig:
    """The shape of a VQGAN. The picture shrinks by f = patch · 2^(len(multipliers) - 1)."""

    image_size: int = 32
    patch: int = 1  # pixels of a patch x patch square become channels before the first layer
    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)  # width at each resolution, in units of channels
    depth: int = 1  # residual blocks at each resolution
    attention: tuple[int, ...] = ()  # resolutions (in latent or feature pixels) with attention
    encoder_kernel: int = 3  # 1: a code sees its own patch only
    codes: tuple[int, ...] = (1024,)  # K; two numbers: structure and appearance codebooks
    code_width: int = 32
    beta: float = 0.25  # commitment
    codebook_decay: float = 0.99

    def __post_init__(self) -> None:
        sizes = (self.image_size, self.patch, self.channels, self.depth, self.code_width)
        if min(*sizes, *self.multipliers, *self.codes) < 1 or not (self.multipliers and self.codes):
            raise UserError("a VQGAN's sizes, multipliers and codes are numbers of 1 or more")
        if self.image_size % self.factor:
            raise UserError(
                f"image size {self.image_size} is not a multiple of {self.factor}, the factor by "
                "which this VQGAN shrinks pictures"
            )

        if self.encoder_kernel == 1 and (len(self.multipliers) > 1 or self.attention):
            raise UserError(
                "encoder_kernel 1 promises that a code sees its own patch only: it needs a single "
                "multiplier and no attention (shrink the picture by `patch` instead)"
            )

    @property
    def factor(self) -> int:
        """f: pixels of the picture a side of one code."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def local(self) -> bool:
        """Whether norms look at one position only, so that a code depends on its patch alone."""
        return self.encoder_kernel == 1

    @property
    def grid(self) -> int:
        """h = w: codes a side."""
        return self.image_size // self.factor


class Encoder(nn.Module):
    """Residual blocks and downsampling to the latent grid."""

    def __init__(self, config: VQGANConfig, out_channels: int) -> None:
        super().__init__()
        k, local = config.encoder_kernel, config.local
        widths = [config.channels * m for m in config.multipliers]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(3 * config.patch**2, widths[0], k, padding=k // 2)
        layers: list[nn.Module] = []
        size, channels = config.image_size // config.patch, widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.depth):
                layers.append(ResidualBlock(channels, width, kernel=k, local=local))
                channels = width
                if size in config.attention:
                    layers.append(PixelAttention(channels))
            if level < len(widths) - 1:
                layers.append(Downsample(channels))
                size //= 2
        layers.append(ResidualBlock(channels, channels, kernel=k, local=local))
        self.layers = nn.Sequential(*layers)
        self.norm_out = make_norm(channels, local=local)
        self.conv_out = nn.Conv2d(channels, out_channels, k, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to latents.

        x: (B, 3, H, W) pictures in [-1, 1]
        returns: (B, C, h, w)
        """
        x = F.pixel_unshuffle(x, self.patch)  # (B, 3 patch², H/patch, W/patch)
        h = self.layers(self.conv_in(x))  # (B, widths[-1], h, w)
        return self.conv_out(F.silu(self.norm_out(h)))


class StructureEncoder(nn.Module):
    """An encoder of where a patch changes, whatever its colours.

    It reads a patch's self-similarity (Shechtman & Irani 2007): for each pair of pixels, how alike
    they are about the patch's mean. Rotating or mirroring colour space leaves that unchanged, and
    so does any change of the two colours of a two-coloured patch. An edge therefore has one code
    in every pair of colours, also in pairs that no picture showed.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.factor, channels = config.factor, config.channels
        self.layers = nn.Sequential(
            nn.Conv2d(self.factor**4, channels, 1),
            ResidualBlock(channels, channels, kernel=1, local=True),
            ResidualBlock(channels, channels, kernel=1, local=True),
            PositionNorm(channels),
            nn.Conv2d(channels, config.code_width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to structure latents.

        x: (B, 3, H, W) pictures in [-1, 1]
        returns: (B, D, h, w)
        """
        f = self.factor
        patches = rearrange(x.float(), "B C (h p) (w q) -> B h w (p q) C", p=f, q=f)
        patches = patches - patches.mean(dim=-2, keepdim=True)
        energy = patches.square().mean(dim=(-2, -1), keepdim=True)
        # The floor keeps flat patches flat: without it their noise would become structure.
        similarity = patches @ patches.transpose(-2, -1) / (3 * (energy + 0.0025))
        return self.layers(rearrange(similarity, "B h w P Q -> B (P Q) h w"))


class AppearanceEncoder(nn.Module):
    """An encoder of which colours a patch has, regardless of where and of how much of each.

    It takes a patch's largest value in each of 32 learned directions of colour space, which is to
    say the convex hull of its colours. The blend of two colours at a smooth edge lies between
    them and adds nothing to the hull; nor does the share of the patch that each covers.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.factor, channels = config.factor, config.channels
        self.directions = nn.Conv2d(3, 32, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(32, channels, 1),
            ResidualBlock(channels, channels, kernel=1, local=True),
            PositionNorm(channels),
            nn.Conv2d(channels, config.code_width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to appearance latents.

        x: (B, 3, H, W) pictures in [-1, 1]
        returns: (B, D, h, w)
        """
        hull = F.max_pool2d(self.directions(x), self.factor)  # (B, 32, h, w)
        return self.layers(hull)


class Decoder(nn.Module):
    """Residual blocks and upsampling from the code grid to pixels."""

    def __init__(self, config: VQGANConfig, in_channels: int) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers][::-1]
        size, channels, local = config.grid, widths[0], config.local
        self.patch = config.patch
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        layers: list[nn.Module] = [ResidualBlock(channels, channels, local=local)]
        for level, width in enumerate(widths):
            for _ in range(config.depth):
                layers.append(ResidualBlock(channels, width, local=local))
                channels = width
                if size in config.attention:
                    layers.append(PixelAttention(channels))
            if level < len(widths) - 1:
                layers.append(Upsample(channels))
                size *= 2
        self.layers = nn.Sequential(*layers)
        self.norm_out = make_norm(channels, local=local)
        self.conv_out = nn.Conv2d(channels, 3 * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Code vectors to pictures (not clamped).

        z: (B, C, h, w) vectors of the codes
        returns: (B, 3, H, W)
        """
        h = self.layers(self.conv_in(z))  # (B, widths[0], H/patch, W/patch)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


class Reconstruction(NamedTuple):
    """One pass through VQGAN.

    pictures: (B, 3, H, W) painted back, about [-1, 1]
    codes: Codes of the pictures
    latents: (B, C, h, w) what the encoder said before it was rounded
    """

    pictures: Tensor
    codes: Codes
    latents: Tensor


class VQGAN(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        groups = len(config.codes)
        if groups == 1:
            self.encoder = Encoder(config, config.code_width)
        elif groups == 2:
            self.encoder = StructureEncoder(config)
            self.appearance = AppearanceEncoder(config)
        else:
            raise UserError(f"codes {config.codes}: expected one codebook or two")
        self.quantizer = Quantizer(
            config.codes, config.code_width, beta=config.beta, decay=config.codebook_decay
        )
        self.decoder = Decoder(config, groups * config.code_width)

    def latents(self, images: Tensor) -> Tensor:
        """What the encoder says before it is rounded to codes.

        images: (B, 3, H, W) in [-1, 1]
        returns: (B, C, h, w)
        """
        if len(self.config.codes) == 1:
            return self.encoder(images)
        return torch.cat([self.encoder(images), self.appearance(images)], dim=1)

    def encode(self, images: Tensor) -> Codes:
        """Pictures to codes.

        images: (B, 3, H, W) in [-1, 1]
        returns: Codes with indices (B, h, w)
        """
        return self.quantizer(self.latents(images))

    def decode(self, z: Tensor) -> Tensor:
        """Code vectors to pictures.

        z: (B, C, h, w)
        returns: (B, 3, H, W) in [-1, 1]
        """
        return self.decoder(z).clamp(-1, 1)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Code numbers to pictures.

        indices: (B, h, w) int64, 0 to K - 1
        returns: (B, 3, H, W) in [-1, 1]
        """
        return self.decode(self.quantizer.vectors(indices))

    def forward(self, images: Tensor, *, quantize: bool = True) -> Reconstruction:
        """Encode, round, decode. Without `quantize` it is a plain autoencoder (warm start).

        images: (B, 3, H, W) in [-1, 1]
        """
        latents = self.latents(images)
        if quantize:
            codes = self.quantizer(latents)
        else:
            B, C, h, w = latents.shape
            unrounded = torch.zeros(B, h, w, dtype=torch.int64, device=images.device)
            codes = Codes(latents, unrounded, latents.new_zeros(()))
        return Reconstruction(self.decoder(codes.z), codes, latents)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weights: λ compares the gradients of two losses there."""
        return self.decoder.conv_out.weight


class PatchDiscriminator(nn.Module):
    """Judges overlapping parts of a picture, one logit a part (Isola et al. 2017, PatchGAN).

    With `depth` halvings the convolutions behind a logit see `receptive_field` pixels a side (the
    norms between them add a little of the whole picture's brightness and contrast).
    """

    def __init__(self, *, channels: int = 32, depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1)]
        for _ in range(1, depth):
            wide = channels * 2
            # differs from the paper: group instead of batch statistics, so that a picture's
            # verdict does not depend on its neighbours in the batch (nor on how it is sharded).
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(channels, wide, 4, stride=2, padding=1)]
            layers += [group_norm(wide)]
            channels = wide
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 4, stride=1, padding=1)]
        self.layers = nn.Sequential(*layers)

    @property
    def receptive_field(self) -> int:
        """Pixels a side of the part that one logit judges."""
        field = 1
        for layer in reversed([m for m in self.layers if isinstance(m, nn.Conv2d)]):
            field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
        return field

    def forward(self, images: Tensor) -> Tensor:
        """High where a part looks real.

        images: (B, 3, H, W) in [-1, 1]
        returns: (B, 1, h, w) logits
        """
        return self.layers(images)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: ½ (E max(0, 1 - D(x)) + E max(0, 1 + D(x̂))).

    real: (B, 1, h, w) logits of true pictures
    fake: (B, 1, h, w) logits of painted ones
    returns: ()
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's side of the hinge game: -E D(x̂).

    fake: (B, 1, h, w) logits of painted pictures, with gradient to them
    returns: ()
    """
    return -fake.mean()


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    *,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """λ = |∇ L_rec| / (|∇ L_GAN| + δ) at the last decoder layer, at most 10⁴ (equation 7).

    reconstruction: () loss
    adversarial: () loss
    last_layer: (…) weights that both losses depend on
    average: mean of a gradient over the processes of a data-parallel run
    returns: ()
    """
    (rec,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (gan,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio = average(rec.float()).norm() / (average(gan.float()).norm() + 1e-4)
    return ratio.clamp(max=1e4).detach()


def adversarial_ramp(step: int, *, start: int, ramp: int) -> float:
    """The share of the generator's adversarial term at a step: 0, then rising to 1."""
    return min(max((step - start) / max(ramp, 1), 0.0), 1.0)

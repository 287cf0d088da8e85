"""VQGAN: pictures as grids of codes (Esser, Rombach & Ommer 2021, "Taming Transformers").

A CNN encoder turns a picture into a grid of latents, a codebook rounds each latent to one of K
codes, a CNN decoder paints the picture back, and a patch discriminator says of every *part* of it
whether it looks real. Section 3.1 of the paper.

pictures (B, 3, H, W) in [-1, 1] → Codes with indices (B, h, w) → pictures (B, 3, H, W), where
h = H / f. Read `blocks/conv.py` and `blocks/quantizer.py` before.

With two codebooks (`codes=(structure, appearance)`) a position's code has two factors, which two
encoders learn; see `blocks/factors.py`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.conv import (
    Downsample,
    PixelAttention,
    ResidualBlock,
    Upsample,
    make_norm,
)
from minimodal.blocks.discriminator import PatchDiscriminator
from minimodal.blocks.factors import (
    AppearanceEncoder,
    self_similarity,
    window_side,
)
from minimodal.blocks.precision import full_float32
from minimodal.blocks.quantizer import Codes, Quantizer
from minimodal.blocks.quantizer_variants import (
    FiniteScalarQuantizer,
    GradientQuantizer,
    GumbelQuantizer,
)
from minimodal.errors import UserError

QUANTIZERS = ("ema", "gradient", "sphere", "gumbel", "fsq")


@dataclass(frozen=True)
class VQGANConfig:
    """The shape of a VQGAN. The picture shrinks by f = patch · 2^(len(multipliers) - 1)."""

    image_size: int = 32
    patch: int = 1  # pixels of a patch x patch square become channels before the first layer
    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)  # width at each resolution, in units of channels
    depth: int = 1  # residual blocks at each resolution
    decoder_depth: int = 0  # the same in the decoder; 0: as depth (the original has one more)
    middle_attention: bool = False  # attention between two blocks where encoder meets decoder
    latent_width: int = 0  # channels at the CNNs' ends, 1x1 convolutions to code_width; 0: none
    attention: tuple[int, ...] = ()  # resolutions (in latent or feature pixels) with attention
    encoder_kernel: int = 3  # 1: a code sees its own patch only (structure: and a pixel about it)
    decoder_kernel: int = 3  # 1: a patch is painted from the 5 x 5 codes about it only
    quantizer: str = "ema"  # ema, gradient, sphere (unit length), gumbel, or fsq
    codes: tuple[int, ...] = (1024,)  # K; two: structure and appearance; fsq: levels of channels
    code_width: int = 32  # channels of a code (fsq: as many as codes has levels)
    beta: float = 0.25  # commitment
    codebook_decay: float = 0.99
    revive: bool = True  # move codes that nothing uses

    def __post_init__(self) -> None:
        sizes = (self.image_size, self.patch, self.channels, self.depth, self.code_width)
        if min(*sizes, *self.multipliers, *self.codes) < 1 or not (self.multipliers and self.codes):
            raise UserError("a VQGAN's sizes, multipliers and codes are numbers of 1 or more")
        for name in ("decoder_depth", "latent_width", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} {getattr(self, name)}: expected a number of 0 or more")
        if not 0 <= self.codebook_decay < 1:
            raise UserError(f"codebook_decay {self.codebook_decay}: expected from 0 to below 1")
        if self.image_size % self.factor:
            raise UserError(
                f"image size {self.image_size} is not a multiple of {self.factor}, the factor by "
                "which this VQGAN shrinks pictures"
            )
        missing = [size for size in self.attention if size not in self.resolutions]
        if missing:
            raise UserError(
                f"attention at {missing[0]}: expected one of {self.resolutions}, the "
                "resolutions of its feature maps"
            )
        if self.quantizer not in QUANTIZERS:
            raise UserError(f"quantizer {self.quantizer}: expected {', '.join(QUANTIZERS)}")
        if self.quantizer == "fsq" and min(self.codes) < 2:
            raise UserError(f"codes {self.codes}: fsq needs 2 levels or more in each channel")
        if self.quantizer not in ("ema", "fsq") and len(self.codes) != 1:
            raise UserError(f"codes {self.codes}: quantizer {self.quantizer} has one codebook")
        if self.quantizer == "ema" and len(self.codes) > 2:
            raise UserError(f"codes {self.codes}: expected one codebook or two")
        if self.encoder_kernel == 1 and (len(self.multipliers) > 1 or self.attention):
            raise UserError(
                "encoder_kernel 1 promises that a code sees its own patch only: it needs a single "
                "multiplier and no attention (shrink the picture by `patch` instead)"
            )
        if self.quantizer == "ema" and len(self.codes) == 2 and self.latent_width:
            raise UserError("two codebooks have an encoder each: latent_width is for one codebook")
        if self.quantizer == "ema" and len(self.codes) == 2 and len(self.multipliers) > 1:
            raise UserError("two codebooks are for one multiplier: shrink the picture by `patch`")
        if self.decoder_kernel not in (1, 3) or self.encoder_kernel not in (1, 3):
            raise UserError("encoder_kernel and decoder_kernel: expected 1 or 3")

    @property
    def factor(self) -> int:
        """f: pixels of the picture a side of one code."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def resolutions(self) -> list[int]:
        """Pixels a side of the feature maps, from the picture's end to the grid of codes."""
        return [self.image_size // self.patch // 2**n for n in range(len(self.multipliers))]

    @property
    def latent(self) -> int:
        """C: channels of a latent vector, of all codebooks together."""
        if self.quantizer == "fsq":
            return len(self.codes)
        return len(self.codes) * self.code_width

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """How many values each factor of a code has, for a model that predicts codes."""
        return (math.prod(self.codes),) if self.quantizer == "fsq" else self.codes

    @property
    def local(self) -> bool:
        """Whether norms look at one position only, so that a code depends on its patch alone."""
        return self.encoder_kernel == 1

    @property
    def grid(self) -> int:
        """h = w: codes a side."""
        return self.image_size // self.factor


def middle(channels: int, *, kernel: int, config: VQGANConfig, local: bool) -> list[nn.Module]:
    """The blocks at the lowest resolution, where the encoder ends and the decoder begins."""
    block = ResidualBlock(channels, channels, kernel=kernel, local=local)
    if not config.middle_attention:
        return [block]
    return [block, PixelAttention(channels), ResidualBlock(channels, channels, kernel=kernel)]


class Encoder(nn.Module):
    """Residual blocks and downsampling to the latent grid."""

    def __init__(
        self, config: VQGANConfig, out_channels: int, *, in_channels: int | None = None
    ) -> None:
        """in_channels: of what each place is given, where that is not the pixels of its patch."""
        super().__init__()
        k, local = config.encoder_kernel, config.local
        widths = [config.channels * m for m in config.multipliers]
        self.patch = config.patch if in_channels is None else 1
        given = in_channels or 3 * config.patch**2
        self.conv_in = nn.Conv2d(given, config.channels, k, padding=k // 2)
        layers: list[nn.Module] = []
        size, channels = config.image_size // config.patch, config.channels
        for level, width in enumerate(widths):
            for _ in range(config.depth):
                layers.append(ResidualBlock(channels, width, kernel=k, local=local))
                channels = width
                if size in config.attention:
                    layers.append(PixelAttention(channels))
            if level < len(widths) - 1:
                layers.append(Downsample(channels))
                size //= 2
        layers += middle(channels, kernel=k, config=config, local=local)
        self.layers = nn.Sequential(*layers)
        self.norm_out = make_norm(channels, local=local)
        self.conv_out = nn.Conv2d(channels, out_channels, k, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to latents.

        x: (B, P, H, W) pictures in [-1, 1], or at each place what is known of a window
        returns: (B, C, h, w)
        """
        if self.patch > 1:  # torch's kernel is slow, also where there is nothing to do
            x = F.pixel_unshuffle(x, self.patch)  # (B, 3 patch², H/patch, W/patch)
        h = self.layers(self.conv_in(x))  # (B, widths[-1], h, w)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Residual blocks and upsampling from the code grid to pixels."""

    def __init__(self, config: VQGANConfig, in_channels: int) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers][::-1]
        k, size, channels = config.decoder_kernel, config.grid, widths[0]
        local = config.local or k == 1
        self.patch = config.patch
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        layers: list[nn.Module] = middle(channels, kernel=k, config=config, local=local)
        for level, width in enumerate(widths):
            for _ in range(config.decoder_depth or config.depth):
                layers.append(ResidualBlock(channels, width, kernel=k, local=local))
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


AnyQuantizer = Quantizer | GradientQuantizer | GumbelQuantizer | FiniteScalarQuantizer


def make_quantizer(config: VQGANConfig) -> AnyQuantizer:
    """The quantizer that a configuration names."""
    decay, width = config.codebook_decay, config.code_width
    if config.quantizer == "ema":
        return Quantizer(
            config.codes, width, beta=config.beta, decay=decay, revive=config.revive
        )  # fmt: skip
    if config.quantizer == "gumbel":
        return GumbelQuantizer(config.codes[0], width, decay=decay)
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(config.codes, decay=decay)
    return GradientQuantizer(
        config.codes[0],
        width,
        beta=config.beta,
        decay=decay,
        revive=config.revive,
        normalise=config.quantizer == "sphere",
    )


class VQGAN(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        ends = config.latent_width or config.latent  # channels where the CNNs end
        self.two = config.quantizer == "ema" and len(config.codes) == 2
        joined = config.latent_width > 0
        if self.two:
            pixels = window_side(config.factor) ** 2
            self.encoder = Encoder(config, config.code_width, in_channels=pixels**2)
        else:
            self.encoder = Encoder(config, ends)
        if self.two:
            self.appearance = AppearanceEncoder(
                max(1, config.channels // 3), config.code_width, patch=config.factor
            )
        self.to_codes = nn.Conv2d(ends, config.latent, 1) if joined else nn.Identity()
        self.from_codes = nn.Conv2d(config.latent, ends, 1) if joined else nn.Identity()
        self.quantizer = make_quantizer(config)
        self.decoder = Decoder(config, ends)
        # Set by whoever loads the original's weights, which hold one.
        self.discriminator: PatchDiscriminator | None = None

    def latents(self, images: Tensor) -> Tensor:
        """What the encoder says before it is rounded to codes.

        images: (B, 3, H, W) in [-1, 1], H and W multiples of the factor
        returns: (B, C, h, w)
        """
        f, sides = self.config.factor, images.shape[-2:]
        if any(side % f for side in sides):
            good = [max(1, round(side / f)) * f for side in sides]
            raise UserError(
                f"pictures of {sides[1]} x {sides[0]} pixels: this VQGAN needs multiples of {f} a "
                f"side, such as {good[1]} x {good[0]}"
            )
        if self.two:
            structure = self.encoder(self_similarity(images, patch=f))
            return torch.cat([structure, self.appearance(images)], dim=1)
        return self.to_codes(self.encoder(images))

    def encode(self, images: Tensor) -> Codes:
        """Pictures to codes, in float32 whatever the caller computes in: a latent that is rounded
        may fall on a neighbouring code.

        images: (B, 3, H, W) in [-1, 1]
        returns: Codes with indices (B, h, w)
        """
        with full_float32(images.device):
            return self.quantizer(self.latents(images))

    def paint(self, z: Tensor) -> Tensor:
        """Code vectors to pictures, not clamped: what training compares with the true ones.

        z: (B, C, h, w)
        returns: (B, 3, H, W)
        """
        return self.decoder(self.from_codes(z))

    def decode(self, z: Tensor) -> Tensor:
        """Code vectors to pictures.

        z: (B, C, h, w)
        returns: (B, 3, H, W) in [-1, 1]
        """
        return self.paint(z).clamp(-1, 1)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Code numbers to pictures.

        indices: (B, h, w) int64, 0 to K - 1
        returns: (B, 3, H, W) in [-1, 1]
        """
        return self.decode(self.quantizer.vectors(indices))

    def forward(
        self, images: Tensor, *, quantize: bool = True, noise: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Reconstruction:  # fmt: skip
        """Encode, round, decode. Without `quantize` it is a plain autoencoder (warm start).

        images: (B, 3, H, W) in [-1, 1]
        noise: (B, K, h, w) of the Gumbel distribution, for the training of quantizer "gumbel"
        """
        latents = self.latents(images)
        if quantize:
            codes = self.quantizer(latents, noise=noise, temperature=temperature)
        else:
            B, C, h, w = latents.shape
            unrounded = torch.zeros(B, h, w, dtype=torch.int64, device=images.device)
            codes = Codes(self.quantizer.bound(latents), unrounded, latents.new_zeros(()))
        return Reconstruction(self.paint(codes.z), codes, latents)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weights: λ compares the gradients of two losses there."""
        return self.decoder.conv_out.weight

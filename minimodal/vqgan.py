"""VQGAN: pictures as grids of codes (Esser, Rombach & Ommer 2021, "Taming Transformers").

A CNN encoder turns a picture into a grid of latents, a codebook rounds each latent to one of K
codes, a CNN decoder paints the picture back, and a patch discriminator says of every *part* of it
whether it looks real. Section 3.1 of the paper.

pictures (B, 3, H, W) in [-1, 1] → Codes with indices (B, h, w) → pictures (B, 3, H, W), where
h = H / f. Read `blocks/conv.py` and `blocks/quantizer.py` before.

With two codebooks (`codes=(structure, appearance)`) a position's code has two factors, which two
encoders learn (`blocks/factors.py`); other quantizers are in `blocks/quantizer_variants.py`.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.conv import (
    Downsample,
    ResidualBlock,
    Upsample,
    check_sides,
    make_norm,
    patches,
)
from minimodal.blocks.discriminator import PatchDiscriminator
from minimodal.blocks.factors import AppearanceEncoder, self_similarity, window_side
from minimodal.blocks.nearest import full_float32
from minimodal.blocks.pixel_attention import PixelAttention
from minimodal.blocks.quantizer import Codes
from minimodal.blocks.quantizer_variants import make_quantizer
from minimodal.blocks.tiles import in_tiles
from minimodal.blocks.vqgan_checks import check_config


@dataclass(frozen=True)
class VQGANConfig:
    """The shape of a VQGAN. The picture shrinks by f = patch · 2^(len(multipliers) - 1)."""

    image_size: int = 32
    patch: int = 1  # pixels of a patch x patch square become channels before the first layer
    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)  # width at each resolution, in units of channels
    depth: int = 1  # residual blocks at each resolution
    attention: tuple[int, ...] = ()  # resolutions (in latent or feature pixels) with attention
    encoder_kernel: int = 3  # 1: a code depends on its own patch (structure: and its margin) only
    # differs from the paper: on the Shapes world the decoder looks at the 5 x 5 codes around a
    # patch only (`--decoder-kernel 1`): one that sees the whole picture learns which colours go
    # with which objects.
    decoder_kernel: int = 3  # 1: a patch depends on the 5 x 5 codes around it only
    quantizer: str = "ema"  # ema, gradient or gumbel
    # differs from the paper: the Shapes world's pictures have two codebooks, one for a patch's
    # structure, read from which of its pixels are alike, and one for its appearance, read from its
    # colours as a set (docs/composition.md); other pictures have one.
    codes: tuple[int, ...] = (1024,)  # K; two: structure and appearance
    code_width: int = 32  # channels of a code
    beta: float = 0.25  # commitment
    codebook_decay: float = 0.99
    revive: bool = True  # move codes that nothing uses

    # --- what only the original's weights need ---
    decoder_depth: int = 0  # residual blocks at each resolution of the decoder; 0: as depth
    middle_attention: bool = False  # attention between two blocks where encoder meets decoder
    latent_width: int = 0  # its z_channels: more 1x1 convolutions around the codebook; 0: none

    def __post_init__(self) -> None:
        check_config(self)

    @property
    def factor(self) -> int:
        """f: pixels of the picture a side of one code."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def resolutions(self) -> list[int]:
        """Pixels a side of the feature maps, from the picture's end to the grid of codes."""
        return [self.image_size // self.patch // 2**n for n in range(len(self.multipliers))]

    @property
    def two_factors(self) -> bool:
        """Whether a code is a structure and an appearance."""
        return self.quantizer == "ema" and len(self.codes) == 2

    @property
    def latent(self) -> int:
        """C: channels of a latent vector, of all codebooks together."""
        return len(self.codes) * self.code_width

    @property
    def grid(self) -> int:
        """h = w: codes a side."""
        return self.image_size // self.factor

    @property
    def tile(self) -> int:
        """Codes a side of what is decoded at once: 512 pixels, or twice training's where that is
        more. Larger pictures are decoded in tiles."""
        return max(2 * self.grid, 512 // self.factor)


def levels(config: VQGANConfig, *, down: bool, kernel: int, local: bool) -> list[nn.Module]:
    """Residual blocks at each resolution, attention where it is asked for, and the next size."""
    depth = config.depth if down else config.decoder_depth or config.depth
    channels = config.channels * (1 if down else config.multipliers[-1])
    sizes = list(zip(config.multipliers, config.resolutions, strict=True))[:: 1 if down else -1]
    layers: list[nn.Module] = []
    for level, (multiplier, size) in enumerate(sizes, 1):
        width = config.channels * multiplier
        for _ in range(depth):
            layers.append(ResidualBlock(channels, width, kernel=kernel, local=local))
            channels = width
            if size in config.attention:
                layers.append(PixelAttention(channels))
        if level < len(sizes):
            layers.append(Downsample(channels) if down else Upsample(channels))
    return layers


def middle(config: VQGANConfig, *, kernel: int, local: bool) -> list[nn.Module]:
    """The blocks at the lowest resolution, where the encoder ends and the decoder begins."""
    channels = config.channels * config.multipliers[-1]
    block = ResidualBlock(channels, channels, kernel=kernel, local=local)
    if not config.middle_attention:
        return [block]
    return [block, PixelAttention(channels), ResidualBlock(channels, channels, kernel=kernel)]


class Encoder(nn.Module):
    """Residual blocks and downsampling to the latent grid; at kernel 1 norms are local, too."""

    def __init__(self, config: VQGANConfig, out_channels: int) -> None:
        super().__init__()
        k, local = config.encoder_kernel, config.encoder_kernel == 1
        # What is given of each patch: its pixels, or which two pixels of its window are alike.
        self.given = partial(self_similarity if config.two_factors else patches, patch=config.patch)
        given = window_side(config.patch) ** 4 if config.two_factors else 3 * config.patch**2
        self.conv_in = nn.Conv2d(given, config.channels, k, padding=k // 2)
        self.layers = nn.Sequential(
            *levels(config, down=True, kernel=k, local=local),
            *middle(config, kernel=k, local=local),
        )
        channels = config.channels * config.multipliers[-1]
        self.norm_out = make_norm(channels, local=local)
        self.conv_out = nn.Conv2d(channels, out_channels, k, padding=k // 2)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures to latents; with two codebooks to those of structure.

        images: (B, 3, H, W) in [-1, 1]
        returns: (B, C, h, w)
        """
        x = self.given(images)  # (B, P, h', w')
        x = self.conv_in(x)  # (B, D', h', w')
        x = self.layers(x)  # (B, D, h, w)
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, C, h, w)


class Decoder(nn.Module):
    """Residual blocks and upsampling from the code grid to pixels."""

    def __init__(self, config: VQGANConfig, in_channels: int) -> None:
        super().__init__()
        k, channels = config.decoder_kernel, config.channels * config.multipliers[-1]
        local = k == 1 or config.encoder_kernel == 1
        self.patch = config.patch
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.layers = nn.Sequential(
            *middle(config, kernel=k, local=local),
            *levels(config, down=False, kernel=k, local=local),
        )
        channels = config.channels * config.multipliers[0]
        self.norm_out = make_norm(channels, local=local)
        self.conv_out = nn.Conv2d(channels, 3 * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Code vectors to pictures (not clamped).

        z: (B, C, h, w) vectors of the codes
        returns: (B, 3, H, W)
        """
        x = self.conv_in(z)  # (B, D, h, w)
        x = self.layers(x)  # (B, D', h', w')
        x = self.conv_out(F.silu(self.norm_out(x)))  # (B, P, h', w')
        return F.pixel_shuffle(x, self.patch)  # (B, 3, H, W)


class Reconstruction(NamedTuple):
    """One pass through VQGAN.

    pictures: (B, 3, H, W) decoded back, about [-1, 1]
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
        ends = config.latent_width or config.latent  # channels where the CNNs end
        self.encoder = Encoder(config, config.code_width if config.two_factors else ends)
        self.appearance: AppearanceEncoder | None = None
        if config.two_factors:
            width = max(1, config.channels // 3)
            self.appearance = AppearanceEncoder(width, config.code_width, patch=config.factor)
        joined = config.latent_width > 0
        self.to_codes = nn.Conv2d(ends, config.latent, 1) if joined else nn.Identity()
        self.from_codes = nn.Conv2d(config.latent, ends, 1) if joined else nn.Identity()
        self.quantizer = make_quantizer(
            config.quantizer, config.codes, config.code_width,
            beta=config.beta, decay=config.codebook_decay, revive=config.revive,
        )  # fmt: skip
        self.decoder = Decoder(config, ends)
        # Set by whoever loads the original's weights, which hold one.
        self.discriminator: PatchDiscriminator | None = None

    def latents(self, images: Tensor) -> Tensor:
        """What the encoder says before it is rounded to codes.

        images: (B, 3, H, W) in [-1, 1], H and W multiples of the factor
        returns: (B, C, h, w)
        """
        check_sides(images, multiple=self.config.factor)
        z = self.encoder(images)  # (B, C', h, w)
        if self.appearance is not None:
            z = torch.cat([z, self.appearance(images)], dim=1)  # (B, C, h, w)
        return self.to_codes(z)  # (B, C, h, w)

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

    def decode_unclamped(self, z: Tensor) -> Tensor:
        """Code vectors to pictures of any size, not clamped: a tile at a time if they are large.

        z: (B, C, h, w)
        returns: (B, 3, H, W)
        """
        return in_tiles(self.paint, z, tile=self.config.tile, factor=self.config.factor)

    def decode(self, z: Tensor) -> Tensor:
        """Code vectors to pictures.

        z: (B, C, h, w)
        returns: (B, 3, H, W) in [-1, 1]
        """
        return self.decode_unclamped(z).clamp(-1, 1)

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
        latents = self.latents(images)  # (B, C, h, w)
        if noise is not None:
            codes = self.quantizer(latents, noise=noise, temperature=temperature)
        elif quantize:
            codes = self.quantizer(latents)
        else:
            none = torch.zeros_like(latents[:, 0], dtype=torch.int64)  # (B, h, w)
            codes = Codes(latents, none, latents.new_zeros(()))
        return Reconstruction(self.paint(codes.z), codes, latents)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weights: λ compares the gradients of two losses there."""
        return self.decoder.conv_out.weight

"""Convolutional blocks: VQGAN and unCLIP's U-Net are built from them.

Residual block, halving and doubling of the resolution, as in the VQGAN paper's table of layers
(Esser et al. 2021, table 7, after Ho et al. 2020). Pictures and feature maps are (B, C, H, W).
The table's attention is in `pixel_attention.py`: our own VQGANs have none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.errors import UserError


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with up to 32 groups, as many as divide the channels."""
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)
    # eps as in the original implementation: its checkpoints were trained with it.
    return nn.GroupNorm(groups, channels, eps=1e-6)


class PositionNorm(nn.Module):
    """Divide each position's channels by their root mean square (Zhang & Sennrich 2019).

    Unlike GroupNorm it looks at one position only, so that what a patch becomes does not depend
    on the rest of the picture.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over channels.

        x: (B, C, H, W) features
        returns: (B, C, H, W)
        """
        scale = x.float().square().mean(dim=1, keepdim=True).add(1e-6).rsqrt()  # (B, 1, H, W)
        return x * scale.to(x.dtype) * self.gain.to(x.dtype)[:, None, None]


def make_norm(channels: int, *, local: bool) -> nn.Module:
    """The norm of a convolutional block: of each position alone, or of groups of channels."""
    return PositionNorm(channels) if local else group_norm(channels)


def check_sides(images: Tensor, *, multiple: int) -> None:
    """Refuse pictures that are no whole number of codes high and wide.

    images: (B, 3, H, W)
    """
    H, W = images.shape[-2:]
    if H % multiple or W % multiple:
        good = [max(1, round(side / multiple)) * multiple for side in (W, H)]
        raise UserError(
            f"pictures of {W} x {H} pixels: this VQGAN needs multiples of {multiple} a side, such "
            f"as {good[0]} x {good[1]}"
        )


def patches(images: Tensor, *, patch: int) -> Tensor:
    """Make each patch's pixels channels: what a convolution of its size reads, without the cost.

    images: (B, C, H, W)
    returns: (B, C*patch**2, H//patch, W//patch)
    """
    # Torch's kernel is slow, also where there is nothing to do.
    return F.pixel_unshuffle(images, patch) if patch > 1 else images


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution where widths differ."""

    def __init__(
        self, channels: int, out_channels: int, *, kernel: int = 3, local: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(channels, local=local)
        self.conv1 = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
        self.norm2 = make_norm(out_channels, local=local)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2)
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """One residual block.

        x: (B, C, H, W) features
        modulation: (B, M) M = 2*C': a scale and a shift of the second norm, of a U-Net's condition
        returns: (B, C', H, W)
        """
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C', H, W)
        h = self.norm2(h)
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, dim=1)  # (B, C', 1, 1) each
            h = h * (1 + scale) + shift
        h = self.conv2(F.silu(h))
        return self.shortcut(x) + h


class Downsample(nn.Module):
    """Halve the resolution by a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width.

        x: (B, C, H, W) features
        returns: (B, C, H//2, W//2)
        """
        # Padded on the right and below only, as the original does.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3x3 convolution (no checkerboard)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double height and width.

        x: (B, C, H, W) features
        returns: (B, C, 2*H, 2*W)
        """
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

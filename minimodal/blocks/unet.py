"""The U-Net of diffusion (Ho et al. 2020; Dhariwal & Nichol 2021), of the blocks that VQGAN has.

Feature maps go down to a low resolution and up again, and each block on the way up also reads what
its twin on the way down said. A vector (time, an embedding) scales and shifts every block; tokens
(a caption) are read by the attention of the low resolutions. (B, C, H, W) in and out. Read
`conv.py` and `pixel_attention.py` before.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.conv import Downsample, ResidualBlock, Upsample, group_norm
from minimodal.blocks.pixel_attention import PixelAttention


def time_features(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of times at many frequencies (Vaswani et al. 2017, section 3.5).

    t: (B,) from 0 to 1, read in thousandths, as the 1,000 steps of DDPM
    returns: (B, width)
    """
    half = (width + 1) // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)  # (half,)
    angles = 1000 * t[:, None].float() * rates  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)[:, :width]


class ConditionedBlock(nn.Module):
    """A residual block that a vector scales and shifts, with attention behind it or without."""

    def __init__(
        self, channels: int, out_channels: int, *, width: int, heads: int, token_width: int
    ) -> None:
        """heads: of attention; 0: none"""
        super().__init__()
        self.block = ResidualBlock(channels, out_channels)
        self.modulation = nn.Linear(width, 2 * out_channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.attention = (
            PixelAttention(out_channels, heads=heads, token_width=token_width) if heads else None
        )

    def forward(self, x: Tensor, condition: Tensor, tokens: Tensor | None) -> Tensor:
        """One block.

        x: (B, C, H, W) features
        condition: (B, D)
        tokens: (B, T, E)
        returns: (B, C', H, W)
        """
        x = self.block(x, self.modulation(condition))  # (B, C', H, W)
        return x if self.attention is None else self.attention(x, tokens)


class UNet(nn.Module):
    """Down, middle, up, with what each block on the way down said kept for the way up."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        channels: int,
        multipliers: tuple[int, ...],
        depth: int,
        attention: tuple[bool, ...],
        width: int,
        token_width: int = 0,
    ) -> None:
        """channels: of the first resolution, multiplied at each
        depth: blocks at each resolution on the way down; one more on the way up
        attention: whether a resolution has it
        width: of the condition
        token_width: 0: no tokens are read
        """
        super().__init__()
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)

        def block(here: int, out: int, level: int) -> ConditionedBlock:
            heads = max(1, out // 32) if attention[level] else 0
            return ConditionedBlock(here, out, width=width, heads=heads, token_width=token_width)

        here, kept = channels, [channels]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            blocks = nn.ModuleList()
            for _ in range(depth):
                blocks.append(block(here, channels * multiplier, level))
                here = channels * multiplier
                kept.append(here)
            last = level == len(multipliers) - 1
            if not last:
                kept.append(here)
            self.down.append(nn.ModuleList([blocks, None if last else Downsample(here)]))
        self.middle = block(here, here, len(multipliers) - 1)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            blocks = nn.ModuleList()
            for _ in range(depth + 1):
                blocks.append(block(here + kept.pop(), channels * multiplier, level))
                here = channels * multiplier
            self.up.append(nn.ModuleList([blocks, Upsample(here) if level else None]))
        self.norm_out = group_norm(here)
        self.conv_out = nn.Conv2d(here, channels_out, 3, padding=1)
        # The first prediction is 0, of every kind a better one than what chance says.
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, condition: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What the network says of a noised picture.

        x: (B, C, H, W) H and W halved at each resolution but the first
        condition: (B, D) time and whatever else is known
        tokens: (B, T, E) what attention may read beside the picture
        returns: (B, O, H, W)
        """
        # Code vectors come with their channels side by side, and so does all that convolutions make
        # of them: on a CPU GroupNorm is 5 (float32) to 20 times (bfloat16) as slow on such.
        h = self.conv_in(x.contiguous())  # (B, C0, H, W)
        kept = [h]
        for blocks, smaller in self.down:
            for block in blocks:
                h = block(h, condition, tokens)  # (B, Cn, h, w) in the end
                kept.append(h)
            if smaller is not None:
                h = smaller(h)  # (B, Cm, h, w) in the end
                kept.append(h)
        h = self.middle(h, condition, tokens)  # (B, Cn, h, w)
        for blocks, larger in self.up:
            for block in blocks:
                h = torch.cat([h, kept.pop()], dim=1)  # (B, C1+C0, H, W) in the end
                h = block(h, condition, tokens)  # (B, C1, H, W) in the end
            if larger is not None:
                h = larger(h)  # (B, C2, H, W) in the end
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, O, H, W)

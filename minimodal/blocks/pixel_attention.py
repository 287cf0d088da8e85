"""Attention over the pixels of a feature map: in unCLIP's U-Net and in the original VQGAN.

Feature maps (B, C, H, W). Read `conv.py` and `attention.attend` before.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.attention import attend
from minimodal.blocks.conv import group_norm


def at_positions(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of positions in a row.

    x: (B, L, C)
    returns: (B, L, C')
    """
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class PixelAttention(nn.Module):
    """Every position of a feature map attends to every other, and to tokens where there are any
    (residual; one head in VQGAN)."""

    def __init__(self, channels: int, *, heads: int = 1, token_width: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        self.of_tokens = nn.Linear(token_width, 2 * channels) if token_width else None

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Mix information over the whole picture.

        x: (B, C, H, W) features
        tokens: (B, T, D) what else each position may read, such as a caption
        returns: (B, C, H, W)
        """
        B, C, H, W = x.shape
        heads = self.heads
        # As 1x1 convolutions are linear maps of positions: so channels lie side by side for them
        # and for the fused kernel. Copied there and back once: other layers want them apart.
        h = rearrange(self.norm(x), "B C H W -> B (H W) C").contiguous()  # (B, H*W, C)
        q, k, v = (
            rearrange(at_positions(conv, h), "B L (n d) -> B n L d", n=heads)
            for conv in (self.q, self.k, self.v)
        )  # (B, n, H*W, d) each
        if tokens is not None:
            told = self.of_tokens(tokens)  # (B, T, 2*C)
            told = rearrange(told, "B T (p n d) -> p B n T d", p=2, n=heads)  # (2, B, n, T, d)
            pairs = zip((k, v), told, strict=True)
            k, v = (torch.cat(pair, dim=2) for pair in pairs)  # (B, n, H*W+T, d) each
        y = rearrange(attend(q, k, v), "B n L d -> B L (n d)")  # (B, H*W, C)
        y = at_positions(self.proj, y)  # (B, H*W, C)
        return x + rearrange(y, "B (H W) C -> B C H W", H=H).contiguous()  # (B, C, H, W)

"""Two encoders of small patches: one blind to colours, one blind to places.

For VQGANs with two codebooks. The structure encoder computes from what no change of colours
alters, the appearance encoder from what no shuffling of pixels alters, so an edge has one code in
every pair of colours, also in pairs that no picture showed. Neither rule knows what is in the
pictures, but both suit flat colours; real pictures get the plain encoder.

Pictures (B, 3, H, W) in [-1, 1] to latents (B, D, h, w), h = H / f. Read `conv.py` before.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.conv import PositionNorm, ResidualBlock


class StructureEncoder(nn.Module):
    """An encoder of where a patch changes, whatever its colours.

    It reads a patch's self-similarity (Shechtman & Irani 2007): for each pair of pixels, how alike
    they are about the patch's mean. Rotating or mirroring colour space leaves that unchanged, and
    so does any change of the two colours of a two-coloured patch. An edge therefore has one code
    in every pair of colours, also in pairs that no picture showed.
    """

    def __init__(self, factor: int, channels: int, code_width: int) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.Sequential(
            nn.Conv2d(self.factor**4, channels, 1),
            ResidualBlock(channels, channels, kernel=1, local=True),
            ResidualBlock(channels, channels, kernel=1, local=True),
            PositionNorm(channels),
            nn.Conv2d(channels, code_width, 1),
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

    def __init__(self, factor: int, channels: int, code_width: int) -> None:
        super().__init__()
        self.factor = factor
        self.directions = nn.Conv2d(3, 32, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(32, channels, 1),
            ResidualBlock(channels, channels, kernel=1, local=True),
            PositionNorm(channels),
            nn.Conv2d(channels, code_width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to appearance latents.

        x: (B, 3, H, W) pictures in [-1, 1]
        returns: (B, D, h, w)
        """
        hull = F.max_pool2d(self.directions(x), self.factor)  # (B, 32, h, w)
        return self.layers(hull)

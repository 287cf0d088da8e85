"""What keeps the two factors of a code apart: structure (where does it change) and appearance
(between which colours).

Nobody says what the two factors are; each encoder is given what has a symmetry. The structure
encoder sees which pixels of a patch are alike and how much (`self_similarity`), which is the same
in all colours that a rotation, a contrast and an offset of colour space can give the picture. The
appearance encoder sees a patch and its margin as a *set* of colours (`AppearanceEncoder`): neither
their places nor how often each occurs can change what it says. The decoder has to paint the
picture as it is, so colours can only come by the one way and places only by the other, and each
codebook learns what is left to it.

Local self-similarities are Shechtman & Irani 2007, maxima over a set are PointNet (Qi et al. 2017),
both here for each patch. Pictures (B, 3, H, W) in [-1, 1]. Read nothing before this file.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

MARGIN = 1  # pixels


def window_side(patch: int) -> int:
    """The side of what both encoders see of a patch, in pixels: the patch and its margin."""
    return patch + 2 * MARGIN


def local_contrast(images: Tensor, *, patch: int) -> Tensor:
    """Every patch and a margin about it, without its mean, at unit contrast (local contrast
    normalisation, as in Jarrett et al. 2009). Without the margin an edge between two patches would
    be in neither.

    images: (B, 3, H, W)
    returns: (B, h, w, n, C) the n colours of the window about each patch, C = 3
    """
    side = window_side(patch)
    padded = F.pad(images.float(), (MARGIN,) * 4, mode="replicate")
    windows = padded.unfold(2, side, patch).unfold(3, side, patch)  # (B, 3, h, w, side, side)
    pixels = rearrange(windows, "B C h w p q -> B h w (p q) C")
    pixels = pixels - pixels.mean(dim=-2, keepdim=True)
    # The floor keeps flat patches flat: without it their noise would become structure.
    energy = pixels.square().mean(dim=(-2, -1), keepdim=True) + 0.0025
    return pixels * energy.rsqrt()


def self_similarity(images: Tensor, *, patch: int) -> Tensor:
    """For each two pixels of a window the inner product of their colours, at local contrast.

    Whatever of a set of vectors does not change when space is rotated or reflected is a function of
    their inner products (Weyl 1939, the first fundamental theorem for the orthogonal group): so
    nothing is lost but the colours. Of a window with two colours nothing is left but which pixel
    has how much of which.

    images: (B, 3, H, W)
    returns: (B, N, h, w) N = n², n pixels of a window
    """
    pixels = local_contrast(images, patch=patch)
    with torch.autocast(images.device.type, enabled=False):  # rounding would be a trace of colours
        products = pixels @ pixels.mT / pixels.shape[-1]  # (B, h, w, n, n)
    return rearrange(products, "B h w n m -> B (n m) h w")


class AppearanceEncoder(nn.Module):
    """A patch and its margin as a set of colours: g(max over pixels of f(colour))."""

    def __init__(self, width: int, out_channels: int, *, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.colour = nn.Sequential(nn.Conv2d(3, width, 1), nn.SiLU(), nn.Conv2d(width, width, 1))
        self.joint = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.SiLU(), nn.Conv2d(width, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to latents.

        x: (B, 3, H, W) pictures in [-1, 1]
        returns: (B, C, h, w)
        """
        # A pixel's channels side by side in memory: a network for each pixel is then 2.6 times
        # as fast on a CPU.
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.colour(x)  # (B, D, H, W)
        # The structure encoder's window: where an object touches a patch with half-covered pixels
        # only, the margin may have the object's own colour.
        x = F.max_pool2d(x, window_side(self.patch), self.patch, MARGIN)  # (B, D, h, w)
        return self.joint(x)  # (B, C, h, w)

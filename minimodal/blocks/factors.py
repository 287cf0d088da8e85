"""What keeps the two factors of a code apart: structure (where does it change) and appearance
(between which colours).

Nobody says what the two factors are. The structure encoder sees every patch at unit contrast
(`local_contrast`) and, in training, the picture in other colours (`recolor`); afterwards what it
says is a mean over colourings (`other_colours`). The appearance encoder sees a patch and its margin
as a *set* of colours (`AppearanceEncoder`): neither their places nor how often each occurs can
change what it says. The decoder has to paint the picture as it is, so colours can only come by the
one way and places only by the other, and each codebook learns what is left to it.

That content is what views of a picture share is von Kügelgen et al. 2021, maxima over a set are
PointNet (Qi et al. 2017), both here for each patch. Pictures (B, 3, H, W) in [-1, 1]. Read nothing
before this file.
"""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

MARGIN = 1  # pixels


def window_side(patch: int) -> int:
    """The side of what both encoders see of a patch, in pixels: the patch and its margin."""
    return patch + 2 * MARGIN


def draw_map(rng: np.random.Generator) -> np.ndarray:
    """An affine map of colour space: a random rotation or reflection, a contrast and an offset.

    returns: (3, 4)
    """
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]  # the Q of a normal matrix is any rotation
    columns = [turn * rng.uniform(0.4, 1.2), rng.uniform(-0.5, 0.5, (3, 1))]
    return np.concatenate(columns, axis=1).astype(np.float32)


def recolor(images: Tensor, maps: Tensor) -> Tensor:
    """Every picture in other colours: A c + b for each colour c.

    images: (B, 3, H, W)
    maps: (B, 3, 4) A and b side by side
    returns: (B, 3, H, W)
    """
    return torch.einsum("bij,bjhw->bihw", maps[:, :, :3], images) + maps[:, :, 3, None, None]


def local_contrast(images: Tensor, *, patch: int) -> Tensor:
    """Every patch and a margin about it, without its mean, at unit contrast (local contrast
    normalisation, as in Jarrett et al. 2009): what is left for the structure encoder to learn is
    which colours are alike. Without the margin an edge between two patches would be in neither.

    images: (B, 3, H, W)
    returns: (B, C, h, w) the pixels of the window about each patch
    """
    side = window_side(patch)
    padded = F.pad(images.float(), (MARGIN,) * 4, mode="replicate")
    windows = padded.unfold(2, side, patch).unfold(3, side, patch)  # (B, 3, h, w, side, side)
    pixels = rearrange(windows, "B C h w p q -> B h w (p q) C")
    pixels = pixels - pixels.mean(dim=-2, keepdim=True)
    # The floor keeps flat patches flat: without it their noise would become structure.
    energy = pixels.square().mean(dim=(-2, -1), keepdim=True) + 0.0025
    return rearrange(pixels * energy.rsqrt(), "B h w n C -> B (C n) h w")


def other_colours(windows: Tensor) -> Tensor:
    """Windows of unit contrast in six colourings: the three channels in turn, each also negative.

    These maps form a group, so the mean of whatever an encoder says of the six is the same for all
    of them (a Reynolds operator; Murphy et al. 2019 for networks).

    windows: (B, C, h, w) all pixels' first channel, then the second, then the third
    returns: (N, C, h, w) N = 6 B: all windows in the first colouring, then in the second, …
    """
    n = windows.shape[1] // 3
    turned = [windows.roll(channels * n, dims=1) for channels in range(3)]
    return torch.cat([*turned, *(-windows for windows in turned)])


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
        # The structure encoder's window: where an object touches a patch with half-covered pixels
        # only, the margin may have the object's own colour.
        colours = F.max_pool2d(self.colour(x), window_side(self.patch), self.patch, MARGIN)
        return self.joint(colours)

"""Two views of a picture, by which a VQGAN with two codebooks learns what is structure and what is
appearance.

Nobody says what the two factors are. In training the structure encoder sees the picture in other
colours (`recolor`), the appearance encoder sees every patch with its pixels drawn anew
(`resample`), and the decoder has to paint the picture itself. So colours can only come by the one
way and places only by the other, and each codebook learns what its view leaves it. The structure
encoder sees other colours to the end; the appearance encoder sees the picture as it is once it has
learned its part. Afterwards both see the picture.

The idea is that of content and style from augmentations (von Kügelgen et al. 2021), here for each
patch. Pictures (B, 3, H, W) in [-1, 1]. Read nothing before this file.
"""

from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


class Views(NamedTuple):
    """What the two encoders see in training.

    structure: (B, 3, H, W) in other colours
    appearance: (B, 3, H, W) with other pixels
    """

    structure: Tensor
    appearance: Tensor


class Chances(NamedTuple):
    """What decides one picture's views.

    maps: (3, 4) an affine map of colour space
    directions: (P, 3) for each of P patches, which colours are picked more often
    picks: (P, n) uniform in [0, 1), which of a patch's n pixels stand in its places
    """

    maps: np.ndarray
    directions: np.ndarray
    picks: np.ndarray


def draw_chances(rng: np.random.Generator, *, patches: int, pixels: int) -> Chances:
    """All that is random about one picture's views."""
    # A random rotation or reflection (the Q of a normal matrix), a contrast and an offset.
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    maps = np.concatenate([turn * rng.uniform(0.4, 1.2), rng.uniform(-0.5, 0.5, (3, 1))], axis=1)
    return Chances(
        maps.astype(np.float32),
        rng.standard_normal((patches, 3)).astype(np.float32),
        rng.random((patches, pixels), dtype=np.float32),
    )


def recolor(images: Tensor, maps: Tensor) -> Tensor:
    """Every picture in other colours: A c + b for each colour c.

    images: (B, 3, H, W)
    maps: (B, 3, 4) A and b side by side
    returns: (B, 3, H, W)
    """
    return torch.einsum("bij,bjhw->bihw", maps[:, :, :3], images) + maps[:, :, 3, None, None]


def resample(images: Tensor, directions: Tensor, picks: Tensor, *, patch: int) -> Tensor:
    """Every patch with its pixels drawn anew from those that it has, in random places.

    A pixel of colour c comes with a weight of exp(direction · c), so that how much of the patch a
    colour covers changes as well; which colours there are hardly does.

    images: (B, 3, H, W)
    directions: (B, P, 3) for each of the P patches
    picks: (B, P, n) in [0, 1), for each of a patch's n places
    returns: (B, 3, H, W)
    """
    height = images.shape[2] // patch
    pixels = rearrange(images, "B C (h p) (w q) -> B (h w) (p q) C", p=patch, q=patch)
    weights = torch.einsum("bpnc,bpc->bpn", pixels, directions).softmax(dim=-1)  # (B, P, n)
    chosen = torch.searchsorted(weights.cumsum(dim=-1), picks.contiguous())
    chosen = chosen.clamp(max=patch**2 - 1)[..., None].expand(-1, -1, -1, 3)  # (B, P, n, 3)
    drawn = pixels.gather(2, chosen)
    return rearrange(drawn, "B (h w) (p q) C -> B C (h p) (w q)", p=patch, h=height)


def local_contrast(images: Tensor, *, patch: int) -> Tensor:
    """Every patch without its mean, at unit contrast (local contrast normalisation, as in Jarrett
    et al. 2009): what is left for the structure encoder to learn is which colours are alike.

    images: (B, 3, H, W)
    returns: (B, 3, H, W)
    """
    pixels = rearrange(images.float(), "B C (h p) (w q) -> B h w (p q) C", p=patch, q=patch)
    pixels = pixels - pixels.mean(dim=-2, keepdim=True)
    # The floor keeps flat patches flat: without it their noise would become structure.
    energy = pixels.square().mean(dim=(-2, -1), keepdim=True) + 0.0025
    return rearrange(pixels * energy.rsqrt(), "B h w (p q) C -> B C (h p) (w q)", p=patch)

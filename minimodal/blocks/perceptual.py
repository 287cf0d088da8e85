"""How different two pictures look to a trained network (LPIPS, Zhang et al. 2018).

A network's feature maps of both pictures are brought to unit length at each position; the squared
differences, weighted by channel where weights are given, are averaged over the positions and
summed over the layers. The network is one that the user has: an image tower of CLIP, or VGG16 from
a file with torchvision's names, with LPIPS's learned channel weights from a second file.

Pictures (B, 3, H, W) in [-1, 1] in, distances (B,) out. Nothing here is trained.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.pixels import resized
from minimodal.blocks.resnet import ResNetEncoder
from minimodal.errors import UserError

Features = Callable[[Tensor], list[Tensor]]

# What LPIPS subtracts and divides by, for pictures in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
VGG_LEAST = 16  # pixels a side, of which four halvings leave one
VGG_WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


class VGG16(nn.Module):
    """The thirteen convolutions of VGG16 (Simonyan & Zisserman 2015, column D).

    A feature map is taken before each halving and at the end: relu1_2, 2_2, 3_3, 4_3, 5_3.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG_WIDTHS:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Five feature maps.

        images: (B, 3, H, W) in [-1, 1]
        returns: (B, …) maps of C channels and h x w pixels, other sizes at each depth
        """
        H, W = images.shape[-2:]
        if min(H, W) < VGG_LEAST:
            raise UserError(
                f"VGG16 compares pictures of {VGG_LEAST} pixels or more a side, got {W} x {H}"
            )
        x, found = (images - self.shift) / self.scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)  # (B, C, h, w)
        return [*found, x]


def vgg16(tensors: Mapping[str, Tensor], *, source: str) -> VGG16:
    """VGG16 with the weights of a state dict in torchvision's naming (features.0.weight, …).

    The classifier's tensors, which a full VGG16 has too, are left out.
    """
    net = VGG16()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise UserError(
                    f"{source} is no VGG16: {name} is missing or not {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])
    return net.eval().requires_grad_(False)


def lpips_heads(tensors: Mapping[str, Tensor], *, source: str) -> list[Tensor]:
    """LPIPS's channel weights lin0 to lin4, under its own names (lin0.model.1.weight, …).

    returns: (…) C weights for each of the five layers
    """
    found = []
    for number, width in enumerate((64, 128, 256, 512, 512)):
        weight = tensors.get(f"lin{number}.model.1.weight")
        if weight is None or weight.numel() != width:
            raise UserError(
                f"{source} has no LPIPS heads: lin{number}.model.1.weight, {width} wide"
            )
        found.append(weight.detach().float().flatten())
    return found


def tower_maps(tower: nn.Module, images: Tensor, *, layers: int = 0) -> list[Tensor]:
    """Maps of every depth of one of CLIP's image towers, the embedding last.

    tower: a `clip.ImageEncoder`, whose forward's steps are repeated here, or a ResNetEncoder
    images: (B, 3, H, W) normalised pictures
    layers: only the first so many; 0 for all
    returns: (B, …) maps of the stem's layers and the blocks (or of the stages), C channels and
        h x w pixels each, and of the embedding (one pixel)
    """
    if isinstance(tower, ResNetEncoder):
        maps = tower.resnet.maps(images)
        maps.append(tower.pool(maps[-1])[:, :, None, None])
        return maps[:layers] if layers else maps
    x, maps = images, []
    for conv in tower.stem[: layers or None]:
        x = F.gelu(conv(x))  # (B, C, H', W')
        maps.append(x)
    if layers and len(maps) == layers:
        return maps
    x = tower.patches(x)  # (B, D, h, w)
    h, x = x.shape[2], rearrange(x, "B D h w -> B (h w) D")
    x = torch.cat([tower.class_token.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
    x = tower.norm_in(x + tower.positions)  # (B, 1+h*w, D)
    for block in tower.transformer.blocks:
        x = block(x)
        maps.append(rearrange(x[:, 1:], "B (h w) D -> B D h w", h=h))
    maps.append(tower.projection(tower.norm_out(x[:, 0]))[:, :, None, None])
    return maps[:layers] if layers else maps


def unit(x: Tensor) -> Tensor:
    """Feature vectors of length 1; a vector of zeros stays one.

    x: (B, C, h, w)
    returns: (B, C, h, w)
    """
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def feature_distance(
    first: list[Tensor], second: list[Tensor], heads: list[Tensor] | None = None
) -> Tensor:
    """Σ_l mean_hw Σ_c w_lc (a_lc - b_lc)² with unit vectors a, b (LPIPS, equation 1,
    whose own weights are the roots of these, inside the square).

    first: (B, …) maps of C channels and h x w pixels of one set of pictures, one a layer
    second: (B, …) of the other
    heads: (…) weights of each layer's C channels; None: all 1
    returns: (B,)
    """
    total = 0.0
    for layer, (a, b) in enumerate(zip(first, second, strict=True)):
        difference = (unit(a.float()) - unit(b.float())).square()  # (B, C, h, w)
        if heads is not None:
            difference = difference * heads[layer].to(difference.device)[:, None, None]
        total = total + difference.sum(dim=1).mean(dim=(1, 2))  # (B,)
    return total


def moved(images: Tensor, shift: tuple[int, int]) -> Tensor:
    """Pictures moved down and to the right; what comes in at the edges is mirrored.

    images: (B, 3, H, W)
    returns: (B, 3, H, W)
    """
    down, right = shift
    H, W = images.shape[-2:]
    pad = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    return F.pad(images, pad, mode="reflect")[..., max(-down, 0) :, max(-right, 0) :][..., :H, :W]


class PerceptualDistance:
    """A frozen network and its channel weights as a distance between pictures."""

    def __init__(
        self, net: nn.Module, *, features: Features, size: int = 0,
        heads: list[Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.net, self.features, self.size, self.heads = net, features, size, heads
        net.eval().requires_grad_(False)

    def __call__(
        self, decoded: Tensor, images: Tensor, *, shift: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """The mean distance of pairs; gradients reach the first pictures.

        A network that halves its maps looks at every second place. Pictures optimised for it hide
        patterns in the places between, unless it sees them moved, each time by another `shift`.

        decoded: (B, 3, H, W) in [-1, 1]
        images: (B, 3, H, W) in [-1, 1]
        shift: pixels down and to the right, the same for both; what comes in is mirrored
        returns: ()
        """
        self.net.to(images.device)
        if self.size:  # that the network reads no other pictures than of
            decoded, images = (resized(x, self.size) for x in (decoded, images))
        with torch.no_grad():
            wanted = self.features(moved(images, shift))
        found = self.features(moved(decoded, shift))
        return feature_distance(found, wanted, self.heads).mean()

"""CLIP's ResNet (Radford et al. 2021, section 2.4; He et al. 2016, 2019 and Zhang 2019 before it).

Three changes to the ResNet of 2016: a stem of three convolutions instead of one, an average pool
wherever the picture is halved (so that nothing is skipped), and attention instead of the mean at
the end: the mean of the last map asks all of its positions.

Normalised pictures (B, 3, H, W) in; a map (B, C, H/32, W/32), then one vector (B, E) out. Read
`attention.py` before.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minimodal.blocks.attention import attend
from minimodal.errors import UserError


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width, beside a shortcut."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module | None = None
        if stride > 1 or channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output; a stride is an average pool, in both branches.

        x: (B, C, H, W) features
        returns: (B, C', H', W')
        """
        h = F.relu(self.bn1(self.conv1(x)))  # (B, w, H, W)
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(F.avg_pool2d(h, self.stride)))  # (B, C', H', W')
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(x, self.stride))  # (B, C', H', W')
        return F.relu(h + x)


class ModifiedResNet(nn.Module):
    """A stem that quarters the picture, then four stages of bottlenecks."""

    def __init__(self, blocks: Sequence[int], width: int) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise UserError(f"a ResNet of width {width}: expected an even number")
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.stages, channels = nn.ModuleList(), width
        for number, depth in enumerate(blocks):
            stage = nn.Sequential()
            for block in range(depth):
                stride = 2 if number > 0 and block == 0 else 1
                stage.append(Bottleneck(channels, width * 2**number, stride=stride))
                channels = 4 * width * 2**number
            self.stages.append(stage)

    def forward(self, images: Tensor) -> Tensor:
        """The last map.

        images: (B, 3, H, W) normalised pictures
        returns: (B, C, h, w)
        """
        return self.maps(images)[-1]

    def maps(self, images: Tensor) -> list[Tensor]:
        """The map after each stage.

        images: (B, 3, H, W) normalised pictures
        returns: (B, …) maps of C channels and h x w pixels, the largest first
        """
        x = F.relu(self.bn1(self.conv1(images)))  # (B, C//2, H//2, W//2)
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))  # (B, C, H//2, W//2)
        x = F.avg_pool2d(x, 2)  # (B, C, H//4, W//4)
        maps = []
        for stage in self.stages:
            x = stage(x)  # (B, C', H', W') four times as many channels, then twice as many
            maps.append(x)
        return maps


class AttentionPool(nn.Module):
    """One step of attention: the mean of a map asks, the mean and all positions answer."""

    def __init__(self, width: int, heads: int, *, grid: int, out: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(grid**2 + 1, width) * width**-0.5)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, out)
        for linear in (self.q, self.k, self.v, self.proj):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One vector a map.

        x: (B, C, h, w) the last map
        returns: (B, E)
        """
        x = rearrange(x, "B C h w -> B (h w) C")  # (B, h*w, C)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positions  # (B, 1+h*w, C)
        q = rearrange(self.q(x[:, :1]), "B T (n d) -> B n T d", n=self.heads)  # (B, n, 1, d)
        k = rearrange(self.k(x), "B T (n d) -> B n T d", n=self.heads)  # (B, n, 1+h*w, d)
        v = rearrange(self.v(x), "B T (n d) -> B n T d", n=self.heads)  # (B, n, 1+h*w, d)
        y = attend(q, k, v)  # (B, n, 1, d)
        return self.proj(rearrange(y, "B n T d -> B (T n d)"))  # (B, E)


class ResNetEncoder(nn.Module):
    """A ResNet whose last map is read by attention (CLIP, section 2.4)."""

    def __init__(
        self, blocks: tuple[int, ...], width: int, *, heads: int, image_size: int, out: int
    ) -> None:
        super().__init__()
        self.resnet = ModifiedResNet(blocks, width)
        self.pool = AttentionPool(32 * width, heads, grid=image_size // 32, out=out)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures to embeddings, not normalised.

        images: (B, 3, H, W) normalised pictures
        returns: (B, E)
        """
        return self.pool(self.resnet(images))

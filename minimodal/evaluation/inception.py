"""Inception v3 as the Fréchet inception distance has it (Szegedy et al. 2016; Heusel et al. 2017).

The weights come from a file that the user gives: pt_inception-2015-12-05-6726825d.pth of the
pytorch-fid project, the TensorFlow network of 2015 with torchvision's names. Three things differ
from torchvision's network: averages in the blocks leave out the padding, the last block's pooling
branch takes the greatest value instead of the mean, and there are 1008 classes.

uint8 pictures (N, 3, H, W) in, features (N, 2048) of the last average out.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.errors import UserError
from minimodal.pretrained.files import read_tensors

SIZE, FEATURES, BATCH = 299, 2048, 50


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, channels: int, out: int, kernel: tuple[int, int], *, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features.

        x: (B, C, H, W)
        returns: (B, C', H', W')
        """
        return F.relu(self.bn(self.conv(x)))


# The blocks: for each the channels that it reads, its branches as rows of convolutions (name,
# channels, kernel), and its pooling branch. A row whose name begins with "+" is a second end of
# the branch before its last convolution; "/" at a name's end halves the map without padding.
A = [
    [("branch1x1", 64, (1, 1))],
    [("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))],
    [
        ("branch3x3dbl_1", 64, (1, 1)),
        ("branch3x3dbl_2", 96, (3, 3)),
        ("branch3x3dbl_3", 96, (3, 3)),
    ],
]


def c_branches(width: int) -> list:
    """The branches of the blocks at 17 x 17, with long thin kernels."""
    wide, high = (1, 7), (7, 1)
    return [
        [("branch1x1", 192, (1, 1))],
        [("branch7x7_1", width, (1, 1)), ("branch7x7_2", width, wide), ("branch7x7_3", 192, high)],
        [("branch7x7dbl_1", width, (1, 1)), ("branch7x7dbl_2", width, high),
         ("branch7x7dbl_3", width, wide), ("branch7x7dbl_4", width, high),
         ("branch7x7dbl_5", 192, wide)],
    ]  # fmt: skip


E_BRANCHES = [
    [("branch1x1", 320, (1, 1))],
    [("branch3x3_1", 384, (1, 1)), ("branch3x3_2a", 384, (1, 3)), ("+branch3x3_2b", 384, (3, 1))],
    [("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)),
     ("branch3x3dbl_3a", 384, (1, 3)), ("+branch3x3dbl_3b", 384, (3, 1))],
]  # fmt: skip
B = [
    [("branch3x3/", 384, (3, 3))],
    [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)),
     ("branch3x3dbl_3/", 96, (3, 3))],
]  # fmt: skip
D = [
    [("branch3x3_1", 192, (1, 1)), ("branch3x3_2/", 320, (3, 3))],
    [("branch7x7x3_1", 192, (1, 1)), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
     ("branch7x7x3_4/", 192, (3, 3))],
]  # fmt: skip


class Block(nn.Module):
    """Branches side by side, joined by channels; the pooling branch last."""

    def __init__(self, channels: int, branches: list, *, pool: int, greatest: bool = False) -> None:
        super().__init__()
        self.branches: list[list[str]] = []
        self.pooled, self.greatest = pool > 0, greatest
        for branch in branches:
            width, before, names = channels, channels, []
            for name, out, kernel in branch:
                bare = name.strip("+/")
                halves = name.endswith("/")
                reads = before if name.startswith("+") else width
                conv = ConvNorm(reads, out, kernel, stride=1 + halves, pad=not halves)
                self.add_module(bare, conv)
                names.append(name)
                before, width = reads, out
            self.branches.append(names)
        if pool:
            self.branch_pool = ConvNorm(channels, pool, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """All branches of one map.

        x: (B, C, H, W)
        returns: (B, C', H', W')
        """
        ends = []
        for names in self.branches:
            h, before = x, x
            for name in names:
                conv = getattr(self, name.strip("+/"))
                if name.startswith("+"):
                    ends.append(h)
                    h = conv(before)
                else:
                    before, h = h, conv(h)
            ends.append(h)
        if not self.pooled:
            ends.append(F.max_pool2d(x, 3, stride=2))
        elif self.greatest:
            ends.append(self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1)))
        else:
            mean = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            ends.append(self.branch_pool(mean))
        return torch.cat(ends, dim=1)


class Inception(nn.Module):
    """The network up to its last average; parameters are named as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), stride=2, pad=False)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), pad=False)
        self.Mixed_5b = Block(192, A, pool=32)
        self.Mixed_5c = Block(256, A, pool=64)
        self.Mixed_5d = Block(288, A, pool=64)
        self.Mixed_6a = Block(288, B, pool=0)
        self.Mixed_6b = Block(768, c_branches(128), pool=192)
        self.Mixed_6c = Block(768, c_branches(160), pool=192)
        self.Mixed_6d = Block(768, c_branches(160), pool=192)
        self.Mixed_6e = Block(768, c_branches(192), pool=192)
        self.Mixed_7a = Block(768, D, pool=0)
        self.Mixed_7b = Block(1280, E_BRANCHES, pool=192)
        self.Mixed_7c = Block(2048, E_BRANCHES, pool=192, greatest=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the last average.

        x: (B, 3, 299, 299) in [-1, 1]
        returns: (B, 2048)
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Features of pictures of any size.

        pictures: (N, 3, H, W) uint8
        returns: (N, 2048), on the CPU
        """
        device, found = self.Conv2d_1a_3x3.conv.weight.device, []
        for part in pictures.split(BATCH):
            x = part.to(device).float() / 255
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
            found.append(self(2 * x - 1).cpu())
        return torch.cat(found)


def load_inception(path: str | Path) -> Inception:
    """The network of pytorch-fid's file, in eval mode, on the CPU."""
    net, tensors = Inception(), read_tensors(path)
    kept = {k: v for k, v in tensors.items() if not k.startswith(("fc.", "AuxLogits."))}
    expected = net.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            kept.setdefault(name, value)
        elif name not in kept or kept[name].shape != value.shape:
            raise UserError(
                f"{path} is no Inception of pytorch-fid: {name} is missing or misshapen"
            )
    surplus = sorted(kept.keys() - expected.keys())
    if surplus:
        raise UserError(f"{path} is no Inception of pytorch-fid: {surplus[0]} has no place in it")
    net.load_state_dict(kept)
    return net.eval()

"""Convolutions in front of a Vision Transformer's patches (Xiao et al. 2021).

Small patches cost tokens and large ones, read by one matrix, blur what has a shape: a few
convolutions in front read it cheaply. Pictures (B, 3, H, W) in; each convolution of stride 2 halves
both sides. Read `conv.py` before.
"""

from torch import nn

from minimodal.blocks.conv import ResidualBlock


def make_stem(widths: tuple[int, ...], *, depth: int) -> nn.ModuleList:
    """A convolution of stride 2 for each width, behind `depth` residual blocks, for fine detail."""
    stem, channels = nn.ModuleList(), 3
    for width in widths:
        halve = nn.Conv2d(width if depth else channels, width, 3, 2, 1)
        # torch's own start shrinks what each of them passes on to a third.
        nn.init.kaiming_normal_(halve.weight, nonlinearity="relu")
        blocks: list[nn.Module] = []
        if depth and channels == 3:
            blocks, channels = [nn.Conv2d(3, width, 3, padding=1)], width
        for _ in range(depth):
            blocks.append(ResidualBlock(channels, width))
            channels = width
        stem.append(nn.Sequential(*blocks, halve) if blocks else halve)
        channels = width
    return stem

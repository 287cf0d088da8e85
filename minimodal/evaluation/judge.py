"""An independent judge of small photographs: a CIFAR-10 classifier that others trained.

A DALL·E that was asked for a ship should have drawn what a classifier calls a ship. This one is
the ResNet-20 of He et al. 2016 (section 4.2): a convolution, three stages of three residual
blocks with 16, 32 and 64 channels, a mean over the picture, one linear layer. Its weights come
from a safetensors file; nothing here trains it, or anything else by it.

uint8 pictures (N, 3, 32, 32) in, class numbers (N,) in CIFAR's order out. Read nothing before.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from minimodal.data.preprocessing import Preprocessing, normalize
from minimodal.errors import UserError

# Of the pictures that the judge was trained on, divided by 255.
READING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIZE, BATCH = 32, 500


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut without parameters (option A of the paper)."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, width - channels
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output.

        x: (B, C, H, W) features
        returns: (B, C', H', W')
        """
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        # Every second pixel, and as many channels of zeros before as after.
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(h + shortcut)


class Judge(nn.Module):
    """ResNet-20; parameters are named as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self.stage(16, 16, stride=1)
        self.layer2 = self.stage(16, 32, stride=2)
        self.layer3 = self.stage(32, 64, stride=2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def stage(channels: int, width: int, *, stride: int) -> nn.Sequential:
        """Three blocks, the first of which changes size and width."""
        return nn.Sequential(
            ResidualBlock(channels, width, stride=stride),
            ResidualBlock(width, width, stride=1),
            ResidualBlock(width, width, stride=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten classes.

        x: (B, 3, H, W) normalised as READING says
        returns: (B, 10)
        """
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, 8, 8)
        return self.linear(x.mean(dim=(2, 3)))

    @torch.no_grad()
    def classify(self, pictures: Tensor) -> Tensor:
        """What each picture shows.

        pictures: (N, 3, 32, 32) uint8
        returns: (N,) int64
        """
        if pictures.dtype != torch.uint8 or pictures.shape[1:] != (3, SIZE, SIZE):
            raise UserError(
                f"the judge reads uint8 pictures (N, 3, {SIZE}, {SIZE}), got {pictures.dtype} "
                f"{tuple(pictures.shape)}"
            )
        parts = pictures.to(self.linear.weight.device).split(BATCH)
        return torch.cat([self(normalize(part, READING)).argmax(dim=1) for part in parts]).cpu()


def load_judge(path: str | Path) -> Judge:
    """The judge of a safetensors file, in eval mode, on the CPU."""
    judge = Judge()
    # The counters of batches matter in training only, and the file leaves them out.
    counters = {k: v for k, v in judge.state_dict().items() if k.endswith("num_batches_tracked")}
    try:
        judge.load_state_dict(counters | load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise UserError(f"{path} is no ResNet-20 for CIFAR-10 ({reason})") from None
    return judge.eval()

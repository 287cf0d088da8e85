"""The contrastive loss in blocks against the plain one: time as a ratio, memory in MB.

python benchmarks/blocked_loss.py

Loss and gradients of 8192 x 512 unit vectors in float32, on the CPU. "plain" is
`clip.contrastive_loss` with all logits; "peers" is the usual form, one matrix of logits and its
transpose. Times are interleaved within one process, the memory is that of a process for each.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from minimodal.clip import contrastive_loss
from minimodal.training.tasks.clip import LOGITS


def peers_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of one matrix of logits and of its transpose."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    own = torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def once(which: str, batch: int, width: int) -> float:
    """Seconds of one loss with its gradients."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, width, generator=generator)
    text = image + 3 * torch.randn(batch, width, generator=generator)
    scale = torch.tensor([20.0], requires_grad=True)
    image.requires_grad_(), text.requires_grad_()
    began = time.perf_counter()
    if which == "peers":
        loss = peers_loss(image, text, scale)
    else:
        rows = max(1, LOGITS // batch) if which == "blocked" else 0
        loss = contrastive_loss(image, text, scale, captions=torch.arange(batch), rows=rows)
    loss.backward()
    return time.perf_counter() - began


def high_water() -> float:
    """The most memory that this process has held, in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_of(which: str, batch: int, width: int) -> float:
    """MB that a process's memory grows by."""
    once(which, 64, width)  # what torch itself takes on first use
    before = high_water()
    once(which, batch, width)
    return high_water() - before


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(peak_of(given.peak, given.batch, given.width))
        return
    kinds = ("blocked", "plain", "peers")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(given.rounds + 1):
        for shift in range(3):
            kind = kinds[(round_ + shift) % 3]
            taken = once(kind, given.batch, given.width)
            if round_ > 0:
                seconds[kind].append(taken)
    for kind in kinds:
        command = [sys.executable, __file__, "--peak", kind]
        command += ["--batch", str(given.batch), "--width", str(given.width)]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratios = [a / b for a, b in zip(seconds[kind], seconds["blocked"], strict=True)]
        print(
            f"{kind:8s} {statistics.median(seconds[kind]):6.2f} s   "
            f"{statistics.median(ratios):5.2f} x blocked   {peak:7.0f} MB"
        )


if __name__ == "__main__":
    main()

"""The contrastive loss beside the usual form: time as a ratio, memory in MB.

python benchmarks/blocked_loss.py

Loss and gradients of unit vectors in float32, on the CPU. "peers" is open_clip's form, one matrix
of logits, its transpose and automatic differentiation; "plain" is `clip.contrastive_loss` with all
logits; "blocked" is `gathered_loss`, some rows at a time, where the training uses it. Times are
interleaved within one process, the memory is that of a process for each.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from minimodal.blocks.contrastive_rows import Everyone, gathered_loss
from minimodal.clip import contrastive_loss
from minimodal.training.tasks.clip import LOGITS

SIZES = ("64x128", "128x128", "256x128", "1024x128", "8192x512")


def peers_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of one matrix of logits and of its transpose."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    own = torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def timed(which: str, batch: int, width: int, *, rows: int, calls: int) -> float:
    """Seconds of one loss with its gradients, the mean of some calls."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, width, generator=generator)
    text = image + 3 * torch.randn(batch, width, generator=generator)
    inputs = [image, text, torch.tensor([20.0])]
    for tensor in inputs:
        tensor.requires_grad_()
    captions = torch.arange(batch)
    began = time.perf_counter()
    for _ in range(calls):
        for tensor in inputs:
            tensor.grad = None
        if which == "peers":
            loss = peers_loss(*inputs)
        elif which == "plain":
            loss = contrastive_loss(*inputs, captions=captions)
        else:
            image, text, _ = inputs
            everyone = Everyone(image, text, captions)
            loss = gathered_loss(*inputs, captions=captions, rows=rows, everyone=everyone)
        loss.backward()
    return (time.perf_counter() - began) / calls


def high_water() -> float:
    """The most memory that this process has held, in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_of(which: str, batch: int, width: int, rows: int) -> float:
    """MB that a process's memory grows by."""
    timed(which, 64, width, rows=rows, calls=1)  # what torch itself takes on first use
    before = high_water()
    timed(which, batch, width, rows=rows, calls=1)
    return high_water() - before


def compare(batch: int, width: int, rows: int, rounds: int) -> None:
    """Print a line for each form."""
    kinds = ("peers", "plain", "blocked") if rows < batch else ("peers", "plain")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(rounds + 1):
        for shift in range(len(kinds)):
            kind = kinds[(round_ + shift) % len(kinds)]
            taken = timed(kind, batch, width, rows=rows, calls=max(1, 2**21 // batch**2))
            if round_ > 0:
                seconds[kind].append(taken)
    for kind in kinds:
        ratios = [a / b for a, b in zip(seconds[kind], seconds["peers"], strict=True)]
        line = f"{batch:5d} x {width}  {kind:8s} {1000 * statistics.median(seconds[kind]):9.2f} ms"
        line += f"  {statistics.median(ratios):5.2f} x peers"
        if rows < batch:
            command = [sys.executable, __file__, "--sizes", f"{batch}x{width}"]
            command += ["--rows", str(rows), "--peak", kind]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            line += f"  {float(found):6.0f} MB"
        print(line, flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="batch x width")
    parser.add_argument("--rows", type=int, default=0, help="of a block; 0: as the training does")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    for size in given.sizes:
        batch, width = map(int, size.split("x"))
        rows = given.rows or max(1, LOGITS // batch)
        if given.peak:
            print(peak_of(given.peak, batch, width, rows))
        else:
            compare(batch, width, rows, given.rounds)


if __name__ == "__main__":
    main()

"""What is measured once, before the first step: precision, FLOPs a step, the device's peak.

Each measurement runs forward and backward passes of a task's own losses on its own batch and puts
every weight and buffer back, so that a run with a measurement equals one without. Each returns
numbers; the engine prints and keeps them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

PASSES = 3  # of each precision: the fastest of three is not much disturbed by other processes
PEAK_SECONDS = 0.2


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which losses run: float32 weights, bfloat16 where it is safe."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def unchanged(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put every weight and buffer back afterwards and drop the gradients."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    saved = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
                tensor.grad = None


def wait(device: torch.device) -> None:
    """Let the device finish what it was given, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bfloat16_speed(run_once: Callable[[], None], device: torch.device) -> float:
    """How many times faster than in float32 a pass is under bfloat16 autocast."""
    best = {"float32": float("inf"), "bfloat16": float("inf")}
    for attempt in range(PASSES + 1):
        for precision in best:
            wait(device)
            began = time.perf_counter()
            with autocast(device, precision):
                run_once()
            wait(device)
            if attempt:  # the first pass of each also pays for what is only done once
                best[precision] = min(best[precision], time.perf_counter() - began)
    return best["float32"] / best["bfloat16"]


def count_flops(run_once: Callable[[], None]) -> int:
    """Floating-point operations of one pass, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        run_once()
    return counter.get_total_flops()


def matmul_peak(device: torch.device, precision: str, *, n: int = 0) -> float:
    """The FLOP/s that the device reaches in a large product of matrices (n x n), measured."""
    n = n or (8192 if device.type == "cuda" else 768)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.ones(n, n, device=device, dtype=dtype)
    out: Tensor = torch.mm(a, a)
    wait(device)
    best, end = 0.0, time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        wait(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of matrices are faster in bfloat16 than in float32.

    A CPU without instructions for them emulates them, fifty times slower. Asked before whole
    passes are timed, and of the device itself: what a CPU says of itself is not what it does
    where a library has been told to use less of it.
    """
    return matmul_peak(device, "bfloat16", n=256) > matmul_peak(device, "float32", n=256)

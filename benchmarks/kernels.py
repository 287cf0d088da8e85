"""Each choice between two ways to compute the same, measured on the machine at hand.

A kernel that is faster on one CPU is a trap on another. Here are the package's choices, both ways
timed in turn; a line names them, and its ratio is the first one's time over the second's. Run it as
it is, and as a CPU without AVX-512 and bfloat16 would:

    OMP_NUM_THREADS=1 python benchmarks/kernels.py
    OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/kernels.py
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks import packed as packing
from minimodal.blocks.conv import ResidualBlock
from minimodal.blocks.factors import MARGIN, AppearanceEncoder, window_side
from minimodal.blocks.packed import packed_linears
from minimodal.training.optim import orthogonalize
from minimodal.training.probe import matmul_peak, multiplies_bfloat16

ROUNDS, SECONDS = 15, 0.03


def repeats(run: Callable[[], object]) -> int:
    """How often to call something so that it takes long enough to be timed."""
    run()
    began = time.perf_counter()
    run()
    return max(1, round(SECONDS / max(1e-6, time.perf_counter() - began)))


def compare(name: str, first: Callable[[], object], second: Callable[[], object]) -> None:
    """Print the median of each and the median ratio of a round."""
    counts, times = (repeats(first), repeats(second)), []
    for _ in range(ROUNDS):
        found = []
        for run, n in zip((first, second), counts, strict=True):
            began = time.perf_counter()
            for _ in range(n):
                run()
            found.append((time.perf_counter() - began) / n)
        times.append(found)
    a, b = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    ratio = statistics.median(x / y for x, y in times)
    print(f"{name:58s} {a:8.3f} ms  {b:8.3f} ms  {ratio:5.2f}", flush=True)


def passes(f: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        leaf = x.detach().requires_grad_()
        f(leaf).float().square().mean().backward()

    return run


def fused(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """torch's kernel."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def written(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """Attention as products and a softmax."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return torch.softmax(scores, -1) @ v


def attention(kinds: list[torch.dtype]) -> None:
    """`attend`: the fused kernel, written out for bfloat16."""
    for dtype in kinds:
        for tokens in (80, 256):
            q, k, v = torch.randn(3, max(1, 2560 // tokens), 4, tokens, 32).to(dtype)
            compare(
                f"attention, {tokens} tokens, {str(dtype)[6:]}: fused / written out",
                passes(lambda q, k=k, v=v: fused(q, k, v), q),
                passes(lambda q, k=k, v=v: written(q, k, v), q),
            )
    for batch, keys in ((4, 80), (64, 80), (4, 288)):
        q = torch.randn(batch, 4, 1, 32)
        k, v = torch.randn(2, batch, 4, keys, 32)
        with torch.no_grad():
            compare(
                f"one query of {keys} keys, batch {batch}: written out / fused",
                lambda q=q, k=k, v=v: written(q, k, v, causal=False),
                lambda q=q, k=k, v=v: fused(q, k, v, causal=False),
            )


@torch.no_grad()
def packed() -> None:
    """Weights reordered once for a drawing; here also small ones, which are left otherwise."""
    packing.SMALLEST = 0
    for rows in (1, 8, 64):
        for n, m in ((128, 512), (256, 1024)):
            layer, x = nn.Linear(n, m), torch.randn(rows, 1, n)
            plain = copy.deepcopy(layer)
            with packed_linears([layer], rows):
                compare(
                    f"linear {n} -> {m}, {rows} rows: packed / plain",
                    lambda layer=layer, x=x: layer(x),
                    lambda plain=plain, x=x: plain(x),
                )


def layouts() -> None:
    """A pixel's channels side by side in memory: the appearance encoder's, no residual block's."""
    encoder, x = AppearanceEncoder(32, 16, patch=4), torch.rand(8, 3, 32, 32)

    def plain(x: Tensor) -> Tensor:
        pooled = F.max_pool2d(encoder.colour(x), window_side(encoder.patch), encoder.patch, MARGIN)
        return encoder.joint(pooled)

    compare("appearance encoder: channels last / first", passes(encoder, x), passes(plain, x))
    for batch, channels, side, kernel in ((8, 96, 8, 1), (16, 64, 32, 3), (8, 32, 32, 1)):
        block = ResidualBlock(channels, channels, kernel=kernel, local=kernel == 1)
        x = torch.randn(batch, channels, side, side)
        compare(
            f"residual block {channels} x {side} x {side}, kernel {kernel}: channels last / first",
            passes(block, x.contiguous(memory_format=torch.channels_last)),
            passes(block, x),
        )


def muon() -> None:
    """`orthogonalize` in the run's precision; float32 against bfloat16 here."""
    for shape in ((24, 128, 128), (6, 512, 128)):
        x = torch.randn(shape)

        def half(x: Tensor = x) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return orthogonalize(x)

        compare(f"Muon's products {shape}: float32 / bfloat16", lambda x=x: orthogonalize(x), half)


def main() -> None:
    """All of them."""
    device = torch.device("cpu")
    fast = multiplies_bfloat16(device)
    peaks = (f"{kind} {matmul_peak(device, kind) / 1e9:.0f}" for kind in ("float32", "bfloat16"))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{torch.backends.cpu.get_cpu_capability()}, GFLOP/s: {', '.join(peaks)}")  # fmt: skip
    attention([torch.float32, torch.bfloat16] if fast else [torch.float32])
    packed()
    layouts()
    muon()


if __name__ == "__main__":
    main()

"""Explicit softmax attention against scaled_dot_product_attention, forward and backward.

`blocks/transformer.attend` writes attention out on a CPU in bfloat16 and calls the fused kernel
everywhere else. This script is the measurement behind that choice: it times a 4-layer, 128-wide
Transformer with either, alternating, and prints medians and their ratio.

    python benchmarks/attention.py
"""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.blocks import transformer


def explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention written out."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's kernel."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def seconds(model: transformer.Transformer, x: Tensor, dtype: torch.dtype) -> float:
    """One forward and backward pass."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    return time.perf_counter() - began


def main() -> None:
    """Time both at the sizes of DALL·E on the Shapes world and at longer streams."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    original = transformer.attend
    for tokens in (78, 256, 512):
        model = transformer.Transformer(128, 4, 4, causal=True)
        x = torch.randn(max(1, 2496 // tokens), tokens, 128)
        for dtype in (torch.float32, torch.bfloat16):
            times: dict[str, list[float]] = {"explicit": [], "fused": []}
            for _ in range(8):
                for kernel in (explicit, fused):
                    transformer.attend = kernel
                    times[kernel.__name__].append(seconds(model, x, dtype))
            a, b = (statistics.median(times[name][1:]) for name in ("explicit", "fused"))
            print(
                f"{tokens:4d} tokens {str(dtype)[6:]:9s} explicit {a * 1e3:6.1f} ms  "
                f"fused {b * 1e3:6.1f} ms  explicit/fused {a / b:.2f}"
            )
    transformer.attend = original


if __name__ == "__main__":
    main()

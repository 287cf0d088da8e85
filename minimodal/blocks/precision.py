"""Arithmetic in float32 proper, where rounding would decide.

A VQGAN takes the code nearest to a latent. Rounded to bfloat16 or TF32 many latents fall on a
neighbouring code, so pictures are encoded in float32 whatever the caller computes in. Read nothing
before this file.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within it neither autocast nor TF32 round. Matrix products and cuDNN's convolutions have
    each a switch of their own for TF32, and that of convolutions is on by default."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions

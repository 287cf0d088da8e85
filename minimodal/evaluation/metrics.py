"""Scores that any system may need: PSNR of pictures, recall of a retrieval.

Pictures are uint8 (N, 3, H, W), embeddings are rows of unit length (N, E).
"""

import torch
from torch import Tensor


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio 10 log10(255² / MSE) in dB, the mean over the pictures.

    first: (N, 3, H, W) uint8
    second: (N, 3, H, W) uint8
    """
    error = (first.double() - second.double()).square().mean(dim=(1, 2, 3))  # (N,)
    return float((10 * torch.log10(255.0**2 / error.clamp(min=1e-10))).mean())


def recall_at_k(image: Tensor, text: Tensor, k: int) -> tuple[float, float]:
    """How often the right caption is among a picture's k nearest, and the other way round.

    image: (N, E) unit vectors
    text: (N, E) unit vectors, row i belongs to picture i
    """
    similarity = image @ text.T  # (N, N)
    right = torch.arange(len(image), device=image.device)[:, None]
    found = [
        (s.topk(min(k, len(image)), dim=1).indices == right).any(dim=1).float().mean()
        for s in (similarity, similarity.T)
    ]
    return float(found[0]), float(found[1])

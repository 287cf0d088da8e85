"""Scores that any system may need.

    PSNR      10 log10(peak² / MSE), the mean over pictures of each picture's own
    SSIM      likeness of means, contrasts and patterns in windows of 7 x 7 pixels
    recall@k  share of queries with a right answer among the k most similar
    accuracy  share of rows whose largest similarity is in the column of their label
    usage     share of a codebook's codes that occur, and the exponential of their entropy
    Fréchet   distance of the Gaussians with two sets' means and covariances (FID)

Pictures are (N, 3, H, W), embeddings are rows of unit length (N, E). Numbers out, no models in:
which network features come from is the caller's choice, and belongs beside every such number.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.errors import UserError


class Hits(NamedTuple):
    """What a search found, best first.

    scores: (Q, k) cosines
    indices: (Q, k) int64, rows of the embeddings
    """

    scores: Tensor
    indices: Tensor


def best_columns(scores: Tensor, k: int) -> Tensor:
    """Each row's k largest, best first; of equal ones, among which `topk` may choose any, the left.

    scores: (Q, N)
    returns: (Q, k) int64
    """
    least = scores.topk(k, dim=1).values[:, -1:]  # (Q, 1)
    found = []
    for row, enough in zip(scores, ~(scores < least), strict=True):  # "not less": also with NaN
        columns = enough.nonzero()[:, 0]  # few but for ties, from left to right
        found.append(columns[row[columns].argsort(descending=True, stable=True)[:k]])
    return torch.stack(found)


@torch.no_grad()
def top_k(embeddings: Tensor, queries: Tensor, k: int, *, block: int = 65536) -> Hits:
    """The k embeddings with the largest s = q · x for each query; of equal ones the lower index.

    Exact, and never with more than the (Q, block) scores of a block in memory; `embeddings` may
    be a file mapped into memory. With fewer than k embeddings all of them come back. On the CPU.

    embeddings: (N, E) float32
    queries: (Q, E) float32
    """
    best = torch.empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64)
    for first in range(0, len(embeddings), block):
        with torch.autocast("cpu", enabled=False):  # a training's evaluation may run under it
            scores = queries @ embeddings[first : first + block].T
        here = torch.arange(first, first + scores.shape[1]).expand(len(queries), -1)
        scores, here = torch.cat([best, scores], dim=1), torch.cat([indices, here], dim=1)
        columns = best_columns(scores, min(k, scores.shape[1]))  # (Q, k)
        best, indices = scores.gather(1, columns), here.gather(1, columns)
    return Hits(best, indices)


def on_bytes_scale(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of pictures of one kind as float64 on the scale of bytes, without rounding.

    first: (N, 3, H, W) uint8, or float in [-1, 1]
    second: (N, 3, H, W) of the same kind
    returns: (N, 3, H, W), (N, 3, H, W)
    """
    if first.shape != second.shape or first.is_floating_point() != second.is_floating_point():
        raise ValueError(
            f"only pictures of one kind are compared, got {first.dtype} {tuple(first.shape)} and "
            f"{second.dtype} {tuple(second.shape)}"
        )
    if first.is_floating_point():
        return (first.double() + 1) * 127.5, (second.double() + 1) * 127.5
    return first.double(), second.double()


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio 10 log10(255² / MSE) in dB, the mean over the pictures.

    Equal pictures count as 148 dB, so that the mean stays finite.

    first: (N, 3, H, W) uint8, or float in [-1, 1]
    second: (N, 3, H, W) of the same kind
    """
    a, b = on_bytes_scale(first, second)
    error = (a - b).square().mean(dim=(1, 2, 3))  # (N,)
    return float((10 * torch.log10(255.0**2 / error.clamp(min=1e-10))).mean())


WINDOW = 7  # pixels per side of SSIM's windows


def ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity (Wang et al. 2004, equation 13), the mean over windows and pictures.

        SSIM = (2 μx μy + C1) (2 σxy + C2) / ((μx² + μy² + C1) (σx² + σy² + C2))

    with C1 = (0.01 · 255)², C2 = (0.03 · 255)², over every window of 7 x 7 pixels, unweighted, and
    with the sample's covariances, channel by channel.

    first: (N, 3, H, W) uint8, or float in [-1, 1], of 7 pixels per side or more
    second: (N, 3, H, W) of the same kind
    """
    x, y = on_bytes_scale(first, second)
    if min(x.shape[-2:]) < WINDOW:
        raise UserError(f"SSIM looks at windows of 7 x 7 pixels, got pictures {tuple(x.shape)}")

    def mean(v: Tensor) -> Tensor:
        return F.avg_pool2d(v, WINDOW, stride=1)  # 6 less each way

    sample = WINDOW**2 / (WINDOW**2 - 1)
    mx, my = mean(x), mean(y)
    vx, vy = sample * (mean(x * x) - mx * mx), sample * (mean(y * y) - my * my)
    vxy = sample * (mean(x * y) - mx * my)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(likeness.mean())


def recall_at_k(
    image: Tensor, text: Tensor, k: int, *, image_of_text: Tensor | None = None
) -> tuple[float, float]:
    """How often a right caption is among a picture's k nearest, and the other way round.

    A picture may have several captions: any of them is right. One without captions asks nothing,
    but is there to be found wrongly.

    image: (N, E) unit vectors
    text: (M, E) unit vectors
    image_of_text: (M,) int64 the picture of each caption; None where caption i is picture i's
    """
    image, text = image.float().cpu(), text.float().cpu()
    owner = torch.arange(len(text)) if image_of_text is None else image_of_text.cpu()  # (M,)
    captions = top_k(text, image, k).indices  # (N, k) captions near each picture
    pictures = top_k(image, text, k).indices  # (M, k) pictures near each caption
    numbers = torch.arange(len(image))
    asked = torch.isin(numbers, owner)  # (N,) pictures that have a caption
    by_image = (owner[captions] == numbers[:, None]).any(dim=1)[asked]
    by_text = (pictures == owner[:, None]).any(dim=1)[owner < len(image)]
    return float(by_image.float().mean()), float(by_text.float().mean())


def zero_shot_accuracy(similarities: Tensor, labels: Tensor) -> float:
    """How often a picture is most similar to the caption of its own class.

    similarities: (N, K) of each picture with each class
    labels: (N,) int64
    """
    return float((similarities.argmax(dim=1) == labels).float().mean())


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of running counts; as many codes, equally used, would be as uncertain.

    counts: (K,)
    returns: ()
    """
    p = counts / counts.sum().clamp(min=1e-9)
    return (-(p * p.clamp(min=1e-12).log()).sum()).exp()


class Usage(NamedTuple):
    """How well a codebook is used.

    share: of the codes that occur at all, between 0 and 1
    perplexity: exp of the codes' entropy: as many equally likely codes would be as uncertain
    """

    share: float
    perplexity: float


def usage(indices: Tensor, size: int) -> Usage:
    """Count how a codebook of `size` codes is used.

    indices: (N,) int64
    """
    counts = torch.bincount(indices.flatten(), minlength=size).double()
    return Usage(float((counts > 0).double().mean()), float(perplexity(counts)))


def frechet_gaussians(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), between two Gaussians.

    mean1: (E,)
    cov1: (E, E)
    mean2: (E,)
    cov2: (E, E)
    """
    # The eigenvalues of Σ₁ Σ₂ are real and not negative, but for rounding where a covariance is
    # singular because there are fewer pictures than features.
    values = torch.linalg.eigvals(cov1.double() @ cov2.double()).real.clamp(min=0)
    shift = (mean1.double() - mean2.double()).square().sum()
    return float(shift + cov1.trace() + cov2.trace() - 2 * values.sqrt().sum())


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The Fréchet distance of two sets (Heusel et al. 2017), biased upwards for small ones.

    first: (N, E), N of 2 or more
    second: (M, E)
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"expected 2 or more pictures, got {len(first)} and {len(second)}")
    x, y = first.double(), second.double()
    return frechet_gaussians(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))

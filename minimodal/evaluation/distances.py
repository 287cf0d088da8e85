"""How far two sets of pictures are apart, measured on a network's features of them.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)

the Fréchet distance of two Gaussians with the sets' means and covariances (FID, Heusel et al.
2017), which is biased upwards for small sets.

Features (N, E) in, a number out. Which network they come from is the caller's choice, and belongs
beside every such number.
"""

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance (divided by N - 1) in float64.

    features: (N, E), N of 2 or more
    returns: (E,) mean, (E, E) covariance
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected features (N, E) of 2 or more pictures, got {features.shape}")
    x = features.double()
    centred = x - x.mean(dim=0)
    return x.mean(dim=0), centred.T @ centred / (len(x) - 1)


def root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric matrix without negative eigenvalues.

    matrix: (E, E)
    returns: (E, E)
    """
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_gaussians(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), between two Gaussians.

    mean1: (E,)
    cov1: (E, E)
    mean2: (E,)
    cov2: (E, E)
    """
    # tr (Σ₁ Σ₂)^½ = tr (Σ₁^½ Σ₂ Σ₁^½)^½, and that matrix is symmetric: no complex numbers arise,
    # also where a covariance is singular because there are fewer pictures than features.
    half = root(cov1.double())
    values = torch.linalg.eigvalsh(half @ cov2.double() @ half).clamp(min=0)
    shift = (mean1.double() - mean2.double()).square().sum()
    return float(shift + cov1.trace() + cov2.trace() - 2 * values.sqrt().sum())


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The Fréchet distance of two sets.

    first: (N, E)
    second: (M, E)
    """
    return frechet_gaussians(*moments(first), *moments(second))

"""How far two sets of pictures are apart, measured on a network's features of them.

    Fréchet distance   |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), of two Gaussians with the sets' means
                       and covariances (FID, Heusel et al. 2017); biased upwards for small sets
    FID∞               the same, extrapolated to endless sets (Chong & Forsyth 2020)
    KID                squared maximum mean discrepancy with a cubic kernel, unbiased (Bińkowski et
                       al. 2018)
    precision, recall  shares of a set within the other's neighbourhoods (Kynkäänniemi et al. 2019)

Features (N, E) in, numbers out. Which network they come from is the caller's choice, and belongs
beside every such number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 3  # how many make up a neighbourhood


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


def frechet_unbiased(
    first: Tensor, second: Tensor, *, generator: torch.Generator, points: int = 12
) -> float:
    """FID∞: the distance at falling numbers of pictures, followed to 1/N = 0 on a straight line.

    The bias of a set of N pictures is all but proportional to 1/N. The sets are cut to the same
    numbers, from all pictures of the smaller down to a third of them.

    first: (N, E)
    second: (M, E)
    """
    most = min(len(first), len(second))
    sizes = torch.linspace(most // 3, most, points).round().long().clamp(min=2).tolist()
    found = []
    for size in sizes:
        parts = [x[torch.randperm(len(x), generator=generator)[:size]] for x in (first, second)]
        found.append(frechet_distance(*parts))
    line = torch.stack([torch.ones(points), 1 / torch.tensor(sizes).float()], dim=1).double()
    fitted = torch.linalg.lstsq(line, torch.tensor(found, dtype=torch.float64)[:, None]).solution
    return float(fitted[0])


def kid(first: Tensor, second: Tensor) -> float:
    """Unbiased squared MMD with k(x, y) = (x·y / E + 1)³; about 0, and at times below, for equals.

    first: (N, E)
    second: (M, E)
    """
    x, y = first.double(), second.double()
    n, m, E = len(x), len(y), x.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"expected 2 or more pictures in each set, got {n} and {m}")

    def kernel_sum(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([((part @ b.T / E + 1) ** 3).sum() for part in a.split(1024)]).sum()

    def own(a: Tensor) -> Tensor:  # pairs of one picture with itself are left out
        return kernel_sum(a, a) - ((a.square().sum(dim=1) / E + 1) ** 3).sum()

    within = own(x) / (n * (n - 1)) + own(y) / (m * (m - 1))
    return float(within - 2 * kernel_sum(x, y) / (n * m))


class PrecisionRecall(NamedTuple):
    """Shares of the generated near a true one (precision) and of the true near a generated one."""

    precision: float
    recall: float


def radii(features: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest neighbour in the set.

    features: (N, E)
    returns: (N,)
    """
    parts = features.split(1024)
    # The nearest is the point itself.
    return torch.cat([torch.cdist(p, features).kthvalue(k + 1, dim=1).values for p in parts])


def covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of points that lie within the k-neighbourhood of any centre.

    points: (N, E)
    centres: (M, E)
    """
    reach = radii(centres, k)  # (M,)
    parts = points.split(1024)
    inside = [(torch.cdist(part, centres) <= reach).any(dim=1) for part in parts]
    return float(torch.cat(inside).double().mean())


def precision_recall(real: Tensor, generated: Tensor, *, k: int = NEIGHBOURS) -> PrecisionRecall:
    """Are the generated pictures like true ones, and are all kinds of true ones generated?

    real: (N, E), N above k
    generated: (M, E), M above k
    """
    real, generated = real.double(), generated.double()
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"expected more than {k} pictures in each set")
    return PrecisionRecall(covered(generated, real, k), covered(real, generated, k))

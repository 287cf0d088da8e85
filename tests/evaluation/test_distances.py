"""The Fréchet distance between sets of features: Gaussians with known answers, special cases."""

import pytest
import torch
from helpers.tiny import noise

from minimodal.evaluation.distances import frechet_distance, frechet_gaussians, moments, root

ZERO, ONE = torch.zeros(3), torch.eye(3)


def rotation() -> torch.Tensor:
    return torch.linalg.qr(noise(3, 3).double()).Q


def random_covariance(seed: int) -> torch.Tensor:
    x = noise(3, 5, seed=seed).double()
    return x @ x.T


def diagonal(*variances: float) -> torch.Tensor:
    return torch.diag(torch.tensor(variances, dtype=torch.float64))


GAUSSIANS = {
    "equal": (ZERO, ONE, ZERO, ONE, 0.0),
    "shifted": (ZERO, ONE, torch.tensor([3.0, 0.0, 4.0]), ONE, 25.0),
    "wider": (ZERO, ONE, ZERO, 4 * ONE, 3.0),
    "diagonal": (ZERO, diagonal(1, 4, 9), ZERO, diagonal(4, 4, 1), 5.0),
    "a point": (ZERO, 0 * ONE, ZERO, ONE, 3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", GAUSSIANS)
def test_the_distance_of_known_gaussians(name):
    *gaussians, expected = GAUSSIANS[name]
    assert frechet_gaussians(*gaussians) == pytest.approx(expected, abs=1e-9)


def test_rotating_both_gaussians_changes_nothing():
    a, b, r = random_covariance(1), random_covariance(2), rotation()
    plain = frechet_gaussians(ZERO, a, ZERO, b)
    turned = frechet_gaussians(ZERO, r @ a @ r.T, ZERO, r @ b @ r.T)
    assert turned == pytest.approx(plain, rel=1e-9)


def test_the_distance_is_symmetric():
    a, b = random_covariance(1), random_covariance(2)
    there, back = frechet_gaussians(ZERO, a, ZERO, b), frechet_gaussians(ZERO, b, ZERO, a)
    assert there == pytest.approx(back, rel=1e-9)


def test_the_root_squared_is_the_matrix():
    a = random_covariance(3)
    torch.testing.assert_close(root(a) @ root(a), a)


def test_the_distance_equals_scipys_formula():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = noise(60, 8).double(), 0.7 * noise(50, 8, seed=1).double() + 0.3
    (m1, s1), (m2, s2) = moments(x), moments(y)
    cross = linalg.sqrtm((s1 @ s2).numpy()).real
    expected = float((m1 - m2).square().sum() + s1.trace() + s2.trace()) - 2 * cross.trace()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_fewer_pictures_than_features_are_possible():
    x = noise(6, 40)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(x, x + 1) == pytest.approx(40, rel=1e-6)


def test_a_single_picture_is_an_error():
    with pytest.raises(ValueError, match="expected"):
        frechet_distance(noise(1, 4), noise(1, 4))

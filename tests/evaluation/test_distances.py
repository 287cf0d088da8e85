"""Distances between sets of features: Gaussians with known answers, loops, and special cases."""

import math

import pytest
import torch
from helpers.tiny import generator, noise

from minimodal.evaluation.distances import (
    frechet_distance,
    frechet_gaussians,
    frechet_unbiased,
    kid,
    moments,
    precision_recall,
    root,
)

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


def test_extrapolated_the_distance_of_small_sets_is_nearer_to_the_true_one():
    first, second = noise(400, 20), noise(400, 20, seed=1) + 0.5
    true = 20 * 0.25
    plain = frechet_distance(first, second) - true
    extrapolated = frechet_unbiased(first, second, generator=generator()) - true
    assert plain > 0.3 and abs(extrapolated) < 0.4 * plain


def test_kid_is_the_unbiased_double_loop():
    x, y = noise(5, 3), noise(4, 3, seed=1)

    def k(a, b) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    yy = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    xy = sum(k(a, b) for a in x for b in y) / 20
    assert kid(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-5)


def test_kid_of_samples_of_one_distribution_is_zero_on_average():
    found = [kid(noise(50, 4, seed=2 * s), noise(40, 4, seed=2 * s + 1)) for s in range(200)]
    mean, deviation = torch.tensor(found).mean(), torch.tensor(found).std()
    assert min(found) < 0 and abs(mean) < 3 * deviation / math.sqrt(200)


def test_kid_sees_a_shift():
    assert kid(noise(80, 4), noise(80, 4, seed=1) + 1) > 1


def test_a_set_is_precise_and_complete_about_itself():
    x = noise(30, 4)
    assert precision_recall(x, x) == (1, 1)


def test_sets_far_apart_have_neither_precision_nor_recall():
    assert precision_recall(noise(30, 4), noise(30, 4, seed=1) + 100) == (0, 0)


def test_painting_one_kind_only_is_precise_but_forgets_the_other():
    one, other = 0.1 * noise(30, 2), 0.1 * noise(30, 2, seed=1) + 10
    real, generated = torch.cat([one, other]), 0.05 * noise(30, 2, seed=2)
    found = precision_recall(real, generated)
    assert found.precision > 0.9 and found.recall <= 0.5


def test_painting_more_than_there_is_recalls_all_but_is_not_precise():
    real = 0.05 * noise(30, 2)
    generated = torch.cat([0.1 * noise(30, 2, seed=1), noise(30, 2) + 10])
    found = precision_recall(real, generated)
    assert found.recall > 0.9 and found.precision <= 0.5


@pytest.mark.parametrize("call", [frechet_distance, kid, precision_recall])
def test_sets_that_are_too_small_are_an_error(call):
    with pytest.raises(ValueError, match="expected"):
        call(noise(1, 4), noise(1, 4))

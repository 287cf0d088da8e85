"""Scores of known cases."""

import math

import numpy as np
import pytest
import torch
from helpers.tiny import integers, noise

from minimodal.evaluation.metrics import (
    frechet_distance,
    frechet_gaussians,
    perplexity,
    psnr,
    recall_at_k,
    ssim,
    usage,
    zero_shot_accuracy,
)


def test_psnr_of_a_known_error_is_a_mean_over_pictures():
    black = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    off = black.clone()
    off[0] += 1  # 20 log10(255) = 48.13 dB
    off[1] += 255  # 0 dB
    assert psnr(black, off) == pytest.approx(48.1308 / 2, abs=1e-3)


def test_psnr_of_equal_pictures_is_finite():
    assert 100 < psnr(*[torch.zeros(1, 3, 4, 4, dtype=torch.uint8)] * 2) < 1000


def test_psnr_does_not_wrap_around_in_bytes():
    low, high = (torch.full((1, 3, 4, 4), v, dtype=torch.uint8) for v in (0, 255))
    assert psnr(low, high) == psnr(high, low) == pytest.approx(0, abs=1e-9)


def test_recall_of_a_known_case():
    text = torch.eye(3)
    image = torch.tensor([[1.0, 0.0, 0.0], [0.1, 0.2, 0.9], [0.0, 0.0, 1.0]])
    # Picture 1 is nearest to caption 2, but of the pictures it is the nearest to caption 1.
    assert recall_at_k(image, text, 1) == pytest.approx((2 / 3, 1.0))
    assert recall_at_k(image, text, 2) == (1.0, 1.0)


def test_recall_among_all_is_certain():
    assert recall_at_k(torch.eye(3), torch.eye(3).flip(0), 3) == (1.0, 1.0)
    assert recall_at_k(torch.eye(3), torch.eye(3), 10) == (1.0, 1.0)


def test_psnr_of_floats_is_that_of_the_same_bytes():
    first, second = (torch.arange(s, s + 96, dtype=torch.uint8).view(2, 3, 4, 4) for s in (0, 7))
    floats = [picture.float() / 127.5 - 1 for picture in (first, second)]
    assert psnr(*floats) == pytest.approx(psnr(first, second), abs=1e-4)
    with pytest.raises(ValueError, match="of one kind"):
        psnr(first, floats[1])


def test_any_of_a_pictures_captions_is_right():
    image = torch.eye(3)[:2]
    text = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.8, 0.0, 0.6], [0.6, 0.8, 0.0]])
    owner = torch.tensor([0, 0, 0, 1])
    # Picture 0 finds its second caption; picture 1 finds caption 0, which is not its own, and
    # only that caption finds the wrong picture.
    assert recall_at_k(image, text, 1, image_of_text=owner) == (0.5, 0.75)
    assert recall_at_k(image, text, 2, image_of_text=owner) == (1.0, 1.0)


def test_a_picture_without_captions_can_only_be_found_wrongly():
    image, text = torch.eye(3), torch.eye(3)[[0, 2]]
    owner = torch.tensor([0, 1])
    assert recall_at_k(image, text, 1, image_of_text=owner) == (0.5, 0.5)


def test_zero_shot_accuracy_counts_the_largest_similarity():
    similarities = torch.tensor([[0.9, 0.1], [0.2, 0.3], [-0.1, -0.2], [0.0, 1.0]])
    assert zero_shot_accuracy(similarities, torch.tensor([0, 1, 1, 1])) == 0.75


def test_recall_counts_in_float32_also_under_autocast():
    image = torch.nn.functional.normalize(torch.tensor([[1.0, 0.001], [1.0, 0.002]]), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert recall_at_k(image.bfloat16(), image, 2) == (1.0, 1.0)


def ssim_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    """The equation, window by window and channel by channel."""
    found, (c1, c2) = [], ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
    for a, b in zip(x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]), strict=True):
        for i in range(a.shape[0] - 6):
            for j in range(a.shape[1] - 6):
                p, q = (v[i : i + 7, j : j + 7].ravel().astype(float) for v in (a, b))
                cov = np.cov(p, q)
                top = (2 * p.mean() * q.mean() + c1) * (2 * cov[0, 1] + c2)
                bottom = (p.mean() ** 2 + q.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)
                found.append(top / bottom)
    return float(np.mean(found))


def noisy(n: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    first = integers(256, n, 3, *size).byte()
    return first, (first.int() + integers(61, n, 3, *size, seed=1) - 30).clamp(0, 255).byte()


def test_ssim_is_its_equation():
    first, second = noisy(2, (9, 11))
    assert ssim(first, second) == pytest.approx(ssim_by_loops(first.numpy(), second.numpy()))


def test_ssim_equals_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    first, second = noisy(3, (32, 24))
    theirs = [
        metrics.structural_similarity(a, b, channel_axis=0, data_range=255)
        for a, b in zip(first.numpy(), second.numpy(), strict=True)
    ]
    assert ssim(first, second) == pytest.approx(np.mean(theirs), abs=1e-4)


def test_ssim_of_a_picture_and_itself_is_one():
    first, second = noisy(2, (16, 16))
    assert ssim(first, first) == 1
    assert ssim(first, second) < 1


def test_ssim_of_floats_is_that_of_the_bytes_they_stand_for():
    first, second = noisy(2, (16, 16))
    as_floats = [x.float() / 127.5 - 1 for x in (first, second)]
    assert ssim(*as_floats) == pytest.approx(ssim(first, second), abs=1e-6)


def test_ssim_of_pictures_below_its_window_is_an_error():
    with pytest.raises(ValueError, match="windows of 7 x 7"):
        ssim(*noisy(1, (6, 20)))


@pytest.mark.parametrize(
    ("indices", "share", "codes"),
    [
        ([0, 1, 2, 3], 1.0, 4.0),
        ([2, 2, 2, 2], 0.25, 1.0),
        ([0, 1, 0, 1], 0.5, 2.0),
        ([0, 0, 0, 1], 0.5, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_usage_of_a_known_case(indices, share, codes):
    assert usage(torch.tensor(indices), 4) == pytest.approx((share, codes), rel=1e-6)


@pytest.mark.parametrize(("counts", "expected"), [([3, 3, 3, 3], 4), ([5, 0, 0, 0], 1)])
def test_perplexity_is_the_number_of_equally_used_codes(counts, expected):
    assert perplexity(torch.tensor(counts).float()).item() == pytest.approx(expected)


# --- Fréchet distance: Gaussians with known answers, special cases --------------------------------


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


def test_the_distance_equals_scipys_formula():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = noise(60, 8).double(), 0.7 * noise(50, 8, seed=1).double() + 0.3
    (m1, s1), (m2, s2) = ((set_.mean(0), torch.cov(set_.T)) for set_ in (x, y))
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

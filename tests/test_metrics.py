"""Scores of known cases."""

import pytest
import torch

from minimodal.evaluation.metrics import psnr, recall_at_k


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

"""Scores of known cases."""

import pytest
import torch

from minimodal.evaluation.metrics import psnr, recall_at_k, zero_shot_accuracy


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

"""What is said of a VQGAN's reconstructions: networks and VQGANs whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from minimodal.data.images import ImageSource
from minimodal.errors import UserError
from minimodal.evaluation import on_data
from minimodal.evaluation.on_data import Networks, vqgan_on_data
from minimodal.evaluation.scoreboard import Redrawn

SHOWN = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])  # what the judge sees in each picture
LABELS = torch.tensor([0, 0, 1, 2, 3, 4, 5, 0])  # the judge is wrong about the last


def source(n: int = 8, *, labels: bool = True) -> ImageSource:
    """Even pictures; the red of each is ten times what it shows, and the judge reads it off."""
    pixels = np.zeros((n, 3, 8, 8), np.uint8)
    pixels[:, 0] = 10 * SHOWN[:n, None, None]
    return ImageSource(
        name="even",
        caption_lists=[[]] * n,
        pixels=pixels,
        labels=LABELS[:n].numpy() if labels else None,
        class_names=tuple("abcdefg") if labels else None,
    )


def red(pictures: Tensor) -> Tensor:
    return pictures[:, 0, 0, 0]


JUDGE = SimpleNamespace(classify=lambda pictures: (red(pictures) // 10).long())
FEATURES = SimpleNamespace(features=lambda x: torch.stack([red(x) / 100, 0 * red(x)], dim=1))


@pytest.fixture
def scores(monkeypatch):
    """Scores of a VQGAN that paints what a function makes of the pictures."""

    def measure(paint, networks: Networks, n: int = 8, **more) -> dict[str, float]:
        monkeypatch.setattr(on_data, "redraw", lambda _, images: Redrawn(paint(images), 0.5))
        monkeypatch.setattr(on_data, "embed_pictures", lambda net, x: net.features(x))
        return vqgan_on_data(None, source(n, **more), networks).scores

    return measure


def same(images: Tensor) -> Tensor:
    return images


def first_only(images: Tensor) -> Tensor:
    """The first picture, whatever was asked for."""
    return images[:1].expand_as(images)


# --- the judge -----------------------------------------------------------------------------------


def test_who_repeats_the_pictures_keeps_every_class(scores):
    found = scores(same, Networks(judge=JUDGE))
    assert found["judge_class_kept"] == 1 and found["codes_used"] == 0.5
    assert found["judge_right"] == found["judge_right_on_originals"] == 7 / 8


def test_who_always_paints_one_picture_keeps_its_class_only(scores):
    found = scores(first_only, Networks(judge=JUDGE))
    assert found["judge_class_kept"] == 2 / 8  # of those in which the judge sees it
    assert found["judge_right"] == 3 / 8  # of those that are of it
    assert found["judge_right_on_originals"] == 7 / 8


def test_without_labels_the_judge_still_says_whether_its_class_is_kept(scores):
    found = scores(first_only, Networks(judge=JUDGE), labels=False)
    assert found["judge_class_kept"] == 2 / 8 and "judge_right" not in found


# --- distances -----------------------------------------------------------------------------------

CLIP = Networks(clip=FEATURES)


def test_who_repeats_the_pictures_is_at_no_distance(scores):
    found = scores(same, CLIP)
    assert found["clip_frechet"] == pytest.approx(0, abs=1e-9)
    assert found["clip_precision"] == found["clip_recall"] == 1


def test_pictures_that_are_all_redder_are_as_far_as_their_features_moved(scores):
    found = scores(lambda images: images + 50, CLIP)
    stretched = 2**0.5  # unit vectors of two numbers are
    assert found["clip_frechet"] == pytest.approx((0.5 * stretched) ** 2, rel=1e-5)
    assert found["clip_kid"] > 0


def test_who_always_paints_one_picture_is_precise_and_recalls_that_one(scores):
    found = scores(first_only, CLIP)
    assert found["clip_precision"] == 1 and found["clip_recall"] == 2 / 8


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_pictures_for_distances_are_an_error(scores, n):
    with pytest.raises(UserError, match=rf"even: too few pictures \({n}\): .* need 4 or more"):
        scores(same, CLIP, n)


def test_four_pictures_are_enough_and_without_networks_one_is(scores):
    assert "clip_kid" in scores(same, CLIP, 4)
    assert "ssim" in scores(same, Networks(), 1)

"""What is said of a VQGAN's reconstructions: networks and VQGANs whose answers are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tiny import noise
from helpers.worlds import Painter, Reader, wrong_background
from torch import Tensor

from minimodal.data.images import ImageSource
from minimodal.errors import UserError
from minimodal.evaluation import on_data
from minimodal.evaluation.on_data import (
    class_scores,
    distance_of_drawn,
    recall_of_captions,
    vqgan_on_data,
)
from minimodal.evaluation.scoreboard import Reconstructed

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

    def measure(paint, n: int = 8, *, clip=None, judge=None, **more) -> dict[str, float]:
        monkeypatch.setattr(
            on_data, "reconstruct", lambda _, images: Reconstructed(paint(images), None, 0.5)
        )
        monkeypatch.setattr(on_data, "embed_pictures", lambda net, x: net.features(x))
        return vqgan_on_data(None, source(n, **more), clip=clip, judge=judge).scores

    return measure


def same(images: Tensor) -> Tensor:
    return images


def first_only(images: Tensor) -> Tensor:
    """The first picture, whatever was asked for."""
    return images[:1].expand_as(images)


# --- the judge -----------------------------------------------------------------------------------


def test_who_repeats_the_pictures_keeps_every_class(scores):
    found = scores(same, judge=JUDGE)
    assert found["judge_class_kept"] == 1 and found["codes_used"] == 0.5
    assert found["judge_right"] == found["judge_right_on_originals"] == 7 / 8


def test_who_always_paints_one_picture_keeps_its_class_only(scores):
    found = scores(first_only, judge=JUDGE)
    assert found["judge_class_kept"] == 2 / 8  # of those in which the judge sees it
    assert found["judge_right"] == 3 / 8  # of those that are of it
    assert found["judge_right_on_originals"] == 7 / 8


def test_without_labels_the_judge_still_says_whether_its_class_is_kept(scores):
    found = scores(first_only, judge=JUDGE, labels=False)
    assert found["judge_class_kept"] == 2 / 8 and "judge_right" not in found


# --- distances -----------------------------------------------------------------------------------


def test_who_repeats_the_pictures_is_at_no_distance(scores):
    found = scores(same, clip=FEATURES)
    assert found["clip_frechet"] == pytest.approx(0, abs=1e-9)


def test_pictures_that_are_all_redder_are_as_far_as_their_features_moved(scores):
    found = scores(lambda images: images + 50, clip=FEATURES)
    stretched = 2**0.5  # unit vectors of two numbers are
    assert found["clip_frechet"] == pytest.approx((0.5 * stretched) ** 2, rel=1e-5)


def test_a_single_picture_has_no_distance_and_is_an_error(scores):
    with pytest.raises(UserError, match="even: a single picture: .* needs 2 or more"):
        scores(same, 1, clip=FEATURES)


def test_two_pictures_are_enough_and_without_networks_one_is(scores):
    assert "clip_frechet" in scores(same, 2, clip=FEATURES)
    assert "ssim" in scores(same, 1)


# --- drawn from text ----------------------------------------------------------------------------


class Sighted:
    """A judge that reads the number that `Numbers` decoded."""

    def classify(self, pictures):
        return pictures[:, 0, 0, 0].long()


class Numbers(Painter):
    """Paints the number of the caption, but every odd picture of class 1 as class 0."""

    def __call__(self, prompts, n, seed):
        wanted = torch.tensor([int(p.split()[-1]) for p in prompts for _ in range(n)])
        odd = torch.arange(len(wanted)) % 2 == 1
        wanted = torch.where((wanted == 1) & odd, 0, wanted)
        return wanted.byte().view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_the_judge_counts_the_classes_that_were_asked_for():
    captions = ["number 0", "number 1", "number 2"]
    scores = class_scores(Numbers(), ["zero", "one", "two"], captions, Sighted(), seed=0, each=4)
    assert scores["judge_agrees"] == pytest.approx(10 / 12, abs=1e-3)
    assert (scores["judge_agrees_zero"], scores["judge_agrees_one"]) == (1.0, 0.5)


def test_recall_is_whether_a_clip_finds_the_caption_of_a_drawn_picture():
    prompts = [
        "a large red circle on white",
        "a small blue star on gray",
        "a small red ring on black",
    ]
    found = recall_of_captions(Painter(), Reader(), prompts, seed=0)
    assert found["clip_recall_at_1"] == 1 and found["chance_at_1"] == pytest.approx(1 / 3, abs=1e-3)
    spoilt = recall_of_captions(Painter(wrong_background), Reader(), prompts, seed=0)
    assert spoilt["clip_recall_at_1"] < 1


def test_recall_is_not_understated_by_rounding(monkeypatch):
    # Every picture has its caption's own vector, so each finds its caption, or the sum is wrong.
    vectors = torch.nn.functional.normalize(noise(200, 128), dim=1)
    assert torch.equal((vectors @ vectors.T).argmax(1), torch.arange(200))
    for name in ("embed_pictures", "embed_captions"):
        monkeypatch.setattr(on_data, name, lambda *_: vectors)
    found = recall_of_captions(lambda *_: None, None, [""] * 200, seed=0)
    assert found["clip_recall_at_1"] == found["clip_recall_at_5"] == 1


def test_pictures_drawn_like_the_unseen_ones_are_no_further_off_than_these(monkeypatch):
    """Captions are numbers; a system that draws just those pictures, and one that draws others."""
    val = replace(source(8), caption_lists=[[str(i)] for i in range(8)])
    monkeypatch.setattr(on_data, "embed_pictures", lambda net, x: net.features(x))
    every = torch.from_numpy(val.images(np.arange(8)))

    def same(prompts, n, seed):
        return every[[int(p) for p in prompts]]

    found = distance_of_drawn(same, FEATURES, val, n=8, seed=0)
    assert found["clip_frechet"] == pytest.approx(0, abs=1e-4) and found["of_halves"] > 0
    wrong = distance_of_drawn(lambda *_: 0 * every + 200, FEATURES, val, n=8, seed=0)
    assert wrong["clip_frechet"] > found["of_halves"]

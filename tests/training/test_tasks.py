"""What tasks do beside their losses: seeded starts, rows of a batch, cached codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import systems
from helpers.cifar import NAMES_10, batch, write
from helpers.marks import at_once
from torch import nn

from minimodal.blocks.pixels import to_float
from minimodal.data.sources import batch_indices
from minimodal.errors import UserError
from minimodal.training.checkpoint import read_metrics
from minimodal.training.recipes import clip, recipe_for
from minimodal.training.tasks.clip import shift_all
from minimodal.training.tasks.common import flip_some, seeded


def test_a_seeded_start_depends_on_the_seed_and_leaves_others_draws_alone():
    before = torch.get_rng_state()
    first, again, other = (seeded(lambda: nn.Linear(4, 4), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("kind", systems.TINY)
def test_rows_of_a_batch_are_the_same_whoever_asks_for_them(kind, tmp_path):
    task = systems.TINY[kind](tmp_path / kind, systems.ENGINE)
    whole = task.batch(3, slice(0, 8))
    halves = [task.batch(3, slice(0, 4)), task.batch(3, slice(4, 8))]
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([half[name] for half in halves])), name


def test_a_clip_knows_the_words_of_the_captions_that_it_reads_and_no_others():
    known = systems.make_clip().known.words
    assert "square" in known and "squares" not in known  # which count, and contrasts do not


def test_captions_of_one_class_can_be_positives_of_each_other(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write(folder / "data_batch_1", batch(40, 1))
    write(folder / "test_batch", batch(8, 2))
    write(folder / "batches.meta", {"label_names": NAMES_10})
    recipe = recipe_for("clip", "cifar10")
    assert recipe.training.same_class
    task = clip.build(recipe, f"cifar10:{tmp_path}")
    found = task.batch(0, slice(0, 64))["captions"]
    rows = batch_indices(40, 64, 0, seed=0)
    assert found.tolist() == task.train.labels[rows].tolist()
    with pytest.raises(UserError, match="no classes"):
        clip.build(recipe, "shapes:400")


def test_bytes_become_floats_between_minus_one_and_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert to_float(images).flatten().tolist() == [-1.0, 1.0]


def test_only_the_chosen_pictures_are_mirrored():
    images = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    flipped = flip_some(images, np.array([True, False]))
    assert np.array_equal(flipped[0], images[0][..., ::-1])
    assert np.array_equal(flipped[1], images[1])


def test_a_picture_moves_down_and_right_and_its_edge_follows():
    images = np.arange(9).reshape(1, 1, 3, 3).repeat(2, axis=0)
    moved = shift_all(images, np.array([[1, 0], [0, -2]]))
    assert moved[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert moved[1, 0].tolist() == [[2, 2, 2], [5, 5, 5], [8, 8, 8]]


def test_pictures_become_codes_once(tmp_path, capsys):
    systems.make_dalle(tmp_path / "d")
    assert "once" in capsys.readouterr().err
    task = systems.make_dalle(tmp_path / "d")
    assert "once" not in capsys.readouterr().err
    assert task.codes.shape == (400, 8, 8)


# The up-sampler is a U-Net as the decoder is, and takes longer.
@pytest.mark.parametrize("kind", at_once(systems.TINY, *(set(systems.TINY) - {"upsampler"})))
def test_each_system_trains_evaluates_and_draws_in_bfloat16(tmp_path, kind):
    engine = replace(systems.ENGINE, steps=6, precision="bfloat16", accumulate=2)
    systems.train(kind, tmp_path / kind, engine)
    last = read_metrics(tmp_path / kind)[-1]
    assert last["done"]
    assert len(last) > 3  # scores beside step, seconds and done
    drawn = list((tmp_path / kind / "samples").glob("*.png"))
    assert bool(drawn) == (kind != "prior")  # embeddings are no pictures


def test_a_decoder_of_smaller_pictures_is_told_clips_reading_of_the_whole_ones_as_a_prior(tmp_path):
    small = systems.make_unclip("decoder", tmp_path / "a", image_size=16)
    prior = systems.make_unclip("prior", tmp_path / "a")
    assert torch.equal(small.embedded.embeddings, prior.embedded.embeddings)
    assert small.batch(0, slice(0, 2))["images"].shape == (2, 3, 16, 16)
    assert small.evaluate(small.model)["val_loss"] > 0

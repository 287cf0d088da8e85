"""The scoreboard against models whose scores are known: perfect ones, blind ones, random ones."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tiny import make_clip, make_dalle, make_painter, make_vqgan
from helpers.worlds import Blind, Painter, Reader, scenes_of, wrong_background

from minimodal.blocks.painter import Painter as VQGANPainter
from minimodal.data.tokenizer import Tokenizer
from minimodal.data.words import KnownWords
from minimodal.evaluation import scoreboard
from minimodal.evaluation.scoreboard import (
    baseline_scores,
    clip_scores,
    dalle_scores,
    draw_with,
    format_scoreboard,
    rerank,
    shares,
    text_to_picture_scores,
    vqgan_scores,
    words,
)
from minimodal.shapes.language import parse
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import Scenes, has_held_out, render, statements, swap
from minimodal.shapes.worlds import WORLDS

SAMPLING = {"temperature": 0.7, "guidance": 2.0}
# --- what scenes say -----------------------------------------------------------------------------


def test_a_statement_does_not_depend_on_which_object_is_named_first():
    said = ["a small red circle left of a large blue box on white",
            "a big blue square to the right of a tiny red disc on white"]  # fmt: skip
    one, other = statements(scenes_of([parse(text) for text in said]))
    assert (one == other).all()


def test_equal_objects_that_change_places_say_the_same_and_different_ones_do_not():
    same = "a small red circle left of a small red circle on white"
    size = "a small red circle left of a large red circle on white"
    for text, changes in ((same, False), (size, True)):
        scene = scenes_of([parse(text)])
        assert (statements(scene) != statements(swap(scene, "relation"))).any() == changes


def test_statements_tell_apart_all_that_captions_tell_apart():
    source = ShapesSource(0, split="val", pairs="all")
    scenes = source.scenes(np.arange(2000))
    texts = source.full_captions(np.arange(2000), np.random.default_rng(0))
    assert (statements(scenes) == statements(scenes_of([parse(t) for t in texts]))).all()
    for name, count in (("shape", 6), ("color", 8), ("size", 2)):
        values = {f: getattr(scenes, f) for f in Scenes.__dataclass_fields__}
        changed = values[name].copy()
        changed[:, 0] = (changed[:, 0] + 1) % count
        other = statements(Scenes(**(values | {name: changed})))
        # One change in one object: never the same, whatever the other object is.
        assert (other != statements(scenes)).any(axis=1).all()


# --- CLIP ----------------------------------------------------------------------------------------


def test_a_clip_that_understands_has_full_marks_and_a_blind_one_none():
    # Full marks also mean that no twin is true of its picture: the vectors would be equal.
    scores = clip_scores(Reader(), sets=2)
    assert set(scores) == {
        "recall_at_1", "recall_at_1_image", "recall_at_1_text", "recall_at_1_loose", "swap_color",
        "swap_shape", "swap_relation", "replace_color", "replace_shape",
    }  # fmt: skip
    assert set(scores.values()) == {1.0}
    blind = clip_scores(Blind(), sets=2)
    assert blind["recall_at_1"] == pytest.approx(1 / 256, abs=1e-4)
    assert {blind[name] for name in blind if "recall" not in name} == {0.0}


def test_twins_are_of_the_same_words_and_never_of_a_pair_that_training_held_out(monkeypatch):
    asked, reader = [], Reader()
    read_texts = reader.tokenize
    monkeypatch.setattr(
        reader, "tokenize", lambda texts, **named: asked.append(texts) or read_texts(texts, **named)
    )
    clip_scores(reader, sets=1)
    originals, typed, _, _, relations, *_ = asked
    assert len(asked) == 7 and all(asked)
    said = [statements(scenes_of([parse(text) for text in texts])) for texts in (originals, typed)]
    assert (said[0] == said[1]).all() and originals != typed
    for texts in asked:
        assert not has_held_out(scenes_of([parse(text) for text in texts])).any()

    def nouns(text: str) -> str:
        """A caption without what tells where things are."""
        return re.sub(r"\b(to|the|its|it|left|right|of|above|over|below|under|beneath) ?", "", text)

    assert {nouns(text).strip() for text in relations} <= {nouns(t).strip() for t in originals}


def test_recall_is_that_of_the_harder_direction(monkeypatch):
    monkeypatch.setattr(scoreboard, "recall_at_k", lambda *_: (0.25, 0.75))
    scores = clip_scores(Blind(), sets=1)
    assert scores["recall_at_1"] == scores["recall_at_1_image"] == 0.25
    assert scores["recall_at_1_text"] == 0.75


def test_an_untrained_clip_guesses():
    tokenizer = Tokenizer.train(["a red circle"], 300)
    clip = make_clip(image_size=16, vocab_size=tokenizer.vocab_size, text_length=90)
    clip.tokenizer = tokenizer
    scores = clip_scores(clip, n=300, sets=1)
    assert scores["recall_at_1"] < 0.05
    assert 0.35 < scores["swap_color"] < 0.65


def test_rerank_puts_the_fitting_picture_first():
    prompts = ["a large red circle on white", "a small blue star on gray"]
    right = Painter()(prompts, 1, 0)
    wrong = torch.from_numpy(render(wrong_background(scenes_of([parse(p) for p in prompts]))))
    sets = torch.stack([torch.stack([wrong[0], right[0]]), torch.stack([right[1], wrong[1]])])
    order, similarity = rerank(Reader(), prompts, sets)
    assert order.tolist() == [[1, 0], [0, 1]]
    assert similarity[:, 0] == pytest.approx([1.0, 1.0]) and (similarity[:, 1] < 0.9).all()


# --- text to picture -----------------------------------------------------------------------------


def scores_of(painter: Painter, clip: Reader | None = None, **settings) -> dict[str, float]:
    return text_to_picture_scores(painter, clip, unguided=painter, **settings)


def test_a_perfect_painter_has_full_marks_in_everything():
    painter = Painter()
    scores = scores_of(painter, n=40)
    assert scores.pop("images_per_second") > 0 and scores.pop("images_per_second_guided") > 0
    assert set(scores.values()) == {1.0}
    assert not {"images_per_second", "seen_no_guidance"} & set(text_to_picture_scores(painter, n=4))
    for split in ("seen", "held_out"):
        for what in ("", "_one_object", "_no_guidance", "_loose", "_shape", "_color", "_relation"):
            assert split + what in scores
    assert not [name for name in scores if "rerank" in name]


def test_one_wrong_attribute_is_blamed_alone():
    scores = scores_of(Painter(wrong_background), n=40)
    assert scores["seen"] == scores["seen_background"] == scores["held_out_one_object"] == 0
    assert scores["seen_shape"] == scores["seen_color"] == scores["seen_relation"] == 1


def test_one_object_is_scored_by_itself():
    def two_are_too_many(scenes: Scenes, first: bool) -> Scenes:
        values = {f: getattr(scenes, f) for f in Scenes.__dataclass_fields__}
        spoilt = np.where(scenes.count == 2, (scenes.background + 1) % 3, scenes.background)
        return Scenes(**(values | {"background": spoilt}))

    scores = scores_of(Painter(two_are_too_many), n=40)
    for split in ("seen", "held_out"):
        assert scores[f"{split}_one_object"] == 1 > scores[split] > 0


def test_reranking_is_scored_on_the_best_of_four():
    # The first sample is wrong, the three that are drawn to choose among are right.
    painter = Painter(lambda scenes, first: wrong_background(scenes) if first else scenes)
    scores = scores_of(painter, Reader(), n=20)
    assert scores["seen"] == 0 and scores["seen_rerank4"] == scores["held_out_rerank4"] == 1


def test_the_sampling_is_what_was_asked_for_but_for_the_comparison_without_guidance():
    painter = Painter()
    dalle_scores(painter, n=64, sampling=SAMPLING)
    a_split = [(64, 0.7, 2.0), (32, 0.7, 1.0), (32, 0.7, 2.0)]  # scored, unguided, loose
    assert painter.calls == [(32, 0.7, 2.0), *a_split * 2]


def test_the_fewest_pictures_give_valid_json():
    for seed in range(4):  # a single caption has one object or two
        scores = scores_of(Painter(), Reader(), n=1, seed=seed)
        json.dumps(scores, allow_nan=False)
        assert scores["seen"] == 1


def test_an_untrained_dalle_draws_nothing_right():
    tokenizer = Tokenizer.train(["a red circle"], 300)
    dalle = make_dalle(vocab_size=tokenizer.vocab_size, text_length=90)
    dalle.tokenizer = tokenizer
    dalle.painter = VQGANPainter(make_vqgan(codes=(11,)))
    scores = dalle_scores(dalle, n=8, sampling=SAMPLING)
    assert scores["seen"] == scores["held_out"] == 0


def test_words_that_training_held_out_are_drawn_all_the_same():
    dalle = make_painter()
    dalle.words = KnownWords.of(["a red circle"])
    assert len(draw_with(dalle, SAMPLING)(["a small violet donut"], 2, 0)) == 2


def test_what_has_no_cases_has_no_share():
    assert shares({"a": [True, False], "b": np.array([], bool)}) == {"a": 0.5}


# --- VQGAN ---------------------------------------------------------------------------------------


def test_a_vqgan_that_loses_nothing_has_full_marks_and_the_least_used_codebook_counts():
    def encode(images):
        codes = torch.arange(len(images))[:, None, None].expand(-1, 2, 2)
        return SimpleNamespace(z=images, indices=codes)

    vqgan = SimpleNamespace(
        config=SimpleNamespace(image_size=32, codes=(4, 10)),
        last_layer=torch.zeros(1),
        encode=encode,
        decode=lambda z: z,
        quantizer=SimpleNamespace(factors=lambda joint: [joint % 4, joint % 5]),
    )
    scores = vqgan_scores(vqgan, n=60)
    assert scores["oracle_exact"] == 1 and scores["psnr"] > 100 and scores["codes_used"] == 0.5


def test_an_untrained_vqgan_shows_nothing_that_can_be_read():
    scores = vqgan_scores(make_vqgan(), n=20)
    assert scores["oracle_exact"] < 0.2 and scores["psnr"] < 25 and 0 < scores["codes_used"] <= 1


# --- baselines and the table ---------------------------------------------------------------------


def test_synonyms_are_the_same_word():
    first, second, third = words(
        ["a tiny disc on grey", "on gray a little circle", "a small circle on white"]
    )
    assert (first == second).all() and (first != third).any()


@pytest.mark.parametrize(("world", "least"), [("shapes", 0.2), ("hard", 0.0)])
def test_the_nearest_caption_beats_chance_and_never_holds_what_training_never_showed(world, least):
    scores = baseline_scores(n=60, pool=3000, world=WORLDS[world])
    assert scores["nearest_caption"] > least >= scores["chance"]
    assert scores["nearest_caption_held_out"] == scores["chance_held_out"] == 0


def test_more_prompts_than_the_pool_are_fine():
    assert set(baseline_scores(n=12, pool=5)) == {
        "chance", "chance_held_out", "nearest_caption", "nearest_caption_held_out"
    }  # fmt: skip


def test_the_table_has_every_score():
    board = {
        "vqgan": {"oracle_exact": 0.99},
        "dalle": {"seen": 0.5, "seen_shape": 0.7},
        "unclip": {"seen": 0.125},
        "seconds": {"all": 12.5},
        "machine": {"cpu": "one"},
        "seed": 0,
    }
    lines = format_scoreboard(board).splitlines()
    assert len(lines) == 5
    assert lines[3].split() == ["unclip", "seen", "0.125"] and lines[4].endswith("all 12.5")
    assert format_scoreboard({}) == ""

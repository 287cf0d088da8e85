"""Scores of VQGAN+CLIP beside what it has to beat: which prompts, who draws, the command."""

import json

import numpy as np
import pytest
import torch

from minimodal.blocks.pixels import to_uint8
from minimodal.cli import evaluate
from minimodal.cli import pool as pool_file
from minimodal.cli.main import main
from minimodal.evaluation import guided
from minimodal.evaluation.guided import KINDS, demo_scores, following, guided_scores, prompts_of
from minimodal.evaluation.scoreboard import nearest_captions
from minimodal.runs import load
from minimodal.shapes.source import ShapesSource
from minimodal.shapes.world import has_held_out, render
from minimodal.shapes.worlds import WORLDS
from minimodal.vqgan_clip.optimise import OptimiseConfig
from minimodal.vqgan_clip.search import SearchConfig


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_unseen_full_captions_of_their_kind(kind):
    pairs, count = KINDS[kind]
    texts = prompts_of(kind, 20, seed=3)
    source, numbers = ShapesSource(3, split="val", pairs=pairs), np.arange(8 * 20 + 64)
    captions = source.full_captions(numbers, np.random.default_rng(3))
    scenes = source.scenes(np.array([captions.index(text) for text in texts]))
    assert len(texts) == 20 and (scenes.count == count).all()
    assert (has_held_out(scenes) == (pairs == "held_out")).all()


def test_the_nearest_caption_of_a_training_caption_is_its_own_picture():
    train, numbers = ShapesSource(0), np.arange(50)
    captions = train.full_captions(numbers, np.random.default_rng(1))
    drawn = nearest_captions(seed=0, pool=50)(captions[:9], 2, 0).numpy()
    texts = [captions.index(text) for text in captions[:9] for _ in range(2)]
    assert (drawn == train.images(np.array(texts))).all()


def perfect(prompts, n, seed):
    found = []
    for kind, (pairs, _) in KINDS.items():
        if list(prompts) == prompts_of(kind, len(prompts), seed=seed):
            source = ShapesSource(seed, split="val", pairs=pairs)
            numbers = np.arange(8 * len(prompts) + 64)
            texts = source.full_captions(numbers, np.random.default_rng(seed))
            found = np.array([texts.index(prompt) for prompt in prompts])
            return torch.from_numpy(render(source.scenes(found), 32))
    raise AssertionError("prompts of no kind")


def blind(prompts, n, seed):
    return torch.zeros(len(prompts), 3, 32, 32, dtype=torch.uint8)


def test_a_perfect_system_scores_one_and_a_blind_one_nothing(capsys):
    board = guided_scores({"perfect": perfect, "blind": blind}, n=5, seed=2)
    assert all(board["perfect"][kind] == 1 and board["blind"][kind] == 0 for kind in KINDS)
    assert capsys.readouterr().err.count("CPU s a picture") == 6


def test_the_demo_scores_search_and_gradient_apart_and_shows_a_row_of_eight():
    right, wrong = (
        demo_scores(*both, n=5, seed=2) for both in ((perfect, blind), (blind, perfect))
    )
    assert right.scores == {**dict.fromkeys(KINDS, 1.0), "gradient_only": 0.0}
    assert wrong.scores == {**dict.fromkeys(KINDS, 0.0), "gradient_only": 1.0}
    assert len(right.captions) == len(right.pictures) == 8
    assert isinstance(right.pictures, np.ndarray)  # of a process that may have ended
    assert all(v.exact for v in WORLDS["shapes"].score(right.captions, right.pictures))


def test_the_gradient_alone_begins_at_random_codes_of_its_own_seed(demo):
    vqgan, clip = (load(demo / kind).requires_grad_(False) for kind in ("vqgan", "clip"))
    draw = following(vqgan, clip, OptimiseConfig(steps=1, views=1))
    pair = draw(["a large red circle", "a large red circle"], 1, 3)
    assert torch.equal(draw(["a large red circle"], 1, 3), pair[:1])
    assert not torch.equal(pair[0], pair[1])
    side, size = vqgan.config.image_size // vqgan.config.factor, vqgan.quantizer.size
    codes = torch.randint(size, (1, side, side), generator=torch.Generator().manual_seed(3))
    # The best step of one step is the start.
    assert torch.equal(to_uint8(vqgan.decode_indices(codes)), pair[:1])


def test_the_command_scores_a_demo_folder_and_nothing_else(demo, tmp_path, monkeypatch, capsys):
    sized, found = pool_file.pool_of, guided.find
    monkeypatch.setattr(evaluate, "pool_of", lambda *given: sized(*given, size=6))
    short = SearchConfig(4, members=2, children=1)
    monkeypatch.setattr(guided, "find", lambda *given, config, **named: found(
        *given, config=config and short, **named))  # fmt: skip
    monkeypatch.setattr(evaluate, "guided_scores", lambda systems, n, seed: {
        name: {"drawn": len(draw(["a large red circle"] * n, 1, seed))}
        for name, draw in systems.items() if name != "nearest_caption"
    })  # fmt: skip
    words = ["evaluate", str(demo), "--method", "vqgan-clip", "-n", "2", "--device", "cpu"]
    assert main([*words, "--json", "--out", str(tmp_path / "scores.json")]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores.keys() == {"vqgan_clip", "best_of_pool", "dalle"}
    assert all(row["drawn"] == 2 for row in scores.values())
    assert main(["evaluate", str(demo / "dalle"), *words[2:]]) == 2
    assert "--method vqgan-clip needs a demo folder" in capsys.readouterr().err

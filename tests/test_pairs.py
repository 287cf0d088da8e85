"""Two pictures in DALL·E's stream: the first is given, the second drawn; from model to command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import systems
from helpers.commands import SIDE, refusal, write_demo
from helpers.decoding import TEXT, ask, decode
from helpers.tiny import WORDS, generator, integers, make_dalle, make_painter, make_vqgan
from PIL import Image

from minimodal.blocks.given import Given, what_stays
from minimodal.cli import train
from minimodal.cli.main import main as minimodal
from minimodal.dalle import DALLE, DALLEConfig
from minimodal.errors import UserError
from minimodal.evaluation.edits import edit_scores, edit_with
from minimodal.evaluation.scoreboard import reconstruct
from minimodal.runs import load
from minimodal.shapes.edits import EditsSource
from minimodal.training.recipes import dalle as system
from minimodal.training.recipes import recipe_for
from minimodal.training.tasks.codes import tokenize_pictures

GRID = 3
KNOWN = torch.cat([integers(20, 3, GRID, GRID, seed=4), torch.zeros(3, GRID, GRID).long()], dim=1)
FIRST = torch.tensor([[True] * GRID] * GRID + [[False] * GRID] * GRID)  # keep
KINDS = {
    "full": {},
    **{name: {"attention": name, "kernel": 3} for name in ("row", "column", "conv", "paper")},
    "rotary": {"rotary": True},
}


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_second_picture_is_drawn_as_training_sees_it_and_the_first_stays(
    kind, scale, monkeypatch
):
    model = make_dalle(grid=GRID, pictures=2, codes=(5, 4), depth=4, **KINDS[kind])
    given = dict(known=KNOWN, keep=FIRST, seed=3, guidance=scale)
    cached, logits = decode(model, TEXT, monkeypatch, **given)
    plain, expected = decode(model, TEXT, monkeypatch, use_cache=False, **given)
    assert torch.equal(cached, plain) and len(logits) == 2 * GRID**2
    assert torch.equal(cached[:, :GRID], KNOWN[:, :GRID])
    with_caption, without = (model(text, cached).image for text in (TEXT, torch.zeros_like(TEXT)))
    for number, (a, b) in enumerate(zip(logits, expected, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        place = GRID**2 + number // 2
        full = [part[number % 2][:, place] for part in (with_caption, without)]
        torch.testing.assert_close(a, full[1] + scale * (full[0] - full[1]), rtol=0, atol=1e-4)


def test_the_second_picture_depends_on_the_first():
    model = make_painter(pictures=2, codes=(40,))
    model.painter.encode = lambda x: F.avg_pool2d(x.float().mean(1), 2).long() % 40  # all differ
    one, other = (integers(256, 3, SIDE, SIDE, seed=s).to(torch.uint8) for s in (0, 1))
    drawn = [ask(model, WORDS[0], 2, generator=generator(), first=f) for f in (one, other)]
    assert drawn[0].shape == (2, 3, SIDE, SIDE) and not torch.equal(*drawn)
    both = ask(model, WORDS[:2], 2, seeds=[1, 2, 3, 4], first=torch.stack([one, other]))
    alone = ask(model, WORDS[1], 2, seeds=[3, 4], first=other)
    assert torch.equal(both[2:], alone)
    split = ask(
        model, WORDS[:2], 2, seeds=[1, 2, 3, 4], first=torch.stack([one, other]), batch_size=3
    )
    assert torch.equal(split, both)


def test_places_of_the_second_picture_follow_those_of_the_first():
    model = make_dalle(grid=GRID, pictures=2, rotary=True)
    assert model.rows.shape[0] == 2 * GRID and model.columns.shape[0] == GRID
    angles, one = model.angles(0, 6 + 18), make_dalle(grid=GRID, rotary=True).angles(0, 6 + 9)
    assert torch.equal(angles[:15], one)
    pairs = angles.shape[1] // 2
    assert torch.equal(angles[15:, pairs:], angles[6:15, pairs:])  # columns begin anew
    turned = (angles[15:, :pairs] - angles[6:15, :pairs]) / (angles[9, :pairs] - angles[6, :pairs])
    torch.testing.assert_close(turned, torch.full_like(turned, GRID))  # rows go on


def test_only_the_second_picture_is_learned():
    model = make_dalle(grid=GRID, pictures=2)
    codes = integers(11, 3, 2 * GRID, GRID)
    _, parts = model.loss(TEXT, codes)
    log_p = model(TEXT, codes).image[0].log_softmax(-1)[:, GRID**2 :]
    by_hand = -log_p.gather(-1, codes.flatten(1)[:, GRID**2 :, None]).mean()
    torch.testing.assert_close(parts["image_loss"], by_hand)


def test_one_picture_is_as_before():
    one, two = make_dalle(), make_dalle(pictures=2)
    assert DALLEConfig().pictures == 1 and one.rows.shape == (3, 16)
    assert set(one.state_dict()) == set(two.state_dict())
    grown = {k for k, v in one.state_dict().items() if v.shape != two.state_dict()[k].shape}
    assert grown == {"rows"}
    with pytest.raises(UserError, match="pictures 3: expected 1 or 2"):
        DALLEConfig(pictures=3)


def test_nothing_given_keeps_nothing():
    how = dict(grid=3, prompts=2, n=1, device=torch.device("cpu"))
    kept = what_stays(Given(), make_painter().painter, **how)
    assert kept.codes.shape == (2, 3, 3) and not kept.keep.any() and kept.complete is None


@pytest.mark.parametrize(
    ("pictures", "settings", "words"),
    [
        (1, {"first": (3, 6, 6)}, "takes no first picture"),
        (2, {}, "give it that first picture"),
        (2, {"first": (3, 8, 6)}, "the first picture has 6 x 8 pixels: expected 6 x 6"),
        (2, {"first": (3, 3, 6, 6)}, "3 first pictures for 1 prompts"),
        (2, {"first": (3, 6, 6), "complete": (3, 6, 6)}, "not both"),
        (2, {"complete": (3, 6, 6)}, "give it that first picture"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_drawn(pictures, settings, words):
    model = make_painter(pictures=pictures)
    model.transformer = None  # drawing would fail in another way
    given = {name: torch.zeros(size, dtype=torch.uint8) for name, size in settings.items()}
    with pytest.raises(UserError, match=words):
        ask(model, "a red circle", generator=generator(), **given)


# --- training ------------------------------------------------------------------------------------


def test_both_pictures_are_encoded_by_themselves():
    vqgan, source = make_vqgan(image_size=32, codes=(40,)), EditsSource(image_size=32, length=5)
    codes = tokenize_pictures(vqgan, source, n=5, flip=False, device=torch.device("cpu"))
    images = torch.from_numpy(source.images(np.arange(5))).float() / 127.5 - 1
    h = vqgan.config.grid
    assert codes.shape == (5, 2 * h, h)
    for part, rows in ((images[:, :, :32], codes[:, :h]), (images[:, :, 32:], codes[:, h:])):
        assert torch.equal(vqgan.encode(part).indices.int(), rows)


def test_a_run_on_pairs_trains_draws_is_scored_and_loaded(tmp_path, capsys):
    engine = replace(systems.ENGINE, steps=4)
    recipe = recipe_for("dalle", "edits")
    model = replace(recipe.model, width=16, depth=1, heads=2)
    recipe, runs = recipe._replace(model=model, engine=engine), systems.short_vqgan(tmp_path / "d")
    task = system.build(recipe, "shapes:edits:40", {"vqgan": runs})
    assert task.codes.shape == (40, 16, 8)
    systems.run(task, engine, tmp_path / "d", data_spec="shapes:edits:40", device="cpu")
    dalle = load(tmp_path / "d")
    assert dalle.config.pictures == 2
    with Image.open(next((tmp_path / "d" / "samples").glob("*.png"))) as picture:
        assert picture.size == (8 * 32, 2 * 2 * 32)  # pairs, the first above the second
    scores = edit_scores(
        edit_with(dalle, {"temperature": 1.0}), n=8, size=32,
        reconstruct=lambda pictures: reconstruct(dalle.painter.vqgan, pictures).pictures,
    )  # fmt: skip
    assert scores["seen_unchanged"] == scores["held_out_unchanged"] == 0
    assert {"seen", "held_out", "seen_ceiling", "held_out_ceiling"} <= set(scores)
    assert minimodal(["evaluate", str(tmp_path / "d"), "-n", "3", "--json", "--device", "cpu"]) == 0
    assert "held_out" in json.loads(capsys.readouterr().out)["scores"]
    wrong = ["--data", "shapes", "--device", "cpu"]
    assert minimodal(["evaluate", str(tmp_path / "d"), *wrong]) == 2
    vqgan = str(tmp_path / "d" / "vqgan")
    assert minimodal(["evaluate", vqgan, "--data", "shapes:edits", "--device", "cpu"]) == 2


@pytest.mark.parametrize("system", ["vqgan", "clip"])
def test_pairs_are_for_a_dalle(system, tmp_path, capsys):
    words = [system, "--data", "shapes:edits", "--out", str(tmp_path / "run")]
    assert train.main(words) == 2
    error = capsys.readouterr().err
    assert f"use shapes for a {system}" in error and error.count("\n") == 1
    assert train.kind_of("shapes:edits:9") == "edits"


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("pairs") / "demo", data="shapes:edits", pictures=2)


@pytest.fixture
def demo(pairs):
    """What `run` draws with."""
    return pairs


def save(name: str, side: int = SIDE) -> None:
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(name)


def test_a_picture_and_a_caption_give_second_pictures(run):  # noqa: F811
    save("first.png")
    status, out, err = run("the same in red", "--first", "first.png", "-n", "2")
    assert status == 0 and "2 pictures" in out and "no clear scene" in err
    with Image.open("pictures/000-1.png") as picture:
        assert picture.size == (SIDE, SIDE)


def test_the_first_picture_reaches_the_model_as_it_is(run, monkeypatch):  # noqa: F811
    first, seen, original = integers(256, SIDE, SIDE, 3).byte(), [], DALLE.draw

    def spy(self, *args, **named):
        seen.append(named["given"])
        return original(self, *args, **named)

    monkeypatch.setattr(DALLE, "draw", spy)
    Image.fromarray(first.numpy()).save("first.png")
    assert run("the same in red", "--first", "first.png", "-n", "1")[0] == 0
    assert torch.equal(seen[0].first, first.permute(2, 0, 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give it that first picture (--first IMG)"),
        (("--first", "no.png"), "no.png"),
        (("--first", "large.png"), "has 9 x 9 pixels: expected 6 x 6"),
        (("--first", "first.png", "--complete", "first.png"), "--first and --complete do not go"),
        (("--first", "first.png", "--rerank", "8"), "--first and --rerank do not go"),
        (("--method", "vqgan-prior", "--first", "first.png"), "--first is for --method dalle"),
    ],
)
def test_a_wrong_first_picture_is_refused_in_one_line(run, words, message):  # noqa: F811
    save("first.png")
    save("large.png", 9)
    assert message in refusal(run("the same in red", "-n", "1", *words))


def test_a_run_of_one_picture_takes_no_first_one(run, tmp_path):  # noqa: F811
    save("first.png")
    folder = write_demo(tmp_path / "single")
    said = refusal(run("a red circle", "--first", "first.png", folder=folder))
    assert "takes no first picture" in said


def test_a_run_on_pairs_writes_no_captions_of_pictures(pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("first.png")
    assert minimodal(["caption", "first.png", "--run", str(pairs), "--device", "cpu"]) == 2
    assert "what becomes of a picture" in capsys.readouterr().err

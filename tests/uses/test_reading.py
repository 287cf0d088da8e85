"""DALL·E as a reader: likelihoods against the equation, captions it writes, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import write_demo
from helpers.tiny import generator, integers, make_dalle, make_painter
from PIL import Image

from minimodal.__main__ import main
from minimodal.blocks.sampling import sample_token
from minimodal.data.words import KnownWords
from minimodal.uses import reading
from minimodal.uses.reading import (
    Likelihood,
    caption_scores,
    describe,
    log_likelihood,
    write_captions,
)

TEXT = torch.tensor([[3, 7, 9, 0, 0], [4, 5, 6, 8, 0], [12, 0, 0, 0, 0]])


@pytest.mark.parametrize("codes", [(11,), (5, 4)], ids=["one codebook", "two codebooks"])
def test_the_likelihood_is_the_sum_of_the_losses_terms(codes):
    model = make_dalle(codes=codes)
    pictures = integers(math.prod(codes), 3, 3, 3, seed=5)
    found = log_likelihood(model, TEXT, pictures, batch_size=2)
    for row in range(3):
        _, parts = model.loss(TEXT[row : row + 1], pictures[row : row + 1])
        assert found.text[row].item() == pytest.approx(-5 * parts["text_loss"].item(), rel=1e-5)
        assert found.image[row].item() == pytest.approx(-9 * parts["image_loss"].item(), rel=1e-5)


def test_the_likelihood_of_a_pair_is_that_of_its_second_picture():
    model, pairs = make_dalle(pictures=2), integers(11, 3, 6, 3)
    found = log_likelihood(model, TEXT, pairs).image
    for row in range(3):
        _, parts = model.loss(TEXT[row : row + 1], pairs[row : row + 1])
        assert found[row].item() == pytest.approx(-9 * parts["image_loss"].item(), rel=1e-5)


def test_every_picture_is_scored_with_every_caption():
    model = make_painter()
    pictures, captions = integers(11, 2, 3, 3), ["a red circle", "a green star", "a blue square"]
    scores = caption_scores(model, pictures, captions)
    assert scores.shape == (2, 3)
    alone = log_likelihood(model, model.tokenize(captions[2:]), pictures[1:]).image
    assert scores[1, 2].item() == pytest.approx(alone.item(), rel=1e-5)


def test_written_captions_end_in_padding_and_hold_no_other_sign_of_the_end():
    model = make_dalle()
    text = write_captions(model, 300, generator=generator())
    assert text.shape == (300, 5) and text.max() < 20
    for row in text:
        length = int((row != 0).sum())
        assert (row[length:] == 0).all()


def test_captions_are_written_by_their_probability():
    """Every first token as often as the model says, cut to what may stand there."""
    model, n = make_dalle(), 4000
    text = write_captions(model, n, generator=generator())
    logits = model(TEXT[:1], integers(11, 1, 3, 3)).text[0, 0]
    possible = [*range(1, 20), 20]  # a word, or the padding token of position 0
    expected = logits[possible].softmax(0)
    drawn = torch.where(text[:, 0] == 0, 20, text[:, 0])
    found = torch.bincount(drawn, minlength=21)[possible] / n
    assert (found - expected).abs().max() < 4 * (0.25 / n) ** 0.5


@pytest.mark.parametrize("begin", [None, torch.tensor([7, 3])], ids=["plain", "begun"])
@pytest.mark.parametrize(
    "kind",
    [{}, {"rotary": True}, {"attention": "paper"}, {"codes": (5, 4)}],
    ids=str,
)
def test_writing_sees_the_logits_that_training_sees(kind, begin, monkeypatch):
    model, seen = make_dalle(**kind), []
    monkeypatch.setattr(
        reading,
        "sample_token",
        lambda logits, *given: seen.append(logits) or sample_token(logits, *given),
    )
    text = write_captions(model, 8, generator=generator(), begin=begin)
    expected = model(text, torch.zeros(8, 3, 3, dtype=torch.int64)).text
    first = 0 if begin is None else len(begin)
    assert len(seen) == 5 - first
    for t, logits in enumerate(seen, start=first):
        possible = [*range(1, 20), 20 + t]  # a word, or the padding token of position t
        assert torch.isfinite(logits).sum() == 8 * len(possible)
        torch.testing.assert_close(logits[:, possible], expected[:, t, possible], rtol=0, atol=1e-4)


def test_at_temperature_0_the_likeliest_caption_is_written():
    model = make_dalle()
    text = write_captions(model, 1, generator=generator(), temperature=0.0)
    said = model(text, torch.zeros(1, 3, 3, dtype=torch.int64)).text[0]
    length = int((text != 0).sum())
    assert 0 < length < 5
    for t, token in enumerate(text[0, : length + 1].tolist()):
        possible = [*range(1, 20), 20 + t]  # a word, or the padding token of position t
        assert possible[said[t, possible].argmax()] == (token or 20 + t)


def test_a_beginning_that_is_given_stays():
    text = write_captions(make_dalle(), 6, generator=generator(), begin=torch.tensor([7, 3]))
    assert (text[:, :2] == torch.tensor([7, 3])).all()


def test_one_round_finds_the_candidate_that_explains_the_picture_best():
    model, picture = make_painter(), integers(11, 3, 3, seed=2)
    found = describe(model, picture, generator=generator(), n=16, rounds=1)
    tried = write_captions(model, 16, generator=generator())
    scores = log_likelihood(model, tried, picture.expand(16, -1, -1)).image
    best = int(scores.argmax())
    assert torch.equal(found.text, tried[best]) and scores.min() < scores.max() - 1
    assert found.score == pytest.approx(scores[best].item(), rel=1e-5)
    assert found.caption == model.tokenizer.decode(t for t in tried[best].tolist() if t)


def test_later_rounds_keep_beginnings_of_the_best_so_far(monkeypatch):
    model, picture, rounds = make_painter(), integers(11, 3, 3, seed=2), []

    def watched(*given, begin, **named):
        rounds.append((begin, write_captions(*given, begin=begin, **named)))
        return rounds[-1][1]

    monkeypatch.setattr(reading, "write_captions", watched)
    describe(model, picture, generator=generator(), n=4, rounds=12)
    (nothing, tried), *later = rounds
    assert nothing is None and len(later) == 11
    for begin, text in later:
        scores = log_likelihood(model, tried, picture.expand(len(tried), -1, -1)).image
        best = tried[scores.argmax()]
        assert torch.equal(begin, best[: len(begin)]) and len(begin) < (best != 0).sum()
        tried = torch.cat([tried, text])
    assert len({len(begin) for begin, _ in later}) > 3


def test_an_empty_caption_describes_no_picture(monkeypatch):
    model, picture = make_painter(), integers(11, 3, 3, seed=2)
    text = write_captions(model, 2, generator=generator())
    text[0] = model.config.pad_id
    assert (text[1] != model.config.pad_id).any()

    def scores(model, text, codes):  # the empty caption explains every picture best
        return Likelihood(torch.zeros(len(text)), -(text != model.config.pad_id).sum(1).float())

    monkeypatch.setattr(reading, "write_captions", lambda *given, **named: text)
    monkeypatch.setattr(reading, "log_likelihood", scores)
    assert torch.equal(describe(model, picture, generator=generator()).text, text[1])


def test_a_description_is_the_best_of_what_was_tried():
    model = make_painter()
    picture = integers(11, 3, 3, seed=2)
    few = describe(model, picture, generator=generator(), n=4, rounds=1)
    many = describe(model, picture, generator=generator(), n=4, rounds=12)
    assert many.score >= few.score
    exact = log_likelihood(model, many.text[None], picture[None]).image
    assert exact.item() == pytest.approx(many.score, rel=1e-5)
    again = describe(model, picture, generator=generator(), n=4, rounds=12)
    assert again.caption == many.caption


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in a folder with a demo and a picture: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    write_demo(tmp_path / "demo")
    Image.fromarray(np.full((9, 14, 3), 200, np.uint8)).save("grey.png")

    def run(*words) -> tuple[int, str, str]:
        try:
            status = main(["caption", *words, "--run", "demo", "--device", "cpu"])
        except SystemExit as leave:
            status = leave.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_the_command_chooses_among_labels(call):
    status, out, err = call("grey.png", "--labels", "a red circle, a blue square", "--json")
    assert status == 0 and err == ""
    (one,) = json.loads(out)["pictures"]
    shares = one["probabilities"]
    assert set(shares) == {"a red circle", "a blue square"}
    assert sum(shares.values()) == pytest.approx(1) and one["caption"] == max(
        shares, key=shares.get
    )


def test_the_command_writes_a_caption_of_its_own(call):
    status, out, _ = call("grey.png")
    assert status == 0 and out.startswith("grey.png  ")


def test_labels_have_words_that_training_had_unless_others_are_allowed(call):
    KnownWords.of(["a red circle"]).save(Path("demo/dalle/words.json"))
    assert call("grey.png", "--labels", "circle,red")[0] == 0
    status, out, err = call("grey.png", "--labels", "a red circle,a zebra")
    assert status == 2 and out == "" and "had 'zebra'" in err
    assert call("grey.png", "--labels", "a red circle,a zebra", "--allow-unseen")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.png"], "absent.png"),
        (["grey.png", "--labels", "a,,b"], "label 2 of 3 is empty"),
        (["grey.png", "--labels", "a star," + "a red circle " * 30], "is too long"),
        (["grey.png", "--seeed", "1"], "did you mean --seed?"),
        (["grey.png", "--seed", "-1"], "--seed -1: expected from 0"),
        (["grey.png", "--seed", str(2**64)], f"--seed {2**64}: expected from 0"),
        (["grey.png", "--labels", "a star,a  star"], "label 'a star' occurs twice"),
    ],
)
def test_bad_input_is_one_clear_line(call, words, message):
    status, out, err = call(*words)
    assert status == 2 and out == "" and message in err and err.count("\n") == 1

"""VQGAN's second stage: predictions, token noise, the sliding window and its cache, completion."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import systems
from helpers.decoding import ask
from helpers.tiny import generator, integers, make_prior, pictures
from PIL import Image

from minimodal import vqgan_prior
from minimodal.blocks.sampling import SamplingConfig
from minimodal.blocks.sliding_window import corner
from minimodal.cli.generate import main as generate
from minimodal.data.images import ImageSource
from minimodal.errors import UserError
from minimodal.runs import load
from minimodal.training.contract import Recipe, TrainConfig
from minimodal.training.tasks.codes import Encoded
from minimodal.training.tasks.vqgan_prior import VQGANPriorTask, VQGANPriorTraining
from minimodal.vqgan_prior import VQGANPrior, VQGANPriorConfig

CODES, LABELS = integers(12, 2, 3, 3), torch.tensor([1, -1])
GREEDY = SamplingConfig(temperature=0)


# --- predictions ---------------------------------------------------------------------------------


def test_every_code_is_predicted():
    assert make_prior().code_logits(CODES, LABELS).shape == (2, 9, 12)


@pytest.mark.parametrize("place", [0, 4, 8])
def test_a_code_changes_only_what_comes_after_it(place):
    prior, other = make_prior(), CODES.clone()
    other.view(2, -1)[:, place] = (other.view(2, -1)[:, place] + 1) % 12
    before, after = prior.code_logits(CODES, LABELS), prior.code_logits(other, LABELS)
    assert torch.equal(before[:, : place + 1], after[:, : place + 1])
    assert not (before[:, place + 1 :] == after[:, place + 1 :]).any() or place == 8


def test_the_class_changes_every_prediction():
    prior = make_prior()
    one, other = (prior.code_logits(CODES, torch.full((2,), label)) for label in (0, 1))
    assert (one != other).any(dim=-1).all()


def test_codes_classes_and_nothing_have_rows_of_their_own():
    prior = make_prior()
    assert prior.condition(torch.tensor([0, 1, -1])).flatten().tolist() == [12, 13, 14]
    assert prior.tokens.num_embeddings == 15


def test_the_loss_is_the_mean_of_minus_log_p():
    prior = make_prior()
    log_p = F.log_softmax(prior.code_logits(CODES, LABELS), dim=-1)
    by_hand = -log_p.gather(-1, CODES.flatten(1)[..., None]).mean()
    assert prior.loss(CODES, LABELS).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_codes_read_may_be_others_than_codes_predicted():
    prior, read = make_prior(), integers(12, 2, 3, 3, seed=9)
    expected = F.cross_entropy(prior.code_logits(read, LABELS).flatten(0, 1), CODES.flatten())
    assert torch.equal(prior.loss(CODES, LABELS, replaced=read), expected)


# --- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return systems.make_vqgan_prior(tmp_path_factory.mktemp("prior") / "run")


def with_pkeep(task, share: float) -> dict:
    config = task.model.config
    object.__setattr__(config, "pkeep", share)
    return task.batch(3, slice(0, 8))


def test_at_pkeep_1_what_is_read_is_true(task):
    batch = with_pkeep(task, 1.0)
    assert torch.equal(batch["read"], batch["codes"])


def test_at_pkeep_0_what_is_read_is_random(task):
    batch = with_pkeep(task, 0.0)
    same = (batch["read"] == batch["codes"]).float().mean().item()
    assert same < 5 / task.model.config.codes + 0.05


def test_in_between_that_share_of_the_codes_is_true(task):
    batch = with_pkeep(task, 0.75)
    same = (batch["read"] == batch["codes"]).float().mean().item()
    assert same == pytest.approx(0.75, abs=0.08)


def test_the_targets_are_the_same_whatever_is_read(task):
    assert torch.equal(with_pkeep(task, 0.0)["codes"], with_pkeep(task, 1.0)["codes"])


def test_a_process_gets_its_rows_of_the_batch(task):
    whole = with_pkeep(task, 0.5)
    part = task.batch(3, slice(2, 5))
    for name, value in part.items():
        assert torch.equal(value, whole[name][2:5]), name


def with_classes(**training) -> VQGANPriorTask:
    """A task on 40 pictures (and their mirror images) each of whose codes is its number, of which
    the class is the remainder by three."""
    numbers = np.arange(40)
    source = ImageSource(
        name="numbers", pixels=np.zeros((40, 3, 4, 4), np.uint8), caption_lists=[[]] * 40,
        labels=numbers % 3, class_names=("a", "b", "c"),
    )  # fmt: skip
    codes = torch.arange(40).repeat(2 if training.get("flip") else 1)[:, None, None]
    model = VQGANPriorConfig(grid=2, codes=40, classes=3, width=8, depth=1, heads=1, pkeep=0.5)
    return VQGANPriorTask(
        Recipe(model, VQGANPriorTraining(**training), TrainConfig(batch_size=64)),
        Encoded(source, source, None, Path(), "", codes.expand(-1, 2, 2), pictures=40),
    )


@pytest.mark.parametrize("flip", [False, True])
def test_a_picture_and_its_mirror_image_have_the_pictures_class(flip):
    batch = with_classes(class_dropout=0.0, flip=flip).batch(0, slice(0, 64))
    assert torch.equal(batch["labels"], batch["codes"][:, 0, 0] % 3)


def test_a_share_of_the_classes_is_left_unsaid():
    task = with_classes(class_dropout=0.25)
    batches = [task.batch(step, slice(0, 64)) for step in range(8)]
    said, codes = (torch.cat([b[name] for b in batches]) for name in ("labels", "codes"))
    dropped = said == -1
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert torch.equal(said[~dropped], codes[~dropped][:, 0, 0] % 3)


def test_a_config_with_an_impossible_pkeep_is_an_error():
    with pytest.raises(UserError, match="pkeep 1.5: expected 0 to 1"):
        VQGANPriorConfig(pkeep=1.5)


# --- the sliding window --------------------------------------------------------------------------


def test_away_from_the_borders_a_code_is_in_the_middle_of_its_window():
    assert corner((6, 9), (20, 30), window=4) == (4, 7)


def test_at_the_borders_the_window_stays_inside():
    assert corner((1, 0), (20, 30), window=4) == (0, 0)
    assert corner((19, 29), (20, 30), window=4) == (16, 26)


def test_every_place_lies_in_its_window():
    for i, j in itertools.product(range(9), range(11)):
        top, left = corner((i, j), (9, 11), window=4)
        assert top <= i < top + 4 and left <= j < left + 4


def by_definition(prior, labels, *, size, start=None) -> torch.Tensor:
    """Greedy drawing as the paper says it: each code from a window about it, from scratch."""
    g, (H, W) = prior.config.grid, size
    canvas = torch.zeros(len(labels), H, W, dtype=torch.int64)
    for i, j in itertools.product(range(H), range(W)):
        if start is not None and i * W + j < start.shape[1]:
            canvas[:, i, j] = start[:, i * W + j]
            continue
        top, left = min(max(i - g // 2, 0), H - g), min(max(j - g // 2, 0), W - g)
        window = canvas[:, top : top + g, left : left + g]
        place = (i - top) * g + j - left
        canvas[:, i, j] = prior.code_logits(window, labels)[:, place].argmax(-1)
    return canvas


@pytest.mark.parametrize("size", [(3, 3), (3, 7), (8, 3), (9, 9), (5, 4)])
@torch.no_grad()
def test_pictures_of_any_size_are_drawn_as_the_paper_says(size):
    prior = make_prior()
    found = prior.generate_codes(LABELS, generator=generator(), sampling=GREEDY, size=size)
    assert torch.equal(found, by_definition(prior, LABELS, size=size))


MATRIX = list(itertools.product([(3, 3), (4, 7), (7, 5)], [1.0, 2.5, 0.0], [None, 4]))


@pytest.mark.parametrize(("size", "guidance", "given"), MATRIX)
def test_the_cache_changes_no_code(size, guidance, given):
    prior = make_prior()
    start = None if given is None else integers(12, 2, given, seed=3)

    def drawn(use_cache: bool) -> torch.Tensor:
        return prior.generate_codes(
            LABELS, generator=generator(), sampling=SamplingConfig(guidance=guidance),
            size=size, start=start, use_cache=use_cache,
        )  # fmt: skip

    assert torch.equal(drawn(True), drawn(False))


@torch.no_grad()
def test_cached_logits_equal_uncached_ones():
    prior = make_prior()
    stream = torch.cat([prior.condition(LABELS), CODES.flatten(1)[:, :-1]], dim=1)
    whole, cache = prior(stream), prior.new_cache(2)
    parts = torch.cat([prior(part, cache=cache) for part in stream.split([4, 1, 3, 1], 1)], dim=1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_without_guidance_nothing_is_said():
    prior, labels = make_prior(), torch.tensor([0, 1])

    def drawn(labels: torch.Tensor, guidance: float) -> torch.Tensor:
        sampling = SamplingConfig(temperature=0, guidance=guidance)
        return prior.generate_codes(labels, generator=generator(), sampling=sampling)

    assert torch.equal(drawn(labels, 0.0), drawn(torch.full_like(labels, -1), 1.0))
    assert not torch.equal(drawn(labels, 0.0), drawn(labels, 1.0))


def test_where_the_window_allows_a_code_costs_one_token(monkeypatch):
    prior, read = make_prior(), []
    forward = prior.transformer.forward
    monkeypatch.setattr(
        prior.transformer,
        "forward",
        lambda x, cache: (read.append(x.shape[1]), forward(x, cache=cache))[1],
    )
    prior.generate_codes(LABELS, generator=generator())
    assert read == [1] * 9


def test_a_picture_smaller_than_the_window_is_a_part_of_one_of_its_size():
    prior = make_prior()
    small, whole = (
        prior.generate_codes(LABELS, generator=generator(), sampling=GREEDY, size=size)
        for size in ((2, 1), (3, 3))
    )
    assert torch.equal(small, whole[:, :2, :1])


def test_codes_to_start_from_are_kept_and_left_as_they_were():
    prior, start = make_prior(), integers(12, 2, 5, seed=3)
    kept = start.clone()
    codes = prior.generate_codes(LABELS, generator=generator(), start=start, size=(4, 6))
    assert torch.equal(codes.flatten(1)[:, :5], kept) and torch.equal(start, kept)


def test_a_seed_repeats_its_drawing():
    prior = make_prior()
    first, second, other = (
        prior.generate_codes(LABELS, generator=generator(seed), size=(5, 5)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_codes_are_drawn_as_often_as_their_probabilities_say():
    prior = make_prior(grid=1)
    labels = torch.zeros(20_000, dtype=torch.int64)
    drawn = prior.generate_codes(labels, generator=generator()).flatten()
    shares = torch.bincount(drawn, minlength=12) / len(drawn)
    expected = F.softmax(prior.code_logits(CODES[:1, :1, :1], labels[:1]).flatten(), dim=0)
    torch.testing.assert_close(shares, expected.detach(), rtol=0, atol=0.012)


# --- pictures ------------------------------------------------------------------------------------


def test_each_class_gets_its_pictures():
    drawn = ask(make_prior(), ["cat", "dog"], 3, generator=generator())
    assert drawn.shape == (6, 3, 6, 6) and drawn.dtype == torch.uint8


def test_a_picture_three_times_as_wide_and_high_can_be_drawn():
    drawn = ask(make_prior(), None, 1, generator=generator(), size=(18, 18))
    assert drawn.shape == (1, 3, 18, 18)


def test_completing_keeps_the_codes_of_the_upper_half():
    prior, seen = make_prior(grid=4), []
    decode = prior.painter.decode
    prior.painter.decode = lambda codes: (seen.append(codes), decode(codes))[1]
    picture = ((pictures(3, 8, 8) + 1) * 127.5).byte()
    drawn = ask(prior, ["cat"], 2, generator=generator(), complete=picture)
    expected = prior.painter.encode(picture[None])
    assert torch.equal(seen[0][:, :2], expected[:, :2].expand(2, -1, -1))
    assert torch.equal(drawn[:, :, :4], picture[:, :4].expand(2, -1, -1, -1))  # its own pixels


def test_a_picture_with_its_seed_is_the_same_beside_any_others():
    prior = make_prior()
    three = ask(prior, ["cat"], 3, seeds=[4, 5, 6], batch_size=2)
    assert torch.equal(ask(prior, ["cat"], seeds=[6]), three[2:])
    assert not torch.equal(three[1], three[2])


def test_every_code_is_guided_by_the_scale_that_is_given(monkeypatch):
    scales, original = [], vqgan_prior.guide
    monkeypatch.setattr(
        vqgan_prior, "guide", lambda a, b, scale: (scales.append(scale), original(a, b, scale))[1]
    )
    ask(make_prior(), ["cat"], generator=generator(), guidance=4.0)
    assert scales == [4.0] * 9  # a code each


WRONG = [
    (dict(prompts=["cow"]), "no class 'cow'; this prior's classes are cat, dog"),
    (dict(guidance=2.0), "no class to be guided by"),
    (dict(size=(7, 6)), "7 pixels are no multiple of 2, the pixels of a code: 6 or 8 are"),
    (dict(complete=torch.zeros(3, 4, 6, dtype=torch.uint8)), "6 x 4 pixels: expected 6 x 6"),
    (dict(complete=torch.zeros(3, 6, 6, dtype=torch.uint8), keep=1.5), "keep 1.5"),
    (dict(n=0), "0 pictures a prompt, 64 at a time: expected 1 or more"),
    (dict(seeds=[1]), "either a generator or seeds"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_cannot_be_drawn_is_an_error(wrong, message):
    with pytest.raises(UserError, match=message):
        ask(make_prior(), **{"prompts": None, "generator": generator(), **wrong})


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("command") / "run"
    systems.train("vqgan-prior", out)
    return out


def test_the_command_draws_larger_pictures(run, tmp_path, capsys):
    arguments = ["--method", "vqgan-prior", "--run", str(run), "-n", "2", "--size", "48x40"]
    assert generate([*arguments, "--out", str(tmp_path / "out.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["pictures"]) == 2
    assert Image.open(told["pictures"][0]["file"]).size == (48, 40)


def test_the_command_completes_a_picture(run, tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "half.png")
    arguments = ["--method", "vqgan-prior", "--run", str(run), "-n", "1"]
    arguments += ["--complete", str(tmp_path / "half.png"), "--out", str(tmp_path / "out.png")]
    assert generate(arguments) == 0
    assert (tmp_path / "out.png").exists()


def test_every_flag_of_the_command_reaches_the_prior(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save("half.png")
    calls = []

    def spy(self, *given, **named):
        calls.append((*given, named))
        return torch.zeros(2, 3, 32, 32, dtype=torch.uint8)

    monkeypatch.setattr(VQGANPrior, "draw", spy)
    command = ["--method", "vqgan-prior", "--run", str(run), "--device", "cpu", "-n", "2"]
    words = """--temperature 0.7 --top-k 3 --top-p 0.9 --guidance 3
        --size 64x48 --complete half.png --keep 0.25 --seeds 4,5""".split()
    assert generate([*command, *words]) == 0 and generate([*command, "--seed", "7"]) == 0
    (classes, request, sampling, named), (_, plain, _, _) = calls
    assert (classes, request.n, request.seeds, request.generator) == ([], 2, [4, 5], None)
    assert sampling == SamplingConfig(0.7, 3, 0.9, 3.0) and callable(request.progress)
    assert (named.pop("complete") == 90).all()
    assert named == {"size": (64, 48), "keep": 0.25}
    assert plain.generator.initial_seed() == 7


BAD = [
    (["cat"], "no class 'cat'"),
    (["--size", "30"], "30 pixels are no multiple of 4"),
    (["--size", "wide"], "--size wide: expected pixels"),
    (["--size", "²"], "--size ²: expected pixels"),
    (["--keep", "0.5"], "--keep is how much of a picture stays"),
    (["--complete", "absent.png"], "absent.png"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_bad_flags_are_one_clear_line(run, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert generate(["--method", "vqgan-prior", "--run", str(run), *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1] and said[-1].startswith("error: ")


def test_a_run_carries_its_vqgan(run):
    prior = load(run)
    assert prior.painter.factor == 4
    assert ask(prior, None, 1, generator=generator()).shape == (1, 3, 32, 32)

"""VQGAN's training with every quantizer: what is logged, scheduled and refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import systems
from safetensors.torch import load_file

from minimodal.blocks.discriminator import generator_loss, hinge_loss
from minimodal.blocks.pixels import to_float
from minimodal.errors import UserError
from minimodal.runs import load
from minimodal.training.checkpoint import newest_state, read_metrics
from minimodal.training.engine import run
from minimodal.training.recipes import recipe_for, vqgan
from minimodal.training.tasks.vqgan import VQGANTask, VQGANTraining
from minimodal.training.tasks.vqgan_options import place_codes

KINDS = ("ema", "gradient", "gumbel")


def make(kind: str, engine=systems.ENGINE, **training) -> VQGANTask:
    """A plain VQGAN on the Shapes world, each of whose events happens within ten steps."""
    recipe = recipe_for("vqgan", "cifar10")
    model = replace(
        recipe.model, quantizer=kind, channels=8, codes=(12,), code_width=6, patch=4,
        multipliers=(1,),
    )  # fmt: skip
    events = dict(
        warm_start=3, discriminator_start=4, gan_start=6, gan_ramp=2, gumbel_steps=8,
        discriminator_channels=8,
    )  # fmt: skip
    changed = replace(recipe.training, **{**events, **training})
    recipe = recipe._replace(model=model, training=changed, engine=engine)
    return vqgan.build(recipe, "shapes:400")


def trained(kind: str, out: Path, *, resume: bool = False, steps: int = 12, **training) -> Path:
    engine = replace(systems.ENGINE, steps=steps)
    task = make(kind, engine, **training)
    run(task, engine, out, data_spec="shapes:400", resume=resume, device="cpu")
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantizer_trains_and_is_loaded_again(kind, tmp_path):
    out = trained(kind, tmp_path / "run")
    last = [line for line in read_metrics(out) if "perplexity" in line and "loss" in line][-1]
    assert {"l1", "lambda", "adversarial", "d_real", "d_fake", "dead_codes"} <= last.keys()
    assert 1 <= last["perplexity"] <= 12.01
    vqgan = load(out)
    x = torch.zeros(1, 3, 32, 32)
    assert vqgan.encode(x).indices.max() < vqgan.quantizer.size == 12


@pytest.mark.parametrize("kind", ["gradient", "gumbel"])
def test_resumed_it_ends_with_the_very_same_weights(kind, tmp_path):
    whole = trained(kind, tmp_path / "whole")
    task = make(kind, replace(systems.ENGINE, steps=12))
    original = task.batch

    def stops(step: int, rows: slice):
        if step == 8:
            raise KeyboardInterrupt
        return original(step, rows)

    task.batch = stops
    engine = replace(systems.ENGINE, steps=12)
    with pytest.raises(KeyboardInterrupt):
        run(task, engine, tmp_path / "part", data_spec="shapes:400", device="cpu")
    assert 0 < newest_state(tmp_path / "part")["step"] < 12
    trained(kind, tmp_path / "part", resume=True)
    one, two = (load_file(p / "model.safetensors") for p in (whole, tmp_path / "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_gumbels_temperature_falls_and_its_kl_term_grows():
    schedule = make(
        "gumbel", gumbel_steps=10, gumbel_temperature=0.25, gumbel_kl=0.1
    ).gumbel.schedule
    assert schedule(0) == (1.0, 0.0)
    assert schedule(5) == pytest.approx((0.5, 0.05))
    assert schedule(10) == schedule(99) == pytest.approx((0.25, 0.1))


def test_a_process_gets_its_rows_of_gumbels_noise():
    task = make("gumbel")
    whole, part = task.batch(3, slice(0, 8)), task.batch(3, slice(2, 5))
    assert torch.equal(part["noise"], whole["noise"][2:5])
    assert not torch.equal(task.batch(4, slice(0, 8))["noise"], whole["noise"])


def test_a_quantizer_whose_codes_start_anywhere_needs_no_warm_start():
    assert make("gumbel").warm_start == 0


def test_events_follow_the_plan_where_the_clock_decides_how_many_steps_there_are():
    task = make("ema", warm_start=30, discriminator_start=40, gan_start=60, gan_ramp=20)
    assert [task.game_weight(step) for step in (0, 7)] == [0, 0]
    task.when = lambda step: 10.0 * step  # a tenth of the plan's steps
    weight = task.training.gan_weight
    assert [task.game_weight(step) for step in (6, 7, 8)] == pytest.approx([0, weight / 2, weight])
    images = torch.zeros(2, 3, 32, 32)
    losses = [task.discriminator_loss(images, images, step)[0] for step in (3, 4)]
    assert [loss.requires_grad for loss in losses] == [False, True]
    assert task.after_step(2, []) == {}  # the last of the warm start
    assert task.model.quantizer.codebooks[0].counts.any()


def test_codes_are_placed_late_where_the_end_of_the_warm_start_was_skipped():
    task = make("ema", warm_start=30)
    task.before_step(2, [])
    assert not task.model.quantizer.codebooks[0].counts.any()
    task.when = lambda step: 100.0
    task.before_step(3, [])
    assert task.model.quantizer.codebooks[0].counts.any()


def test_a_run_that_ends_early_says_what_it_never_did(tmp_path, capsys):
    trained("ema", tmp_path / "short", steps=4)
    assert (
        "vqgan: ended at step 4 before its discriminator learned, before its discriminator took "
        "part; --resume with more --steps or --minutes goes on"
    ) in capsys.readouterr().err
    trained("ema", tmp_path / "short", steps=12, resume=True)
    assert "ended at step" not in capsys.readouterr().err


def test_without_a_warm_start_codes_are_placed_before_the_first_step():
    task = make("ema", warm_start=0)
    task.before_step(0, [])
    assert task.model.quantizer.codebooks[0].codes.any(dim=1).all()


# --- the losses, put together again from their terms ---------------------------------------------

ALL = slice(0, 8)


def placed(kind: str, **training) -> VQGANTask:
    """A task whose codes are where its latents are."""
    task = make(kind, **training)
    place_codes(task, 0)
    return task


def weighted_l1(decoded, images, shift):
    """Stands for a network that sees six times the error, wherever the pictures are moved to."""
    return 6 * F.l1_loss(decoded, images)


def test_the_generators_loss_is_its_terms_with_lambda():
    task = placed("ema")
    batch = task.batch(8, ALL)
    loss, m = task.loss(batch, "generator", 8)
    verdicts = task.discriminator(batch["decoded"])
    assert m["adversarial"].item() == pytest.approx(generator_loss(verdicts).item())
    expected = m["l1"] + m["commitment"] + 0.1 * m["lambda"] * m["adversarial"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_discriminators_loss_is_the_hinge_loss_of_its_verdicts():
    task = placed("ema")
    batch = task.batch(8, ALL)
    task.loss(batch, "generator", 8)
    loss, _ = task.loss(batch, "discriminator", 8)
    real, fake = (task.discriminator(x) for x in (to_float(batch["images"]), batch["decoded"]))
    assert loss.item() == pytest.approx(hinge_loss(real, fake).item(), rel=1e-5)


def test_gumbels_draws_are_painted_at_the_steps_temperature():
    task = make("gumbel")
    batch = task.batch(5, ALL)
    task.loss(batch, "generator", 5)
    images, noise = to_float(batch["images"]), batch["noise"]
    expected = task.model(images, noise=noise, temperature=task.gumbel.schedule(5)[0]).pictures
    torch.testing.assert_close(batch["decoded"], expected.detach())
    assert not torch.allclose(task.model(images, noise=noise).pictures, expected)
    assert not torch.allclose(task.model(images).pictures, expected)


def test_gumbels_kl_counts_by_the_steps_weight():
    task = make("gumbel", gumbel_kl=5.0)
    loss, m = task.loss(task.batch(4, ALL), "generator", 4)  # half way up
    assert 2.5 * m["kl"] > 1e-3
    assert loss.item() == pytest.approx((m["l1"] + 2.5 * m["kl"]).item(), rel=1e-5)


def test_lambda_weighs_the_perceptual_term_as_well():
    task = placed("ema", perceptual_weight=2.0)
    plain = task.loss(task.batch(8, ALL), "generator", 8)[1]["lambda"]
    task.perceptual = weighted_l1
    both = task.loss(task.batch(8, ALL), "generator", 8)[1]["lambda"]
    assert both.item() == pytest.approx(13 * plain.item(), rel=1e-4)


def test_the_discriminator_learns_at_its_share_of_the_rate():
    assert make("ema", discriminator_lr=0.2).phases[1].lr_scale == 0.2


def test_with_flip_about_half_of_the_pictures_are_mirrored():
    plain, some = (
        torch.cat([make("ema", flip=flip).batch(step, ALL)["images"] for step in range(8)])
        for flip in (False, True)
    )
    same, mirrored = ((some == x).flatten(1).all(1) for x in (plain, plain.flip(-1)))
    assert (same | mirrored).all()
    assert 0.25 < mirrored.float().mean() < 0.75


# --- several micro-batches -----------------------------------------------------------------------


def gradient(task: VQGANTask, parts: int, step: int) -> torch.Tensor:
    """The generator's mean gradient over micro-batches, as the engine accumulates it."""
    size = 8 // parts
    batches = [task.batch(step, slice(i * size, (i + 1) * size)) for i in range(parts)]
    with torch.no_grad():
        task.before_step(step, batches)
    losses = [task.loss(batch, "generator", step)[0] / parts for batch in batches]
    found = torch.autograd.grad(sum(losses), list(task.model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("perceptual", [None, weighted_l1])
def test_micro_batches_give_the_gradient_of_one_batch(parts, perceptual):
    task = placed("ema")
    task.perceptual = perceptual
    one, several = (gradient(task, n, 8) for n in (1, parts))
    assert (several - one).norm() < 1e-5 * one.norm()


def test_accumulated_steps_end_with_the_weights_of_whole_ones(tmp_path):
    for parts in (1, 4):
        engine = replace(systems.ENGINE, accumulate=parts)
        systems.train("vqgan-gradient", tmp_path / str(parts), engine)
    one, four = (load_file(tmp_path / n / "model.safetensors") for n in "14")
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=1e-5, atol=1e-5, msg=name)


# --- what the runs say ---------------------------------------------------------------------------


def test_without_a_weight_there_is_no_game(tmp_path):
    out = trained("ema", tmp_path / "run", gan_weight=0.0)
    assert not any("d_real" in line or "lambda" in line for line in read_metrics(out))


def test_codes_that_nothing_uses_stay_where_revival_is_off(tmp_path):
    recipe = recipe_for("vqgan", "cifar10")
    model = replace(recipe.model, revive=False, channels=8, code_width=6, codes=(12,))
    task = vqgan.build(recipe._replace(model=model), "shapes:400")
    book = task.model.quantizer.codebooks[0]
    book.codes.fill_(50.0)
    book.update(torch.zeros(20, 6), torch.Generator())
    assert (book.codes[1:] == 50).all()


def test_the_receptive_field_is_printed(tmp_path, capsys):
    trained("ema", tmp_path / "run", steps=2)
    field = make("ema").discriminator.receptive_field
    assert f"a verdict sees {field} of 32 pixels" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_term(tmp_path, monkeypatch):
    task = make("ema")
    engine = replace(systems.ENGINE, steps=12, checkpoint_every=2)
    original = VQGANTask.loss

    def broken(self, batch, phase, step):
        loss, metrics = original(self, batch, phase, step)
        if step == 7 and phase == "generator":
            loss, metrics = loss * float("nan"), {**metrics, "lambda": torch.tensor(float("nan"))}
        return loss, metrics

    monkeypatch.setattr(VQGANTask, "loss", broken)
    with pytest.raises(UserError, match="step 8: lambda is nan; "):
        run(task, engine, tmp_path / "run", data_spec="shapes:400", device="cpu")
    state = newest_state(tmp_path / "run")
    assert state["step"] == 6
    assert all(torch.isfinite(v).all() for v in state["model"].values())


@pytest.mark.parametrize("settings", [{"discriminator_depth": 5}, {"perceptual_shift": 32}])
def test_settings_that_do_not_fit_the_pictures_are_an_error(settings, monkeypatch):
    monkeypatch.setattr(vqgan, "open_perceptual", lambda training: SimpleNamespace(size=0))
    with pytest.raises(UserError, match=f"{next(iter(settings))} {next(iter(settings.values()))}"):
        make("ema", **settings)


@pytest.mark.parametrize(("size", "good"), [(0, 31), (16, 15), (64, 63)])
def test_a_shift_is_less_than_the_pictures_that_the_network_compares(size, good, monkeypatch):
    monkeypatch.setattr(vqgan, "open_perceptual", lambda training: SimpleNamespace(size=size))
    make("ema", perceptual_shift=good)
    with pytest.raises(UserError, match=f"perceptual_shift {good + 1}: .* less than {good + 1}"):
        make("ema", perceptual_shift=good + 1)


WRONG = [
    ({"gan_weight": float("inf")}, "gan_weight inf: expected 0 or more"),
    ({"perceptual_shift": -1}, "perceptual_shift -1: expected 0 or more"),
    ({"gumbel_temperature": 0.0}, "gumbel_temperature 0.0"),
    ({"discriminator_depth": 200}, "discriminator_depth 200: expected 1 to 10"),
    ({"discriminator_channels": 0}, "discriminator_channels 0: expected 1 or more"),
    ({"discriminator_start": 9, "gan_start": 3}, "gan_start 3 is before discriminator_start 9"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_settings_that_cannot_be_are_an_error(settings, message):
    with pytest.raises(UserError, match=message):
        VQGANTraining(**settings)

import threading
import time
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from helpers import toys
from PIL import Image

from minimodal.errors import UserError
from minimodal.training import between, checkpoint, distributed, engine, prepare, probe
from minimodal.training.batches import Batches
from minimodal.training.engine import TrainConfig
from minimodal.training.progress import Progress

CPU = distributed.Distributed(torch.device("cpu"))


def prepared(kind: str, **fields) -> prepare.Training:
    """A training that has not taken a step."""
    fields = {"batch_size": 8, "precision": "float32", **fields}
    config = TrainConfig(**fields)
    return prepare.build(toys.TASKS[kind](config), config, here=CPU)


def take_step(training: prepare.Training, lr: float = 1e-2) -> dict:
    rows = prepare.micro_rows(training.config, training.here)
    batches = [training.task.batch(training.step, part) for part in rows]
    metrics = engine.train_step(training, batches, lr=lr)
    training.step += 1
    return metrics


def assert_same(a: dict, b: dict) -> None:
    """Nested dicts of tensors that are equal bit for bit."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, dict):
            assert_same(value, b[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, b[name]), name
        elif name != "seconds":
            assert value == b[name], name


@pytest.mark.parametrize(
    "kind, fields",
    [
        ("line", {}),
        ("line", {"ema_decay": 0.9, "accumulate": 2}),
        ("gan", {}),
        ("gan", {"ema_decay": 0.9, "accumulate": 4}),
        ("gan", {"precision": "bfloat16"}),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, kind, fields):
    toys.train(kind, tmp_path / "whole", **fields)
    toys.train(kind, tmp_path / "parts", **fields)
    for name in ("step-00000008.pt", "step-00000008.pt.sha256"):
        (tmp_path / "parts" / "state" / name).unlink()
    toys.train(kind, tmp_path / "parts", resume=True, **fields)
    whole, parts = (checkpoint.newest_state(tmp_path / n) for n in ("whole", "parts"))
    assert whole["step"] == 8
    assert_same(whole, parts)
    weights = [checkpoint.load_weights(tmp_path / n) for n in ("whole", "parts")]
    assert_same(*weights)


def test_a_run_learns(tmp_path):
    _, summary = toys.train("line", tmp_path, steps=150, batch_size=32, lr=1e-2)
    assert summary["loss"] < 0.25


def test_a_step_is_adamw_on_the_mean_loss():
    training, plain = prepared("line", clip_norm=0), prepared("line").task
    optimizer = torch.optim.AdamW(
        [
            {"params": [plain.model[0].weight, plain.model[3].weight, plain.model[6].weight]},
            {"params": [p for p in plain.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01,
    )  # fmt: skip
    for step in range(3):
        take_step(training)
        optimizer.zero_grad()
        plain.loss(plain.batch(step, slice(0, 8)), "all", step)[0].backward()
        optimizer.step()
    for p, q in zip(training.task.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["line", "gan"])
def test_accumulated_micro_batches_equal_one_batch(kind):
    one, four = prepared(kind), prepared(kind, accumulate=4)
    for _ in range(4):
        a, b = take_step(one), take_step(four)
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-6)
    for p, q in zip(one.phases, four.phases, strict=True):
        for x, y in zip(p.parameters, q.parameters, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_gradients_are_clipped_to_the_norm_of_each_phase(monkeypatch):
    training = prepared("gan", clip_norm=0.01)
    training.step = 2
    norms = []
    for trained in training.phases:
        monkeypatch.setattr(
            trained.optimizer, "step",
            lambda ps=trained.parameters: norms.append(
                torch.stack([p.grad.norm() for p in ps]).norm().item()
            ),
        )  # fmt: skip
    metrics = take_step(training)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
    assert float(metrics["grad_norm"]) > 0.01


def test_the_nets_of_the_other_phase_get_no_gradient(monkeypatch):
    training = prepared("gan")
    training.step = 2
    generator, judge = training.phases
    seen = {}
    for trained, other in ((generator, judge), (judge, generator)):
        monkeypatch.setattr(
            trained.optimizer, "step",
            lambda t=trained, o=other: seen.update({t.phase.name: [
                all(p.grad is not None for p in t.parameters),
                all(p.grad is None for p in o.parameters),
            ]}),
        )  # fmt: skip
    take_step(training)
    assert seen == {"generator": [True, True], "discriminator": [True, True]}


def test_the_generator_learns_through_the_discriminator():
    through, without = prepared("gan"), prepared("gan")
    through.step, without.step = 2, 1  # the adversarial term starts at step 2
    batch = through.task.batch(2, slice(0, 8))
    for training in (through, without):
        engine.train_step(training, [dict(batch)], lr=1e-2)
    pairs = zip(through.phases[0].parameters, without.phases[0].parameters, strict=True)
    assert any(not torch.equal(p, q) for p, q in pairs)


def test_a_loss_without_gradient_leaves_its_phase_alone():
    training = prepared("gan")
    before = [p.detach().clone() for p in training.phases[1].parameters]
    metrics = take_step(training)
    assert "discriminator_grad_norm" not in metrics
    after = training.phases[1].parameters
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_a_step_in_which_nothing_learns_is_an_error():
    training = prepared("line")
    training.task.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no loss of line has a gradient"):
        take_step(training)


def test_a_phase_may_have_its_own_rate_and_betas():
    training = prepared("gan", beta1=0.8)
    training.step = 2
    take_step(training, lr=0.01)
    groups = [trained.optimizer.param_groups[0] for trained in training.phases]
    assert [group["lr"] for group in groups] == [0.01, 0.005]
    assert [group["betas"] for group in groups] == [(0.8, 0.95), (0.5, 0.9)]


def test_averaged_weights_follow_their_equation_and_buffers_are_copied():
    training = prepared("gan", ema_decay=0.3)
    expected = {k: v.detach().clone() for k, v in training.task.model.named_parameters()}
    for step in range(5):
        take_step(training)
        d = min(0.3, (1 + step) / (10 + step))
        for name, weight in training.task.model.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * weight.detach()
    for name, weight in training.ema.named_parameters():
        torch.testing.assert_close(weight, expected[name])
        assert not weight.requires_grad
    assert torch.equal(training.ema.mean, training.task.model.mean)
    assert training.ema.mean.any()


def test_evaluation_sees_the_averaged_weights_in_eval_mode_without_gradients(tmp_path):
    training = prepared("line", ema_decay=0.9)
    seen = []
    training.task.evaluate = lambda model: (
        seen.append((model, model.training, torch.is_grad_enabled())) or {"score": 1}
    )
    between.evaluate(training, tmp_path)
    training.ema = None
    between.evaluate(training, tmp_path)
    assert [mode for _, *mode in seen] == [[False, False]] * 2
    assert seen[0][0] is not training.task.model and seen[1][0] is training.task.model
    assert training.task.model.training
    assert checkpoint.read_metrics(tmp_path)[0]["score"] == 1.0


def test_measuring_changes_nothing(monkeypatch):
    monkeypatch.setattr(probe, "multiplies_bfloat16", lambda device: True)
    training = prepared("gan", precision="auto")
    before = training.state()
    saved = {k: v.clone() for k, v in before["model"].items()}
    precision, flops, peak = prepare.measure(training, slice(0, 8))
    assert precision in ("float32", "bfloat16")
    assert_same(training.task.model.state_dict(), saved)
    assert all(p.grad is None for t in training.phases for p in t.parameters)
    assert all(not t.optimizer.state for t in training.phases)
    assert [t.unused for t in training.phases] == [False, False]


def test_weights_that_the_loss_does_not_use_are_noticed():
    training = prepared("line")
    training.phases[0].parameters.append(torch.nn.Parameter(torch.zeros(1)))
    prepare.one_pass(training, training.task.batch(0, slice(0, 8)))
    assert training.phases[0].unused


def test_flops_of_a_sample_are_three_products_a_layer():
    training = prepared("line")
    _, flops, peak = prepare.measure(training, slice(0, 8))
    # Forward, gradient of the weights, gradient of the inputs (not of the first layer's).
    assert flops == 2 * (3 * (4 * 16 + 16 * 16 + 16) - 4 * 16)
    assert peak > 0


@pytest.mark.parametrize("speed, chosen", [(1.7, "bfloat16"), (0.8, "float32")])
def test_auto_takes_the_faster_precision_and_keeps_it(tmp_path, monkeypatch, capsys, speed, chosen):
    monkeypatch.setattr(probe, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(probe, "bfloat16_speed", lambda run_once, device: speed)
    toys.train("line", tmp_path / "run", precision="auto", steps=4)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"line: {chosen} (bfloat16 is {speed} x float32 on this device)"
    assert checkpoint.load_run_config(tmp_path / "run")["train"]["precision"] == chosen
    monkeypatch.setattr(probe, "bfloat16_speed", lambda run_once, device: 1 / speed)
    toys.train("line", tmp_path / "run", precision="auto", steps=6, resume=True)
    assert checkpoint.load_run_config(tmp_path / "run")["train"]["precision"] == chosen
    assert f"line: {chosen}" not in capsys.readouterr().err


def test_bfloat16_keeps_float32_weights_and_averages():
    training = prepared("gan", precision="bfloat16", ema_decay=0.9)
    kinds = []
    loss = training.task.score
    training.task.score = lambda x, y: (kinds.append(y.dtype), loss(x, y))[1]
    training.step = 2
    take_step(training)
    assert torch.bfloat16 in kinds
    for module in (training.task.model, training.ema, training.task.judge):
        assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("field", ["loss", "grad_norm"])
def test_a_run_that_diverges_stops_and_keeps_its_last_state(tmp_path, monkeypatch, field):
    loss = toys.Line.loss

    def broken(self, batch, phase, step):
        value, metrics = loss(self, batch, phase, step)
        if step == 4:
            w = self.model[0].bias.sum() * 0
            value = value * float("nan") if field == "loss" else value + (w.abs().sqrt())
        return value, metrics

    monkeypatch.setattr(toys.Line, "loss", broken)
    with pytest.raises(UserError, match=rf"step 5: {field} is .*lower --lr"):
        toys.train("line", tmp_path / "run", log_every=100)
    state = checkpoint.newest_state(tmp_path / "run")
    assert state["step"] == 3
    assert all(torch.isfinite(v).all() for v in state["model"].values())


@pytest.mark.parametrize(("bad", "says"), [(0, "has no saved state yet"), (4, "keeps its last")])
def test_a_diverged_run_says_whether_a_state_is_left(tmp_path, monkeypatch, bad, says):
    loss = toys.Line.loss

    def broken(self, batch, phase, step):
        value, metrics = loss(self, batch, phase, step)
        return value * (float("nan") if step == bad else 1.0), metrics

    monkeypatch.setattr(toys.Line, "loss", broken)
    with pytest.raises(UserError, match=f"step {bad + 1}: loss is nan; .* {says}"):
        toys.train("line", tmp_path / "run")


def test_the_term_that_spoilt_a_loss_is_named(tmp_path, monkeypatch):
    loss = toys.Line.loss

    def broken(self, batch, phase, step):
        value, metrics = loss(self, batch, phase, step)
        bad = float("inf") if step == 4 else 0.0
        return value + bad, {**metrics, "fine": torch.ones(()), "spoilt": torch.tensor(bad)}

    monkeypatch.setattr(toys.Line, "loss", broken)
    with pytest.raises(UserError, match="step 5: spoilt is inf; .*; train again"):
        toys.train("line", tmp_path / "run", log_every=100)


def test_metrics_are_written_at_the_first_the_logged_and_the_last_step(tmp_path):
    _, summary = toys.train("line", tmp_path / "run", steps=7, log_every=3, evaluate_every=4)
    lines = checkpoint.read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 3, 6, 7]
    assert [line["step"] for line in lines if "val_error" in line] == [4, 7]
    names = ["step", "seconds", "samples_per_second", "lr", "error", "loss", "grad_norm", "weight"]
    assert list(lines[0]) == names
    assert lines[-1]["done"] and summary == lines[-2] | lines[-1]


def test_samples_are_pictures_named_by_step(tmp_path):
    toys.train("line", tmp_path / "run", sample_every=3)
    found = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in found] == [f"step-{n:08d}.png" for n in (3, 6, 8)]
    with Image.open(found[0]) as image:
        assert image.size == (4, 4) and image.getpixel((0, 0)) == (3, 3, 3)


def test_a_run_limited_by_time_ends_in_time_and_its_clock_goes_on(tmp_path, monkeypatch):
    ticks = count()
    clock = SimpleNamespace(perf_counter=lambda: 0.1 * next(ticks))  # a step takes 0.1 s
    monkeypatch.setattr(engine, "time", clock)
    _, summary = toys.train("line", tmp_path / "run", minutes=2 / 60)
    assert summary["seconds"] == pytest.approx(2, abs=0.1) and summary["step"] in (19, 20)
    _, longer = toys.train("line", tmp_path / "run", resume=True, minutes=3 / 60)
    assert longer["seconds"] == pytest.approx(3, abs=0.1) and longer["step"] in (29, 30)


def test_batches_come_in_order_and_their_thread_ends():
    task = toys.Line(TrainConfig(batch_size=4))
    batches = Batches(task, [slice(0, 2), slice(2, 4)], first=5, end=None, pin=False)
    for step in (5, 6, 7):
        for got, rows in zip(batches.next(CPU.device), (slice(0, 2), slice(2, 4)), strict=True):
            assert torch.equal(got["x"], task.batch(step, rows)["x"])
    batches.close()
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_an_error_in_the_data_surfaces_where_the_batch_is_needed(tmp_path, monkeypatch):
    batch = toys.Line.batch

    def broken(self, step, rows):
        if step == 4:
            raise UserError("picture.png is damaged")
        return batch(self, step, rows)

    monkeypatch.setattr(toys.Line, "batch", broken)
    with pytest.raises(UserError, match="picture.png"):
        toys.train("line", tmp_path / "run")
    assert checkpoint.newest_state(tmp_path / "run")["step"] == 3
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_a_net_that_no_checkpoint_would_hold_is_refused():
    config = TrainConfig()
    task = toys.Gan(config)
    task.extra = {}
    with pytest.raises(ValueError, match="discriminator trains nets"):
        prepare.build(task, config, here=CPU)


@pytest.mark.parametrize(
    "field, value",
    [("steps", 0), ("lr", 0.0), ("ema_decay", 1.0), ("precision", "half"), ("minutes", -1.0)],
)
def test_an_impossible_setting_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        replace(TrainConfig(), **{field: value})


def test_progress_says_loss_speed_utilisation_and_time_left():
    progress = Progress("clip", 0.0, flops=1e6, peak=1e9, show=False)
    progress.step(10, 0.25, samples=320)
    progress.began -= 30
    progress.window -= 1
    progress.measure(0.5)
    text = progress.text(10, time.perf_counter())
    assert "step 10  loss 0.5  3" in text and "samples/s  3" in text
    assert "% of peak" in text and "01:30 left" in text

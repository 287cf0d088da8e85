"""Spikes that are left out, micro-batches that fit the memory, operators that repeat exactly."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import systems, toys
from helpers.marks import needs_cpu_shares
from helpers.processes import together
from test_parallel import check_weights, give_what_it_needs, train
from torch.utils._pytree import tree_leaves

from minimodal.errors import UserError
from minimodal.training import checkpoint, engine, guards, optim
from minimodal.training.contract import TrainConfig
from minimodal.training.distributed import Distributed
from minimodal.training.optim import Muon, Spikes
from minimodal.training.prepare import Training, build, micro_rows
from minimodal.training.report import write_report
from minimodal.training.tasks.clip import CLIPTask

CPU = Distributed(torch.device("cpu"))
WINDOW = 5


@pytest.fixture
def short(monkeypatch):
    """What is usual is known after a few steps."""
    monkeypatch.setattr(optim, "SPIKE_WINDOW", WINDOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the VQGANs and CLIPs lie that others need: trained once."""
    return tmp_path_factory.mktemp("guards")


# ---- spikes


def of(kind: str) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.eye(4))
    if kind == "muon":
        return weight, Muon([weight], lr=0.1, weight_decay=0.1)
    return weight, torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=True)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("longest", [1000.0, math.inf])
def test_a_spike_changes_neither_weights_nor_what_the_optimiser_remembers(kind, longest, short):
    weight, optimizer = of(kind)
    spikes, changed = Spikes(3.0), []
    for step, length in enumerate((1.0, 1.2, 0.9, 1.1, longest, 1.0)):
        weight.grad = torch.full((4, 4), length)
        before = weight.detach().clone()
        kept = {name: value.clone() for name, value in optimizer.state[weight].items()}
        skipped = spikes.watch(optimizer, weight.grad.norm(), step)
        optimizer.step()
        changed.append(not torch.equal(weight, before))
        now = optimizer.state[weight]
        if step:
            assert changed[-1] == any(not torch.equal(now[name], kept[name]) for name in kept)
    assert changed == [True, True, True, True, False, True]
    assert skipped == 1


def test_gradients_that_have_grown_for_good_are_spikes_no_longer(short):
    weight, optimizer = of("adamw")
    spikes = Spikes(3.0)
    norms = [1.0] * 10 + [10.0] * 10
    counts = [float(spikes.watch(optimizer, torch.tensor(n), i)) for i, n in enumerate(norms)]
    assert counts[9] == 0 and counts[-1] == WINDOW // 2 + 1


def test_nothing_is_a_spike_before_it_is_known_what_is_usual(short):
    _, optimizer = of("adamw")
    spikes, norms = Spikes(1.5), [10.0**i for i in range(WINDOW // 2 + 1)]
    counts = [float(spikes.watch(optimizer, torch.tensor(n), i)) for i, n in enumerate(norms)]
    assert counts == [0] * len(norms)


def test_both_optimisers_of_a_transformer_leave_a_spike_out(short, folder):
    engine_config = replace(systems.ENGINE, optimizer="muon", skip_spikes=2.0, batch_size=4)
    task = systems.TINY["dalle"](folder / "dalle", engine_config)
    training = build(task, engine_config, here=CPU)
    plain = task.loss
    for step in range(WINDOW + 2):
        spike = step == WINDOW
        task.loss = lambda *a, spike=spike: ((out := plain(*a))[0] * 100**spike, out[1])
        before = [p.detach().clone() for p in training.phases[0].parameters]
        batches = [task.batch(step, rows) for rows in micro_rows(engine_config, CPU)]
        training.step = step
        found = engine.train_step(training, batches, lr=1e-3)
        pairs = zip(training.phases[0].parameters, before, strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs) != spike
    assert found["skipped_steps"] == 1


def spiky(monkeypatch) -> None:
    """Every fifth gradient of the toys is fifty times as long."""
    for kind in (toys.Line, toys.Gan):
        plain = kind.loss

        def loss(self, batch, phase, step, plain=plain):
            value, metrics = plain(self, batch, phase, step)
            return value * (50.0 if step % 5 == 4 else 1.0), metrics

        monkeypatch.setattr(kind, "loss", loss)


@pytest.mark.parametrize(("kind", "count"), [("line", 4), ("gan", 4)])
def test_with_spikes_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path, monkeypatch, short, kind, count
):
    spiky(monkeypatch)
    fields = {"steps": 20, "skip_spikes": 5.0, "clip_norm": 0.0, "checkpoint_every": 7, "keep": 9}
    for name in ("whole", "parts"):
        toys.train(kind, tmp_path / name, **fields)
    for step in (14, 20):  # on from step 7, of whose window the spike at 9 is told by
        (tmp_path / "parts" / "state" / f"step-{step:08d}.pt").unlink()
    toys.train(kind, tmp_path / "parts", resume=True, **fields)
    whole, parts = (checkpoint.newest_state(tmp_path / name) for name in ("whole", "parts"))
    for state in (whole, parts):
        assert float(next(iter(state["spikes"].values()))["skipped"]) == count
    for part in ("model", "extra", "optimizers", "spikes"):
        for a, b in zip(*map(tree_leaves, (whole[part], parts[part])), strict=True):
            assert a == b if not isinstance(a, torch.Tensor) else torch.equal(a, b)


def test_left_out_steps_are_counted_in_the_log_and_in_the_report(tmp_path, monkeypatch, short):
    spiky(monkeypatch)
    toys.train("gan", tmp_path / "run", steps=20, skip_spikes=5.0, clip_norm=0.0)
    last = checkpoint.read_metrics(tmp_path / "run")[-2]
    # The discriminator begins at step 2: at the first spike little is known of it.
    assert (last["skipped_steps"], last["discriminator_skipped_steps"]) == (4, 3)
    write_report(tmp_path / "run")
    assert "skipped_steps: 4" in (tmp_path / "run" / "report.html").read_text()


SHARED_STEPS = """
import sys
import test_guards
test_guards.half_of_them(sys.argv[1], fsdp=True)
"""


def half_of_them(out: str | Path, *, fsdp: bool = False) -> None:
    """A run that leaves out what is above the median of three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "SPIKE_WINDOW", 3)
        train("dalle", out, fsdp=fsdp, steps=8, optimizer="muon", skip_spikes=1.001)


@needs_cpu_shares
@pytest.mark.slow
def test_processes_with_shares_of_the_weights_leave_out_the_same_steps(tmp_path):
    half_of_them(tmp_path / "one")
    give_what_it_needs("dalle", tmp_path / "one", tmp_path / "two")
    together(["-c", SHARED_STEPS, str(tmp_path / "two")], ranks=2)
    one, two = (checkpoint.read_metrics(tmp_path / n / "dalle")[-2] for n in ("one", "two"))
    assert one["skipped_steps"] == two["skipped_steps"] > 1
    check_weights(tmp_path / "one" / "dalle", tmp_path / "two" / "dalle")


# ---- memory


def limited(monkeypatch, kind: type, rows: int, *, phase: str | None = None) -> list[int]:
    """Let a task's losses of more rows than these ask for more memory than any machine has; gives
    the rows of each loss."""
    plain, seen = kind.loss, []

    def loss(self, batch, name, step):
        value, metrics = plain(self, batch, name, step)
        seen.append(len(next(iter(batch.values()))))
        if seen[-1] > rows and phase in (None, name):
            torch.empty(1 << 60, dtype=torch.uint8)
        return value, metrics

    monkeypatch.setattr(kind, "loss", loss)
    return seen


@pytest.mark.parametrize("kind", ["line", "gan"])
def test_auto_batch_is_the_accumulation_that_fits(tmp_path, monkeypatch, capsys, kind):
    toys.train(kind, tmp_path / "given", accumulate=4)
    seen = limited(monkeypatch, toys.TASKS[kind], 2)
    toys.train(kind, tmp_path / "found", auto_batch=True)
    given, found = (checkpoint.load_weights(tmp_path / name) for name in ("given", "found"))
    assert all(torch.equal(given[name], found[name]) for name in given)
    assert sorted({*seen}) == [2, 4, 8] and seen.count(8) == seen.count(4) == 1
    assert "out of memory with a micro-batch of 4, on with 2" in capsys.readouterr().err


def stepped(kind: str, folder: Path, *, full: bool, **fields) -> Training:
    """A system after three steps; with `full` there is no memory for the first as it is."""
    config = replace(systems.ENGINE, optimizer="muon", **fields)
    task = systems.TINY[kind](folder / kind, config)
    plain, losses = task.loss, []

    def loss(batch, phase, step):
        losses.append(step)
        if full and len(losses) == 1:
            torch.empty(1 << 60, dtype=torch.uint8)
        return plain(batch, phase, step)

    task.loss = loss
    training = build(task, config, here=CPU)
    for step in (0, 3, 7):  # of VQGAN: its warm start, its codes are placed, its game
        training.step = step
        batches = [task.batch(step, rows) for rows in micro_rows(config, CPU)]
        engine.fitting_step(training, batches, lr=1e-3, look=True)
    assert training.parts == (2 if full else 1)
    return training


@pytest.mark.parametrize("kind", systems.TINY)
def test_auto_batch_is_exact_for_every_system(folder, kind):
    """Also where a loss compares all pictures of a step: it is what --accumulate is."""
    given = stepped(kind, folder, full=False, accumulate=2)
    found = stepped(kind, folder, full=True, auto_batch=True)
    for a, b in zip(tree_leaves(given.state()), tree_leaves(found.state()), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_memory_that_ends_in_the_middle_of_a_run_costs_no_step(tmp_path, monkeypatch):
    toys.train("gan", tmp_path / "whole", log_every=1)
    plain = toys.Gan.loss

    def loss(self, batch, phase, step):
        if step == 5 and len(batch["x"]) > 4 and phase == "generator":
            torch.empty(1 << 60, dtype=torch.uint8)
        return plain(self, batch, phase, step)

    monkeypatch.setattr(toys.Gan, "loss", loss)
    toys.train("gan", tmp_path / "cut", log_every=1, auto_batch=True)
    whole, cut = (checkpoint.load_weights(tmp_path / name) for name in ("whole", "cut"))
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=0, atol=1e-6)
    lines = checkpoint.read_metrics(tmp_path / "cut")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8, 8]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "step 0: out of memory with a micro-batch of 8: add --auto-batch, which"),
        ({"accumulate": 4}, "with a micro-batch of 2: add --auto-batch"),
        ({"auto_batch": True}, "with a micro-batch of 1, the smallest there is: choose a smaller"),
    ],
)
def test_a_full_memory_is_said_with_what_to_do(tmp_path, monkeypatch, fields, says):
    limited(monkeypatch, toys.Line, 0)
    with pytest.raises(UserError, match=says):
        toys.train("line", tmp_path / "run", **fields)


def test_a_step_of_which_one_optimiser_has_taken_its_part_is_not_taken_again(tmp_path, monkeypatch):
    plain = toys.Gan.loss

    def loss(self, batch, phase, step):
        if step == 5 and phase == "discriminator":
            torch.empty(1 << 60, dtype=torch.uint8)
        return plain(self, batch, phase, step)

    monkeypatch.setattr(toys.Gan, "loss", loss)
    with pytest.raises(UserError, match="step 5: out of memory .*: add --accumulate 2"):
        toys.train("gan", tmp_path / "run", auto_batch=True)
    assert checkpoint.newest_state(tmp_path / "run")["step"] == 3


def test_other_errors_are_not_taken_for_a_full_memory(tmp_path, monkeypatch):
    def loss(self, batch, phase, step):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(toys.Line, "loss", loss)
    with pytest.raises(RuntimeError, match="shapes"):
        toys.train("line", tmp_path / "run", auto_batch=True)


def test_several_processes_are_told_to_choose_themselves():
    config = TrainConfig(auto_batch=True)
    with pytest.raises(UserError, match="give --accumulate instead"):
        build(toys.Line(config), config, here=Distributed(torch.device("cpu"), 0, 2))


# ---- numbers that are not finite


class Fragile(torch.nn.GELU):
    """Gives NaN while it is broken, or backward only."""

    broken = ""

    def forward(self, x):
        gradient_only = (x.sum() * 0).abs().sqrt()
        return super().forward(x) * {"": 1.0, "forward": math.nan, "backward": 1 + gradient_only}[
            self.broken
        ]  # fmt: skip


def fragile(monkeypatch, *places: int, way: str = "forward") -> None:
    """Let the toys' modules at these places break at step 4; the last net that is made has them."""
    plain = toys.mlp

    def mlp(sizes, seed):
        net = plain(sizes, seed)
        for place in places:
            net[place] = Fragile()
        return net

    monkeypatch.setattr(toys, "mlp", mlp)
    for kind in (toys.Line, toys.Gan):

        def loss(self, batch, phase, step, plain=kind.loss):
            Fragile.broken = way if step == 4 else ""
            return plain(self, batch, phase, step)

        monkeypatch.setattr(kind, "loss", loss)


@pytest.mark.parametrize(
    ("kind", "places", "way", "says"),
    [
        ("line", (2, 5), "forward", r"model\.2 \(Fragile\) is the first"),
        ("line", (5,), "forward", r"model\.5 \(Fragile\) is the first"),
        ("gan", (2,), "forward", r"model\.2 \(Fragile\) is the first"),
        # The gradient passes from module 5 to the bias of the norm before it.
        ("line", (2, 5), "backward", r"all is finite but gradients, that of model\.4\.bias first"),
    ],
)
def test_what_is_the_first_not_to_be_finite_is_named(
    tmp_path, monkeypatch, kind, places, way, says
):
    fragile(monkeypatch, *places, way=way)
    with pytest.raises(UserError, match=rf"step 5: .*; {says}.*lower --lr"):
        toys.train(kind, tmp_path / "run", log_every=100, accumulate=2)


def test_a_discriminator_that_is_not_finite_is_named(tmp_path, monkeypatch):
    plain = toys.Gan.__init__

    def init(self, *a, **k):
        plain(self, *a, **k)
        self.judge[2] = Fragile()

    monkeypatch.setattr(toys.Gan, "__init__", init)
    fragile(monkeypatch)
    with pytest.raises(UserError, match=r"step 5: .*; judge\.2 \(Fragile\) is the first"):
        toys.train("gan", tmp_path / "run", log_every=100)


def test_a_loss_that_breaks_by_itself_is_told_from_a_module_that_does(tmp_path, monkeypatch):
    plain = toys.Line.loss

    def loss(self, batch, phase, step):
        value, metrics = plain(self, batch, phase, step)
        return value * (math.nan if step == 4 else 1.0), metrics

    monkeypatch.setattr(toys.Line, "loss", loss)
    with pytest.raises(UserError, match="; every module gives finite numbers, but the loss"):
        toys.train("line", tmp_path / "run")


@pytest.mark.parametrize("kind", ["line", "gan"])
def test_the_batch_that_spoils_a_run_is_kept_as_it_was_loaded(tmp_path, monkeypatch, kind):
    fragile(monkeypatch, 2)
    with pytest.raises(UserError, match=r"the batch is in .*/run/not-finite-0\.pt; "):
        toys.train(kind, tmp_path / "run", accumulate=2)
    kept = torch.load(tmp_path / "run" / "not-finite-0.pt", weights_only=True)
    config = TrainConfig(batch_size=8, accumulate=2)
    task = toys.TASKS[kind](config)
    for batch, rows in zip(kept, micro_rows(config, CPU), strict=True):
        for (name, tensor), wanted in zip(batch.items(), task.batch(4, rows).items(), strict=True):
            assert name == wanted[0] and torch.equal(tensor, wanted[1])


def test_weights_do_not_take_a_gradient_that_is_not_finite(monkeypatch):
    fragile(monkeypatch, 2)
    config = TrainConfig(batch_size=8, precision="float32")
    training = build(toys.Gan(config), config, here=CPU)
    training.step = 4
    before = [p.detach().clone() for t in training.phases for p in t.parameters]
    batches = [training.task.batch(4, rows) for rows in micro_rows(config, CPU)]
    metrics = engine.train_step(training, batches, lr=1e-2, look=True)
    assert math.isnan(metrics["grad_norm"]) and "weight" not in metrics
    after = [p for t in training.phases for p in t.parameters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", systems.TINY)
def test_of_a_healthy_step_no_module_is_named(folder, kind):
    """No module of ours gives what is not finite by intention, such as scores of -inf."""
    task = systems.TINY[kind](folder / kind, systems.ENGINE)
    training = build(task, systems.ENGINE, here=CPU)
    training.step = 8
    batches = [task.batch(7, rows) for rows in micro_rows(systems.ENGINE, CPU)]
    assert guards.culprit(training, batches) == "all is finite in what this process computes"


SPOILT = """
import sys
import test_guards
test_guards.spoilt(sys.argv[1], fsdp=True)
"""


def spoilt(out: str | Path, *, fsdp: bool = False) -> None:
    """A CLIP whose image encoder breaks at step 2, on the first rank only where there are two."""
    with pytest.MonkeyPatch.context() as patch:
        plain, rank = CLIPTask.loss, int(os.environ.get("RANK", "0"))

        def loss(self, batch, phase, step):
            if step == 2 and rank == 0:
                norm = self.model.image_encoder.norm_in
                norm.forward = lambda x: type(norm).forward(norm, x) * math.nan
            return plain(self, batch, phase, step)

        patch.setattr(CLIPTask, "loss", loss)
        with pytest.raises(UserError, match=f"step 3: .*not-finite-{rank}.pt; ") as caught:
            train("clip", out, fsdp=fsdp, steps=8, optimizer="muon")
    assert rank or "image_encoder.norm_in (LayerNorm) is the first" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, pytest.param(True, marks=needs_cpu_shares)])
def test_processes_find_it_together(tmp_path, fsdp):
    together(["-c", SPOILT.replace("True", str(fsdp)), str(tmp_path)], ranks=2)
    parts = [torch.load(p, weights_only=True) for p in sorted(tmp_path.rglob("not-finite-?.pt"))]
    assert len(parts) == 2 and not torch.equal(parts[0][0]["images"], parts[1][0]["images"])


# ---- the same bits


@pytest.fixture
def put_back():
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_refuses_what_would_not_repeat(tmp_path, monkeypatch, put_back):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    plain = toys.Line.loss

    def loss(self, batch, phase, step):
        batch["x"].clone().put_(torch.zeros(2, dtype=torch.int64), torch.ones(2))
        return plain(self, batch, phase, step)

    toys.train("line", tmp_path / "as-usual")
    toys.train("line", tmp_path / "the-same", deterministic=True)
    usual, same = (checkpoint.load_weights(tmp_path / n) for n in ("as-usual", "the-same"))
    assert all(torch.equal(usual[name], same[name]) for name in usual)
    monkeypatch.setattr(toys.Line, "loss", loss)
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic"):
        toys.train("line", tmp_path / "refused", deterministic=True)

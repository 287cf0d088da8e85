"""Each system on a pretend accelerator: what would fail or wait on CUDA fails here, without one."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import systems, toys
from helpers.marks import at_once
from helpers.pretend import MixedDevices, Pretend, Waiting, here, no_waiting
from helpers.tiny import make_clip, make_vqgan, noise, pictures

from minimodal.blocks import factor_head
from minimodal.blocks.drawers import DRAWERS, make_drawer
from minimodal.blocks.sampling import filter_logits
from minimodal.data.tokenizer import Tokenizer
from minimodal.errors import UserError
from minimodal.evaluation.metrics import perplexity
from minimodal.training import engine as loop
from minimodal.training.checkpoint import newest_state
from minimodal.training.contract import Task, TrainConfig
from minimodal.training.distributed import Distributed
from minimodal.training.engine import train_step
from minimodal.training.prepare import Training, build, micro_rows
from minimodal.training.probe import autocast
from minimodal.training.recipes import SYSTEMS
from minimodal.training.tasks.clip import CLIPTask
from minimodal.vqgan_clip.guide import make_guide
from minimodal.vqgan_clip.optimise import Optimisation, OptimiseConfig
from minimodal.vqgan_clip.prompts import read_prompts

KINDS = list(systems.TINY)
# The up-sampler is a U-Net as the decoder is, and takes longer.
FIRST_KINDS = at_once(KINDS, *(kind for kind in KINDS if kind != "upsampler"))
CPU = Distributed(torch.device("cpu"))
ENGINE = replace(systems.ENGINE, optimizer="muon", accumulate=2, steps=8, skip_spikes=2.0)
# Where the host may wait: constants come to the device once; VQGAN places its codes once, and
# looks once whether a run before this one has done so.
FIRST, MAY_WAIT = 0, {"vqgan": (2, 3)}
# Of VQGAN the warm start, placing, codes, codes and the game; of others each step is like another.
STEPS = {"vqgan": (FIRST, 2, 3, 4, 7)}
OTHERS = (FIRST, 2)
DRAWN = 64  # codes of a picture: a loop that waits at each waits more often than the rest of all


def begin(kind: str, folder: Path, where: Distributed, precision: str = "float32") -> Training:
    """A system at toy size, on a device."""
    engine = replace(ENGINE, precision=precision)
    task = make(kind, folder, engine)
    helpers_to(task, where.device)
    return build(task, engine, here=where)


def make(kind: str, folder: Path, engine: TrainConfig) -> Task:
    """Its task, whose helpers, such as a trained CLIP, are made on the CPU."""
    return systems.TINY[kind](folder / kind, engine)


def helpers_to(task: Task, device: torch.device) -> None:
    """Bring the CLIP that a task is given to the device, as its recipe does where one is named."""
    if hasattr(task, "embedded"):
        task.embedded.clip.to(device)


def step(training: Training, number: int) -> dict[str, float]:
    """One step of the engine, from the batch on; its metrics."""
    training.step = number
    rows, device = micro_rows(training.config, training.here), training.here.device
    batches = [training.task.batch(number, part) for part in rows]
    batches = [{k: v.to(device, non_blocking=True) for k, v in b.items()} for b in batches]
    return train_step(training, batches, lr=1e-3)


def numbers(metrics: dict) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the VQGANs lie that others draw with: trained once."""
    return tmp_path_factory.mktemp("pretend")


def test_every_system_has_a_line_in_the_table():
    assert systems.TINY.keys() == SYSTEMS.keys()


def steps(training: Training, pretend: Pretend) -> list[dict]:
    """The metrics of some steps, of which none waits that need not."""
    found = []
    for number in STEPS.get(training.task.name, OTHERS):
        quiet = number != FIRST and number not in MAY_WAIT.get(training.task.name, ())
        with no_waiting(pretend) if quiet else nullcontext():
            found.append(step(training, number))
    return [numbers(metrics) for metrics in found]


@pytest.mark.parametrize("kind", FIRST_KINDS)
def test_steps_wait_for_nothing_and_give_what_the_cpu_gives(folder, kind):
    """Nor do they use what --deterministic refuses on CUDA."""
    with Pretend() as pretend:
        found = steps(begin(kind, folder, here()), pretend)
    assert pretend.refused == set()
    on_cpu = begin(kind, folder, CPU)
    for metrics, number in zip(found, STEPS.get(kind, OTHERS), strict=True):
        assert metrics == pytest.approx(numbers(step(on_cpu, number)), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("kind", FIRST_KINDS)
def test_steps_in_bfloat16_mix_no_devices_and_wait_for_nothing(folder, kind):
    with Pretend() as pretend:
        found = steps(begin(kind, folder, here(), "bfloat16"), pretend)
    assert np.isfinite([metrics["loss"] for metrics in found]).all()


@pytest.mark.parametrize("kind", FIRST_KINDS)
def test_drawing_does_not_wait_in_its_loop_and_scores_are_those_of_the_cpu(folder, kind):
    with Pretend() as pretend:
        training = begin(kind, folder, here())
        scores, picture, waits = used(training, pretend)
        training.best.to("cpu")
        helpers_to(training.task, CPU.device)
        cpu_scores, cpu_picture, _ = used(training, pretend)
    assert waits < DRAWN / 4 and pretend.refused == set()
    assert scores == pytest.approx(cpu_scores, rel=1e-3, abs=1e-3)
    assert (picture - cpu_picture).abs().mean() < 2  # of 255


def used(training: Training, pretend: Pretend) -> tuple[dict[str, float], torch.Tensor, int]:
    """A system's scores, its picture, and how often the host waits while it draws that."""
    device = next(training.best.parameters()).device
    with torch.no_grad(), autocast(device, "float32"):
        model = training.best.eval()
        scores, before = numbers(training.task.evaluate(model)), pretend.waits
        drawn = training.task.sample(model, 7)
    picture = torch.zeros(1) if drawn is None else drawn.cpu().float()  # a prior draws none
    return scores, picture, pretend.waits - before


@pytest.mark.parametrize("kind", DRAWERS)
def test_vqgan_clip_steps_there_as_on_the_cpu(kind):
    losses = []
    with Pretend():
        for device in ("cpu", "pretend"):
            clip = make_clip(vocab_size=Tokenizer().vocab_size).requires_grad_(False).to(device)
            clip.tokenizer = Tokenizer()
            vqgan = make_vqgan(patch=4, multipliers=(1,), codes=(7, 5)).requires_grad_(False)
            drawer = make_drawer(kind, pictures(2, 3, 16, 16).to(device), vqgan=vqgan.to(device))
            guides = [make_guide(clip, read_prompts("a red circle:2 | noise=3:0.1"))]
            config = OptimiseConfig(steps=2, views=3, lr=0.2)
            run = Optimisation(drawer, guides, config, seed=3)
            losses.append([run.step().tolist() for _ in range(2)])
    assert np.allclose(*losses, rtol=1e-3)


# ---- what it must find: mutants of ours


def test_a_cpu_too_many_in_a_loss_is_found(folder, monkeypatch):
    plain = CLIPTask.embed
    monkeypatch.setattr(
        CLIPTask, "embed", lambda self, batch: (plain(self, batch)[0].cpu(), plain(self, batch)[1])
    )
    with Pretend(), pytest.raises(MixedDevices):
        step(begin("clip", folder, here()), 0)


def test_a_tensor_made_without_a_device_is_found(folder, monkeypatch):
    plain = perplexity

    def mutant(counts):
        return plain(counts * torch.ones(len(counts)))

    monkeypatch.setattr("minimodal.training.tasks.vqgan.perplexity", mutant)
    with Pretend(), pytest.raises(MixedDevices):
        step(begin("vqgan", folder, here()), 4)


def test_an_item_in_the_step_is_found(folder, monkeypatch):
    plain = loop.follow

    def mutant(training):
        assert next(training.task.model.parameters()).isfinite().all()
        plain(training)

    monkeypatch.setattr(loop, "follow", mutant)
    with Pretend() as pretend:
        training = begin("dalle", folder, here())
        with no_waiting(pretend), pytest.raises(Waiting):
            step(training, 0)


def test_a_mask_as_an_index_is_found():
    with Pretend() as pretend:
        rows = torch.arange(4, device="pretend")
        with no_waiting(pretend), pytest.raises(Waiting):
            rows[rows > 1]


def test_a_constant_copied_to_the_device_at_each_step_is_found():
    with Pretend() as pretend, no_waiting(pretend), pytest.raises(Waiting):
        torch.tensor([0.5], device="pretend")


def test_a_generator_of_another_device_is_found():
    with Pretend(), pytest.raises(MixedDevices):
        torch.rand(2, device="pretend", generator=torch.Generator().manual_seed(0))


def test_an_item_in_the_drawing_loop_is_found(folder, monkeypatch):
    plain = factor_head.sample_token

    def mutant(logits, config, generator):
        token = plain(logits, config, generator)
        assert token.max().item() >= 0
        return token

    monkeypatch.setattr(factor_head, "sample_token", mutant)
    with Pretend() as pretend:
        training = begin("dalle", folder, here())
        training.task.sample(training.best.eval(), 7)
        assert pretend.waits >= DRAWN


def test_what_is_left_out_by_probability_is_the_same_each_time():
    """Running sums there are of whole numbers."""
    with Pretend() as pretend:
        numbers = noise(9, 9).to("pretend")
        filter_logits(numbers, top_p=0.5)
        assert pretend.refused == set()
        numbers.cumsum(0)
        assert pretend.refused == {"cumsum"}


def test_an_operator_that_cuda_refuses_is_found_in_a_backward_pass():
    with Pretend() as pretend:
        x = noise(1, 1, 4, 4).to("pretend").requires_grad_()
        torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear").sum().backward()
        assert pretend.refused == {"upsample_bilinear2d_backward"}


def test_a_net_that_stayed_on_the_cpu_is_found(folder):
    with Pretend():
        training = begin("vqgan", folder, here())
        training.task.discriminator.cpu()
        with pytest.raises(MixedDevices):
            step(training, 7)


def test_autocast_casts_as_on_cuda_where_the_cpu_would_not():
    net = torch.nn.LayerNorm(4)
    with Pretend():
        x = torch.ones(2, 4, dtype=torch.bfloat16, device="pretend")
        with torch.autocast("pretend", torch.bfloat16):
            assert net.to("pretend")(x).dtype == torch.float32
            assert torch.nn.functional.linear(x.float(), x.float()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.ones(2, 4, dtype=torch.bfloat16)
        assert torch.nn.LayerNorm(4)(x).dtype == torch.bfloat16


# ---- the engine around the steps


@pytest.mark.parametrize("kind", at_once(KINDS, "vqgan"))
def test_a_run_there_saves_resumes_and_waits_between_steps_only_to_log(folder, kind, monkeypatch):
    quiet = replace(ENGINE, steps=4, log_every=100, checkpoint_every=0, accumulate=1)
    longer = replace(quiet, steps=6)
    first, again = (make(kind, folder, engine) for engine in (quiet, longer))
    monkeypatch.setattr("minimodal.training.distributed.start", lambda device: here())
    plain, out, waited = loop.train_step, folder / f"{kind}-run", []

    def watched(*arguments, **named):
        waited.append(pretend.waits)
        return plain(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", watched)
    with Pretend() as pretend:
        for task in (first, again):
            helpers_to(task, here().device)
        loop.run(first, quiet, out, data_spec="shapes:400")
        # The first step is logged; of the second and third, which VQGAN places codes in, only
        # what follows counts.
        if kind not in MAY_WAIT:
            assert waited[3] == waited[2] == waited[1]
        loop.run(again, longer, out, data_spec="shapes:400", resume=True)
    assert newest_state(out)["step"] == 6
    assert {t.device.type for t in newest_state(out)["model"].values()} == {"cpu"}


def test_a_step_that_spoils_the_weights_unseen_is_found_when_it_is_taken_again(
    tmp_path, monkeypatch
):
    """Looking at each step would wait at each; what is logged is looked at."""
    plain = toys.Line.loss

    def loss(self, batch, phase, step):
        self.model[2].forward = lambda x: x * (np.nan if step == 4 else 1.0)
        return plain(self, batch, phase, step)

    monkeypatch.setattr(toys.Line, "loss", loss)
    monkeypatch.setattr("minimodal.training.distributed.start", lambda device: here())
    with Pretend():
        with pytest.raises(UserError, match=r"step 6: .*; model\.0\.weight was spoilt before"):
            toys.train("line", tmp_path / "run", log_every=100)
        with pytest.raises(UserError, match=r"step 5: .*; model\.2 \(GELU\) is the first"):
            toys.train("line", tmp_path / "run", log_every=1, resume=True)

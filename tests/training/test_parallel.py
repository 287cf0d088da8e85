"""Two processes compute what one does, for each of the systems (four, and shares of weights, and
what some begin and others end: test_world_size.py)."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import systems
from helpers.marks import at_once, needs_cpu_shares
from helpers.processes import together
from safetensors.torch import load_file

from minimodal.training.checkpoint import read_metrics
from minimodal.training.engine import run

# What is learnt on another's run: that run, and what is kept in it.
NEEDS = {"vqgan-prior": ("vqgan", "codes"), "dalle": ("vqgan", "codes"),
         "prior": ("clip", "embeddings"), "decoder": ("clip", "embeddings")}  # fmt: skip
SYSTEMS = ("vqgan", "clip", "dalle")
# Of these only the rows of a batch tell one process from two: test_tasks.py looks at them.
OTHERS = ("vqgan-prior", "prior", "decoder", "upsampler", "vqgan-gradient", "vqgan-gumbel")
KINDS = at_once((*SYSTEMS, *OTHERS), *SYSTEMS)
SHARED = ("vqgan-gumbel", "clip", "dalle")  # here also with a share of the weights for each process


def train(kind: str, folder: str | Path, **settings) -> None:
    """Train one of them, or go on if the folder has a run that was begun; scores take too long."""
    out, engine = Path(folder) / kind, replace(systems.ENGINE, **settings)
    task, resume = systems.make(kind, out, engine), out.exists()
    task.evaluate, task.sample = lambda model: {}, lambda model, step: None
    run(task, engine, out, data_spec="shapes:400", resume=resume, device="cpu")


def give_what_it_needs(kind: str, one: Path, other: Path) -> None:
    """What is learnt on another's run is learnt on the very same; what is kept in it is made anew,
    so that all processes make it, and one writes it."""
    if kind in NEEDS:
        needed, made = NEEDS[kind]
        shutil.copytree(one / f"{kind}-{needed}", other / f"{kind}-{needed}")
        shutil.rmtree(other / f"{kind}-{needed}" / made)


def check_weights(one: Path, other: Path) -> None:
    """The weights of two runs are equal but for rounding."""
    one, two = (load_file(out / "model.safetensors") for out in (one, other))
    assert one.keys() == two.keys()
    for name in one:
        a, b = one[name], two[name]
        if name.endswith("qkv.bias"):
            # Softmax does not feel a constant added to the keys' scores: the gradient of the keys'
            # bias is 0 but for rounding, which Adam, dividing by its size, turns into steps.
            a, b = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (a, b))
        # Adam divides by the size of a gradient: where that is near 0, rounding becomes a step. A
        # codebook's sums are of thousands of vectors, and some of their entries are near 0.
        atol = 5e-5 * max(1.0, float(a.abs().max()))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol, msg=f"{other} {name}")


def check_losses(one: Path, other: Path, *, rel: float = 1e-5) -> None:
    """The losses of two runs are equal but for rounding."""
    one, two = ([x["loss"] for x in read_metrics(out) if "loss" in x] for out in (one, other))
    assert len(one) >= 4
    assert two == pytest.approx(one, rel=rel)


SCRIPT = """
import sys, test_parallel
from helpers.marks import CPU_SHARES
for kind in sys.argv[2:]:
    test_parallel.train(kind, sys.argv[1])
    if kind in test_parallel.SHARED and CPU_SHARES:
        test_parallel.train(kind, sys.argv[1] + "/shares", fsdp=True)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of a system the runs of one process, and those of two on the same global batches."""

    @cache
    def make(kinds: tuple[str, ...]) -> tuple[Path, Path]:
        one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
        for kind in kinds:
            train(kind, one)
            give_what_it_needs(kind, one, two)
            if kind in SHARED:
                (two / "shares").mkdir(exist_ok=True)
                give_what_it_needs(kind, one, two / "shares")
        together(["-c", SCRIPT, str(two), *kinds])
        return one, two

    return lambda kind: make(SYSTEMS if kind in SYSTEMS else OTHERS)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_weights_of_one(folders, kind):
    check_weights(*(folder / kind for folder in folders(kind)))


@needs_cpu_shares
@pytest.mark.parametrize("kind", at_once(SHARED, "clip", "dalle"))
def test_two_processes_with_shares_of_the_weights_end_with_those_of_one(folders, kind):
    one, two = folders(kind)
    check_weights(one / kind, two / "shares" / kind)
    check_losses(one / kind, two / "shares" / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_report_the_losses_of_one(folders, kind):
    check_losses(*(folder / kind for folder in folders(kind)))


def test_lambda_and_the_verdicts_are_in_the_log(folders):
    last = [line for line in read_metrics(folders("vqgan")[0] / "vqgan") if "lambda" in line][-1]
    assert last["lambda"] > 0
    assert {"d_real", "d_fake", "discriminator_loss"} <= set(last)

"""Two processes compute what one does, for each of the systems."""

import shutil

import pytest
import torch
from helpers import systems
from helpers.processes import together
from safetensors.torch import load_file

from minimodal.training.checkpoint import read_metrics

# What is learnt on another's run: that run, and what is kept in it.
NEEDS = {"vqgan-prior": ("vqgan", "codes"), "dalle": ("vqgan", "codes"),
         "prior": ("clip", "embeddings"), "decoder": ("clip", "embeddings")}  # fmt: skip
QUANTIZERS = ("vqgan", "vqgan-gradient", "vqgan-gumbel")
KINDS = (*QUANTIZERS, "vqgan-prior", "clip", "dalle", "prior", "decoder", "upsampler")

SCRIPT = f"""
import sys
from helpers import systems
from pathlib import Path
for kind in {KINDS}:
    systems.train(kind, Path(sys.argv[1]) / kind)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs of one process, and those of two on the same global batches."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for kind in KINDS:
        systems.train(kind, one / kind)
        if kind in NEEDS:  # both learn on the very same run
            other, made = NEEDS[kind]
            shutil.copytree(one / f"{kind}-{other}", two / f"{kind}-{other}")
            # so that both processes make them, and one writes them
            shutil.rmtree(two / f"{kind}-{other}" / made)
    together(["-c", SCRIPT, str(two)])
    return one, two


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_weights_of_one(folders, kind):
    one, two = (load_file(folder / kind / "model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for name in one:
        a, b = one[name], two[name]
        if name.endswith("qkv.bias"):
            # Softmax does not feel a constant added to the keys' scores: the gradient of the keys'
            # bias is 0 but for rounding, which Adam, dividing by its size, turns into steps.
            a, b = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (a, b))
        # Adam divides by the size of a gradient: where that is near 0, rounding becomes a step.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_report_the_losses_of_one(folders, kind):
    one, two = (
        [line["loss"] for line in read_metrics(folder / kind) if "loss" in line]
        for folder in folders
    )
    assert len(one) >= 4
    assert two == pytest.approx(one, rel=1e-5)


def test_lambda_and_the_verdicts_are_in_the_log(folders):
    last = [line for line in read_metrics(folders[0] / "vqgan") if "lambda" in line][-1]
    assert last["lambda"] > 0
    assert {"d_real", "d_fake", "discriminator_loss"} <= set(last)

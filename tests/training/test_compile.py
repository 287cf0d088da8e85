"""--compile changes how fast a step is, and not what it does."""

import math
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import systems
from torch import nn

from minimodal.training import checkpoint

KINDS = [kind for kind in systems.TINY if kind != "vqgan"]  # it refuses to be compiled


def losses(out, kind, *, compiled, **settings):
    """What each step's loss is, where every step is logged."""
    engine = replace(systems.ENGINE, log_every=1, compile=compiled, steps=4, **settings)
    systems.train(kind, out, engine)
    return [line["loss"] for line in checkpoint.read_metrics(out) if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_have_the_losses_of_plain_ones_and_warn_of_nothing(
    tmp_path, monkeypatch, kind
):
    plain = nn.Module.compile
    # Traced and differentiated as for the compiler, which alone is left out: it takes minutes.
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend="aot_eager"))
    wanted = losses(tmp_path / "plain", kind, compiled=False)
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = losses(tmp_path / "compiled", kind, compiled=True)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert len(found) == 4 and all(
        math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, wanted, strict=True)
    )
    assert [str(w.message) for w in said if "minimodal" in str(w.message)] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_to_machine_code_it_trains_and_goes_on(tmp_path):
    wanted = losses(tmp_path / "plain", "dalle", compiled=False)
    torch._dynamo.reset()
    found = losses(tmp_path / "compiled", "dalle", compiled=True)
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, wanted, strict=True))
    engine = replace(systems.ENGINE, log_every=1, compile=True, steps=6)
    systems.train("dalle", tmp_path / "compiled", engine, resume=True)
    assert checkpoint.newest_state(tmp_path / "compiled")["step"] == 6

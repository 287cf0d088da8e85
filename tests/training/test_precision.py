"""Where the measured precision is float32, nothing may compute in bfloat16.

A CPU without bfloat16 instructions emulates them, fifty times slower: one forgotten cast made a
CLIP of seven minutes take ninety.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import systems
from helpers.marks import at_once
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimodal.training import distributed
from minimodal.training.engine import train_step
from minimodal.training.prepare import build, choose_precision, measure, micro_rows
from minimodal.training.probe import autocast, matmul_peak, multiplies_bfloat16

CPU = distributed.Distributed(torch.device("cpu"))


class HalfOperations(TorchDispatchMode):
    """Collects the operations that take or give a tensor of 16 bits."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        kinds = {x.dtype for x in tree_leaves((args, result)) if isinstance(x, torch.Tensor)}
        if kinds & {torch.bfloat16, torch.float16}:
            self.found.add(str(function))
        return result


def operations(kind: str, tmp_path, precision: str) -> set[str]:
    """What computes in 16 bits in two steps of a system, its scores and its drawing."""
    engine = replace(
        systems.ENGINE, precision=precision, optimizer="muon", accumulate=2, steps=8
    )  # fmt: skip
    if kind == "vqgan-gumbel":
        task = systems.make_plain_vqgan(engine, quantizer="gumbel")
    else:
        task = systems.TINY[kind](tmp_path / kind, engine)
    training = build(task, engine, here=CPU)
    rows = micro_rows(engine, CPU)
    with HalfOperations() as mode:
        # VQGAN places its codes, and plays the whole game; of others a step is like another.
        for step in (2, 7) if kind.startswith("vqgan") else (2,):
            training.step = step
            train_step(training, [task.batch(step, part) for part in rows], lr=1e-3)
        with torch.no_grad(), autocast(CPU.device, precision):
            task.evaluate(training.best.eval())
            task.sample(training.best.eval(), 7)
    return mode.found


KINDS = ["vqgan-gumbel", *systems.TINY]


# The up-sampler is a U-Net as the decoder is, and takes longer.
@pytest.mark.parametrize("kind", at_once(KINDS, *(kind for kind in KINDS if kind != "upsampler")))
def test_a_run_in_float32_has_no_operation_in_16_bits(tmp_path, kind):
    assert operations(kind, tmp_path, "float32") == set()


def test_the_same_look_finds_the_16_bits_of_a_bfloat16_run(tmp_path):
    assert any("bmm" in name for name in operations("clip", tmp_path, "bfloat16"))


def test_float32_is_chosen_where_bfloat16_products_are_slow(monkeypatch):
    monkeypatch.setattr(
        "minimodal.training.probe.matmul_peak",
        lambda device, precision, n=0: {"float32": 2e9, "bfloat16": 1e9}[precision],
    )
    assert not multiplies_bfloat16(CPU.device)
    engine = replace(systems.ENGINE, precision="auto")
    training = build(systems.make_clip(engine), engine, here=CPU)
    with HalfOperations() as mode:  # not even tried: passes would take minutes
        assert measure(training, slice(0, 8))[0] == "float32"
    assert mode.found == set()


def test_a_card_that_only_emulates_bfloat16_trains_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: (
        including_emulation))  # fmt: skip
    card = SimpleNamespace(
        here=distributed.Distributed(torch.device("cuda")), task=SimpleNamespace(name="clip")
    )
    assert choose_precision(card, {}) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision(card, {}) == "bfloat16"


def test_a_peak_is_the_speed_of_a_product():
    assert matmul_peak(CPU.device, "float32", n=64) > 0

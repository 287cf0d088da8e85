"""The losses that never hold all logits, against the plain ones that do."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import noise

from minimodal.blocks.contrastive import both_ways, unit
from minimodal.blocks.contrastive_rows import (
    Everyone,
    gathered_loss,
    rows_cross_entropy,
    rows_sigmoid,
)
from minimodal.clip import contrastive_loss

B, E = 12, 5
CAPTIONS = {"distinct": torch.arange(B), "repeated": torch.arange(B) // 3 % 3}


def inputs() -> list[torch.Tensor]:
    """Pictures, captions and a scale, all with gradients."""
    return [
        tensor.requires_grad_()
        for tensor in (noise(B, E), noise(B, E, seed=1), torch.tensor([7.0]))
    ]


def some_rows(image, text, scale, captions: torch.Tensor, rows: int) -> torch.Tensor:
    """The loss of one process, so many rows of logits at a time."""
    everyone = Everyone(image, text, captions)
    return gathered_loss(image, text, scale, captions=captions, rows=rows, everyone=everyone)


def equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 5, 12, 99])
@pytest.mark.parametrize("captions", CAPTIONS.values(), ids=CAPTIONS)
def test_some_rows_at_a_time_give_the_plain_loss_and_its_gradients(rows, captions):
    plain, blocked = inputs(), inputs()
    wanted = contrastive_loss(*plain, captions=captions)
    found = some_rows(*blocked, captions, rows)
    torch.testing.assert_close(found, wanted)
    # Scaled, as a mean over micro-batches scales it: what was computed early must follow.
    (3 * wanted).backward()
    (3 * found).backward()
    equal(blocked, plain)


@pytest.mark.parametrize("captions", CAPTIONS.values(), ids=CAPTIONS)
def test_a_processs_rows_against_all_columns_give_the_plain_loss(captions):
    plain, blocked = inputs(), inputs()
    for (image, text, scale), rows in ((plain, 0), (blocked, 3)):
        mine = slice(4, 8)
        gathered_loss(
            image[mine], text[mine], scale, captions=captions[mine],
            everyone=Everyone(image, text, captions), rows=rows,
        ).backward()  # fmt: skip
    equal(blocked, plain)


def test_the_blocked_loss_keeps_its_digits_under_autocast():
    image, text, scale = inputs()
    wanted = contrastive_loss(image, text, scale, captions=CAPTIONS["distinct"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = some_rows(image, text, scale, CAPTIONS["distinct"], 4)
    torch.testing.assert_close(found, wanted)


def test_the_plain_loss_differs_under_autocast_by_the_rounded_logits_only():
    (image, text, scale), exact = inputs(), inputs()
    contrastive_loss(*exact, captions=CAPTIONS["repeated"]).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(image, text, scale, captions=CAPTIONS["repeated"])
    loss.backward()
    assert loss.dtype == image.grad.dtype == torch.float32
    for found, wanted in zip((image, text, scale), exact, strict=True):
        assert (found.grad - wanted.grad).norm() < 0.02 * wanted.grad.norm()


def test_the_columns_are_summed_as_exactly_as_the_rows():
    n = 2048
    logits = (5 * noise(n, n)).requires_grad_()
    both_ways(logits, torch.full((n, n), 1 / n)).backward()
    exact = logits.detach().double()
    wanted = (exact.softmax(dim=0) + exact.softmax(dim=1) - 2 / n) / (2 * n)
    assert (logits.grad - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("rows", [0, 40])
def test_nothing_pulls_where_all_is_right_at_the_highest_scale(rows):
    image = noise(256, 512)
    text = image + 0.5 * noise(256, 512, seed=1)
    image.requires_grad_(), text.requires_grad_()
    scale, captions = torch.tensor([100.0]), torch.arange(256)
    if rows:
        some_rows(image, text, scale, captions, rows).backward()
    else:
        contrastive_loss(image, text, scale, captions=captions).backward()
    # The logits are right to 1e-5, but the same ones must be in a sum and in its terms.
    assert max(image.grad.abs().max(), text.grad.abs().max()) < 1e-10


def test_the_blocked_loss_works_without_gradients():
    image, text, scale = (tensor.detach() for tensor in inputs())
    wanted = contrastive_loss(image, text, scale, captions=CAPTIONS["distinct"])
    found = some_rows(image, text, scale, CAPTIONS["distinct"], 5)
    torch.testing.assert_close(found, wanted)


def test_a_vector_of_zeros_has_no_direction_and_a_finite_gradient():
    x = torch.stack([torch.zeros(E), noise(E)]).requires_grad_()
    u = unit(x)
    torch.testing.assert_close(u, F.normalize(x, dim=-1))
    u[1].sum().backward()
    assert x.grad.isfinite().all() and x.grad[0].eq(0).all()


def test_large_scales_do_not_overflow():
    image = F.normalize(noise(B, E), dim=-1)
    numbers = {"own": torch.arange(B), "others": torch.arange(B), "rows": 4, "both": True}
    loss = rows_cross_entropy(image, -image, torch.tensor([1000.0]), **numbers)
    assert math.isfinite(loss) and loss > 500  # each picture is farthest from its own caption


def test_the_gradient_of_the_blocked_loss_is_that_of_finite_differences():
    image, text = (F.normalize(noise(4, 3, seed=seed).double(), dim=-1) for seed in (1, 2))
    numbers = torch.tensor([0, 1, 1, 2])

    def loss(image, text, scale):
        return rows_cross_entropy(
            image, text, scale, own=numbers, others=numbers, rows=3, both=True
        )

    scale = torch.tensor([3.0]).double()
    given = [tensor.requires_grad_() for tensor in (image, text, scale)]
    assert torch.autograd.gradcheck(loss, given)


# --- SigLIP --------------------------------------------------------------------------------------


def test_the_sigmoid_loss_is_the_equation():
    image, text = (F.normalize(noise(B, E, seed=seed), dim=-1) for seed in (1, 2))
    captions, s, b = CAPTIONS["repeated"], 7.0, -2.0
    total = 0.0
    for i in range(B):
        for j in range(B):
            z = 1 if captions[i] == captions[j] else -1
            total += math.log(1 / (1 + math.exp(-z * (s * float(image[i] @ text[j]) + b))))
    found = rows_sigmoid(
        image, text, torch.tensor([s]), torch.tensor([b]), own=captions, others=captions, rows=5
    )
    assert found.item() == pytest.approx(-total / B, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 99])
def test_some_rows_at_a_time_give_the_gradients_of_the_sigmoid_loss(rows):
    grads = []
    for size in (rows, B):
        image, text, scale = inputs()
        bias = torch.tensor([-2.0]).requires_grad_()
        captions = CAPTIONS["distinct"]
        numbers = {"own": captions, "others": captions, "rows": size}
        rows_sigmoid(F.normalize(image), F.normalize(text), scale, bias, **numbers).backward()
        grads.append([tensor.grad for tensor in (image, text, scale, bias)])
    for found, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted)


# --- memory --------------------------------------------------------------------------------------

PEAK = """
import sys, torch
from minimodal.blocks.contrastive_rows import Everyone, gathered_loss
B, rows = int(sys.argv[1]), int(sys.argv[2])
image, text = torch.ones(2, B, 64).unbind()
for tensor in (image, text):
    tensor[torch.arange(B), torch.arange(B) % 64] += 1
    tensor.requires_grad_()
scale = torch.tensor([9.0], requires_grad=True)
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
def step(u, v, rows):
    own = torch.arange(len(u))
    everyone = Everyone(u, v, own)
    gathered_loss(u, v, scale, captions=own, rows=rows, everyone=everyone).backward()
step(image[:8], text[:8], 4)
before = peak()
step(image, text, rows)
print((peak() - before) / 1024)
"""


def megabytes(batch: int, rows: int) -> float:
    command = [sys.executable, "-c", PEAK, str(batch), str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much is used")
def test_the_memory_of_the_blocked_loss_does_not_grow_with_the_square():
    plain, blocked = megabytes(4096, 0), megabytes(4096, 64)
    assert plain > 100  # 4096² numbers of 4 bytes are 64 MiB
    assert blocked < 40

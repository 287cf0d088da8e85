import math

import pytest
import torch
from helpers import systems
from torch import nn

from minimodal.blocks.discriminator import PatchDiscriminator
from minimodal.blocks.transformer import Transformer
from minimodal.training.contract import TrainConfig
from minimodal.training.optim import (
    Muon,
    lr_at,
    make_optimizer,
    orthogonalize,
    parameter_groups,
)
from minimodal.training.probe import autocast

SCHEDULE = TrainConfig(lr=2.0, warmup=4, min_lr_ratio=0.1)


def test_warm_up_is_linear_and_reaches_the_peak():
    rates = [lr_at(step, 0.0, SCHEDULE) for step in range(6)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_cosine_is_halfway_at_half_time_and_ends_at_its_share_of_the_peak():
    assert lr_at(100, 0.5, SCHEDULE) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert lr_at(100, 0.25, SCHEDULE) == pytest.approx(
        2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    )
    assert lr_at(100, 1.0, SCHEDULE) == pytest.approx(0.2)


def test_schedule_stays_at_its_end_when_time_is_over():
    assert lr_at(100, 1.2, SCHEDULE) == lr_at(100, 1.0, SCHEDULE)


def test_no_warm_up_starts_at_the_peak():
    assert lr_at(0, 0.0, TrainConfig(lr=1.0, warmup=0)) == 1.0


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(2, 3), nn.Conv2d(2, 3, 1)
        self.norm, self.tokens = nn.LayerNorm(3), nn.Embedding(5, 3)
        self.positions = nn.Parameter(torch.zeros(4, 3))
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.tokens.weight  # tied
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_weight_decay_is_for_linear_maps_and_convolutions_only():
    net = Everything()
    decayed, kept = parameter_groups([net], 0.3)
    assert {id(p) for p in decayed["params"]} == {id(net.linear.weight), id(net.conv.weight)}
    assert decayed["weight_decay"] == 0.3 and kept["weight_decay"] == 0.0


def test_every_trainable_parameter_is_optimised_once():
    net = Everything()
    groups = make_optimizer([net, net.linear], lr=1.0, betas=(0.9, 0.95), weight_decay=0.1)
    found = [id(p) for group in groups.param_groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in net.parameters() if p.requires_grad}


def test_orthogonalised_matrices_have_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 16, 16), (3, 32, 8), (1, 8, 32)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator)))
        assert 0.5 < values.min() and values.max() < 1.4


def test_in_bfloat16_orthogonalised_matrices_are_those_of_float32_but_for_rounding():
    matrices = torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(0))
    exact = orthogonalize(matrices)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = orthogonalize(matrices)
    assert rounded.dtype == torch.float32
    assert 1e-5 < (rounded - exact).norm() / exact.norm() < 0.02
    values = torch.linalg.svdvals(rounded)
    assert 0.5 < values.min() and values.max() < 1.4


def losses_of_a_clip(precision_of_muon: str) -> list[float]:
    """A toy CLIP's losses over ten steps, in float32 but for Muon's products."""
    task = systems.make_clip(systems.ENGINE)
    both = make_optimizer([task.model], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, muon=True)
    losses = []
    for step in range(10):
        loss, _ = task.loss(task.batch(step, slice(0, 8)), "clip", step)
        loss.backward()
        with autocast(torch.device("cpu"), precision_of_muon):
            both.step()
        both.zero_grad()
        losses.append(loss.item())
    return losses


def test_muon_in_either_precision_has_the_same_loss_trace_within_noise():
    exact, rounded = losses_of_a_clip("float32"), losses_of_a_clip("bfloat16")
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)


def test_muon_moves_entries_by_about_the_learning_rate():
    weight = nn.Parameter(torch.zeros(64, 16))
    weight.grad = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.01, weight_decay=0.0).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.01, rel=0.3)


def test_muon_takes_the_matrices_of_transformers_and_adamw_the_rest():
    net = nn.ModuleDict({"body": Transformer(8, 2, 2, causal=True), "head": nn.Linear(8, 4)})
    both = make_optimizer([net], lr=1.0, betas=(0.9, 0.95), weight_decay=0.1, muon=True)
    adamw, muon = ([id(p) for g in o.param_groups for p in g["params"]] for o in both.optimizers)
    assert len(muon) == 8 and id(net["head"].weight) in adamw
    assert sorted(adamw + muon) == sorted(id(p) for p in net.parameters())


def test_a_kernel_is_moved_as_the_matrix_that_multiplies_a_window():
    matrix = nn.Parameter(torch.zeros(6, 18))
    kernel = nn.Parameter(torch.zeros(6, 2, 3, 3))  # 6 = 3 x 2: it is not taken for three matrices
    matrix.grad = torch.randn(6, 18, generator=torch.Generator().manual_seed(0))
    kernel.grad = matrix.grad.view_as(kernel).clone()
    Muon([kernel, matrix], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(kernel.detach().flatten(1), matrix.detach())
    assert matrix.abs().sum() > 0


def test_muon_takes_the_kernels_of_a_net_without_transformers_but_not_a_discriminators():
    generator, judge = nn.Conv2d(3, 8, 3), PatchDiscriminator(channels=8, depth=1)
    options = {"lr": 1.0, "betas": (0.9, 0.95), "weight_decay": 0.1, "muon": True}
    both = make_optimizer([generator], **options)
    assert [p.shape for p in both.optimizers[1].param_groups[0]["params"]] == [(8, 3, 3, 3)]
    assert isinstance(make_optimizer([judge], **options), torch.optim.AdamW)


def test_queries_keys_and_values_are_orthogonalised_one_by_one():
    weight = nn.Parameter(torch.zeros(24, 8))
    weight.grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    weight.grad[:8] *= 1000  # large gradients of the queries leave keys and values their share
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    sizes = [part.norm().item() for part in weight.detach().chunk(3)]
    assert max(sizes) / min(sizes) < 1.3

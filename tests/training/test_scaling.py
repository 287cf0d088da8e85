"""docs/scaling.md: its formulas of memory, compute and communication against what is counted."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, script, systems
from helpers.marks import needs_cpu_shares
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimodal.blocks.conv import ResidualBlock
from minimodal.blocks.transformer import Transformer
from minimodal.clip import CLIPConfig
from minimodal.dalle import DALLEConfig
from minimodal.training.distributed import Distributed
from minimodal.training.engine import train_step
from minimodal.training.optim import inner_matrices
from minimodal.training.prepare import Training, build, micro_rows, one_pass, wrap
from minimodal.training.probe import count_flops
from minimodal.unclip.prior import PriorConfig
from minimodal.vqgan_prior import VQGANPriorConfig

scaling = script("scaling")
KINDS = list(systems.TINY)
MANY = {"clip": 1024, "vqgan": 1024, "dalle": 1024}  # processes; of the others 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scaling")


def size(tree: Any) -> int:
    return sum(t.nbytes for t in tensors(tree))


def tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


class Moved(TorchDispatchMode):
    """Counts the bytes that go into collectives, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            sizes = [size(argument) for argument in args]
            name = func._schema.name.removeprefix("c10d::").removesuffix("_base_").strip("_")
            self.bytes[name] += max(sizes)
        return func(*args, **(kwargs or {}))


def bytes_kept(run: Callable[[int], None], nets: tuple[nn.Module, ...]) -> tuple[int, int]:
    """What autograd keeps until the backward pass: for a sample, and whatever their number (copies
    of weights); the weights themselves not counted."""
    weights = {p.untyped_storage()._cdata for net in nets for p in net.parameters()}

    def counted(B: int) -> int:
        storages = {}

        def pack(x: Tensor) -> Tensor:
            storages[x.untyped_storage()._cdata] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            run(B)
        return sum(s.nbytes() for key, s in storages.items() if key not in weights)

    two, three = counted(2), counted(3)
    return three - two, 3 * two - 2 * three


@contextmanager
def group(N: int) -> Iterator[Distributed]:
    """A group of N processes of which one is here; the others answer without being there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=N)
    try:
        yield Distributed(torch.device("cpu"), rank=0, world=N)
    finally:
        dist.destroy_process_group()


def stepped(kind: str, folder: Path, here: Distributed, *, b: int = 4) -> Training:
    """A system after a step: of a VQGAN, one of the game. `b`: samples of this process"""
    engine = replace(systems.ENGINE, batch_size=b * here.world, steps=12, optimizer="muon")
    training = build(systems.TINY[kind](folder / kind, engine), engine, here=here)
    wrap(training)
    for trained in training.phases if here.world > 1 else ():
        trained.module.register_comm_hook(None, bucket_summed)
    training.step = 10
    batch = training.task.batch(10, micro_rows(engine, here)[0])
    with Moved() as training.counted:
        train_step(training, [batch], lr=1e-3)
    return training


def bucket_summed(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DistributedDataParallel does with a bucket of gradients; the simulated group's own
    answer is none that it could take."""
    dist.all_reduce(bucket.buffer())
    summed = torch.futures.Future()
    summed.set_result(bucket.buffer())
    return summed


@pytest.fixture(scope="module", params=KINDS)
def alone(request, folder) -> Training:
    """Each system after a step by itself."""
    return stepped(request.param, folder, Distributed(torch.device("cpu")))


# ---- parameters and FLOPs


CLOSED = {
    "clip": (scaling.clip_cost, scaling.clip_case, CLIPConfig(
        image_size=24, patch_size=4, vision_width=48, vision_depth=2, vocab_size=70, text_length=9,
        text_width=32, text_depth=3, embed_width=20, vision_heads=2, text_heads=4)),
    "dalle": (scaling.dalle_cost, scaling.dalle_case, DALLEConfig(
        vocab_size=50, text_length=7, grid=5, codes=(70,), width=48, depth=3, heads=2)),
    "vqgan-prior": (scaling.vqgan_prior_cost, scaling.vqgan_prior_case, VQGANPriorConfig(
        grid=6, codes=70, classes=5, width=48, depth=3, heads=2)),
    "prior": (scaling.prior_cost, scaling.prior_case, PriorConfig(
        width=48, depth=3, heads=2, levels=3, vocab_size=70, text_length=9, embed_width=20)),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_the_formulas_of_transformers_count_parameters_and_flops(name):
    formula, case, config = CLOSED[name]
    with torch.device("meta"):
        nets, run = case(config)
        assert formula(config).parameters == sum(p.numel() for n in nets for p in n.parameters())
        assert formula(config).flops == pytest.approx(count_flops(lambda: run(1)), rel=0.01)


def test_a_sum_over_layers_gives_the_flops_of_a_step(alone):
    batch = alone.task.batch(10, micro_rows(alone.config, alone.here)[0])
    nets = [alone.task.model, *alone.task.extra.values()]
    if hasattr(alone.task, "embedded"):
        nets.append(alone.task.embedded.clip)  # reads captions in each step, without gradients
    # PyTorch's counter does not know a CPU's fused attention, only what it is made of.
    with scaling.by_layers(*nets) as found, sdpa_kernel(SDPBackend.MATH):
        counted = count_flops(lambda: one_pass(alone, batch))
    more = scaling.game_flops(alone.task.model, 4) if alone.task.name == "vqgan" else 0
    assert found[0] + more == pytest.approx(counted, rel=0.05)


# ---- memory


def test_a_run_keeps_16_bytes_a_parameter_and_fewer_where_muon_moves_it(alone):
    """Weights, gradients and Adam's two moments; of Muon one; and the average of the weights."""
    nets = [net.requires_grad_() for phase in alone.task.phases for net in phase.nets]
    P = sum(p.numel() for net in nets for p in net.parameters())
    muon = sum(w.numel() for net in nets for w in inner_matrices(net))
    state, buffers = alone.state(), sum(b.nbytes for net in nets for b in net.buffers())
    moments = [t for t in tensors(state["optimizers"]) if t.numel() > 1]
    assert size(moments) == pytest.approx(8 * (P - muon) + 4 * muon, abs=16)
    assert size([state["model"], state["extra"]]) == 4 * P + buffers
    assert size(state["ema"]) == size(state["model"])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_a_transformer_keeps_for_the_backward_pass(bfloat16):
    """With fused attention, which a CPU has in bfloat16 from 257 tokens on."""
    L, D, T, H = 2, 64, 260, 4
    net = Transformer(D, L, H, causal=True)

    def run(B: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            net(torch.zeros(B, T, D, requires_grad=True)).sum()

    sample, copies = bytes_kept(run, (net,))
    assert sample == pytest.approx(scaling.kept(L, D, T, H, bfloat16=bfloat16), rel=0.03)
    assert copies == pytest.approx(bfloat16 * 2 * L * 12 * D**2, rel=0.03)


def test_a_residual_block_keeps_six_maps():
    block = ResidualBlock(8, 8)
    sample, _ = bytes_kept(
        lambda B: block(torch.zeros(B, 8, 16, 16, requires_grad=True)).sum(), (block,)
    )
    assert sample == pytest.approx(6 * 4 * 8 * 16 * 16, rel=0.01)


# ---- communication


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_each_of_1024_processes_gives_to_collectives(kind, folder):
    N = MANY.get(kind, 8)
    with group(N) as here:
        training = stepped(kind, folder, here)
    P = sum(p.numel() for t in training.phases for p in t.parameters)
    config = training.task.model.config
    formula = scaling.to_collectives(kind, P, N=N, b=4, c=config)
    assert training.counted.bytes == formula


@needs_cpu_shares
def test_sharded_weights_are_gathered_twice_and_their_gradients_scattered_once():
    """Among 8 processes, which divide all rows: each weight's are padded to a multiple."""
    net = Transformer(64, 3, 4, causal=True)
    P = sum(p.numel() for p in net.parameters())
    with group(8):
        # Said, for where another test has made an accelerator FSDP would take that one.
        mesh = init_device_mesh("cpu", (8,))
        for block in net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
        with Moved() as moved:
            net(torch.zeros(1, 5, 64)).sum().backward()
    assert moved.bytes == {"allgather": 2 * 4 * P, "reduce_scatter": 4 * P}


# ---- the page


def page() -> str:
    return (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_plans_of_the_page_are_those_of_the_script():
    assert "\n".join(scaling.plan_table()) in page()


@pytest.mark.slow
def test_the_costs_of_the_page_are_those_of_the_script():
    assert "\n".join(scaling.cost_table()) in page()

"""What must be right on a GPU, as checks that pass or fail; `on_gpu.py` runs them and measures.

Each check yields rows of what it has found and raises AssertionError where that is wrong. With
toy sizes they run on a CPU, too: there CI sees that they can.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

import dalle_generate
import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimodal.blocks.quantizer import Codebook, nearest
from minimodal.cli.doctor import overfit
from minimodal.cli.train import main as train
from minimodal.training import distributed, guards
from minimodal.training.checkpoint import newest_state, read_metrics
from minimodal.training.recipes import SYSTEMS


class Setting(NamedTuple):
    """Where, and how large."""

    device: torch.device
    tiny: bool
    folder: Path

    @property
    def name(self) -> str:
        return self.device.type

    @property
    def dtype(self) -> torch.dtype:
        """What pictures are drawn in."""
        return torch.bfloat16 if self.name == "cuda" else torch.float32

    @property
    def compiler(self) -> str:
        """Of torch.compile; --tiny: what it would compile is traced, no compiler is needed."""
        return "eager" if self.tiny else "inductor"

    @property
    def precisions(self) -> tuple[str, ...]:
        """A CPU without instructions for bfloat16 is very slow in it."""
        return ("float32",) if self.tiny else ("float32", "bfloat16")


class Row(NamedTuple):
    """A line of the table."""

    what: str
    found: str


def toy_run(setting: Setting, system: str, precision: str) -> Path:
    """Where a system's run is; trained if it is not there yet, after those that it needs."""
    out = setting.folder / precision / system
    if not (out / "model.safetensors").exists():
        argv = [system, "--data", "shapes:400", "--out", str(out), "--device", setting.name,
                "--precision", precision, "--batch-size", "8", "--checkpoint-every", "1",
                "--log-every", "1"]  # fmt: skip
        for need in SYSTEMS[system].needs:
            argv += [f"--{need}", str(toy_run(setting, need, precision))]
        said = io.StringIO()
        for more in (["--steps", "2"], ["--steps", "4", "--resume"]):
            with redirect_stderr(said):
                status = train([*argv, *more])
            assert status == 0, said.getvalue().splitlines()[-1]
    return out


def check_tasks(setting: Setting) -> Iterator[Row]:
    """Two steps of each task, and two more of the resumed run."""
    for precision in setting.precisions:
        for system in SYSTEMS:
            out = toy_run(setting, system, precision)
            losses = [line["loss"] for line in read_metrics(out) if "loss" in line]
            assert newest_state(out)["step"] == 4 and len(losses) == 4, "no four steps"
            yield Row(f"{system}, {precision}: trains, resumes, scores, draws",
                      f"losses {losses[0]:.4g} to {losses[-1]:.4g}")  # fmt: skip


def check_against_cpu(setting: Setting) -> Iterator[Row]:
    """The first losses are those that the CPU computes from the same weights and batches."""
    on_cpu = setting
    if setting.name != "cpu":
        on_cpu = setting._replace(device=torch.device("cpu"), folder=setting.folder / "cpu")
    for system in SYSTEMS:
        here, there = (
            next(line["loss"] for line in read_metrics(toy_run(s, system, "float32")))
            for s in (setting, on_cpu)
        )
        assert abs(here - there) <= 2e-3 * abs(there), f"{system}: {here} here, {there} on the CPU"
        yield Row(f"{system}: first loss against the CPU's", f"{abs(here / there - 1):.1e} off")


def check_deterministic(setting: Setting) -> Iterator[Row]:
    """With --deterministic, each system learns a batch twice with the same losses, and no operator
    is refused."""
    guards.repeat_exactly()
    try:
        places = (setting.folder / name for name in ("once", "again"))
        once, again = (overfit(setting.device, place) for place in places)
    finally:
        torch.use_deterministic_algorithms(False)
    for system, losses in once.items():
        assert losses == again[system], f"{system}: {losses}, then {again[system]}"
        yield Row(f"{system}, --deterministic: the same twice, bit for bit", "yes")


def check_codebook(setting: Setting) -> Iterator[Row]:
    """The codebook's update against one in float64 on the CPU, and against itself."""
    n, size, width = (512, 32, 8) if setting.tiny else (65_536, 1024, 256)
    z = torch.randn(n, width, generator=torch.Generator().manual_seed(0))

    def updated(device: torch.device, dtype: torch.dtype) -> Codebook:
        book = Codebook(size, width, decay=0.9).to(device, dtype)
        book.codes.copy_(z[:size].to(device, dtype))
        book.counts.fill_(n / size)
        book.sums.copy_(book.codes * n / size)
        book.update(z.to(device, dtype), torch.Generator().manual_seed(1))
        return book

    first, again = (updated(setting.device, torch.float32) for _ in range(2))
    exact = updated(torch.device("cpu"), torch.float64)
    wanted = nearest(z.double(), z[:size].double())[0]
    indices = nearest(z.to(setting.device), z[:size].to(setting.device))[0].cpu()
    same = (indices == wanted).double().mean().item()
    assert same > 0.9999, f"{same:.3%} of the codes are the nearest"
    error = (first.codes.cpu().double() - exact.codes).abs().max().item()
    assert error < 1e-3, f"a code is {error:.1e} off"
    yield Row("codebook: nearest codes as in float64", f"{same:.4%}")
    yield Row("codebook: largest error of an updated code", f"{error:.1e}")
    yield Row("codebook: an update is the same twice, bit for bit",
              "yes" if torch.equal(first.codes, again.codes) else "no")  # fmt: skip


def check_group(setting: Setting) -> Iterator[Row]:
    """A group of one process: NCCL starts, reduces, gathers, and wraps a module."""
    backend = "cpu:gloo,cuda:nccl" if setting.name == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.arange(6.0, device=setting.device).view(3, 2).requires_grad_()
        gathered = distributed._Gather.apply(x)
        gathered.square().sum().backward()
        assert torch.equal(gathered, x) and torch.equal(x.grad, 2 * x)
        net = nn.Linear(2, 2).to(setting.device)
        nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)(x).sum().backward()
        assert net.weight.grad is not None
    finally:
        dist.destroy_process_group()
    yield Row(f"{backend} with one process: gathers, reduces, wraps", "yes")


def draw_shape(setting: Setting) -> dalle_generate.Shape:
    """The DALL·E that is measured."""
    tiny = dalle_generate.Shape(text=4, grid=4, width=32, depth=2, heads=2, codes=64)
    return tiny if setting.tiny else dalle_generate.LARGE


def drawn(setting: Setting, batch: int, *, compiled: bool) -> tuple[Callable[[], Tensor], Tensor]:
    """A function that draws, and the first codes that it gives from one seed."""
    torch.manual_seed(0)
    shape = draw_shape(setting)
    model = dalle_generate.dalle(shape, setting.name).to(setting.dtype)
    if compiled:
        model.transformer.compile(dynamic=True, backend=setting.compiler)
    text = dalle_generate.captions(shape, batch, setting.name)

    def draw() -> Tensor:
        generator = torch.Generator(setting.device).manual_seed(0)
        return model.generate_codes(text, generator=generator).flatten(1)

    return draw, draw()


def check_drawing(setting: Setting) -> Iterator[Row]:
    """Compiled drawing draws the same; of random weights in bfloat16 nearly the same."""
    (_, plain), (_, compiled) = (drawn(setting, 2, compiled=c) for c in (False, True))
    same = (plain[:, :8] == compiled[:, :8]).double().mean().item()
    assert same > 0.5, f"{same:.0%} of the first eight codes are the same"
    yield Row("drawing compiled: same first eight codes", f"{same:.0%}")


CHECKS: tuple[Callable[[Setting], Iterator[Row]], ...] = (
    check_tasks, check_against_cpu, check_deterministic, check_codebook, check_group, check_drawing,
)  # fmt: skip

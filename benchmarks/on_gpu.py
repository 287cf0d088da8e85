"""What has never run on a GPU, checked and measured there by one command, in eight minutes.

    python benchmarks/on_gpu.py                      # on a machine with CUDA
    python benchmarks/on_gpu.py --tiny --device cpu  # the same at toy size: what CI runs

First checks, which pass or fail: each task takes two steps in float32 and in bfloat16, is resumed,
and scores and draws; the device gives what the CPU gives; with --deterministic each task learns a
batch twice with the same bits; the codebook's update is exact; a group of one process gathers;
drawing with and without torch.compile draws the same. Then measurements: a matmul's peak and the
memory's bandwidth; training steps of CLIP ViT-B/32, of VQGAN f16 at 256 pixels, of a DALL·E of 125
million parameters on 256 + 1024 tokens, of unCLIP's decoder of 64 pixels, as a share of that peak;
DALL·E's drawing at batch 1 and 64 beside the floor, the time to read weights and cache once a
token. A failure is told and does not stop the rest; the exit status is then 1.

The result is printed and replaces the section "On a GPU" of benchmarks/RESULTS.md; with --tiny it
is only printed.
"""

import argparse
import datetime
import io
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

import clip_step
import dalle_generate
import dalle_step
import diffusion
import torch
import torch.distributed as dist
import vqgan_step
from clip_step import timed
from torch import Tensor, nn

from minimodal.blocks.quantizer import Codebook, nearest
from minimodal.cli.doctor import overfit
from minimodal.cli.train import main as train
from minimodal.training import distributed, guards, probe
from minimodal.training.checkpoint import newest_state, read_metrics
from minimodal.training.recipes import SYSTEMS
from minimodal.unclip.decoder import Decoder, DecoderConfig

HEADING = "## On a GPU"
RESULTS = Path(__file__).with_name("RESULTS.md")


class Setting(NamedTuple):
    """Where, and how large."""

    device: torch.device
    tiny: bool
    folder: Path

    @property
    def name(self) -> str:
        return self.device.type

    @property
    def precisions(self) -> tuple[str, ...]:
        """A CPU without instructions for bfloat16 is very slow in it."""
        return ("float32",) if self.tiny else ("float32", "bfloat16")


class Row(NamedTuple):
    """A line of the table."""

    what: str
    found: str


class OutOfTime(Exception):
    """The minutes are over."""


# ---- checks: each yields what it has found, and raises AssertionError where that is wrong


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
    dtype = torch.bfloat16 if setting.name == "cuda" else torch.float32
    torch.manual_seed(0)
    shape = draw_shape(setting)
    model = dalle_generate.dalle(shape, setting.name).to(dtype)
    if compiled:  # --tiny: what it would compile is traced, no compiler is needed
        model.transformer.compile(dynamic=True, backend="eager" if setting.tiny else "inductor")
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


# ---- measurements


def bandwidth(setting: Setting) -> float:
    """Bytes a second of a large copy, read and written."""
    x = torch.empty(2**20 if setting.tiny else 2**28, dtype=torch.bfloat16, device=setting.device)
    y = torch.empty_like(x)
    return 2 * x.numel() * 2 / min(timed({"": lambda: y.copy_(x)}, 10, setting.name)[""])


def measure_device(setting: Setting) -> Iterator[Row]:
    """What the device reaches by itself."""
    n = 64 if setting.tiny else 0
    for precision in setting.precisions:
        peak = probe.matmul_peak(setting.device, precision, n=n)
        yield Row(f"matmul peak, {precision}", f"{peak / 1e12:.4g} TFLOP/s")
    yield Row("memory bandwidth, copying", f"{bandwidth(setting) / 1e9:.4g} GB/s")


def measure_step(
    setting: Setting, name: str, step: Callable[[], None], precision: str, pictures: int
) -> Row:
    """Speed of a training step, the share of the matmul peak, and the memory that it took."""
    if setting.name == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed({"": step}, 2 if setting.tiny else 10, setting.name)[""])
    flops = probe.count_flops(step)
    peak = probe.matmul_peak(setting.device, precision, n=64 if setting.tiny else 0)
    found = (f"{1000 * seconds:.1f} ms, {pictures / seconds:.4g} pictures/s, "
             f"{flops / seconds / peak:.0%} of peak")  # fmt: skip
    if setting.name == "cuda":
        found += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return Row(name, found)


def measure_clip(setting: Setting) -> Iterator[Row]:
    """CLIP ViT-B/32, batch 1024."""
    shape = clip_step.Shape(32, 16, 64, 1, 64, 1, 8, 64, 32, 4) if setting.tiny else clip_step.LARGE
    for precision in setting.precisions[-1:]:
        step = clip_step.ours(shape, precision, setting.name)
        yield measure_step(setting, f"CLIP {'toy' if setting.tiny else 'ViT-B/32'}, batch "
                           f"{shape.batch}, {precision}", step, precision, shape.batch)  # fmt: skip


def measure_vqgan(setting: Setting) -> Iterator[Row]:
    """VQGAN f16 at 256 pixels with its discriminator, batch 16, both layouts of memory."""
    tiny = vqgan_step.Shape(32, 8, (1, 2), 1, (), 16, 8, 8, 2)
    shape = tiny if setting.tiny else vqgan_step.LARGE
    for last in (False, True):
        for precision in setting.precisions[-1:]:
            step = vqgan_step.ours(shape, precision, setting.name, last=last)
            name = f"VQGAN {shape.image} pixels, batch {shape.batch}, {precision}"
            name += ", channels last" if last else ""
            yield measure_step(setting, name, step, precision, shape.batch)


def measure_dalle(setting: Setting) -> Iterator[Row]:
    """A DALL·E of 125 million parameters on 256 + 1024 tokens, plain and compiled."""
    shape, batch = draw_shape(setting), 2 if setting.tiny else 32
    for precision in setting.precisions[-1:]:
        step = dalle_step.ours(shape, batch, precision, setting.name)
        name = f"DALL·E, {shape.text} + {shape.image} tokens, batch {batch}, {precision}"
        yield measure_step(setting, name, step, precision, batch)


def measure_decoder(setting: Setting) -> Iterator[Row]:
    """unCLIP's decoder of 64 pixels, with the widths of GLIDE's small one."""
    side, channels, batch = (8, 12, 2) if setting.tiny else (64, 192, 64)
    config = DecoderConfig(
        image_size=side, patch=1, channels=channels, multipliers=(1, 2, 3, 4), depth=3,
        attention=(side // 2, side // 4, side // 8), width=4 * channels, embed_width=512,
        word_width=512,
    )  # fmt: skip
    told = diffusion.told(config, batch, setting.name)
    for precision in setting.precisions[-1:]:
        model = Decoder(config).to(setting.device)
        step = diffusion.our_step(model, told, bfloat16=precision == "bfloat16")
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        name = f"unCLIP's decoder, {side} pixels, {millions:.0f} M, batch {batch}, {precision}"
        yield measure_step(setting, name, step, precision, batch)


def measure_drawing(setting: Setting) -> Iterator[Row]:
    """That DALL·E's drawing beside the floor: every token reads weights and cache once."""
    shape, cuda = draw_shape(setting), setting.name == "cuda"
    speed, dtype = bandwidth(setting), torch.bfloat16 if cuda else torch.float32
    for batch in (1, 2) if setting.tiny else (1, 64):
        for compiled in (False, True):
            draw, _ = drawn(setting, batch, compiled=compiled)
            with torch.no_grad():
                seconds = min(timed({"": draw}, 1, setting.name)[""])
            least = bytes_read(shape, batch, dtype) / speed
            yield Row(f"drawing, batch {batch}{', compiled' if compiled else ''}",
                      f"{seconds:.3g} s, {batch / seconds:.3g} pictures/s, "
                      f"{seconds / least:.2f} x the floor")  # fmt: skip


def bytes_read(shape: dalle_generate.Shape, batch: int, dtype: torch.dtype) -> float:
    """What drawing a batch must read at least."""
    with torch.device("meta"):
        model = dalle_generate.dalle(shape, "meta")
    heads = model.transformer, model.image_heads
    weights = sum(p.numel() for part in heads for p in part.parameters())
    lengths = sum(1 + shape.text + n for n in range(shape.image))
    values = shape.image * weights + 2 * shape.depth * shape.width * batch * lengths
    return values * torch.finfo(dtype).bits / 8


# A further system's check is in check_tasks by itself; its measurement is a function beside those
# above and a name here.
PARTS: tuple[Callable[[Setting], Iterator[Row]], ...] = (
    check_tasks, check_against_cpu, check_deterministic, check_codebook, check_group, check_drawing,
    measure_device, measure_clip, measure_vqgan, measure_dalle, measure_decoder, measure_drawing,
)  # fmt: skip


# ---- the command


def fill(table: list[tuple[Row, bool]], setting: Setting) -> None:
    """Put in all rows, each with whether it is as it should be."""
    for part in PARTS:
        began, name = time.perf_counter(), part.__name__.replace("_", " ")
        try:
            for row in part(setting):
                print(f"{row.what}: {row.found}", flush=True)
                table.append((row, True))
        except OutOfTime:
            signal.setitimer(signal.ITIMER_REAL, 0)
            table.append((Row(name, "not done: the time was over"), False))
            return
        except Exception as error:  # whatever it is, the rest is worth knowing
            traceback.print_exc()
            table.append(
                (Row(name, f"**failed**: {type(error).__name__}: {first_line(error)}"), False)
            )
        print(f"({name}: {time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)


def first_line(error: Exception) -> str:
    """What an error says, for a cell of a table."""
    return (str(error).splitlines() or [""])[0].replace("|", "/")[:200]


def section(setting: Setting, rows: list[Row]) -> str:
    """The table as Markdown."""
    where = torch.cuda.get_device_name() if setting.name == "cuda" else platform.machine()
    lines = [HEADING, "", f"`python benchmarks/on_gpu.py`: {where}, torch {torch.__version__}, "
             f"{datetime.date.today()}.", "", "| what | found |", "| --- | --- |"]  # fmt: skip
    return "\n".join(lines + [f"| {row.what} | {row.found} |" for row in rows]) + "\n"


def replaced(text: str, new: str) -> str:
    """A page with its section of the same heading replaced, or with the new one at its end."""
    before, found, after = text.partition(HEADING + "\n")
    rest = after.partition("\n## ")
    tail = "\n## " + rest[2] if found and rest[1] else ""
    return before.rstrip("\n") + "\n\n" + new + tail


def main(argv: list[str] | None = None) -> int:
    """The command; 1 if a check has failed or time was over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that all of it runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="it ends after so many")
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --tiny --device cpu runs it at toy size")
    torch.set_float32_matmul_precision("high")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts

    def over(number: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    # Again each second: what is raised where nothing can be raised, in a __del__, is lost.
    signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes, 1.0)
    table: list[tuple[Row, bool]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(torch.device(given.device), given.tiny, Path(folder))
            fill(table, setting)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    text = section(setting, [row for row, _ in table])
    print(f"\n{text}")
    if not given.tiny:
        page = RESULTS.read_text(encoding="utf-8")
        RESULTS.write_text(replaced(page, text), encoding="utf-8")
    return 0 if all(well for _, well in table) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""What has never run on a GPU, checked and measured there by one command, in eight minutes.

    python benchmarks/on_gpu.py                      # on a machine with CUDA
    python benchmarks/on_gpu.py --tiny --device cpu  # the same at toy size: what CI runs

First checks (gpu_checks.py), which pass or fail: each task takes two steps in float32 and in
bfloat16, is resumed, and scores and draws; the device gives what the CPU gives; with
--deterministic each task learns a batch twice with the same bits; the codebook's update is exact; a
group of one process gathers; drawing with and without torch.compile draws the same. Then
measurements: a matmul's peak and the memory's bandwidth; training steps of CLIP ViT-B/32, of VQGAN
f16 at 256 pixels, of a DALL·E of 125 million parameters on 256 + 1024 tokens, of unCLIP's decoder
of 64 pixels, as a share of that peak; DALL·E's drawing at batch 1 and 64 beside the floor, the time
to read weights and cache once a token, and what a token costs as a CUDA graph. A failure is told
and does not stop the rest; the exit status is then 1.

The result is printed and replaces the section "On a GPU" of benchmarks/RESULTS.md; with --tiny it
is only printed.
"""

import argparse
import datetime
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import clip_step
import dalle_generate
import dalle_step
import diffusion
import torch
import vqgan_step
from clip_step import timed
from gpu_checks import CHECKS, Row, Setting, draw_shape, drawn
from torch import Tensor, nn

from minimodal.blocks.transformer import KVCache
from minimodal.training import probe
from minimodal.unclip.decoder import Decoder, DecoderConfig

HEADING = "## On a GPU"
RESULTS = Path(__file__).with_name("RESULTS.md")


class OutOfTime(Exception):
    """The minutes are over."""


def copying(setting: Setting) -> float:
    """Bytes a second of the device's memory."""
    return dalle_generate.bandwidth(setting.name, 2**20 if setting.tiny else 2**28)


def measure_device(setting: Setting) -> Iterator[Row]:
    """What the device reaches by itself."""
    n = 64 if setting.tiny else 0
    for precision in setting.precisions:
        peak = probe.matmul_peak(setting.device, precision, n=n)
        yield Row(f"matmul peak, {precision}", f"{peak / 1e12:.4g} TFLOP/s")
    yield Row("memory bandwidth, copying", f"{copying(setting) / 1e9:.4g} GB/s")


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
    shape, speed = draw_shape(setting), copying(setting)
    for batch in (1, 2) if setting.tiny else (1, 64):
        for compiled in (False, True):
            draw, _ = drawn(setting, batch, compiled=compiled)
            with torch.no_grad():
                seconds = min(timed({"": draw}, 1, setting.name)[""])
            least = dalle_generate.bytes_read(shape, batch, setting.dtype) / speed
            yield Row(f"drawing, batch {batch}{', compiled' if compiled else ''}",
                      f"{seconds:.3g} s, {batch / seconds:.3g} pictures/s, "
                      f"{seconds / least:.2f} x the floor")  # fmt: skip


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """A step as a CUDA graph: what it has launched once, launched again as a whole."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is done once must not be in the graph
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
def measure_graph(setting: Setting) -> Iterator[Row]:
    """What CUDA graphs would bring to drawing: the Transformer's step of one token, when half of
    the picture is drawn, launched operator by operator and as a graph."""
    shape, speed, dtype = draw_shape(setting), copying(setting), setting.dtype
    for batch in (1, 2) if setting.tiny else (1, 64):
        model = dalle_generate.dalle(shape, setting.name).to(dtype)
        cache, held = model.new_cache(batch), 1 + shape.text + shape.image // 2
        x = torch.ones(batch, 1, shape.width, dtype=dtype, device=setting.device)
        least = dalle_generate.bytes_read(shape, batch, dtype) / shape.image / speed

        def step(model: nn.Module = model, cache: KVCache = cache, held: int = held, x: Tensor = x):
            cache.length = held
            model.transformer(x, cache=cache)

        for compiled in (False, True):
            if compiled:
                model.transformer.compile(backend=setting.compiler)
            ways = {"launched": step}
            if setting.name == "cuda":
                ways["as a graph"] = captured(step)
            for way, seconds in timed(ways, 3 if setting.tiny else 50, setting.name).items():
                middle = statistics.median(seconds)
                yield Row(f"a token, batch {batch}{', compiled' if compiled else ''}, {way}",
                          f"{1e6 * middle:.0f} µs, {middle / least:.2f} x the floor")  # fmt: skip


# A further system's check is in check_tasks by itself; its measurement is a function beside those
# above and a name here.
PARTS: tuple[Callable[[Setting], Iterator[Row]], ...] = (
    *CHECKS, measure_device, measure_clip, measure_vqgan, measure_dalle, measure_decoder,
    measure_drawing, measure_graph,
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

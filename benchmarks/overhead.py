"""What the engine adds to a plain training loop, what binds each task, and what saving costs.

    python benchmarks/overhead.py steps --run runs/demo [--rounds 7] [--each 10]
    python benchmarks/overhead.py stall --run runs/demo
    python benchmarks/overhead.py soak  --run runs/demo --minutes 60

Tasks have the sizes of the Shapes world's recipes, those of the demo; --run is a demo, whose VQGAN
and CLIP others are trained on. One thread.

steps: the engine's loop (batches ahead in a thread, metrics, checks, logs, progress) beside ten
plain lines that do the same arithmetic, turn by turn; ratios of CPU time; and what it adds where
next to nothing is computed, which other processes disturb less. Then where a step's time goes, and
the share of the peak of matrix products. stall: a step while a checkpoint is written beside
one without: its CPU time and how long it is blocked, which other processes disturb less than its
wall time. soak: memory of a process that trains each task in turn, with checkpoints.
"""

import argparse
import ctypes
import gc
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from minimodal.cli.doctor import SMALL
from minimodal.training import checkpoint, engine, probe
from minimodal.training.batches import Batches
from minimodal.training.distributed import Distributed
from minimodal.training.pace import Pace
from minimodal.training.prepare import Training, build, measure, micro_rows, select
from minimodal.training.progress import Progress, Signals
from minimodal.training.recipes import SYSTEMS, recipe_for

HERE = Distributed(torch.device("cpu"))
# Names of PyTorch's operators, by what they wait for.
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "attention", "mkldnn")


def made(name: str, run: Path, *, small: bool = False) -> Training:
    """A task at its recipe's size, ready to train, in the precision that is faster here; or small,
    where next to nothing is computed."""
    recipe = recipe_for(name, "shapes")
    settings, model = recipe.engine, recipe.model
    if small:
        settings = replace(settings, batch_size=4, precision="float32")
        model = shrunk(model)
    runs = {need: run / need for need in SYSTEMS[name].needs}
    recipe = recipe._replace(model=model, engine=settings)
    task = SYSTEMS[name].build(recipe, "shapes:2000", runs, "cpu")
    training = build(task, settings, here=HERE)
    found = measure(training, micro_rows(settings, HERE)[0])
    training.config = replace(settings, precision=found[0])
    training.step = settings.steps  # the game has begun
    engine.train_step(training, [task.batch(0, slice(settings.batch_size))], lr=settings.lr)
    return training


def shrunk(model: Any) -> Any:
    """A model's configuration with the sizes of `python -m minimodal doctor`."""
    return replace(model, **{name: n for name, n in SMALL.items() if hasattr(model, name)})


def plain(training: Training, n: int) -> None:
    """The loop that one would write for a single system, in a notebook."""
    task, config, rows = training.task, training.config, slice(0, training.config.batch_size)
    for _ in range(n):
        batch = task.batch(training.step, rows)
        for phase in training.phases:
            select(training.phases, phase)  # generator or discriminator
            with probe.autocast(HERE.device, config.precision):
                loss = task.loss(batch, phase.phase.name, training.step)[0]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(phase.parameters, config.clip_norm, foreach=True)
            with probe.autocast(HERE.device, config.precision):
                phase.optimizer.step()
            phase.optimizer.zero_grad()
        with torch.no_grad():
            task.after_step(training.step, [batch])
            engine.follow(training)
        training.step += 1


class NoWriter(checkpoint.Writer):
    """Saves nothing: what saving costs is another question."""

    def save(self, state: dict, *, weights: bool) -> None:
        """Nothing."""


def by_engine(training: Training, n: int, out: Path) -> None:
    """The same steps by the engine's loop."""
    config, last = training.config, training.step + n
    training.pace = Pace(last)
    progress = Progress("", 0.0, flops=1.0, peak=1.0, show=True)
    batches = Batches(training.task, micro_rows(config, HERE), first=training.step, end=last,
                      pin=False)  # fmt: skip
    writer = NoWriter(out)
    try:
        with Signals("") as signals:
            engine.loop(training, out, batches=batches, progress=progress, signals=signals,
                        writer=writer, began=time.perf_counter())  # fmt: skip
    finally:
        batches.close()
        writer.close()


def cpu_seconds(work: Callable[[], None]) -> float:
    """What all threads of this process have worked."""
    gc.collect()
    began = time.process_time()
    work()
    return time.process_time() - began


def peak(precision: str) -> float:
    """FLOP/s of a second of CPU in a large product of matrices; the best of ten, since other
    processes only slow it down."""
    n, dtype = 768, torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.ones(n, n, dtype=dtype)
    return 2 * n**3 / min(cpu_seconds(lambda: a @ a) for _ in range(10))


def shares(training: Training, n: int) -> dict[str, float]:
    """Where the time of a step goes: products, other operators, Python and all else between them;
    and what of it makes batches, which the engine does in another thread."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        plain(training, n)
        whole = time.perf_counter() - began
    times = {e.key: e.self_cpu_time_total / 1e6 for e in found.key_averages()}
    products = sum(t for key, t in times.items() if any(word in key for word in PRODUCTS))
    others = sum(times.values()) - products
    rows, first = slice(0, training.config.batch_size), training.step
    made = cpu_seconds(lambda: [training.task.batch(first + i, rows) for i in range(n)])
    batches = made / cpu_seconds(lambda: plain(training, n))
    between = 1 - (products + others) / whole
    return {"products": products / whole, "others": others / whole, "between": between,
            "batches": batches}  # fmt: skip


def compared(training: Training, rounds: int, each: int, out: Path) -> list[tuple[float, float]]:
    """CPU seconds of a step, plain and by the engine, of each round; who is first takes turns."""
    plain(training, 3)
    times = []
    for turn in range(rounds):
        both = {"plain": lambda: plain(training, each),
                "engine": lambda: by_engine(training, each, out)}  # fmt: skip
        taken = {which: cpu_seconds(both[which]) / each for which in sorted(both)[:: (-1) ** turn]}
        times.append((taken["plain"], taken["engine"]))
    return times


def steps(given: argparse.Namespace, out: Path) -> None:
    """The table, a line a task."""
    print("| task | precision | plain, ms of CPU | engine / plain | the engine's own, ms "
          "| its share | of the peak | products | other operators | between them | batches |\n"
          + "| --- " * 11 + "|")  # fmt: skip
    for name in SYSTEMS:
        small = made(name, given.run, small=True)
        own = statistics.median(b - a for a, b in compared(small, given.rounds, 20, out))
        training = made(name, given.run)
        precision, times, peaks = training.config.precision, [], []
        for _ in range(given.rounds):
            times += compared(training, 1, given.each, out)
            peaks.append(peak(precision))
        ratio = statistics.median(b / a for a, b in times)
        step = statistics.median(a for a, _ in times)
        # PyTorch's counter does not know a CPU's fused attention, only what it is made of.
        with sdpa_kernel(SDPBackend.MATH):
            flops = probe.count_flops(lambda t=training: plain(t, 1))
        use = flops / step / statistics.median(peaks)
        where = " | ".join(f"{share:.0%}" for share in shares(training, given.each).values())
        print(f"| {name} | {precision} | {1000 * step:.1f} | {ratio:.3f} | {1000 * own:.2f} "
              f"| {own / step:.1%} | {use:.0%} | {where} |", flush=True)  # fmt: skip


class Spent(NamedTuple):
    """Milliseconds of a step of the main thread (Linux): at work, in the queue for a core, and
    what remains: blocked, by Python's lock for one."""

    wall: float
    work: float
    queue: float

    @property
    def blocked(self) -> float:
        """What is neither."""
        return self.wall - self.work - self.queue


def spent(training: Training) -> Spent:
    """One plain step."""
    file = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    work, queue, _ = (int(word) for word in file.read_text().split())
    began = time.perf_counter()
    plain(training, 1)
    wall = time.perf_counter() - began
    more, longer, _ = (int(word) for word in file.read_text().split())
    return Spent(1e3 * wall, (more - work) / 1e6, (longer - queue) / 1e6)


def stall(given: argparse.Namespace, out: Path) -> None:
    """A step while a state is written, beside the step before; medians of the rounds."""
    print("| task | precision | state, MB | the writer's CPU, ms | a step: at work, ms "
          "| blocked, ms | while it is written: at work, ms | blocked, ms | longer by |\n"
          + "| --- " * 9 + "|")  # fmt: skip
    for name in ("vqgan", "dalle"):
        training, quiet, busy, wrote = made(name, given.run), [], [], []
        writer = checkpoint.Writer(out / name)
        write = writer.write

        def timed(*state: Any, write: Any = write, wrote: list = wrote) -> None:
            began = time.thread_time()
            write(*state)
            wrote.append(1e3 * (time.thread_time() - began))

        writer.write = timed
        plain(training, 3)
        for _ in range(given.rounds):
            quiet.append(spent(training))
            writer.save(training.state(), weights=True)
            busy.append(spent(training))
            writer.wait()
        writer.close()
        size = max(p.stat().st_size for p in (out / name / "state").glob("*.pt"))
        found = [[statistics.median(part) for part in zip(*some, strict=True)]
                 for some in ([(x.work, x.blocked) for x in quiet],
                              [(x.work, x.blocked) for x in busy])]  # fmt: skip
        longer = sum(found[1]) / sum(found[0]) - 1
        cells = " | ".join(f"{work:.1f} | {blocked:.1f}" for work, blocked in found)
        cells = f"{size / 1e6:.1f} | {statistics.median(wrote):.1f} | {cells} | {longer:+.1%}"
        print(f"| {name} | {training.config.precision} | {cells} |", flush=True)


def resident() -> float:
    """Megabytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Malloc(ctypes.Structure):
    """What glibc's mallinfo2 tells, in bytes; `uordblks` is in use, `fordblks` free and kept."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]  # fmt: skip


def kept_free() -> float:
    """Megabytes that the C library keeps though nobody uses them (glibc)."""
    library = ctypes.CDLL("libc.so.6")
    library.mallinfo2.restype = Malloc
    return library.mallinfo2().fordblks / 1e6


def soak(given: argparse.Namespace, out: Path) -> None:
    """Each task in turn, small, for its share of the time; memory at the start, middle and end."""
    print("| task | steps | MB after a tenth | at half | at the end | kept free then |\n"
          + "| --- " * 6 + "|")  # fmt: skip
    names = [given.task] if given.task else list(SYSTEMS)
    for name in names:
        minutes = given.minutes / len(names)
        recipe = recipe_for(name, "shapes")
        settings = replace(recipe.engine, batch_size=4, minutes=minutes, precision="float32",
                           log_every=10, checkpoint_every=20, sample_every=200)  # fmt: skip
        runs = {need: given.run / need for need in SYSTEMS[name].needs}
        recipe = recipe._replace(model=shrunk(recipe.model), engine=settings)
        task = SYSTEMS[name].build(recipe, "shapes:2000", runs, "cpu")
        seen: list[float] = []
        over = threading.Event()

        def watch(seen: list[float] = seen, over: threading.Event = over) -> None:
            while not over.wait(0.5):
                seen.append(resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        last = engine.run(task, settings, out / name, data_spec="shapes:2000", device="cpu")
        over.set()
        watcher.join()
        tenth = len(seen) // 10
        found = (max(part) for part in (seen[tenth : 2 * tenth], seen[4 * tenth : 5 * tenth],
                                        seen[8 * tenth : 9 * tenth]))  # fmt: skip
        print(f"| {name} | {last['step']} | " + " | ".join(f"{x:.0f}" for x in found)
              + f" | {kept_free():.0f} |", flush=True)  # fmt: skip


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["steps", "stall", "soak"])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--each", type=int, default=10, help="steps of a turn")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--task", choices=list(SYSTEMS), help="soak: this one alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load of the machine: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        {"steps": steps, "stall": stall, "soak": soak}[given.what](given, Path(folder))


if __name__ == "__main__":
    main()

"""What a person sees while a run goes on, and the signals by which they stop it.

`Progress` draws a bar where stderr is a terminal and prints one line every ten seconds elsewhere;
both say the same: step, loss, samples a second, utilisation (the model's FLOP/s over the device's
measured matmul peak) and the time left. `Signals` turns Ctrl-C, SIGTERM and the end of the
terminal into a flag that the engine reads after each step.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0
BAR_SECONDS = 0.1
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # which Windows does not have


class Interrupted(SystemExit):
    """Ctrl-C, SIGTERM, a closed terminal: the state is saved; the process ends with status 130."""

    def __init__(self) -> None:
        super().__init__(130)


class Signals:
    """Remembers the first Ctrl-C, SIGTERM or closed terminal; the second Ctrl-C aborts at once."""

    def __init__(self, name: str) -> None:
        """name: of what is to stop, to be said."""
        self.name, self.received = name, False
        self.before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        # Python allows handlers in the main thread only; elsewhere the caller handles signals.
        if threading.current_thread() is threading.main_thread():
            self.terminals = [number for number in (1, 2) if os.isatty(number)]
            for number in {signal.SIGINT, signal.SIGTERM, HANGUP}:
                # Under nohup the end of the terminal is to be ignored.
                if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal. torchrun passes a Ctrl-C on as SIGTERM, which is no second one."""
        for terminal in self.terminals if number == HANGUP else ():  # writing there fails now
            os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        if number == signal.SIGINT:
            before = self.before[number]  # nothing that could abort, where Ctrl-C was ignored
            signal.signal(number, before if callable(before) else signal.default_int_handler)
            print(f"\n{self.name}: stopping after this step (Ctrl-C again: at once)",
                  file=sys.stderr)  # fmt: skip
        self.received = True


class Forgiving:
    """A stream whose failures are nobody's: what cannot be written is lost, and the run is not."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError):
            self.stream.flush()


def keep_on_where_stderr_fails() -> None:
    """See to it that a full disk under a log file, say, ends no training."""
    if not isinstance(sys.stderr, Forgiving):
        sys.stderr = Forgiving(sys.stderr)


class Progress:
    """The state of a run as one line of text."""

    def __init__(
        self, name: str, fraction: float, *, flops: float, peak: float, show: bool,
        whole: float | None = None,
    ) -> None:  # fmt: skip
        """`flops`: of a sample, on this process; `peak`: this process's FLOP/s; `whole`: the
        time.time() at which all that this run is a part of will end."""
        self.name, self.flops, self.peak, self.show = name, flops, peak, show
        self.began = self.window = self.drawn = time.perf_counter()
        self.first = self.fraction = fraction
        self.samples, self.speed, self.whole = 0, 0.0, whole
        self.loss: float | None = None  # of the last logged step
        self.bar = None
        # Two bars on one terminal would overwrite each other: a child process writes lines.
        if show and sys.stderr.isatty() and multiprocessing.parent_process() is None:
            form = name + " {percentage:3.0f}%|{bar:16}| {desc}"
            self.bar = tqdm(total=1.0, initial=fraction, bar_format=form)

    def step(self, step: int, fraction: float, *, samples: int) -> None:
        """Count a step of `samples` pictures on this process."""
        self.fraction, self.samples = fraction, self.samples + samples
        now = time.perf_counter()
        if not self.show or now - self.drawn < (BAR_SECONDS if self.bar else LINE_SECONDS):
            return
        self.draw(step, now)

    def draw(self, step: int, now: float) -> None:
        """Show the line."""
        self.drawn = now
        if self.bar is not None:
            self.bar.n = min(1.0, self.fraction)
            self.bar.set_description_str(self.text(step, now))
        else:
            percent = f"{100 * self.fraction:.0f}%"
            print(f"{self.name} {percent} {self.text(step, now)}", file=sys.stderr, flush=True)

    def text(self, step: int, now: float) -> str:
        """The line without its beginning."""
        speed = self.speed or self.samples / max(1e-9, now - self.window)
        parts = [f"step {step}"] + ([] if self.loss is None else [f"loss {self.loss:.4g}"])
        parts.append(f"{speed:.4g} samples/s")
        if self.peak > 0 and self.flops > 0:
            parts.append(f"{100 * speed * self.flops / self.peak:.0f}% of peak")
        gained = self.fraction - self.first
        if self.whole is not None:
            parts.append(f"{tqdm.format_interval(max(0, self.whole - time.time()))} left of all")
        elif gained > 0:
            left = (now - self.began) * (1 - self.fraction) / gained
            parts.append(f"{tqdm.format_interval(left)} left")
        return "  ".join(parts)

    def measure(self, loss: float) -> float:
        """Close the window since the last logged step.

        returns: samples a second on this process in that window
        """
        now = time.perf_counter()
        self.speed = self.samples / max(1e-9, now - self.window)
        self.loss, self.samples, self.window = loss, 0, now
        return self.speed

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent here (evaluating, saving) does not count against samples a second."""
        began = time.perf_counter()
        yield
        self.window += time.perf_counter() - began

    def close(self, step: int, *, words: str = "") -> None:
        """Show the last line, give the terminal back, and print what else is to be said."""
        if self.show:
            self.draw(step, time.perf_counter())
        if self.bar is not None:
            self.bar.close()
        if self.show and words:
            print(words, file=sys.stderr)

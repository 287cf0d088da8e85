"""The batches of the steps to come, prepared by one background thread.

A batch is a pure function of its step, so that preparing ahead changes nothing but the time. What
flows through: for each step a list of micro-batches, each a dict of CPU tensors from the task's
`batch`; out come the same on the device.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from minimodal.training.contract import Task

AHEAD = 2  # steps


class Batches:
    """The batches of the steps from `first` on, prepared by one thread, two steps ahead."""

    def __init__(self, task: Task, rows: list[slice], *, first: int, end: int | None, pin: bool):
        self.task, self.rows, self.pin, self.step, self.end = task, rows, pin, first, end
        self.pool = ThreadPoolExecutor(1, "batches")
        self.ahead: deque[Future] = deque()
        for _ in range(AHEAD):
            self.begin()

    def begin(self) -> None:
        """Let the thread prepare one more step, if there is one."""
        if self.step != self.end:
            self.ahead.append(self.pool.submit(self.prepare, self.step))
            self.step += 1

    def prepare(self, step: int) -> list[dict[str, Tensor]]:
        """The thread's work; an error waits for whoever asks for the batch."""
        batches = [self.task.batch(step, part) for part in self.rows]
        if self.pin:
            batches = [{k: v.pin_memory() for k, v in b.items()} for b in batches]
        return batches

    def next(self, device: torch.device) -> list[dict[str, Tensor]]:
        """The micro-batches of the next step, on their way to the device."""
        batches = self.ahead.popleft().result()
        self.begin()
        return [{k: v.to(device, non_blocking=True) for k, v in b.items()} for b in batches]

    def close(self) -> None:
        """End the thread."""
        self.pool.shutdown(cancel_futures=True)

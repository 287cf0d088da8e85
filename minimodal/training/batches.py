"""The batches of the steps to come, prepared by one background thread.

A batch is a pure function of its step, so that preparing ahead changes nothing but the time. What
flows through: for each step a list of micro-batches, each a dict of CPU tensors from the task's
`batch`; out come the same on the device.
"""

import contextlib
import queue
import threading

import torch
from torch import Tensor

from minimodal.training.contract import Task


class Batches:
    """The batches of the steps from `first` on, prepared by one thread, two steps ahead."""

    def __init__(self, task: Task, rows: list[slice], *, first: int, end: int | None, pin: bool):
        self.queue: queue.Queue = queue.Queue(maxsize=2)
        self.closed = threading.Event()
        self.thread = threading.Thread(
            target=self.work,
            args=(task, rows),
            kwargs={"step": first, "end": end, "pin": pin},
            name="batches",
            daemon=True,
        )
        self.thread.start()

    def work(self, task: Task, rows: list[slice], *, step: int, end: int | None, pin: bool) -> None:
        """The thread: an error travels through the queue to whoever asks for the batch."""
        try:
            while not self.closed.is_set() and step != end:
                batches = [task.batch(step, part) for part in rows]
                if pin:
                    batches = [{k: v.pin_memory() for k, v in b.items()} for b in batches]
                self.put(batches)
                step += 1
        except BaseException as error:
            self.put(error)

    def put(self, item: list[dict] | BaseException) -> None:
        """Wait for room in the queue, but not for ever."""
        while not self.closed.is_set():
            with contextlib.suppress(queue.Full):
                return self.queue.put(item, timeout=0.1)

    def next(self, device: torch.device) -> list[dict[str, Tensor]]:
        """The micro-batches of the next step, on their way to the device."""
        item = self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return [{k: v.to(device, non_blocking=True) for k, v in b.items()} for b in item]

    def close(self) -> None:
        """End the thread."""
        self.closed.set()
        self.thread.join()

"""A training in a process of its own, which somebody will kill.

The processes are forked from one that has imported everything: a start takes milliseconds.
"""

import multiprocessing
import os
import time
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from helpers import systems
from minimodal.training.contract import Task, TrainConfig
from minimodal.training.engine import run

STEPS = 12
ENGINE = replace(systems.ENGINE, steps=STEPS, checkpoint_every=1)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["helpers.torture"])


def make(kind: str, folder: Path, engine: TrainConfig = ENGINE) -> Task:
    """A system at toy size; what it needs beside its run lies in the folder."""
    return systems.TINY[kind](folder / "shared", engine)


def go_on(kind: str, folder: Path, out: Path, begun: Event) -> None:
    """Train, but never to the end: the last step waits for the kill."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)  # as where the uninterrupted run is trained
    task = make(kind, folder)
    plain = task.batch

    def batch(step, rows):
        begun.set()
        if step >= STEPS - 1:
            time.sleep(3600)
        return plain(step, rows)

    task.batch = batch
    run(task, ENGINE, out, data_spec="shapes:400", resume=True, device="cpu")


def start(kind: str, folder: Path, out: Path) -> multiprocessing.Process:
    """Start a training that goes on with a run; back when it is about to take steps."""
    begun = SERVER.Event()
    process = SERVER.Process(target=go_on, args=(kind, folder, out, begun), daemon=True)
    process.start()
    while not begun.wait(0.05):
        assert process.is_alive(), f"{kind} ended by itself with status {process.exitcode}"
    return process

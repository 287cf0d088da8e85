"""`python train.py demo`: VQGAN, CLIP and DALL·E on the Shapes world, then pictures and scores.

Each stage is the ordinary task with its ordinary recipe, for as long as the plan (`plan.py`) says,
which makes all end after `--minutes`. CLIP needs nothing of the others, and these small models keep
one core busy but not two: on the CPU it trains beside them, in a process of its own with half of
the threads. What is finished is not done again, so an interrupted demo goes on where it stopped.
Read `plan.py` and `evaluation/scoreboard.py`.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minimodal.cli.common import run_command
from minimodal.cli.plan import (
    PICTURES,
    STAGES,
    Plan,
    clip_speed,
    make_plan,
    most_steps,
    other_costs,
    planned,
    read_plan,
)
from minimodal.cli.pool import pool_of, prior_of
from minimodal.cli.unclip import add_unclip
from minimodal.drawing import grid, save_png
from minimodal.errors import UserError
from minimodal.evaluation.guided import Shown, demo_scores, following, searching
from minimodal.evaluation.scoreboard import (
    baseline_scores,
    captions_to_show,
    clip_scores,
    dalle_scores,
    draw_with,
    format_scoreboard,
    vqgan_scores,
)
from minimodal.files import digest, make_folder, read_json, write_json
from minimodal.runs import load
from minimodal.shapes.worlds import WORLDS
from minimodal.training import distributed
from minimodal.training.checkpoint import last_of_finished, load_run_config, lock, read_metrics
from minimodal.training.engine import run
from minimodal.training.progress import keep_on_where_stderr_fails
from minimodal.training.recipes import SYSTEMS
from minimodal.training.report import write_report
from minimodal.vqgan_clip.guide import Guide
from minimodal.vqgan_clip.optimise import OptimiseConfig
from minimodal.vqgan_clip.search import SearchConfig

MINUTES = 10.0


def add_demo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="FOLDER",
                        help="folder of the runs and the scores (default: runs/demo)")  # fmt: skip
    parser.add_argument("--minutes", type=float, metavar="M",
                        help="how long all of it takes; a fast machine needs less, for twice the "
                             "recipes' steps; 0: the recipes' own steps, however long "
                             "(default: 10)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--with", choices=("unclip",), dest="further",
                        help="a system that takes longer, trained behind the others on the demo's "
                             "CLIP (default: none)")  # fmt: skip


# --- the stages ----------------------------------------------------------------------------------


def seconds_of(out: Path, name: str) -> float:
    """For how long a stage has trained, in all sittings."""
    return max((line.get("seconds", 0.0) for line in read_metrics(out / name)), default=0.0)


def train_stage(
    name: str, out: Path, plan: Plan, *, device: str, began: float, limited: bool
) -> None:
    """Train one of vqgan, clip and dalle as planned, or finish it.

    began: when the demo did, as time.time(); earlier, if it has trained in another sitting
    limited: it ends when the plan says, whatever its steps; a run that goes on keeps its minutes
    """
    if last_of_finished(out / name):
        return
    recipe, folder = planned(name, plan), out / name
    runs = {need: out / need for need in SYSTEMS[name].needs}
    task = SYSTEMS[name].build(recipe, "shapes", runs, device)
    engine, most = recipe.engine, None
    if limited and plan.minutes:
        most = most_steps(name)
        minutes = max(0.01, (began + plan.training_seconds - time.time()) / 60)
        if (folder / "config.json").exists():
            minutes = load_run_config(folder)["train"]["minutes"]
        engine = replace(engine, minutes=distributed.from_main(minutes))
    run(
        task, engine, folder, data_spec="shapes", resume=folder.exists(), device=device,
        most=most, whole=began + plan.seconds,
    )  # fmt: skip


class Beside:
    """CLIP's stage, and half of the scores, as a process of its own."""

    def __init__(self, out: Path, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.out = out
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=work_beside, args=(far_end, out, device, threads))
        self.process.start()
        far_end.close()

    def send(self, what: Any) -> None:
        try:
            self.pipe.send(what)
        except OSError:
            self.receive()  # which says that it has ended

    def receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            if self.process.exitcode == 130:
                raise KeyboardInterrupt from None
            raise UserError(
                f"{self.out / 'clip'}: the training of CLIP failed, see above"
            ) from None

    def __enter__(self) -> "Beside":
        return self

    def __exit__(self, failed: type | None, *_: object) -> None:
        """Wait for the end of the process; where the demo has failed, let it save its state now."""
        if failed:
            self.process.terminate()
        self.process.join()


def work_beside(pipe: Connection, out: Path, device: str, threads: int) -> None:
    """The process beside: is asked for CLIP's speed, is told the plan and when the demo began,
    trains CLIP and says so, and scores when it is told that all are trained."""
    torch.set_num_threads(threads)
    keep_on_where_stderr_fails()

    def work(_: Sequence[str]) -> None:
        try:
            while (asked := pipe.recv()) == "speed":
                pipe.send(clip_speed(distributed.start(device)))
            plan, began = asked
            train_stage("clip", out, plan, device=device, began=began, limited=True)
            pipe.send("trained")
            pipe.recv()  # VQGAN and DALL·E are trained by then
            kind = distributed.pick_device(device)
            pipe.send(side_work(out, plan, kind))
        except EOFError:
            sys.exit(1)  # the demo has ended, and said why

    sys.exit(run_command(work, []))


def plan_of(arguments: argparse.Namespace, beside: Beside | None, began: float) -> Plan:
    """The kept plan, or a new one from a few seconds of measuring; the same on all processes."""
    out = arguments.out
    here = distributed.start(arguments.device)
    plan = distributed.from_main(
        read_plan(out, minutes=arguments.minutes, seed=arguments.seed) if here.main else None
    )
    if plan is None:
        if any((out / name / "config.json").exists() for name in ("", *STAGES)):
            raise UserError(
                f"{out} holds runs, but no plan.json of a demo that would go on: give another --out"
            )
        if beside:
            beside.send("speed")  # at the same time, since they will train at the same time
        costs = other_costs(here)
        clip = beside.receive() if beside else clip_speed(here)
        where = "a core" if here.device.type == "cpu" else f"on {here.device}"
        speed = costs.dalle.peak / torch.get_num_threads() / 1e9
        plan = make_plan(
            MINUTES if arguments.minutes is None else arguments.minutes, arguments.seed, costs,
            clip, spent=time.time() - began, beside=beside is not None,
            machine=f"{costs.dalle.precision}, {speed:.0f} GFLOP/s {where}",
        )  # fmt: skip
        plan = distributed.from_main(plan)
        if here.main:
            write_json(out / "plan.json", asdict(plan))
    if here.main:
        print(plan.text(), file=sys.stderr)
    return plan


# --- what they reach -----------------------------------------------------------------------------


def machine() -> dict[str, str | int]:
    """What the scores were made on."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    found: dict[str, str | int] = {
        "cpu": names[0].strip() if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def stage_of(out: Path, name: str, device: str) -> nn.Module | None:
    """The model of a stage, if it is there."""
    there = (out / name / "config.json").exists()
    return load(out / name, kind=name).to(device) if there else None


def side_scores(out: Path, seed: int, device: str, *, n: int = PICTURES) -> dict:
    """The scores that need no DALL·E, of the stages that are there."""
    board: dict = {}
    if vqgan := stage_of(out, "vqgan", device):
        board["vqgan"] = vqgan_scores(vqgan, seed=seed, n=4 * n)
    if clip := stage_of(out, "clip", device):
        board["clip"] = clip_scores(clip, seed=seed, n=2 * n, sets=max(1, 8 * n // PICTURES))
    board["baselines"] = baseline_scores(seed=seed, n=n, pool=40 * n)
    return board


def main_scores(out: Path, seed: int, device: str, *, n: int = PICTURES) -> dict:
    """DALL·E's scores, with the CLIP beside it, if they are there."""
    dalle, clip = (stage_of(out, name, device) for name in ("dalle", "clip"))
    if dalle is None:
        return {}
    sampling = dalle.run["model"]["sampling"]
    return {"dalle": dalle_scores(dalle, clip, seed=seed, n=n, sampling=sampling)}


def guided_scores(out: Path, seed: int, device: str, *, candidates: int) -> Shown:
    """VQGAN+CLIP's scores and a row of its pictures; the pool is kept for later prompts.

    candidates: in the pool; prompts and tries are in proportion, so that they decide the time
    """
    prior, clip = prior_of(out, device), load(out / "clip", kind="clip").to(device)
    pool = pool_of(out, prior, [Guide(clip, ())], candidates)
    search = searching(prior, clip, pool, SearchConfig(evaluations=candidates // 2))
    gradient = following(prior.painter.vqgan, clip, OptimiseConfig(steps=50, views=8))
    return demo_scores(search, gradient, n=max(4, candidates // 170), seed=seed)


def score_stages(out: Path, seed: int, device: str, *, n: int = PICTURES) -> dict:
    """The scoreboard of the stages that are there."""
    return in_order(side_scores(out, seed, device, n=n) | main_scores(out, seed, device, n=n))


def in_order(board: dict) -> dict:
    """A scoreboard with its systems in the order in which they are trained."""
    return {name: board[name] for name in (*STAGES, "vqgan_clip", "baselines") if name in board}


def side_work(out: Path, plan: Plan, device: str) -> tuple[dict, Shown]:
    """All scores but DALL·E's, and VQGAN+CLIP's pictures."""
    board = side_scores(out, plan.seed, device, n=plan.pictures)
    shown = guided_scores(out, plan.seed, device, candidates=plan.candidates)
    return board | {"vqgan_clip": shown.scores}, shown


def draw_samples(out: Path, seed: int, device: str, shown: Shown) -> None:
    """samples.png: three rows by DALL·E, of seen and held-out captions, and one by VQGAN+CLIP, a
    picture and the oracle's verdict each."""
    dalle, captions = load(out / "dalle").to(device), captions_to_show(seed)
    drawn = draw_with(dalle, dalle.run["model"]["sampling"])(captions, 1, seed)
    notes = ["DALL·E"] * len(captions) + ["VQGAN+CLIP"] * len(shown.captions)
    captions = captions + shown.captions
    pictures = torch.cat([drawn, torch.from_numpy(shown.pictures)])
    verdicts = WORLDS["shapes"].score(captions, pictures.numpy())
    save_png(grid(pictures, captions, verdicts, notes=notes, columns=8), out / "samples.png")


def digests(out: Path) -> dict[str, str]:
    return {name: digest(out / name / "model.safetensors") for name in STAGES}


def finished(out: Path) -> dict | None:
    """The scoreboard of a demo that has nothing left to do."""
    try:
        board = read_json(out / "scoreboard.json")
        same = board["plan"]["weights"] == digests(out)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return board if same and (out / "samples.png").exists() else None


def show(board: dict, out: Path) -> None:
    print(format_scoreboard(board))
    print(f"pictures: {out / 'samples.png'}   report: {out / 'report.html'}")


def run_demo(arguments: argparse.Namespace) -> None:
    """The demo, and what follows it where that is asked for."""
    run_stages(arguments)
    if arguments.further:
        add_unclip(arguments.out, arguments.seed, arguments.device)


def run_stages(arguments: argparse.Namespace) -> None:
    """All stages, the samples, the scoreboard and the report."""
    if arguments.minutes is not None and not 0 <= arguments.minutes < math.inf:
        raise UserError(f"--minutes {arguments.minutes}: expected a number of 0 or more")
    out, device, here_began = arguments.out, arguments.device, time.time()
    if read_plan(out, minutes=arguments.minutes, seed=arguments.seed) and (board := finished(out)):
        print(f"{out} is done, nothing to resume", file=sys.stderr)
        return show(board, out)
    make_folder(out)
    here, threads = distributed.start(device), torch.get_num_threads()
    with contextlib.ExitStack() as held:
        if here.main:  # of two demos in one folder each would spoil what the other makes
            held.enter_context(lock(out))
        beside = None
        if "WORLD_SIZE" not in os.environ and here.device.type == "cpu" and threads > 1:
            beside = held.enter_context(Beside(out, device, threads // 2))
            held.callback(torch.set_num_threads, threads)
            torch.set_num_threads(threads - threads // 2)
        before = sum(seconds_of(out, name) for name in STAGES if not beside or name != "clip")
        began = here_began - before
        plan = plan_of(arguments, beside, began)
        if beside:
            beside.send((plan, began))
        for name in ("vqgan", "dalle") if beside else STAGES:
            # VQGAN keeps its steps: what it takes longer, DALL·E makes up for.
            limited = name == "dalle"
            train_stage(name, out, plan, device=device, began=began, limited=limited)
        if beside:
            beside.receive()  # "trained"
        if here.main:
            finish(plan, out, beside, device=device, began=began)


def finish(plan: Plan, out: Path, beside: Beside | None, *, device: str, began: float) -> None:
    """Score what was trained, draw, and write it all down."""
    began_scores, kind = time.time(), distributed.start(device).device.type
    print("scoring", file=sys.stderr)
    if beside:
        beside.send("score")
    board = main_scores(out, plan.seed, kind, n=plan.pictures)
    rest, shown = beside.receive() if beside else side_work(out, plan, kind)
    board |= rest
    draw_samples(out, plan.seed, kind, shown)
    now, board = time.time(), in_order(board)
    board["seconds"] = {name: round(seconds_of(out, name), 1) for name in STAGES}
    board["seconds"] |= {"scores": round(now - began_scores, 1), "all": round(now - began, 1)}
    board |= {"machine": machine(), "seed": plan.seed}
    taken = {name: last_of_finished(out / name)["step"] for name in STAGES}
    board["plan"] = asdict(plan) | {"taken": taken, "weights": digests(out)}
    write_json(out / "scoreboard.json", board)
    for folder in (out, *(out / name for name in STAGES)):
        write_report(folder)
    show(board, out)

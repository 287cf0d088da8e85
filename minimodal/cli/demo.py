"""`python train.py demo`: VQGAN, CLIP and DALL·E on the Shapes world, then pictures and scores.

Each stage is the ordinary task with its ordinary recipe; `--minutes` scales their steps (10 is
what the recipes are tuned for, on two cores). A stage that is finished is not run again, so an
interrupted demo goes on where it stopped. Read `recipes.py` and `evaluation/scoreboard.py`.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import torch

from minimodal.cli.common import run_command
from minimodal.data.oracle import score
from minimodal.data.shapes import ShapesSource
from minimodal.drawing import grid, save_png
from minimodal.errors import UserError
from minimodal.evaluation.scoreboard import (
    baseline_scores,
    clip_scores,
    dalle_scores,
    format_scoreboard,
    vqgan_scores,
)
from minimodal.runs import load
from minimodal.training import distributed
from minimodal.training.build import build_clip, build_dalle, build_vqgan
from minimodal.training.checkpoint import write_atomically
from minimodal.training.contract import TrainConfig
from minimodal.training.engine import run
from minimodal.training.recipes import clip_shapes, dalle_shapes, scale_events, vqgan_shapes
from minimodal.training.report import write_report

FULL = 10.0  # minutes that the recipes' steps take on two idle cores, scores included
MOST = 2.0  # recipes: then nearly all scores are near 100 %


def add_demo_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the demo."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="FOLDER",
                        help="folder of the runs and the scores (default: runs/demo)")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=FULL, metavar="M",
                        help="scales the stages' steps, at most to twice the recipes' "
                             "(default: 10)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="(default: 0)")
    parser.add_argument("--resume", action="store_true",
                        help="go on where it stopped, which the demo does anyway")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def scaled(config: TrainConfig, share: float, seed: int) -> TrainConfig:
    """A recipe's engine settings with a share of its steps."""
    return replace(config, steps=max(1, round(config.steps * share)), seed=seed)


def train_stage(name: str, out: Path, *, share: float, seed: int, device: str) -> float:
    """Train one of vqgan, clip and dalle, or finish it; the seconds it took."""
    began, folder = time.perf_counter(), out / name
    if name == "vqgan":
        engine = scaled(vqgan_shapes().engine, share, seed)
        recipe = scale_events(vqgan_shapes()._replace(engine=engine), vqgan_shapes())
        task = build_vqgan(recipe, "shapes")
    elif name == "clip":
        engine = scaled(clip_shapes().engine, share, seed)
        task = build_clip(clip_shapes()._replace(engine=engine), "shapes")
    else:
        engine, training = scaled(dalle_shapes().engine, share, seed), dalle_shapes().training
        training = replace(training, pool=round(training.pool * max(share, 1)))
        recipe = dalle_shapes()._replace(engine=engine, training=training)
        task = build_dalle(recipe, "shapes", vqgan_run=out / "vqgan", device=device)
    run(task, engine, folder, data_spec="shapes", resume=folder.exists(), device=device)
    return time.perf_counter() - began


def train_beside(out: Path, settings: dict, threads: int, spent: Synchronized) -> None:
    """CLIP's stage as a process of its own."""
    torch.set_num_threads(threads)

    def stage(_: Sequence[str]) -> None:
        spent.value = train_stage("clip", out, **settings)

    sys.exit(run_command(stage, []))


def train_stages(out: Path, share: float, seed: int, device: str) -> dict[str, float]:
    """VQGAN, CLIP and DALL·E; the seconds of each.

    CLIP needs nothing of the others. These small models keep one core busy but not two, so on
    the CPU it trains beside them, in a process of its own with half of the threads.
    """
    settings = {"share": min(share, MOST), "seed": seed, "device": device}
    threads = torch.get_num_threads()
    alone = "WORLD_SIZE" not in os.environ and distributed.pick_device(device) == "cpu"
    if not alone or threads < 2:
        return {name: train_stage(name, out, **settings) for name in ("vqgan", "clip", "dalle")}
    context = multiprocessing.get_context("spawn")
    spent = context.Value("d")
    beside = context.Process(target=train_beside, args=(out, settings, threads // 2, spent))
    beside.start()
    torch.set_num_threads(threads - threads // 2)
    seconds = {}
    try:
        for name in ("vqgan", "dalle"):
            seconds[name] = train_stage(name, out, **settings)
            if name == "dalle":
                beside.join()
            if beside.exitcode:
                raise UserError(f"{out / 'clip'}: the training of CLIP failed, see above")
    except BaseException:
        beside.terminate()  # which saves its state
        beside.join()
        raise
    finally:
        torch.set_num_threads(threads)
    return {"vqgan": seconds["vqgan"], "clip": spent.value, "dalle": seconds["dalle"]}


def machine() -> dict[str, str | int]:
    """What the scores were made on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    found: dict[str, str | int] = {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def score_stages(out: Path, seed: int, device: str) -> dict:
    """The scoreboard of the stages that are there."""
    names = [name for name in ("vqgan", "clip", "dalle") if (out / name / "config.json").exists()]
    models = {name: load(out / name, kind=name).to(device) for name in names}
    board: dict = {}
    if "vqgan" in models:
        board["vqgan"] = vqgan_scores(models["vqgan"], seed=seed)
    if "clip" in models:
        board["clip"] = clip_scores(models["clip"], seed=seed)
    if "dalle" in models:
        sampling = models["dalle"].run["model"]["sampling"]
        clip = models.get("clip")
        board["dalle"] = dalle_scores(models["dalle"], clip, seed=seed, sampling=sampling)
    board["baselines"] = baseline_scores(seed=seed)
    return board


def draw_samples(out: Path, seed: int, device: str) -> None:
    """samples.png: seen and held-out captions, a picture and the oracle's verdict each."""
    dalle = load(out / "dalle").to(device)
    captions = []
    for pairs, n in (("seen", 16), ("held_out", 8)):
        source = ShapesSource(seed, split="val", pairs=pairs)
        numbers = np.arange(1000, 1000 + n)
        captions += source.full_captions(numbers, np.random.default_rng(seed))
    pictures = dalle.generate(
        captions,
        generator=torch.Generator(device).manual_seed(seed),
        **dalle.run["model"]["sampling"],
    ).cpu()
    verdicts = score(captions, pictures.numpy())
    save_png(grid(pictures, captions, verdicts, columns=8), out / "samples.png")


def run_demo(arguments: argparse.Namespace) -> None:
    """All stages, the samples, the scoreboard and the report."""
    if not 0 < arguments.minutes < math.inf:
        raise UserError(f"--minutes {arguments.minutes}: expected a number above 0")
    began, out = time.perf_counter(), arguments.out
    seconds = train_stages(out, arguments.minutes / FULL, arguments.seed, arguments.device)
    here = distributed.start(arguments.device)
    if not here.main:
        return
    began_scores = time.perf_counter()
    print("scoring", file=sys.stderr)
    board = score_stages(out, arguments.seed, here.device.type)
    draw_samples(out, arguments.seed, here.device.type)
    now = time.perf_counter()
    board["seconds"] = {name: round(spent, 1) for name, spent in seconds.items()}
    board["seconds"] |= {"scores": round(now - began_scores, 1), "all": round(now - began, 1)}
    board |= {"machine": machine(), "seed": arguments.seed}
    text = json.dumps(board, indent=2) + "\n"
    write_atomically(out / "scoreboard.json", lambda path: path.write_text(text))
    for folder in (out, *(out / name for name in seconds)):
        write_report(folder)
    print(format_scoreboard(board))
    print(f"pictures: {out / 'samples.png'}   report: {out / 'report.html'}")

"""What each part of VQGAN's training is good for: one run without it, side by side with the whole.

python benchmarks/vqgan_ablation.py --data cifar10:PATH --out runs/ablation \\
    [--steps 2400] [--perceptual CLIP] [--judge FILE] [--only NAME]

Every variant takes the same steps on the same batches from the same start, one after another on one
thread. OUT/report.html has the table, the pictures of all variants side by side and every run's
curves. A variant that is there already is not trained again, one that was stopped goes on.
"""

import argparse
import json
from pathlib import Path

import torch

import minimodal
from minimodal.cli.train import main as train
from minimodal.data.loading import open_data, split_spec
from minimodal.drawing import grid, save_png
from minimodal.evaluation.judge import load_judge
from minimodal.evaluation.on_data import vqgan_on_data
from minimodal.evaluation.scoreboard import reconstruct, rounded
from minimodal.training.checkpoint import read_metrics
from minimodal.training.report import write_report

SHOWN = 8  # pictures of each variant


def variants(steps: int, perceptual: str | None) -> dict[str, list[str]]:
    """The flags of each variant. D learns in the second half, and counts from 7/12 on."""
    start, heard = steps // 2, steps * 7 // 12
    events = ["--warm-start", str(steps // 12), "--discriminator-start", str(start)]
    events += ["--gan-start", str(heard), "--gan-ramp", str(steps // 12)]
    at_once = ["--discriminator-start", str(heard), "--gan-start", str(heard), "--gan-ramp", "0"]
    found = {
        "whole": events,
        "no EMA": [*events, "--quantizer", "gradient"],
        "no revival": [*events, "--revive", "no"],
        "no start on data": [*events, "--warm-start", "0", "--revive", "no"],
        "no warm-up of D": [*events, *at_once],
        "no discriminator": [*events, "--gan-weight", "0"],
    }
    if perceptual is not None:
        weight = ["--perceptual", perceptual]
        found["perceptual loss"] = [*events, *weight]
    return found


def worst_dip(run: Path) -> float:
    """The largest rise of L1 over its best so far, from where D's verdict counts: a collapse is
    several times 1."""
    lines = [line for line in read_metrics(run) if "lambda" in line]
    best, worst = float("inf"), 1.0
    for line in lines:
        best = min(best, line["l1"])
        worst = max(worst, line["l1"] / best)
    return worst


def scores_of(run: Path, spec: str, judge: Path | None) -> dict[str, float]:
    """What the table says of a run."""
    val = open_data(split_spec(spec)[0], image_size=32, split="val")
    judge = load_judge(judge) if judge is not None else None
    found = vqgan_on_data(minimodal.load(run), val, judge=judge).scores
    last = read_metrics(run)[-1]
    logged = [line for line in read_metrics(run) if "perplexity" in line][-1]
    more = {"perplexity": logged["perplexity"], "seconds": last["seconds"]}
    if any("lambda" in line for line in read_metrics(run)):
        more["worst_dip"] = worst_dip(run)
    return rounded({**found, **more})


def main() -> None:
    """Train what is missing, measure, write the table and the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="SPEC")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--perceptual", metavar="CLIP", help="for the variant that has the loss")
    parser.add_argument("--judge", type=Path, help="ResNet-20's safetensors")
    parser.add_argument("--only", action="append", help="these variants only; repeatable")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = variants(given.steps, given.perceptual)
    board, rows = {}, []
    for name, flags in chosen.items():
        if given.only and name not in given.only:
            continue
        run = given.out / name.replace(" ", "-")
        if not (run / "model.safetensors").exists() or not read_metrics(run)[-1].get("done"):
            words = ["vqgan", "--data", given.data, "--out", str(run), "--steps", str(given.steps)]
            status = train([*words, "--resume", "--seed", "0", "--log-every", "20", *flags])
            if status:
                raise SystemExit(status)
        board[name] = scores_of(run, given.data, given.judge)
        rows.append((name, run))
        print(json.dumps({name: board[name]}), flush=True)
    val = open_data(split_spec(given.data)[0], image_size=32, split="val")
    images = torch.from_numpy(val.images(range(SHOWN)))
    tiles, captions = [images], ["original"] * SHOWN
    for name, run in rows:
        tiles.append(reconstruct(minimodal.load(run), images).pictures)
        captions += [name] * SHOWN
    save_png(grid(torch.cat(tiles), captions, columns=SHOWN, tile=96), given.out / "samples.png")
    text = json.dumps(board, indent=2) + "\n"
    (given.out / "scoreboard.json").write_text(text, encoding="utf-8")
    write_report(given.out)
    names = list(dict.fromkeys(key for row in board.values() for key in row))
    print("| variant | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 1) + "|")
    for name, row in board.items():
        print(f"| {name} | " + " | ".join(f"{row[k]:g}" if k in row else "" for k in names) + " |")
    print(f"{given.out / 'report.html'}")


if __name__ == "__main__":
    main()

"""What each choice of unCLIP's decoder brings: one change at a time, trained short, by the oracle.

    python benchmarks/unclip_ablation.py runs/demo --out runs/ablation [--steps 800] [-n 200]
        [--only "as the recipe" …] [--seed 0]

Takes the CLIP, VQGAN and prior of a demo folder (`train.py demo --with unclip`). A table on stdout,
and with --plot FILE bars (needs matplotlib). Variants that are trained already are only scored, one
that was stopped goes on. All train in one --precision: `auto` measures, and beside other work may
choose anew for each of them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from minimodal.cli import train
from minimodal.cli.unclip import load_unclip
from minimodal.evaluation.scoreboard import PLAIN, exact
from minimodal.evaluation.unclip import draw_with, true_embedding_scores

CODES = ["--patch", "4", "--channels", "96", "--multipliers", "1", "--depth", "2"]
VARIANTS: dict[str, list[str]] = {
    "as the recipe": [],
    "embedding times 17.2 (paper)": ["--scale", "paper"],
    "no noise on the embedding": ["--embedding-noise", "0"],
    "no caption": ["--captions", "no"],
    "predicts noise": ["--predicts", "noise", "--loss-on", "noise"],
    "predicts velocity": ["--predicts", "velocity"],
    "loss on x": ["--loss-on", "x"],
    "pixels": ["--vqgan", ""],
}
COLUMNS = ("prior, one object", "prior, all", "true, one object", "true, all")


def trained(name: str, demo: Path, out: Path, engine: list[str]) -> Path:
    """The run of a variant, trained if it is not.

    engine: flags of the engine, the same for all
    """
    run = out / name.replace(" ", "-").replace(",", "")
    if not (run / "model.safetensors").exists():
        flags = VARIANTS[name] if name == "pixels" else ["--vqgan", str(demo / "vqgan"), *CODES]
        flags = ["--depth", "1"] if name == "pixels" else flags + VARIANTS[name]
        words = ["decoder", "--data", "shapes", "--clip", str(demo / "clip"), "--out", str(run),
                 *engine, *flags]  # fmt: skip
        sys.argv = ["train.py", *words]  # what a stopped training says how to go on with
        if status := train.main([*words, "--resume"]):
            sys.exit(status)
    return run


def scores_of(run: Path, prior: Path, n: int) -> list[float]:
    """Exact pictures of seen scenes, in percent: from captions by the prior, and from true
    embeddings without captions."""
    unclip, how = load_unclip(run, "cpu", prior=prior)
    source, numbers = PLAIN.source(0, split="val", pairs="seen"), np.arange(n)
    texts = source.full_captions(numbers, np.random.default_rng(0))
    one = source.scenes(numbers).count == 1
    with torch.no_grad():
        right = exact(PLAIN.score(texts, draw_with(unclip, how)(texts, 1, 0).numpy()))
        true = true_embedding_scores(unclip, how, n=n)
    return [
        100 * float(value)
        for value in (right[one].mean(), right.mean(), true["true_embedding_one_object"],
                      true["true_embedding"])
    ]  # fmt: skip


def plot(table: dict[str, list[float]], path: Path) -> None:
    """One bar for each variant and column."""
    import matplotlib.pyplot as plt  # beside the project's packages

    figure, places = plt.subplots(
        1, len(COLUMNS), figsize=(11, 0.4 + 0.28 * len(table)), sharey=True
    )
    for k, (place, column) in enumerate(zip(places, COLUMNS, strict=True)):
        values = [row[k] for row in table.values()]
        place.barh(list(table), values, color=["C1"] + ["C0"] * (len(table) - 1))
        place.axvline(values[0], color="C1", linewidth=0.8)
        place.set(title=f"{column}, %", xlim=(0, 100))
    places[0].invert_yaxis()  # shared by all
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (default: 0)")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("-n", type=int, default=200)
    arguments = parser.parse_args()
    print(f"| {arguments.steps} steps | {' | '.join(COLUMNS)} |\n| --- |{' --- |' * len(COLUMNS)}")
    table = {}
    engine = [
        "--steps", str(arguments.steps), "--seed", str(arguments.seed),
        "--precision", arguments.precision,
    ]  # fmt: skip
    for name in arguments.only:
        run = trained(name, arguments.demo, arguments.out, engine)
        table[name] = scores_of(run, arguments.demo / "prior", arguments.n)
        print(f"| {name} | {' | '.join(f'{value:.0f}' for value in table[name])} |", flush=True)
    if arguments.plot:
        plot(table, arguments.plot)


if __name__ == "__main__":
    main()

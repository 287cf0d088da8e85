"""Mean and range of several demo scoreboards, as a table.

python train.py demo --seed 0 --out runs/seed0      # and 1, and 2
python benchmarks/seeds.py runs/seed0 runs/seed1 runs/seed2
"""

import argparse
import json
from pathlib import Path

ROWS = {
    "vqgan": ("oracle_exact", "codes_used", "psnr"),
    "clip": (
        "recall_at_1", "swap_color", "swap_shape", "swap_relation", "replace_color",
        "replace_shape",
    ),
    "dalle": (
        "seen", "seen_one_object", "seen_no_guidance", "seen_rerank4", "held_out",
        "held_out_one_object", "held_out_no_guidance", "held_out_rerank4", "images_per_second",
        "images_per_second_guided",
    ),
    "baselines": ("chance", "nearest_caption", "chance_held_out", "nearest_caption_held_out"),
    "seconds": ("vqgan", "clip", "dalle", "scores", "all"),
}  # fmt: skip


def shown(value: float, *, share: bool) -> str:
    """A share in percent, another number with three digits at least."""
    if share:
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="demo folders, one a seed")
    folders = parser.parse_args().folders
    boards = [json.loads((folder / "scoreboard.json").read_text()) for folder in folders]
    print(f"| score | mean of {len(boards)} seeds | range |\n| --- | --- | --- |")
    for part, names in ROWS.items():
        for name in names:
            values = [board[part][name] for board in boards if name in board.get(part, {})]
            if not values:
                continue
            share = part != "seconds" and not name.startswith(("psnr", "images"))
            mean = shown(sum(values) / len(values), share=share)
            low, high = (shown(v, share=share) for v in (min(values), max(values)))
            unit = " %" if share else ""
            print(f"| {part} {name} | {mean}{unit} | {low} to {high} |")


if __name__ == "__main__":
    main()

"""The demo's scoreboard for a folder of Shapes runs that were trained one by one.

python train.py vqgan --data shapes --codes 512 --code-width 32 --out runs/plain/vqgan
python train.py dalle --data shapes --vqgan runs/plain/vqgan --out runs/plain/dalle
python benchmarks/score.py runs/plain
"""

import argparse
from pathlib import Path

from minimodal.cli.demo import score_stages
from minimodal.evaluation.scoreboard import format_scoreboard


def main() -> None:
    """Print the scores of the systems that the folder has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with runs named vqgan, clip, dalle, or some")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    given = parser.parse_args()
    print(format_scoreboard(score_stages(given.folder, given.seed, "cpu")))


if __name__ == "__main__":
    main()

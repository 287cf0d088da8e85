"""Do a demo's scores pass? One line a score; exit status 1 if any is too low or missing.

python .ci/check_scoreboard.py SCORES.json    (a demo's scoreboard, or what evaluate wrote)

The floors are for the short trainings of .ci/run. They are far below what those reach, since other
machines round differently: they catch what is broken, not what is a little worse.
"""

import json
import sys
from pathlib import Path

FLOORS = {
    ("vqgan", "oracle_exact"): 0.8,
    ("clip", "recall_at_1"): 0.5,
    ("dalle", "seen_one_object"): 0.6,
}


def misses(board: dict) -> list[str]:
    """A line for each score that does not reach its floor."""
    lines, board = [], board.get("scores", board)
    for (system, measure), floor in FLOORS.items():
        value = board.get(system, {}).get(measure)
        # `not >=`, so that NaN is a miss as well.
        if not isinstance(value, (int, float)) or not value >= floor:
            lines.append(f"{system}.{measure} is {value}, expected at least {floor}")
    return lines


def main() -> int:
    """The command; returns the exit status."""
    if len(sys.argv) != 2:
        print("usage: check_scoreboard.py SCOREBOARD.json", file=sys.stderr)
        return 2
    lines = misses(json.loads(Path(sys.argv[1]).read_text()))
    for line in lines:
        print(f"MISSED: {line}")
    if not lines:
        print(f"scoreboard: all {len(FLOORS)} scores reach their floors")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

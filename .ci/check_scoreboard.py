"""Do a demo's scores pass? One line a score; exit status 1 if any is too low or missing.

python .ci/check_scoreboard.py RUN/scoreboard.json

The floors are for a demo of four minutes, which reached 0.72, 0.94 and 0.79 (seed 0). They are
far below that, since other machines round differently: they catch what is broken, not what is a
little worse.
"""

import json
import sys
from pathlib import Path

FLOORS = {
    ("vqgan", "oracle_exact"): 0.5,
    ("clip", "recall_at_1"): 0.6,
    ("dalle", "seen_one_object"): 0.4,
}


def misses(board: dict) -> list[str]:
    """A line for each score that does not reach its floor."""
    lines = []
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

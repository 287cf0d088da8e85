"""Where all commands begin: ahead of PyTorch, whose import takes seconds that Ctrl-C may fall into.

`train.py`, `generate.py`, `python -m minimodal` and `minimodal` call `main`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module


def main(argv: Sequence[str] | None = None, *, module: str = "main") -> int:
    """Run the commands of a module of `minimodal.cli`; returns the exit status."""
    try:
        return import_module(f"minimodal.cli.{module}").main(argv)
    except KeyboardInterrupt:  # later ones are `run_command`'s
        print("stopped", file=sys.stderr)
        return 130

"""All commands: `python -m minimodal --help`, or `minimodal --help` where it is installed.

PyTorch is imported within `main`: that takes seconds, in which one may press Ctrl-C.
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


if __name__ == "__main__":
    sys.exit(main())

"""All commands: `python -m minimodal --help`, or `minimodal --help` where it is installed.

PyTorch is imported within `main`: that takes seconds, in which one may press Ctrl-C.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module


def stop(*_) -> None:
    """Leave at once. A KeyboardInterrupt within NumPy's import would become an ImportError."""
    print("stopped", file=sys.stderr, flush=True)
    os._exit(130)


def main(argv: Sequence[str] | None = None, *, module: str = "main") -> int:
    """Run the commands of a module of `minimodal.cli`; returns the exit status."""
    before = signal.getsignal(signal.SIGINT)
    alone = threading.current_thread() is threading.main_thread()
    answers = alone and before is signal.default_int_handler  # and is not ignored, as with nohup
    if answers:
        signal.signal(signal.SIGINT, stop)
    command = import_module(f"minimodal.cli.{module}")
    if answers:
        signal.signal(signal.SIGINT, before)
    return command.main(argv)


if __name__ == "__main__":
    sys.exit(main())

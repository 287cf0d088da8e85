"""What several test files use: tiny models, toy tasks, runs on the disk, and where things lie."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "data"


def script(name: str) -> ModuleType:
    """A script of benchmarks/ as a module."""
    sys.path.append(str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop()

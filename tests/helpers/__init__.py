"""What several test files use: tiny models, toy tasks, runs on the disk, and where things lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "data"

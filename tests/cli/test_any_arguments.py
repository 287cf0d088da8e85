"""Whatever arguments and files a command gets, it works or says in one line why not.

`python -m pytest tests/cli/test_any_arguments.py --fuzz-minutes 10` tries others all the time.
"""

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.fuzz import COMMANDS, call, line, write_files
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from minimodal.cli import doctor

EXAMPLES = 2  # of each command


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


def check(name: str, argv: list[str], files: Path, folder: Path) -> int:
    """Call a command in a fresh copy of the files; its status."""
    shutil.copytree(files, folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        os.mkfifo("pipe")
        status, out, err = call(name, argv)
    finally:
        os.chdir(before)
        shutil.rmtree(folder)
    said = [text for text in err.splitlines() if text.startswith("error: ")]
    assert status in (0, 1, 2), err
    if status == 2:
        assert len(said) == 1 and err.endswith(f"{said[0]}\n") and len(said[0]) < 1500, err
    else:
        assert not said, err
    return status


@pytest.mark.parametrize("name", COMMANDS)
def test_any_arguments_and_files_end_with_work_done_or_one_line(
    name, files, tmp_path, request, monkeypatch
):
    monkeypatch.setattr(doctor, "STEPS", 2)  # its trainings are long, and not about arguments
    monkeypatch.setattr(doctor, "PEAK_SIZE", 64)
    minutes = request.config.getoption("--fuzz-minutes") / len(COMMANDS)
    counts, chosen = Counter(), EXAMPLES if not minutes else 10

    @settings(
        max_examples=chosen, deadline=None, database=None, derandomize=not minutes,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def example(data):
        argv = line(data.draw, name)
        counts[check(name, argv, files, tmp_path / "here")] += 1

    end, number = time.monotonic() + 60 * minutes, 0
    while number == 0 or time.monotonic() < end:
        (seed(number)(example) if minutes else example)()
        number += 1
    print(f"{name}: statuses {dict(counts)}")
    assert sum(counts.values()) >= chosen


@pytest.mark.slow
def test_the_lines_that_others_are_made_from_work(files, tmp_path):
    """What is wrong in the examples is then what was changed."""
    for name, command in COMMANDS.items():
        status = check(name, [*command.start, *command.good], files, tmp_path / "here")
        assert status == (2 if name == "train demo" else 0), name

"""Trainings killed at random instants, their states damaged between: they end as if nothing was.

One system by default, the others with `-m slow`; all of them, and for longer, with
`python -m pytest tests/torture -m "" --rounds 20`. What is done follows from --torture-seed; where
in a step a kill hits is the machine's doing.
"""

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import systems
from helpers.marks import at_once
from helpers.torture import ENGINE, STEPS, make, start
from safetensors.torch import load_file

from minimodal.training import checkpoint
from minimodal.training.engine import run


def finish(kind: str, folder: Path, out: Path, *, resume: bool) -> float:
    """Train to the end; the seconds that it took."""
    task, began = make(kind, folder), time.monotonic()
    run(task, ENGINE, out, data_spec="shapes:400", resume=resume, device="cpu")
    return time.monotonic() - began


def whole_states(out: Path) -> list[Path]:
    return [p for p in sorted(out.glob("state/step-*.pt")) if checkpoint.damage(p) is None]


def damage_one(out: Path, chance: random.Random) -> Path | None:
    """Change a random bit of a random file of the states, where another whole state is left."""
    states = whole_states(out)
    if len(states) < 2:
        return None
    state = chance.choice(states)
    path = chance.choice([state, checkpoint.checksum_path(state)])
    content = bytearray(path.read_bytes())
    # Of a checksum's file only the sum itself counts, not the name behind it.
    content[chance.randrange(len(content) if path == state else 64)] ^= 1 << chance.randrange(5)
    path.write_bytes(content)
    assert checkpoint.damage(state) is not None
    return path


@pytest.mark.parametrize("kind", at_once(systems.TINY, "clip"))
def test_killed_and_damaged_it_ends_with_the_weights_of_an_uninterrupted_run(
    kind, tmp_path, request
):
    rounds, seed = (request.config.getoption(name) for name in ("--rounds", "--torture-seed"))
    chance, out = random.Random(f"{seed} {kind}"), tmp_path / "killed"
    seconds = finish(kind, tmp_path, tmp_path / "whole", resume=False)
    for _ in range(rounds):
        process = start(kind, tmp_path, out)
        time.sleep(chance.random() * seconds)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        damage_one(out, chance)
    steps = [int(path.stem[5:]) for path in whole_states(out)]
    assert not steps or max(steps) < STEPS
    finish(kind, tmp_path, out, resume=True)
    whole, killed = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name in whole:
        assert torch.equal(whole[name], killed[name]), name
    assert not list(out.rglob(".*.tmp"))
    assert [int(path.stem[5:]) for path in whole_states(out)] == [STEPS - 1, STEPS]
    lines = checkpoint.read_metrics(out)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_a_damaged_state_is_one_that_is_seen(tmp_path):
    """The harm itself: whatever bit is changed, in a state or in its checksum."""
    chance = random.Random(0)
    for step in (1, 2):
        checkpoint.save_state(tmp_path, {"step": step, "x": torch.arange(64.0)})
    files = {p: p.read_bytes() for p in (tmp_path / "state").iterdir()}
    for _ in range(50):
        assert damage_one(tmp_path, chance) is not None
        assert len(whole_states(tmp_path)) == 1
        for path, content in files.items():
            path.write_bytes(content)

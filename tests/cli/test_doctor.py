"""`python -m minimodal doctor`: what is here, how fast it is, what is wrong with data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from minimodal.cli import doctor
from minimodal.cli.main import main
from minimodal.training import probe
from minimodal.training.recipes import SYSTEMS

OVERFIT = doctor.overfit
LEARNT = {"vqgan": [5.0, 0.5], "clip": [2.0, 0.1]}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(probe, "PEAK_SECONDS", 0.01)
    monkeypatch.setattr(doctor, "PEAK_SIZE", 64)
    monkeypatch.setattr(doctor, "overfit", lambda device, folder: LEARNT)


@pytest.fixture
def folder(tmp_path):
    """Forty pictures, of which six are copies and one is broken; half have one caption."""
    rng = np.random.default_rng(0)
    for i in range(40):
        seed = rng if i < 34 else np.random.default_rng(7)
        Image.fromarray(seed.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        (tmp_path / f"{i}.txt").write_text("a dog" if i % 2 else f"cat number {i} of mine")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "broken.txt").write_text("a broken one")
    return tmp_path


def test_it_tells_what_is_installed_and_how_fast_it_is(capsys):
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["float32_tflops"] > 0 and found["machine"]["cores"] >= 1
    assert "data" not in found and set(found["versions"]) == {"python", "torch", "minimodal"}


def test_it_counts_pictures_captions_and_copies_and_names_what_is_broken(folder, capsys):
    assert main(["doctor", f"folder:{folder}", "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    splits = json.loads(printed.out)["data"].values()
    assert sum(split["pictures"] for split in splits) == 40
    assert sum(split["captions"] for split in splits) == 40
    assert sum(split["pictures_twice"] for split in splits) in (4, 5)  # 6 alike, in two splits
    assert "broken.png" in printed.err


def test_it_says_what_to_mend_in_words(folder, capsys):
    assert main(["doctor", f"folder:{folder}", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "pictures have the caption 'a dog'" in said and "are there twice" in said


def test_each_system_learns_one_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "STEPS", 8)  # the command takes more, and asks for more
    monkeypatch.setattr(doctor, "LEARNT", 0.97)
    found = OVERFIT(torch.device("cpu"), tmp_path)
    assert found.keys() == SYSTEMS.keys()
    assert [name for name, losses in found.items() if not doctor.learns(losses)] == []


def test_a_step_that_goes_uphill_learns_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SYSTEMS", {"clip": SYSTEMS["clip"]})
    monkeypatch.setattr(doctor, "STEPS", 8)
    step = doctor.train_step
    monkeypatch.setattr(doctor, "train_step", lambda *given, lr: step(*given, lr=-lr))
    assert not doctor.learns(OVERFIT(torch.device("cpu"), tmp_path)["clip"])


def test_what_does_not_learn_is_said_and_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "overfit", lambda *_: {**LEARNT, "dalle": [7.0, float("nan")]})
    assert main(["doctor", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "clip: learns; loss 2 to 0.1" in said and "dalle: does not learn; loss 7 to nan" in said


def test_of_an_endless_world_it_looks_at_the_first(monkeypatch):
    monkeypatch.setattr(doctor, "LOOKED_AT", 300)
    found = doctor.look_at("shapes", "train")
    assert found["looked_at"] == 300 < found["pictures"]
    assert found["pictures_twice"] < 300 and found["words"][2] > found["words"][0]


def test_too_many_threads_and_slow_bfloat16_are_told():
    here = {"device": "cpu", "threads": 8, "cores": 2, "float32_tflops": 2, "bfloat16_tflops": 1}
    said = doctor.advice({"machine": here})
    assert "OMP_NUM_THREADS=2" in said[0] and "float32" in said[1]


def test_a_spec_that_is_none_is_one_line(capsys):
    assert main(["doctor", "foldr:x", "--device", "cpu"]) == 2
    assert "did you mean folder?" in capsys.readouterr().err

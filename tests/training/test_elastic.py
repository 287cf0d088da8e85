"""`torchrun --max-restarts`: a killed process costs the steps since the last saved state."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from helpers.processes import together
from safetensors.torch import load_file

from minimodal.cli.train import main

# train.py, but the second process kills itself once, in front of the tenth step.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from minimodal.cli.train import main
from minimodal.training.tasks.clip import CLIPTask

out, attempt = Path(sys.argv[sys.argv.index("--out") + 1]), os.environ["TORCHELASTIC_RESTART_COUNT"]
plain = CLIPTask.batch

def batch(self, step, rows):
    if os.environ["RANK"] == "1":
        with open(out.with_name(f"steps-{attempt}"), "a") as file:
            file.write(f"{step} ")
        if attempt == "0" and step == 9:
            os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, step, rows)

CLIPTask.batch = batch
sys.exit(main(sys.argv[1:]))
"""
FLAGS = (
    "clip --data shapes:400 --device cpu --precision float32 --steps 14 --batch-size 8 "
    "--checkpoint-every 2 --vision-width 16 --vision-depth 1 --vision-heads 2 --text-width 16 "
    "--text-depth 1 --text-heads 2 --embed-width 16 --stem 8"
).split()


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_run_ends_with_the_same_weights(tmp_path):
    script = tmp_path / "killed_once.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    killed = subprocess.run(
        [sys.executable, *torchrun, "--max-restarts=1", script, *FLAGS, "--resume",
         "--out", tmp_path / "killed"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert killed.returncode == 0, killed.stderr
    before, after = ((tmp_path / f"steps-{n}").read_text().split() for n in (0, 1))
    assert before[-1] == "9" and 2 <= int(after[0]) < 9 and after[-1] == "13"
    together([str(ROOT / "train.py"), *FLAGS, "--out", str(tmp_path / "whole")])
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_restarts_without_resume_are_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main([*FLAGS, "--out", str(tmp_path / "run")]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

"""A run that was killed ends with the weights of one that was not, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT, systems
from safetensors.torch import load_file

from minimodal.runs import load
from minimodal.training.checkpoint import load_run_config, read_metrics, save_config


def start(*arguments: str) -> subprocess.Popen:
    """Train in a process of its own."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(Path(systems.__file__)), *arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ["vqgan", "vqgan-prior", "clip", "dalle"])
def test_a_killed_run_resumes_to_the_very_same_weights(kind, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = start(kind, str(whole))
    _, said = done.communicate(timeout=600)
    assert done.returncode == 0, said
    # Both runs of DALL·E have to learn the same codes.
    if kind in ("dalle", "vqgan-prior"):
        os.rename(tmp_path / "whole-vqgan", tmp_path / "killed-vqgan")
    process = start(kind, str(killed))
    states = killed / "state"
    while not list(states.glob("step-*.pt")) and process.poll() is None:
        time.sleep(0.005)
    time.sleep(random.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resumed = start(kind, str(killed), "--resume")
    _, said = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, said
    one, two = (load_file(run / "model.safetensors") for run in (whole, killed))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


OFF = {
    "vqgan": {"training": {"game": "hinge", "r1": 0.0}},
    "clip": {"training": {"unique": False}},
    "dalle": {"qk_norm": False},
}


@pytest.mark.parametrize("kind", OFF)
def test_a_run_that_had_settings_that_are_gone_and_off_loads_and_goes_on(kind, tmp_path):
    out = tmp_path / "run"
    systems.train(kind, out, replace(systems.ENGINE, steps=2))
    config = load_run_config(out)
    config["model"]["training"] |= OFF[kind].get("training", {})
    config["model"] |= {name: value for name, value in OFF[kind].items() if name != "training"}
    save_config(out, config)
    assert load(out).run["model"] == config["model"]
    systems.train(kind, out, replace(systems.ENGINE, steps=3), resume=True)
    assert read_metrics(out)[-1]["step"] == 3

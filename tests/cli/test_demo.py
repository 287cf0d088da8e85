"""The demo from end to end, at a fraction of its steps, and stopped in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

SCRIPT = ROOT / "train.py"
CONTRACT = {
    "vqgan": {"oracle_exact", "codes_used", "psnr"},
    "clip": {"recall_at_1", "swap_color", "swap_shape", "swap_relation"},
    "dalle": {"seen", "seen_one_object", "seen_rerank4", "held_out", "held_out_one_object",
              "images_per_second"},
    "vqgan_clip": {"seen_one_object", "held_out_one_object", "seen_two_objects", "gradient_only"},
    "baselines": {"chance", "nearest_caption"},
    "seconds": {"vqgan", "clip", "dalle", "all"},
    "machine": {"cpu", "threads", "torch"},
}  # fmt: skip


def start(out: Path, minutes: float) -> subprocess.Popen:
    """The demo as a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, "demo", "--out", out, "--minutes", str(minutes)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_leaves_what_the_contract_says_and_ctrl_c_loses_nothing(tmp_path):
    out = tmp_path / "demo"
    process = start(out, 0.7)
    logs = [out / name / "metrics.jsonl" for name in ("vqgan", "clip")]
    for _ in range(6000):  # both train at the same time
        if all(log.exists() and log.read_text() for log in logs):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert all(list((out / name / "state").iterdir()) for name in ("vqgan", "clip"))

    plan = (out / "plan.json").read_text()
    process = start(out, 0.7)
    printed, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert (out / "plan.json").read_text() == plan  # kept
    board = json.loads((out / "scoreboard.json").read_text())
    assert board["plan"]["steps"] == json.loads(plan)["steps"]
    assert board["plan"]["taken"].keys() == board["plan"]["steps"].keys()
    for part, names in CONTRACT.items():
        assert names <= board[part].keys()
    systems = ("vqgan", "clip", "dalle", "vqgan_clip")
    shares = [board[part][name] for part in systems for name in CONTRACT[part]
              if name not in ("psnr", "images_per_second")]  # fmt: skip
    assert all(0 <= share <= 1 for share in shares)
    assert "oracle_exact" in printed
    assert Image.open(out / "samples.png").width > 500
    assert "<html" in (out / "report.html").read_text()

    process = start(out, 0.7)  # done: it only says what it knows
    again, said = process.communicate(timeout=600)
    assert process.returncode == 0 and again == printed and "nothing to resume" in said

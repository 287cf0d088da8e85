"""A run that an older minimodal began loads and goes on (those that were killed: tests/torture)."""

from dataclasses import replace

import pytest
from helpers import systems

from minimodal.runs import load
from minimodal.training.checkpoint import load_run_config, read_metrics, save_config

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

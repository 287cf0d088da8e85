"""The records of the systems, and that a further one is what CONTRIBUTING.md says: two files and a
line."""

import dataclasses
import re
import sys
from importlib import import_module

import pytest
import torch
from helpers import ROOT, systems

import minimodal
from minimodal.cli.train import main
from minimodal.runs import find
from minimodal.training import recipes
from minimodal.training.checkpoint import read_metrics
from minimodal.training.recipes import SYSTEMS, recipe_for

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
KINDS = ("shapes", "hard", "cifar10", "coco", "folder")


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Do as the page says, in folders that the packages look into as into their own."""
    *files, line = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for text in files:
        path = tmp_path / text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(minimodal, "__path__", [*minimodal.__path__, f"{tmp_path}/minimodal"])
    place = f"{tmp_path}/minimodal/training/recipes"
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, place])
    mean = import_module("minimodal.training.recipes.mean")
    for name, system in eval(f"{{{line.strip()}}}", {"mean": mean}).items():
        monkeypatch.setitem(SYSTEMS, name, system)
    yield
    for name in ("minimodal.mean", "minimodal.training.recipes.mean"):
        del sys.modules[name]
    del minimodal.mean, recipes.mean


def test_a_system_of_two_files_and_a_line_trains_resumes_reports_and_loads(added, tmp_path, capsys):
    out = tmp_path / "runs" / "mean"
    argv = ["mean", "--data", "shapes:64", "--out", str(out), "--device", "cpu", "--precision",
            "float32", "--power", "1", "--image-size", "16"]  # fmt: skip
    assert main([*argv, "--steps", "2"]) == 0
    assert read_metrics(out)[-1]["step"] == 2
    assert main([*argv, "--steps", "4", "--resume"]) == 0
    assert main([*argv, "--steps", "4", "--lr", "0.5", "--resume"]) == 2
    assert "with --lr 0.001, not --lr 0.5" in capsys.readouterr().err
    steps = [line["step"] for line in read_metrics(out)]
    assert steps == sorted(steps) and steps[-1] == 4
    assert "(mean)" in (out / "report.html").read_text(encoding="utf-8")
    model = minimodal.load(out.parent, kind="mean")  # as in the folder of a demo
    assert model.picture.shape == (3, 16, 16) and model.picture.any()
    with pytest.raises(SystemExit):
        main(["mean", "--help"])
    assert "of the error (default: 2.0)" in capsys.readouterr().out


def test_a_new_systems_runs_are_the_same_whether_interrupted_or_not(added, tmp_path):
    argv = ["mean", "--data", "shapes:64", "--device", "cpu", "--precision", "float32",
            "--warmup", "0", "--min-lr-ratio", "1"]  # fmt: skip
    main([*argv, "--steps", "4", "--out", str(tmp_path / "whole")])
    for more in (["--steps", "2"], ["--steps", "4", "--resume"]):
        main([*argv, *more, "--out", str(tmp_path / "halves")])
    whole, halves = (minimodal.load(tmp_path / name).picture for name in ("whole", "halves"))
    assert torch.equal(whole, halves)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_record_names_fields_and_systems_that_there_are(name):
    system = SYSTEMS[name]
    assert "" in system.recipes and set(system.needs) <= set(SYSTEMS)
    for kind in KINDS:
        recipe = recipe_for(name, kind)
        assert set(system.decided) <= {field.name for field in dataclasses.fields(recipe.model)}
        assert set(system.events) <= {field.name for field in dataclasses.fields(recipe.training)}


def test_a_path_means_the_run_that_it_is_part_of_or_holds(tmp_path, capsys):
    short = dataclasses.replace(systems.ENGINE, steps=1)
    systems.train("vqgan", tmp_path / "demo" / "vqgan", short)
    run = tmp_path / "demo" / "vqgan"
    capsys.readouterr()
    assert find(run) == find(run, "vqgan") == find(tmp_path / "demo", "vqgan") == run
    assert find(tmp_path / "demo") == find(tmp_path / "demo", "clip") == tmp_path / "demo"
    assert not capsys.readouterr().err
    for part in ("config.json", "model.safetensors", "state/step-00000001.pt"):
        assert find(run / part, "vqgan") == run
        assert "is a part of the run" in capsys.readouterr().err
    assert find(run / "metrics.jsonl") == run / "metrics.jsonl"

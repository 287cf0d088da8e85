"""The records of the systems, and that a further one is what CONTRIBUTING.md says: two files and a
line."""

import dataclasses
import re
import sys
from importlib import import_module

import pytest
from helpers import ROOT

import minimodal
from minimodal.cli.train import field_notes, main
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


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_record_names_fields_and_systems_that_there_are(name):
    system = SYSTEMS[name]
    assert "" in system.recipes and set(system.needs) <= set(SYSTEMS)
    for kind in KINDS:
        recipe = recipe_for(name, kind)
        assert set(system.decided) <= {field.name for field in dataclasses.fields(recipe.model)}
        assert set(system.events) <= {field.name for field in dataclasses.fields(recipe.training)}


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_setting_of_a_training_is_explained_by_itself(name):
    recipe = recipe_for(name, "shapes")
    for part in (recipe.engine, recipe.training):
        notes = field_notes(type(part))
        assert notes.keys() == {field.name for field in dataclasses.fields(part)}
        assert not [note for note in notes.values() if "next" in note]

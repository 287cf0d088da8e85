"""Benchmarks and notebooks, which no test runs in full: what they import is there."""

import ast
import json
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from helpers import ROOT, systems

FILES = [*sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def code_of(file: Path) -> str:
    if file.suffix == ".py":
        return file.read_text(encoding="utf-8")
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(line for line in "\n".join(code).split("\n") if line[:1] not in "%!")


def lacking(code: str) -> list[str]:
    """What is imported from the package and is not in it."""
    asked = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minimodal"
        for alias in node.names
    ]
    modules = {module: import_module(module) for module, _ in asked}
    return [
        f"{module}.{name}"
        for module, name in asked
        if not hasattr(modules[module], name)
        and not (Path(*f"{module}.{name}".split(".")).with_suffix(".py").exists())
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_a_script_imports_from_the_package_is_there(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lacking(code_of(file)) == []


def test_an_import_of_what_has_moved_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lacking("from minimodal.uses.search import top_k") == ["minimodal.uses.search.top_k"]


def test_every_cell_of_the_clip_notebook_runs_on_a_small_model(tmp_path, monkeypatch):
    """With a stand-in for matplotlib, which the tests do without; `.ci/run` executes it whole."""
    run = systems.short_clip(tmp_path / "clip")
    monkeypatch.setenv("CLIP_CHECKPOINT", str(run))
    monkeypatch.chdir(ROOT)
    plots = MagicMock()
    plots.subplots = lambda rows=1, columns=1, **_: (
        MagicMock(),
        [MagicMock() for _ in range(columns)] if columns > 1 else MagicMock(),
    )
    monkeypatch.setitem(sys.modules, "matplotlib", MagicMock(pyplot=plots))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", plots)
    names = {}
    exec(compile(code_of(ROOT / "notebooks" / "clip.ipynb"), "clip.ipynb", "exec"), names)
    assert len(names["names"]) == 300

"""The command for the first person with a GPU runs whole without one, at toy size."""

import time

import pytest
import torch
from helpers import script

from minimodal.training import probe
from minimodal.training.recipes import SYSTEMS

on_gpu = script("on_gpu")
Row = on_gpu.Row


def parts(monkeypatch, *functions) -> None:
    monkeypatch.setattr(on_gpu, "PARTS", functions)


def works(setting):
    yield Row("one", "1")


def fails(setting):
    yield Row("two", "2")
    raise AssertionError("a code | is\noff")


def never_ends(setting):
    while True:
        time.sleep(0.02)
        yield Row("three", "3")


@pytest.mark.slow
def test_all_of_it_runs_on_the_cpu_at_toy_size(monkeypatch, capsys):
    monkeypatch.setattr(probe, "PEAK_SECONDS", 0.01)
    for name in ("codes", "embeddings", "unseen"):
        monkeypatch.setattr(f"minimodal.training.tasks.{name}.EVALUATION_PICTURES", 16)
    assert on_gpu.main(["--tiny", "--device", "cpu", "--minutes", "60"]) == 0
    said = capsys.readouterr().out
    assert said.count("trains, resumes, scores, draws") == 2 * len(SYSTEMS)
    for words in ("codebook", "gloo", "compiled", "bandwidth", "CLIP", "VQGAN", "DALL", "floor",
                  "unCLIP's decoder", "a token, batch 1, compiled, launched",
                  "dalle, --deterministic: the same twice"):  # fmt: skip
        assert words in said


def test_what_fails_is_told_and_the_rest_is_done(monkeypatch, capsys):
    parts(monkeypatch, fails, works)
    assert on_gpu.main(["--tiny", "--device", "cpu"]) == 1
    table = capsys.readouterr().out.partition(on_gpu.HEADING)[2]
    assert "| two | 2 |" in table and "| one | 1 |" in table
    assert "| fails | **failed**: AssertionError: a code / is |" in table


def test_it_ends_when_the_minutes_are_over(monkeypatch, capsys):
    parts(monkeypatch, works, never_ends)
    assert on_gpu.main(["--tiny", "--device", "cpu", "--minutes", "0.005"]) == 1
    assert "| never ends | not done: the time was over |" in capsys.readouterr().out


def test_without_cuda_one_line_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        on_gpu.main([])
    assert ended.value.code == 2 and "--tiny --device cpu" in capsys.readouterr().err


def test_the_section_takes_the_place_of_the_one_before():
    new = f"{on_gpu.HEADING}\n\nnew\n"
    page = f"# All\n\n{on_gpu.HEADING}\n\nold\n\n## Then\n\nmore\n"
    assert on_gpu.replaced(page, new) == f"# All\n\n{new}\n## Then\n\nmore\n"
    assert on_gpu.replaced("# All\n", new) == f"# All\n\n{new}"
    assert on_gpu.replaced(on_gpu.replaced(page, new), new) == on_gpu.replaced(page, new)

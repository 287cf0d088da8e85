"""report.html: complete, self-contained, and safe whatever the run holds."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from helpers.tiny import generator

from minimodal.drawing import save_png, to_picture
from minimodal.errors import UserError
from minimodal.training.checkpoint import save_config
from minimodal.training.report import curve, write_report

VOID = {"meta", "img", "path", "rect"}


class Checker(HTMLParser):
    """Every tag that opens closes; collects tags and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.values = [], [], []
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value for _, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_run(out, lines=(), *, kind="vqgan"):
    save_config(out, {"kind": kind, "model": {"width": 8}, "train": {}, "data": "shapes"})
    if lines:
        (out / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return out


def page(out) -> str:
    write_report(out)
    return (out / "report.html").read_text(encoding="utf-8")


def losses(n: int = 5):
    return [{"step": s, "loss": 100.0 * 0.1**s, "accuracy": s / n} for s in range(n)]


def picture():
    return to_picture(torch.randint(0, 256, (3, 8, 8), generator=generator(), dtype=torch.uint8))


def test_a_run_without_metrics_has_a_report(tmp_path):
    text = page(make_run(tmp_path / "run"))
    Checker(text)
    assert "No curves yet" in text and "&quot;width&quot;: 8" in text


def test_each_metric_has_a_curve_and_falling_losses_a_logarithmic_one(tmp_path):
    text = page(make_run(tmp_path, losses()))
    assert Checker(text).tags.count("svg") == 2
    assert "loss: 0.01, log scale" in text and "accuracy: 0.8<" in text


def test_a_curve_goes_from_corner_to_corner():
    drawn = re.search(r'd="M(.*?)"', curve("accuracy", [(0, 0.0), (5, 0.25), (10, 1.0)]))[1]
    assert drawn == "0.0,120.0 L140.0,90.0 L280.0,0.0"


def test_a_constant_metric_and_one_of_nan_do_not_break_it(tmp_path):
    lines = [{"step": s, "flat": 3.0, "bad": None, "word": "x"} for s in range(3)]
    (run := make_run(tmp_path, lines)).joinpath("metrics.jsonl").open("a").write(
        '{"step": 3, "flat": NaN, "bad": Infinity}\n{"step": 4, "fl'
    )
    text = page(run)
    assert Checker(text).tags.count("svg") == 1
    assert "nan" not in re.findall(r'd="(.*?)"', text)[0]


def test_nothing_comes_from_the_network_and_nothing_runs(tmp_path):
    save_png(picture(), tmp_path / "samples" / "step-00000001.png")
    checked = Checker(page(make_run(tmp_path, losses())))
    assert not {"script", "link", "iframe"} & set(checked.tags)
    assert not [v for v in checked.values if v and "//" in v and not v.startswith("data:image/png")]
    assert sum(v.startswith("data:image/png;base64,") for v in checked.values if v) == 1


def test_names_and_values_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    out = tmp_path / "<b>demo&"
    make_run(out / "<i>run", [{"step": s, evil: 1.0 * s} for s in range(3)], kind=evil)
    (out / "scoreboard.json").write_text(json.dumps({evil: {evil: evil}, "seed": evil}))
    text = page(out)
    assert "script" not in Checker(text).tags
    assert not {"b", "i"} & set(Checker(text).tags)


def test_a_demo_shows_scores_samples_and_its_runs_in_order(tmp_path):
    for name in ("dalle", "clip", "vqgan", "another"):
        make_run(tmp_path / name, losses(), kind=name)
    save_png(picture(), tmp_path / "samples.png")
    board = {"dalle": {"seen": 0.87654321}, "seed": 7, "machine": {"cpu": "an <old> one"}}
    (tmp_path / "scoreboard.json").write_text(json.dumps(board))
    text = page(tmp_path)
    Checker(text)
    assert "0.8765" in text and "an &lt;old&gt; one" in text and ">7<" in text
    heads = re.findall(r"<h2>(\w+) \(", text)
    assert heads == ["vqgan", "clip", "dalle", "another"]


def test_only_the_latest_samples_are_shown(tmp_path):
    for step in range(5):
        save_png(picture(), tmp_path / "samples" / f"step-{step:08d}.png")
    text = page(make_run(tmp_path))
    assert re.findall(r'alt="step-0*(\d+)"', text) == ["2", "3", "4"]


def test_a_second_report_replaces_the_first(tmp_path):
    run = make_run(tmp_path)
    assert "<svg" not in page(run)
    make_run(run, losses())
    assert "<svg" in page(run)
    assert not list(run.glob(".*"))


def test_damaged_files_and_absent_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "absent")
    (tmp_path / "scoreboard.json").write_text("[1, 2")
    with pytest.raises(UserError, match=r"scoreboard\.json is damaged"):
        write_report(tmp_path)
    (tmp_path / "scoreboard.json").unlink()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        write_report(tmp_path)

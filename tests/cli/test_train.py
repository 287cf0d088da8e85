"""train.py as a person meets it: what is wrong is said in one line, with status 2."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers import ROOT, systems
from PIL import Image

import minimodal
from minimodal.cli.train import main
from minimodal.errors import UserError
from minimodal.training.checkpoint import lock, save_config
from minimodal.training.engine import run
from minimodal.training.recipes import recipe_for, scale_events


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small run of each system."""
    out = tmp_path_factory.mktemp("runs")
    for kind in ("vqgan", "clip", "dalle"):
        systems.train(kind, out / kind)
    return out


def fails(argv: list, capsys) -> str:
    """The one line that a command says before it leaves with status 2."""
    try:
        status = main([str(word) for word in argv])
    except SystemExit as left:  # argparse leaves by itself
        status = left.code
    said = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert len(said) == 1 and said[0].startswith("error: "), said
    return said[0]


def flags(**changes) -> list:
    """A command line that would train for a moment, with some flags changed."""
    values = {"data": "shapes:64", "out": "unused", "steps": 2, **changes}
    return [word for name, value in values.items() for word in (f"--{name}", value)]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["vqgan", *flags(data="shape")], "shapes"),
        (["vqgan", *flags(data="cifar10:/no/such/folder")], "/no/such/folder"),
        (["vqgan", *flags(steps="many")], "--steps"),
        (["vqgan", *flags(), "--batchsize", "4"], "--batch-size"),
        (["vqgan", *flags(lr=-1)], "lr -1"),
        (["vqgan", *flags(device="gpu")], "auto, cpu or cuda"),
        (["vqgan", *flags(limit=0)], "limit"),
        (["vqgan", *flags(seed=-1)], "seed -1"),
        (["vqgan", *flags(minutes="inf")], "minutes inf"),
        (["vqgan", *flags(patch=0)], "1 or more"),
        (["vqgan", *flags(compile="yes")], "--compile off"),
        (["clip", *flags(), "--vision-heads", "3"], "not divisible by 3 heads"),
        (["clip", *flags(), "--text-activation", "foo"], "gelu"),
        (["clip", *flags(), "--patch-size", "0"], "1 or more"),
        (["clip", *flags(), "--vision-width", "-1"], "1 or more"),
        (["clip", *flags(), "--loss-rows", "9" * 25], "a whole number below 2^32"),
        (["clip", *flags(precision="float32"), "--accumulate", "32"], "smaller --accumulate"),
        (["dalle", *flags(vqgan="x"), "--guidance", "-1"], "guidance -1"),
        (["dalle", *flags(vqgan="x"), "--pool", "0"], "pool 0"),
        (["demo", "--minutes", "inf"], "--minutes inf"),
        (["dalle", *flags()], "--vqgan"),
        (["dalle", *flags(vqgan="/no/such/run")], "/no/such/run"),
        (["demo", "--minutes", "-1"], "--minutes -1"),
        (["demo", "--out", ""], "--out: is empty"),
        (["clip", *flags(out="")], "--out: is empty"),
        (["painting"], "painting"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_one_line_that_names_it(argv, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in fails(argv, capsys)
    assert not (tmp_path / "unused" / "config.json").exists()
    assert not (tmp_path / "config.json").exists()


def test_an_empty_folder_is_named(tmp_path, capsys):
    said = fails(["vqgan", *flags(data=f"folder:{tmp_path}", out=tmp_path / "out")], capsys)
    assert str(tmp_path) in said


def test_a_folder_without_captions_says_what_to_add(tmp_path, capsys):
    for i in range(20):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / f"{i}.png")
    argv = ["clip", *flags(data=f"folder:{tmp_path}", out=tmp_path / "out")]
    assert main([str(word) for word in argv]) == 2
    *read, error = capsys.readouterr().err.strip().splitlines()
    assert all("pictures" in line for line in read) and "captions.jsonl" in error


def test_an_out_below_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    argv = ["vqgan", *flags(out=tmp_path / "notes.txt" / "run")]
    assert "notes.txt is a file" in fails(argv, capsys)


def test_a_run_does_not_begin_in_a_folder_of_runs_nor_a_demo_in_a_run(tmp_path, capsys):
    save_config(tmp_path / "demo" / "clip", {"kind": "clip"})
    for more in ([], ["--resume"]):
        said = fails(["vqgan", *flags(out=tmp_path / "demo"), *more], capsys)
        assert "is a folder of runs; give the new one a folder of its own by --out" in said
    assert not (tmp_path / "demo" / "config.json").exists()
    assert "no plan.json" in fails(["demo", "--out", tmp_path / "demo" / "clip"], capsys)


def test_a_second_demo_in_a_folder_is_refused_before_it_plans(tmp_path, capsys):
    pytest.importorskip("fcntl")
    with lock(tmp_path / "demo"):
        said = fails(["demo", "--out", tmp_path / "demo", "--device", "cpu"], capsys)
    assert f"process {os.getpid()} on" in said and "is training in" in said
    assert not (tmp_path / "demo" / "plan.json").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full here")
def test_a_stderr_that_cannot_be_written_ends_no_training(tmp_path):
    command = [sys.executable, ROOT / "train.py", "vqgan", *flags(out=tmp_path / "run")]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*map(str, command), "--channels", "16"], stderr=full)
    assert done.returncode == 0
    assert minimodal.load(tmp_path / "run").run["kind"] == "vqgan"


@pytest.mark.parametrize(("kind", "names"), [
    ("clip", ["tokenizer.json"]),
    ("dalle", ["words.json", "vqgan/model.safetensors"]),
])  # fmt: skip
def test_a_finished_run_gets_lost_files_back(runs, tmp_path, kind, names):
    out = shutil.copytree(runs / kind, tmp_path / kind)
    if kind == "dalle":
        shutil.copytree(runs / "dalle-vqgan", tmp_path / "dalle-vqgan")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in names:
        (out / name).unlink()
    systems.train(kind, out, resume=True)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_events_keep_their_place_in_a_run_of_other_steps():
    given = recipe_for("vqgan", "shapes")
    short = given._replace(engine=replace(given.engine, steps=given.engine.steps // 10))
    events = scale_events("vqgan", short, given).training
    assert events.warm_start == round(given.training.warm_start / 10)
    assert events.gan_start == round(given.training.gan_start / 10)
    chosen = short._replace(training=replace(given.training, warm_start=7))
    assert scale_events("vqgan", chosen, given).training.warm_start == 7


def test_a_vqgan_that_ended_in_its_warm_start_is_refused(tmp_path, capsys):
    short = replace(systems.ENGINE, steps=1)
    run(systems.make_vqgan(short), short, tmp_path / "vqgan", data_spec="shapes", device="cpu")
    capsys.readouterr()
    argv = ["dalle", *flags(vqgan=tmp_path / "vqgan", out=tmp_path / "dalle")]
    assert "has no codes yet" in fails(argv, capsys)


def test_resuming_on_another_vqgan_is_refused(runs, tmp_path, capsys):
    shutil.copytree(runs / "dalle", tmp_path / "dalle")
    shutil.copytree(runs / "dalle-vqgan", tmp_path / "dalle-vqgan")
    systems.train("dalle", tmp_path / "dalle", resume=True)  # the same one
    engine = replace(systems.ENGINE, steps=6)
    other = tmp_path / "other"
    run(systems.make_vqgan(engine), engine, other, data_spec="shapes", device="cpu")
    weights = "model.safetensors"
    (tmp_path / "dalle-vqgan" / weights).write_bytes((other / weights).read_bytes())
    with pytest.raises(UserError, match="--vqgan holds something else than when"):
        systems.train("dalle", tmp_path / "dalle", resume=True)


def test_a_run_of_another_kind_is_refused(runs, tmp_path, capsys):
    argv = ["dalle", *flags(vqgan=runs / "clip", out=tmp_path / "out")]
    assert "clip" in fails(argv, capsys)


def test_a_run_is_never_overwritten(runs, capsys):
    before = (runs / "vqgan" / "model.safetensors").read_bytes()
    assert "--resume" in fails(["vqgan", *flags(out=runs / "vqgan")], capsys)
    assert (runs / "vqgan" / "model.safetensors").read_bytes() == before


def test_damaged_weights_are_named(runs, tmp_path):
    shutil.copytree(runs / "clip", tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        minimodal.load(tmp_path / "clip")


def test_weights_of_another_shape_are_named(runs, tmp_path):
    shutil.copytree(runs / "clip", tmp_path / "clip")
    path = tmp_path / "clip" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["vision_depth"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not fit"):
        minimodal.load(tmp_path / "clip")


def test_a_command_trains_resumes_and_reports_and_says_where(tmp_path, capsys):
    argv = ["vqgan", *flags(out=tmp_path / "run"), "--precision", "float32", "--channels", "16"]
    assert main([str(word) for word in argv]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"{tmp_path / 'run' / 'report.html'}: curves, samples, scores"
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    assert minimodal.load(tmp_path / "run").config.channels == 16
    longer = [4 if word == 2 else word for word in argv] + ["--resume"]
    assert main([str(word) for word in longer]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 4


def test_help_shows_a_switch_as_it_would_be_given(capsys):
    with pytest.raises(SystemExit):
        main(["dalle", "--data", "shapes", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--fsdp [yes|no] each process keeps its share" in words
    assert "optimiser state (default: no)" in words
    assert "(default: False)" not in words and "(default: True)" not in words


def test_help_shows_the_values_for_the_data_at_hand(capsys):
    for data, channels in (("shapes", 96), ("cifar10:anywhere", 64)):
        with pytest.raises(SystemExit):
            main(["vqgan", "--data", data, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert f"(default: {channels})" in shown


def test_a_loaded_dalle_draws_what_it_drew_before_it_was_moved(runs, tmp_path):
    import torch

    shutil.copytree(runs / "dalle", tmp_path / "moved")
    one, two = (
        minimodal.load(run).generate(["a red circle"], generator=torch.Generator().manual_seed(0))
        for run in (runs / "dalle", tmp_path / "moved")
    )
    assert torch.equal(one, two)


def own_pictures(root) -> None:
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(root / f"{i}.png")


@pytest.mark.parametrize("out", ["", ".", "../pictures"])
def test_the_data_folder_itself_is_no_place_for_a_run(tmp_path, capsys, out):
    folder = tmp_path / "pictures"
    folder.mkdir()
    own_pictures(folder)
    said = fails(["vqgan", *flags(data=f"folder:{folder}", out=f"{folder}/{out}")], capsys)
    assert said.endswith("is the data folder: choose one for the run")
    assert len([*folder.iterdir()]) == 6


def test_a_run_in_the_data_folder_goes_on_with_the_same_pictures(tmp_path, capsys):
    own_pictures(tmp_path)
    command = ["vqgan", "--data", f"folder:{tmp_path}", "--out", str(tmp_path / "run")]
    command += ["--image-size", "16", "--batch-size", "2", "--sample-every", "1"]
    assert main([*command, "--steps", "2"]) == 0
    assert [*(tmp_path / "run" / "samples").glob("*.png")]
    capsys.readouterr()
    assert main([*command, "--steps", "3", "--resume"]) == 0
    said = capsys.readouterr().err
    assert "train: 5 of 6 pictures" in said and "not used: 1 run folders" in said

"""generate.py --method unclip on runs of two steps: every tool draws, every bad input is a line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import pixels, refusal
from helpers.systems import TINY
from PIL import Image

from minimodal.cli.generate import main
from minimodal.cli.unclip import add_unclip
from minimodal.training.contract import TrainConfig
from minimodal.training.engine import run as train
from minimodal.training.recipes import SYSTEMS

TWO = TrainConfig(steps=2, batch_size=8, warmup=1, precision="float32")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """prior, decoder and upsampler of one CLIP."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    for name in ("prior", "decoder", "upsampler"):
        # One CLIP for both: `short_clip` lies beside the folder that it is asked for.
        task = TINY[name](out, TWO)
        train(task, TWO, out / name, data_spec="shapes:400", device="cpu")
    return out


@pytest.fixture
def draw(demo, tmp_path, monkeypatch, capsys):
    """The command in a fresh folder with two pictures; status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", 32), ("b.png", 32), ("large.png", 50)):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(name)

    def command(*words: str) -> tuple[int, str, str]:
        line = [*words, "--method", "unclip", "--run", str(demo), "--steps", "2"]
        try:
            status = main([*line, "--device", "cpu", "-n", "2"])
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()

    return command


@pytest.mark.parametrize(
    "words",
    [
        ["a red circle", "a blue square"],
        ["a red circle", "--no-caption", "--seeds", "3,4"],
        ["a red circle", "--sampler", "ddim", "--eta", "0.5", "--guidance", "2"],
        ["a red circle", "--complete", "a.png", "--redraw", "0,16,32,32"],
        ["a red circle", "--begin", "a.png", "--strength", "0.3"],
        ["--variations-of", "a.png"],
        ["--interpolate", "a.png", "b.png"],
        ["--edit", "a.png", "a red square", "a blue circle"],
        ["--mix", "a red circle:0.5", "a.png:0.5"],
        ["--strip", "a.png"],
    ],
)
def test_each_tool_writes_pictures(draw, words):
    status, out, _ = draw(*words)
    assert status == 0 and "pictures" in out
    assert pixels("pictures/000-1.png").shape == (32, 32, 3)


def test_what_is_kept_of_a_picture_to_complete_is_kept_to_the_pixel(draw):
    draw("a red circle", "--complete", "a.png", "--redraw", "0,16,32,32")
    assert (pixels("pictures/000-0.png")[:16] == pixels("a.png")[:16]).all()
    assert (pixels("pictures/000-0.png")[16:] != pixels("a.png")[16:]).any()


def test_the_denoising_is_a_moving_picture_of_its_steps(draw):
    assert draw("a red circle", "--gif", "steps.gif")[0] == 0
    with Image.open("steps.gif") as film:
        assert film.n_frames == 2


def test_an_up_sampler_enlarges_what_is_drawn(draw, demo):
    assert draw("a red circle", "--upsampler", str(demo / "upsampler"))[0] == 0
    assert pixels("pictures/000-0.png").shape == (64, 64, 3)


def test_clip_chooses_among_more(draw, demo):
    clip = str(demo / "decoder" / "clip")
    status, out, _ = draw("a red circle", "--rerank", "3", "--clip", clip, "--json")
    assert status == 0 and len(json.loads(out)["pictures"]) == 2


def test_a_picture_of_another_size_is_resized_and_that_is_said(draw):
    status, _, err = draw("--variations-of", "large.png")
    assert status == 0 and "large.png: 50 x 50 pixels, made 32 x 32" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no PROMPT"),
        (["a red circle", "--variations-of", "a.png"], "--variations-of takes no PROMPT"),
        (["--variations-of", "a.png", "--strip", "a.png"], "do not go together"),
        (["--variations-of", "nothing.png"], "nothing.png"),
        (["--mix", "a red circle"], "its weight"),
        (["--edit", "a.png", "a red square", "a blue circle", "--strength", "2"], "from 0 to 1"),
        (["a red circle", "--strength", "0.5"], "--strength is for --begin"),
        (["a red circle", "--begin", "a.png", "--complete", "b.png"], "do not go together"),
        (["a red circle", "--redraw", "0,0,8,8"], "--complete IMG"),
        (["a red circle", "--eta", "0.5"], "eta 0.5 is DDIM's"),
        (["a red circle", "--gif", "film.png"], "ends in .gif"),
        (["a red circle", "--prior", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(draw, words, message):
    assert message in refusal(draw(*words))
    assert not Path("pictures.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--edit", "a.png", "a red square"], "expected 3 arguments"),
        (["a red circle", "--steps", "2000"], "steps 2000: expected from 1 to 1000"),
    ],
)
def test_what_the_parser_or_the_sampler_refuses_is_named(
    demo, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    try:
        status = main([*words, "--method", "unclip", "--run", str(demo)])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and message in capsys.readouterr().err


def test_a_prior_of_another_clip_is_refused_by_its_hash(draw, demo, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(demo / "prior", other)
    config = json.loads((other / "config.json").read_text())
    mine = config["model"]["training"]["clip"]
    config["model"]["training"]["clip"] = "0123456789abcdef"
    (other / "config.json").write_text(json.dumps(config))
    message = refusal(draw("a red circle", "--prior", str(other)))
    assert "0123456789ab" in message and mine[:12] in message


def test_a_folder_without_a_decoder_says_how_to_train_one(draw, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status = main(["a red circle", "--method", "unclip", "--run", str(tmp_path / "empty")])
    err = capsys.readouterr().err
    assert status == 2 and "train.py demo --with unclip" in err and err.count("\n") == 1


def test_the_demo_adds_unclip_once(tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    TINY["prior"](out, TWO)  # makes the CLIP beside it
    shutil.copytree(tmp_path / "demo-clip", out / "clip")
    (out / "scoreboard.json").write_text(json.dumps({"seconds": {}}))
    tiny = {"prior": {"width": 16, "depth": 1, "heads": 2}, "decoder": {"channels": 8}}

    def recipe(name: str):
        whole = SYSTEMS[name].recipes["shapes"]()
        training = replace(whole.training, pool=64)
        return whole._replace(
            model=replace(whole.model, **tiny[name]), training=training, engine=TWO
        )

    monkeypatch.setattr("minimodal.cli.unclip.recipe_for", lambda name, data: recipe(name))
    monkeypatch.setattr("minimodal.cli.unclip.on_codes", lambda vqgan: recipe("decoder"))
    add_unclip(out, 0, "cpu", n=8)
    board = json.loads((out / "scoreboard.json").read_text())
    wanted = {"seen", "seen_one_object", "held_out_one_object", "true_embedding_one_object", "edit"}
    assert wanted <= board["unclip"].keys() and (out / "unclip.png").exists()
    before = (out / "scoreboard.json").stat().st_mtime_ns
    add_unclip(out, 0, "cpu", n=8)
    assert (out / "scoreboard.json").stat().st_mtime_ns == before

"""The command that sends pictures through a VQGAN's codes and back."""

import json

import numpy as np
import pytest
import torch
from helpers import systems
from helpers.tiny import integers, make_vqgan
from PIL import Image

from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.cli.main import main
from minimodal.cli.reconstruct import sized, there_and_back, tiles_of
from minimodal.evaluation.metrics import psnr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("reconstruct") / "vqgan"
    systems.train("vqgan", out)
    return out


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(name: str, width: int, height: int, *, mode: str = "RGB") -> None:
    pixels = integers(256, height, width, 3).byte().numpy()
    Image.fromarray(pixels).convert(mode).save(name)


def test_a_picture_of_any_size_comes_back_at_its_size():
    vqgan, picture = make_vqgan(), integers(256, 13, 17, 3).byte().numpy()
    before, after, indices = there_and_back(vqgan, picture)
    assert after.shape == (3, 13, 17) and indices.shape == (7, 9)
    assert np.array_equal(before.permute(1, 2, 0), picture)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 17)])
def test_what_comes_back_is_what_the_codes_of_the_picture_with_its_last_pixels_repeated_say(
    height, width
):
    vqgan, picture = make_vqgan(), integers(256, height, width, 3).byte().numpy()
    x = to_float(torch.from_numpy(picture).permute(2, 0, 1)[None])
    x = torch.cat([x, x[..., -1:, :]], dim=2) if height % 2 else x
    x = torch.cat([x, x[..., -1:]], dim=3) if width % 2 else x
    with torch.no_grad():
        expected = to_uint8(vqgan.decode(vqgan.encode(x).z))[0, :, :height, :width]
    assert torch.equal(there_and_back(vqgan, picture)[1], expected)


def test_where_nothing_changed_the_difference_is_gray_and_all_tiles_have_one_size():
    picture = integers(200, 3, 16, 16).byte()
    before, _, difference = tiles_of(picture, picture, 20, 17)
    assert before.shape == (3, 20, 17) and (before[:, :2] == 248).all()
    assert torch.equal(before[:, 2:18, :16], picture)
    assert (difference[:, 2:18, :16] == 128).all()


def test_the_command_writes_a_grid_and_tells_the_scores(run, capsys):
    save("a.png", 32, 32)
    save("b.png", 45, 30, mode="P")
    assert main(["reconstruct", "a.png", "b.png", "--vqgan", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(p["width"], p["height"]) for p in told["pictures"]] == [(32, 32), (45, 30)]
    assert told["pictures"][0]["codes"] == 64 and 0 < told["codes_used"] <= told["codebook"]
    assert Image.open("reconstructions.png").width > 3 * 128


def test_the_scores_told_are_those_of_the_pictures(run, capsys):
    save("a.png", 32, 32)
    assert main(["reconstruct", "a.png", "--vqgan", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["pictures"][0]
    from minimodal.runs import load

    before, after, _ = there_and_back(load(run), sized("a.png", None))
    assert told["psnr"] == pytest.approx(psnr(after[None], before[None]), abs=1e-3)


def test_a_demo_folder_stands_for_its_vqgan(run):
    save("a.png", 32, 32)
    assert main(["reconstruct", "a.png", "--vqgan", str(run.parent)]) == 0


def test_large_pictures_are_shrunk_and_it_is_said(run, capsys):
    save("a.png", 700, 350)
    assert main(["reconstruct", "a.png", "--vqgan", str(run), "--json"]) == 0
    said = capsys.readouterr()
    assert "shrunk to 512" in said.err
    assert json.loads(said.out)["pictures"][0]["height"] == 256


def test_an_original_checkpoint_reconstructs(shared):
    save("a.png", 33, 32)
    path = shared / "parity" / "vqgan_taming" / "model.safetensors"
    assert main(["reconstruct", "a.png", "--vqgan", str(path)]) == 0


BAD = [
    (["absent.png"], "absent.png"),
    (["text.png"], "text.png"),
    (["tiny.png"], "4 x 20 pixels: expected 8"),
    (["long.png"], "long.png is 2000 x 9 pixels, and 512 x 2 at --size 512: expected 8"),
    (["a.png", "--size", "3"], "--size 3: expected 8"),
    (["a.png", "--size", "1000000000"], "--size 1000000000: expected 8 to 16384 pixels"),
    (["a.png", "--out", "grid.jpg"], "ends in .png"),
    (["a.png", "--vqgan", "nowhere"], "--vqgan nowhere: no such file or folder"),
    (["a.png", "--vqgann", "x"], "did you mean --vqgan?"),
    ([], "IMG"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_clear_line(run, capsys, words, message):
    save("a.png", 32, 32)
    save("tiny.png", 4, 20)
    save("long.png", 2000, 9)
    with open("text.png", "w") as file:
        file.write("no picture")
    flags = [] if "--vqgan" in words else ["--vqgan", str(run)]
    try:
        status = main(["reconstruct", *words, *flags])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and message in said[-1] and said[-1].startswith("error: ")


def test_a_run_of_another_system_is_an_error(tmp_path, capsys):
    systems.train("clip", tmp_path / "clip")
    save("a.png", 32, 32)
    assert main(["reconstruct", "a.png", "--vqgan", str(tmp_path / "clip")]) == 2
    assert "vqgan" in capsys.readouterr().err

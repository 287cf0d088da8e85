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
from minimodal.cli.reconstruct import difference, pad_to_multiple, reconstruct
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


def test_padding_repeats_the_last_row_and_column():
    x = torch.arange(6.0).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 3, 4, 4)
    assert torch.equal(padded[..., :2, :3], x)
    assert padded[0, 0, 2].tolist() == [3, 4, 5, 5] and padded[0, 0, 0, 3] == 2


def test_a_size_that_the_factor_divides_is_not_padded():
    x = torch.ones(1, 3, 8, 12)
    assert pad_to_multiple(x, 4).shape == x.shape


def test_a_picture_of_any_size_comes_back_at_its_size():
    vqgan, picture = make_vqgan(), integers(256, 3, 13, 17).byte()
    pair = reconstruct(vqgan, picture)
    assert pair.after.shape == picture.shape and pair.indices.shape == (7, 9)
    assert torch.equal(pair.before, picture)


def test_what_comes_back_is_what_the_codes_say():
    vqgan, picture = make_vqgan(), integers(256, 3, 16, 16).byte()
    pair = reconstruct(vqgan, picture)
    with torch.no_grad():
        expected = vqgan.decode(vqgan.encode(to_float(picture[None])).z)
    assert torch.equal(pair.after, to_uint8(expected)[0])


def test_where_nothing_changed_the_difference_is_gray():
    pair = reconstruct(make_vqgan(), integers(256, 3, 16, 16).byte())
    assert (difference(pair._replace(after=pair.before)) == 128).all()


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

    picture = torch.from_numpy(np.array(Image.open("a.png"))).permute(2, 0, 1)
    pair = reconstruct(load(run), picture)
    assert told["psnr"] == pytest.approx(psnr(pair.after[None], picture[None]), abs=1e-3)


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

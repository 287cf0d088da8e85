"""Pictures as codes, once: the file that keeps them, and whose VQGAN they may come from."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from systems import ENGINE
from tiny import generator, make_painter, make_vqgan

from minimodal.data.shapes import ShapesSource
from minimodal.errors import UserError
from minimodal.runs import load
from minimodal.training.build import build_dalle
from minimodal.training.engine import run
from minimodal.training.recipes import dalle_shapes
from minimodal.training.tasks.codes import cached_codes, tokenize_pictures

ORIGINAL = Path(__file__).parent / "data" / "vqgan_taming"
SOURCE = ShapesSource(image_size=16)


def cached(path: Path, *, vqgan=None, flip: bool = False) -> torch.Tensor:
    return cached_codes(path, vqgan or make_vqgan(), SOURCE, n=20, flip=flip, write=True)


@pytest.mark.parametrize("flip", [False, True])
def test_the_file_holds_the_codes_and_is_read_instead_of_the_pictures(tmp_path, flip):
    fresh = cached(tmp_path / "codes" / "a.npy", flip=flip)
    blind = SimpleNamespace(config=make_vqgan().config)  # cannot encode
    again = cached(tmp_path / "codes" / "a.npy", vqgan=blind, flip=flip)
    assert torch.equal(fresh, again) and len(again) == (40 if flip else 20)
    assert [p.name for p in (tmp_path / "codes").iterdir()] == ["a.npy"]


def test_the_file_is_mapped_and_a_change_in_memory_does_not_reach_it(tmp_path):
    path = tmp_path / "a.npy"
    before = cached(path).clone()
    mapped = cached(path)
    with open(path, "r+b") as file:  # what has not been touched is read only now
        codes = np.load(path)
        codes[3] = 7
        np.save(file, codes)
    assert (mapped[3] == 7).all()
    mapped[0] = 0
    assert torch.equal(cached(path)[0], before[0])


@pytest.mark.parametrize("content", [b"", b"0123456789"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match="a.npy is damaged .*delete it"):
        cached(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((20, 8, 4), np.int32),
        np.zeros((19, 8, 8), np.int32),
        np.zeros(20, np.int32),
        np.zeros((20, 8, 8), np.int64),
    ],
)
def test_a_file_of_another_shape_or_type_is_made_anew(tmp_path, wrong, capsys):
    right = cached(tmp_path / "right.npy")
    np.save(tmp_path / "a.npy", wrong)
    assert torch.equal(cached(tmp_path / "a.npy"), right)
    assert f"a.npy holds {wrong.dtype} {wrong.shape}, where int32" in capsys.readouterr().err
    assert np.array_equal(np.load(tmp_path / "a.npy"), right)


def test_where_the_file_cannot_be_kept_the_codes_are_and_it_is_said(tmp_path, capsys):
    (tmp_path / "codes").touch()  # a file where the folder would be
    codes = cached_codes(tmp_path / "codes" / "a.npy", make_vqgan(), SOURCE, n=20, flip=False,
                         write=True)  # fmt: skip
    assert torch.equal(codes, cached(tmp_path / "a.npy"))
    assert "cannot keep" in capsys.readouterr().err


def test_codes_are_computed_in_full_float32_and_the_callers_settings_come_back():
    seen, device = [], torch.device("cpu")

    def settings() -> tuple:
        return (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32,
                torch.is_autocast_enabled("cpu"))  # fmt: skip

    vqgan = make_vqgan()
    original, before = vqgan.encode, settings()
    vqgan.encode = lambda x: (seen.append((*settings(), x.dtype)), original(x))[1]
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            inside = settings()
            tokenize_pictures(vqgan, SOURCE, n=2, flip=False, device=device)
            painter = make_painter()
            painter.paint_with(vqgan)
            painter.encode_pictures(torch.zeros(1, 3, 16, 16))
            assert settings() == inside == ("high", True, True)
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert seen == [("highest", False, False, torch.float32)] * 2


def test_dalle_trains_and_draws_on_the_codes_of_an_original_checkpoint(tmp_path):
    shutil.copytree(ORIGINAL, tmp_path / "theirs")
    checkpoint = tmp_path / "theirs" / "last.ckpt"
    recipe, engine = dalle_shapes(), replace(ENGINE, steps=2)
    recipe = recipe._replace(model=replace(recipe.model, width=16, depth=1, heads=2), engine=engine)
    task = build_dalle(recipe, "shapes:40", vqgan_run=checkpoint)
    run(task, engine, tmp_path / "run", data_spec="shapes:40", device="cpu")
    assert list((tmp_path / "theirs" / "last.ckpt.codes").glob("*.npy"))
    shutil.rmtree(tmp_path / "theirs")  # the run works wherever it is moved
    dalle = load(tmp_path / "run", kind="dalle")
    picture = dalle.generate("a red circle", generator=generator())
    assert picture.shape[2] == dalle.config.grid * dalle.factor

"""Pictures as codes, once: the file that keeps them, and whose VQGAN they may come from."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from systems import ENGINE
from tiny import generator, make_vqgan

from minimodal.data.shapes import ShapesSource
from minimodal.errors import UserError
from minimodal.runs import load
from minimodal.training.build import build_dalle
from minimodal.training.engine import run
from minimodal.training.recipes import dalle_shapes
from minimodal.training.tasks.codes import cached_codes

ORIGINAL = Path(__file__).parent / "data" / "vqgan_taming"
SOURCE = ShapesSource(image_size=16)


def cached(path: Path, *, vqgan=None, flip: bool = False) -> torch.Tensor:
    return cached_codes(path, vqgan or make_vqgan(), SOURCE, n=20, flip=flip, write=True)


@pytest.mark.parametrize("flip", [False, True])
def test_the_file_holds_the_codes_and_is_read_instead_of_the_pictures(tmp_path, flip):
    fresh = cached(tmp_path / "codes" / "a.npy", flip=flip)
    again = cached(tmp_path / "codes" / "a.npy", vqgan="none", flip=flip)
    assert torch.equal(fresh, again) and len(again) == (40 if flip else 20)
    assert [p.name for p in (tmp_path / "codes").iterdir()] == ["a.npy"]


def test_the_file_is_mapped_and_a_change_in_memory_does_not_reach_it(tmp_path):
    path = tmp_path / "a.npy"
    before = cached(path).clone()
    mapped = cached(path)
    assert isinstance(np.load(path, mmap_mode="r"), np.memmap)
    mapped[0] = 0
    assert torch.equal(cached(path), before)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"0123456789")
    with pytest.raises(UserError, match="a.npy is damaged .*delete it"):
        cached(tmp_path / "a.npy")


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

"""Pictures as codes, once: the file that keeps them, and whose VQGAN they may come from."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import FIXTURES
from helpers.commands import write_run
from helpers.systems import ENGINE
from helpers.tiny import generator, integers, make_painter, make_prior, make_vqgan, noise
from PIL import Image

from minimodal.blocks.painter import Painter
from minimodal.blocks.pixels import to_float, to_uint8
from minimodal.blocks.vqgan_checks import QUANTIZERS
from minimodal.errors import UserError
from minimodal.runs import load
from minimodal.shapes.source import ShapesSource
from minimodal.training.contract import Recipe
from minimodal.training.engine import run
from minimodal.training.opening import encode_data
from minimodal.training.recipes import dalle as system
from minimodal.training.recipes import recipe_for
from minimodal.training.tasks.codes import cached_codes, tokenize_pictures
from minimodal.training.tasks.common import seeded
from minimodal.vqgan import VQGAN, VQGANConfig

ORIGINAL = FIXTURES / "vqgan_taming"
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
    assert "not a folder; next time the pictures are encoded again" in capsys.readouterr().err


def write_vqgan(out: Path, *, seed: int = 0, **config) -> Path:
    """A run with random weights whose codes count as placed."""
    vqgan = seeded(lambda: VQGAN(VQGANConfig(image_size=16, channels=8, **config)), seed)
    with torch.no_grad():
        for number, book in enumerate(getattr(vqgan.quantizer, "codebooks", [vqgan.quantizer])):
            if hasattr(book, "codes"):
                book.codes.copy_(noise(*book.codes.shape, seed=seed + number))
            book.counts.fill_(1.0)
    write_run(out, "vqgan", vqgan)
    return out


@pytest.mark.parametrize("changed", ["weights", "flip", "data", "pool"])
def test_kept_codes_are_of_these_weights_and_these_pictures(tmp_path, changed):
    """All lie at the same places before and after the change."""
    (tmp_path / "data").mkdir()

    def encode(other: bool) -> torch.Tensor:
        has = {name: other and name == changed for name in ("weights", "flip", "data", "pool")}
        write_vqgan(tmp_path / "vqgan", codes=(12,), seed=int(has["weights"]))
        for number, pixels in enumerate(integers(256, 6, 16, 16, 3, seed=int(has["data"]))):
            picture = Image.fromarray(pixels.numpy().astype(np.uint8))
            picture.save(tmp_path / "data" / f"{number}.png")
        training = SimpleNamespace(pool=3 if has["pool"] else 4, flip=has["flip"])
        recipe = Recipe(None, training, replace(ENGINE, limit=None))
        return encode_data(recipe, f"folder:{tmp_path / 'data'}", tmp_path / "vqgan", "cpu").codes

    first, again, other = encode(False), encode(False), encode(True)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(list((tmp_path / "vqgan" / "codes").iterdir())) == 2
    assert torch.equal(encode(False), first)  # the first file is still the right one


def test_codes_are_computed_in_full_float32_and_the_callers_settings_come_back():
    seen, device = [], torch.device("cpu")

    def settings() -> tuple:
        return (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32,
                torch.is_autocast_enabled("cpu"))  # fmt: skip

    vqgan = make_vqgan()
    original, before = vqgan.latents, settings()
    vqgan.latents = lambda x: (seen.append((*settings(), x.dtype)), original(x))[1]
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            inside = settings()
            tokenize_pictures(vqgan, SOURCE, n=2, flip=False, device=device)
            for painter in (make_painter(), make_prior()):
                painter.painter = Painter(vqgan)
                painter.painter.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
            assert settings() == inside == ("high", True, True)
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert seen == [("highest", False, False, torch.float32)] * 3


def test_dalle_trains_and_draws_on_the_codes_of_an_original_checkpoint(tmp_path):
    shutil.copytree(ORIGINAL, tmp_path / "theirs")
    checkpoint = tmp_path / "theirs" / "last.ckpt"
    recipe, engine = recipe_for("dalle", "shapes"), replace(ENGINE, steps=2)
    recipe = recipe._replace(model=replace(recipe.model, width=16, depth=1, heads=2), engine=engine)
    task = system.build(recipe, "shapes:40", {"vqgan": checkpoint})
    run(task, engine, tmp_path / "run", data_spec="shapes:40", device="cpu")
    assert list((tmp_path / "theirs" / "last.ckpt.codes").glob("*.npy"))
    shutil.rmtree(tmp_path / "theirs")  # the run works wherever it is moved
    dalle = load(tmp_path / "run", kind="dalle")
    picture = dalle.generate("a red circle", generator=generator())
    assert picture.shape[2] == dalle.config.grid * dalle.painter.factor


BOOKS = {name: (12,) for name in QUANTIZERS} | {"two codebooks": (5, 4)}


@pytest.mark.parametrize("name", BOOKS)
def test_dalle_trains_and_draws_on_the_codes_of_every_quantizer(tmp_path, name):
    quantizer = name if name in QUANTIZERS else "ema"
    shape = {"quantizer": quantizer, "codes": BOOKS[name], "code_width": 6, "patch": 4,
             "multipliers": (1,)}  # fmt: skip
    theirs = load(write_vqgan(tmp_path / "vqgan", **shape))
    recipe, engine = recipe_for("dalle", "shapes"), replace(ENGINE, steps=1)
    recipe = recipe._replace(model=replace(recipe.model, width=16, depth=1, heads=2), engine=engine)
    task = system.build(recipe, "shapes:20", {"vqgan": tmp_path / "vqgan"})
    run(task, engine, tmp_path / "run", data_spec="shapes:20", device="cpu")
    assert len(task.codes.unique()) > 1 and task.codes.max() < math.prod(BOOKS[name])

    dalle = load(tmp_path / "run", kind="dalle")
    x = integers(256, 3, 3, 16, 16).byte()
    codes = dalle.painter.encode(x)
    assert dalle.config.codes == theirs.config.codes
    assert torch.equal(dalle.painter.decode(codes), to_uint8(theirs(to_float(x)).pictures))
    drawn, decode = [], dalle.painter.decode
    dalle.painter.decode = lambda codes: (drawn.append(codes), decode(codes))[1]
    painted = dalle.generate("a red circle", 3, generator=generator())
    assert torch.equal(painted, to_uint8(theirs.decode_indices(drawn[0])))
    assert painted.shape == (3, 3, 16, 16) and len(painted.flatten(1).unique(dim=0)) > 1

"""Commands on a pretend accelerator: what would mix devices on CUDA is refused without one, too."""

import contextlib
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import make_reader, write_demo, write_run
from helpers.marks import at_once
from helpers.pretend import MixedDevices, Pretend
from helpers.systems import ENGINE, TINY
from PIL import Image

from minimodal.blocks import sampling
from minimodal.cli.generate import vqgan_clip
from minimodal.cli.main import main
from minimodal.data.words import KnownWords
from minimodal.training.engine import run

COMMANDS = {
    "dalle": "generate|a red circle|-n|1|--top-p|0.9|--top-k|3|--guidance|2|--rerank|2",
    "a part drawn anew": "generate|a red circle|-n|1|--complete|a.png|--redraw|0,3,6,6",
    "vqgan-clip": "generate|a red circle|-n|1|--method|vqgan-clip|--steps|2|--init|noise",
    "vqgan-clip from a pool": "generate|a red circle|-n|1|--method|vqgan-clip|--steps|1",
    "classify": "classify|a.png|--labels|circle,square|--clip|demo/clip",
    "search": "search|photos|a red circle|--clip|demo/clip",
    "reconstruct": "reconstruct|photos/b.png|--vqgan|demo/vqgan",
    "caption": "caption|a.png",
}
UNCLIP = "generate|-n|1|--method|unclip|--steps|2|--run|unclip|"
OF_UNCLIP = {
    "a caption": "a red circle",
    "variations": "--variations-of|a.png",
    "between two": "--interpolate|a.png|photos/b.png",
    "an edit": "--edit|a.png|a red circle|a blue square",
}
HERE = ["generate", "classify", "search", "reconstruct", "caption", "common"]


class NoThreads(contextlib.AbstractContextManager):
    """In the place of a pool of threads, which would know nothing of the pretence."""

    def __init__(self, most: int = 0) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def map(self, function, *values):
        return map(function, *values)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Call a command on the device, in a folder with a demo and two pictures."""
    monkeypatch.chdir(tmp_path)
    demo = write_demo(tmp_path / "demo", data="folder:x")
    write_run(demo / "clip", "clip", make_reader(), data="folder:x")
    for kind in ("clip", "dalle"):
        KnownWords.of(["a red circle", "a blue square"]).save(demo / kind / "words.json")
    Path("photos").mkdir()
    for name, side in (("a.png", 6), ("photos/b.png", 8)):
        Image.fromarray(np.full((side, side, 3), 40, np.uint8)).save(name)
    for name in HERE:
        module = sys.modules[f"minimodal.cli.{name}"]
        if hasattr(module, "pick_device"):
            monkeypatch.setattr(module, "pick_device", lambda name: "pretend")
    monkeypatch.setattr("minimodal.uses.search.ThreadPoolExecutor", NoThreads)
    for name, small in (("pool_of", partial(vqgan_clip.pool_of, size=6)),
                        ("SearchConfig", partial(vqgan_clip.SearchConfig, 8, 2, 1))):  # fmt: skip
        monkeypatch.setattr(vqgan_clip, name, small)

    def call(words: str) -> int:
        given = words.split("|")
        if given[0] in ("generate", "caption") and "--run" not in given:
            given += ["--run", "demo"]
        with Pretend():
            return main(given)

    return call


@pytest.mark.parametrize("what", at_once(COMMANDS, "dalle"))
def test_a_command_mixes_no_devices(what, command):
    assert command(COMMANDS[what]) == 0


@pytest.fixture(scope="module")
def unclip(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unclip"
    for name in ("prior", "decoder"):
        run(TINY[name](out, ENGINE), ENGINE, out / name, data_spec="shapes:400", device="cpu")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("what", OF_UNCLIP)
def test_unclip_mixes_no_devices(what, command, unclip):
    Path("unclip").symlink_to(unclip)
    assert command(UNCLIP + OF_UNCLIP[what]) == 0


def test_a_cpu_too_many_in_drawing_is_found(command, monkeypatch):
    plain = sampling.filter_logits
    monkeypatch.setattr(sampling, "filter_logits", lambda *a, **k: plain(*a, **k).cpu())
    with pytest.raises(MixedDevices):
        command(COMMANDS["dalle"])

"""--method vqgan-clip on a tiny untrained demo: what it draws and refuses, how it stops."""

import json
import signal
from pathlib import Path

import pytest
import torch
from helpers.commands import SIDE, pixels, refusal
from PIL import Image

from minimodal.cli import pool as pool_file
from minimodal.cli.generate import vqgan_clip
from minimodal.vqgan_clip.optimise import Optimisation
from minimodal.vqgan_clip.search import SearchConfig

RED = "a large red circle"


@pytest.fixture
def guided(run, monkeypatch):
    """The method with a small pool and a short search."""
    sized = pool_file.pool_of
    monkeypatch.setattr(vqgan_clip, "pool_of", lambda *given: sized(*given, size=6))
    monkeypatch.setattr(vqgan_clip, "SearchConfig",
        lambda evaluations=8: SearchConfig(min(evaluations, 8), members=2, children=1))  # fmt: skip

    def call(*words: str) -> tuple[int, str, str]:
        return run(*words, "--method", "vqgan-clip")

    return call


def test_the_pool_is_drawn_once_and_a_seed_gives_the_same_picture(guided, demo):
    status, out, _ = guided(RED, "-n", "2", "--json", "--out", "a.png")
    kept = list(demo.glob("pool-*.safetensors"))
    before = kept[0].stat().st_mtime_ns
    torch.rand(3)  # others use the global generator, too
    guided(RED, "-n", "2", "--out", "b.png")
    told = json.loads(out)["pictures"]
    assert status == 0 and len(told) == 2 and all("right" in one for one in told)
    assert len(kept) == 1 and kept[0].stat().st_mtime_ns == before
    assert (pixels("a/000-1.png") == pixels("b/000-1.png")).all()
    assert pixels("a/000-0.png").shape == (SIDE, SIDE, 3)


def test_settings_and_seed_are_in_the_file(guided, run):
    guided(RED, "--search", "0", "-n", "1", "--seed", "5")
    run(RED, "-n", "1", "--seed", "6", "--out", "dalle.png")
    for file, method, seed in (("pictures", "vqgan-clip", 5), ("dalle", "dalle", 6)):
        for place in (f"{file}.png", f"{file}/000-0.png"):
            with Image.open(place) as picture:
                settings = json.loads(picture.text["settings"])
                assert picture.text["prompt"] == RED
                assert (settings["method"], settings["seed"]) == (method, seed)


@pytest.mark.parametrize("init", ["codes", "noise", "gradient", "dalle", "pool", "start.png"])
def test_steps_begin_anywhere(guided, init):
    Image.new("RGB", (9, 7), (200, 0, 0)).save("start.png")
    status, _, err = guided(RED, "--steps", "2", "--cutouts", "2", "-n", "1", "--init", init)
    assert status == 0 and "memory of a step: about" in err
    assert pixels("pictures/000-0.png").shape == (SIDE, SIDE, 3)


STEPS = (f"{RED} ^ 3: a small blue square:0.5", "--init", "noise", "--steps", "4", "--cutouts", "2",
         "-n", "2", "--drawer", "stack")  # fmt: skip


def test_stopped_and_resumed_is_as_if_never_stopped(guided, monkeypatch):
    assert guided(*STEPS, "--out", "whole.png")[0] == 0
    step, done = Optimisation.step, []

    def interrupted(self):
        losses = step(self)
        done.append(self.number)
        if len(done) == 12:
            signal.raise_signal(signal.SIGINT)
        return losses

    monkeypatch.setattr(Optimisation, "step", interrupted)
    status, _, err = guided(*STEPS, "--out", "parts.png")
    assert status == 130 and "--resume goes on" in err and Path("parts.state.pt").exists()
    other = refusal(guided(*STEPS, "--out", "parts.png", "--resume", "--seed", "3"))
    assert "seed was 0 and is 3" in other
    assert guided(*STEPS, "--out", "parts.png", "--resume")[0] == 0
    assert not Path("parts.state.pt").exists()
    for name in ("000-0.png", "000-1.png"):
        assert (pixels(f"whole/{name}") == pixels(f"parts/{name}")).all()


def test_steps_are_written_and_moved(guided):
    assert guided(RED, "--init", "noise", "--steps", "4", "--drawer", "stack", "-n", "1",
                  "--every", "2", "--gif", "film.gif")[0] == 0  # fmt: skip
    names = [file.name for file in sorted(Path("pictures/steps").iterdir())]
    assert names == ["000-0-00002.png", "000-0-00004.png"]
    with Image.open("film.gif") as film:
        assert film.n_frames == 2


GRADIENT = ("--steps", "2", "--init", "noise")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no PROMPT"),
        ([f"{RED} | | a star"], "an empty prompt between two bars"),
        ([f"{RED}:1x"], "is no number"),
        ([f"[0, 0, 2, 1] {RED}"], "is not within the picture"),
        (["image=none.png"], "none.png"),
        ([RED, "--steps", "2", "--init", "none.png"], "no such picture"),
        ([RED, "--steps", "2", "--init", "broken.png"], "broken.png"),
        ([RED, *GRADIENT, "--size", "7x6"], "no multiple of"),
        ([RED, *GRADIENT, "--drawer", "vqgam"], "did you mean vqgan"),
        ([RED, "--drawer", "stack"], "--drawer is for gradient steps"),
        ([RED, "--init", "noise"], "needs --steps"),
        ([RED, *GRADIENT, "--search", "2"], "--search begins with the pool"),
        ([RED, *GRADIENT, "--resume"], "nothing was stopped"),
        ([RED, "--clip", "nowhere"], "--clip nowhere: no such file"),
        ([RED, "--steps", "-1"], "--steps: expected 0 or more"),
    ],
)
def test_what_cannot_be_is_one_line(guided, words, said):
    Path("broken.png").write_bytes(b"\x89PNG no more")
    assert said in refusal(guided(*words))

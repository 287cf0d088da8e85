"""Command lines that nobody has thought of: flags from the commands' own parsers with values that
are right, extreme, nonsense or files of all kinds; and the folder that these files lie in.

`line(draw, name)` makes one for a command of COMMANDS, `call(argv)` runs it in this process.
"""

import argparse
import contextlib
import io
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from helpers.commands import write_demo, write_run
from helpers.systems import TINY, short_vqgan
from helpers.tiny import make_prior
from minimodal.cli import generate, main, train
from minimodal.training.contract import TrainConfig
from minimodal.training.engine import run
from minimodal.training.recipes import SYSTEMS

SECONDS = 600  # in which each of these tiny commands has to end, on a busy machine

# ---- files


def cut(path: Path, share: float = 0.5) -> None:
    """Take away the end of a file."""
    os.truncate(path, int(path.stat().st_size * share))


def write_files(folder: Path) -> None:
    """Sound and damaged files and runs; the sound runs are of models at toy size."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    (folder / "nothing").mkdir()
    (folder / "empty.png").touch()
    (folder / "noise.bin").write_bytes(rng.bytes(3000))
    (folder / "words.txt").write_text("a red circle\na blue square\n")
    (folder / "cut.json").write_text('{"image": "0.png", "capt')
    for i in range(24):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
        (folder / "photos" / f"{i}.txt").write_text(("a red circle", "a blue square")[i % 2])
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "photos" / "0.png").read_bytes()[:900])
    demo = write_demo(folder / "demo", data="folder:photos")
    prior = make_prior()
    write_run(demo / "vqgan-prior", "vqgan-prior", prior, class_names=["cat", "dog"],
              sampling={"temperature": 1.0, "guidance": 1.0}, data="folder:photos")  # fmt: skip
    write_run(demo / "vqgan-prior" / "vqgan", "vqgan", prior.painter.vqgan)
    short_vqgan(folder / "unclip")
    two = TrainConfig(steps=2, batch_size=8, warmup=1, precision="float32")
    for kind in ("prior", "decoder"):
        task, out = TINY[kind](folder / "unclip", two), folder / "unclip" / kind
        run(task, two, out, data_spec="shapes:64", device="cpu")
    for name, file in (("cut-config", "config.json"), ("cut-weights", "model.safetensors"),
                       ("cut-tokens", "tokenizer.json")):  # fmt: skip
        write_demo(folder / name)
        for path in (folder / name).rglob(file):
            cut(path)
    torch.save({"a": torch.ones(3)}, folder / "other.pt")
    (folder / "cut.pt").write_bytes((folder / "other.pt").read_bytes()[:700])


FILES = (
    "empty.png", "noise.bin", "words.txt", "cut.json", "good.png", "cut.png", "photos", "nothing",
    "demo", "demo/clip", "demo/vqgan", "demo/dalle", "demo/vqgan-prior", "unclip", "unclip/prior",
    "cut-config", "cut-config/clip", "cut-config/vqgan", "cut-weights/dalle", "cut-weights/clip",
    "cut-tokens/clip", "cut-tokens", "demo/clip/model.safetensors", "cut-weights/vqgan",
    "cut-weights/vqgan/model.safetensors", "other.pt", "cut.pt", "missing.png", "",
    "good.png/x.png", "missing/x.png", "new.png", "new", "pipe", "/dev/null", "x" * 300 + ".png",
    "é\udcff.png",
)  # fmt: skip
SPECS = (
    "shapes:16", "shapes:hard:16", "shapes:edits:16", "shapes:1", "shapes:0", "shapes:x", "shape",
    "folder:photos", "folder:photos:3", "folder:nothing", "folder:good.png", "folder:missing", "",
    "folder:", "cifar10:photos", "cifar100:nothing", "coco:photos", "coco:photos:val2017:2",
    "tar:noise.bin", "tar:cut.json", "tar:x{0..2}.tar", "folder:photos,folder:photos", ",", ":",
    "folder:photos,shapes:16", "shapes:16,shapes:16", "folder:demo", "folder:photos:-1",
)  # fmt: skip
TEXTS = (
    "a red circle", "a red circle | a blue square:-1", "cat,dog", "cat", "", " ", "{}", "a {}", "|",
    "a:b", ":", "1,2", "0.5,", "nan", "x" * 300, "é\u0301", "\udcff", "日本", "\n", "8x8", "0x0",
    "-1x9", "1e9x2", "good.png:1", "good.png", "codes", "pixels", "auto", "cpu", "none",
    "gelu", "softmax", "{0}", "{a}", "%s",
)  # fmt: skip
NUMBERS = ("-1", "0", "1", "2", "3", "4", "5", "8", "16")
REALS = ("-1", "0", "1", "2", "0.5", "-0.5", "0.999", "1.0000001", "1e-30", "nan", "inf", "-inf")
LISTS = ("1", "1,2", "8", "8,8", "2,2,2", "0", "-1,2", "a,b", "1,,2", "0,0,4,4", "4,4,0,0")
NONSENSE = ("-0", "1.5", "", "x", "1e3", "0x1", "٣", "1_0", "1e400", "-" + "9" * 25)
HUGE = ("9" * 25, str(2**62))
# Larger numbers of these are no mistakes, but take as long as they say.
LONG = {
    "steps", "minutes", "accumulate", "batch_size", "n", "rerank",
    "cutouts", "search", "k", "image_size", "size", "pool", "limit",
}  # fmt: skip
# They print and leave; the last wants a compiler and minutes.
LEFT = {"help", "version", "compile"}
# Files of lines, which may come through a pipe (`<(…)`): its writer is waited for, as by any tool.
LINES = ("--templates", "--against")

# ---- command lines


class Command(NamedTuple):
    """How a command is called, the parser with its flags, and a line that works."""

    main: Callable[[list[str]], int]
    parser: Callable[[], argparse.ArgumentParser]
    start: tuple[str, ...]
    good: tuple[str, ...]


SMALL = {
    "vqgan": "--channels 16 --codes 8 --code-width 8 --discriminator-channels 8",
    "clip": "--stem 8 --vision-width 16 --vision-depth 1 --vision-heads 2 --text-width 16 "
    "--text-depth 1 --text-heads 2 --embed-width 16",
    "vqgan-prior": "--width 16 --depth 1 --heads 2 --pool 8",
    "dalle": "--width 16 --depth 1 --heads 2 --pool 8",
    "prior": "--width 16 --depth 1 --heads 2 --pool 8",
    "decoder": "--channels 12 --pool 8",
    "upsampler": "--channels 12",
}


def _sub(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[
        name
    ]


def _commands() -> dict[str, Command]:
    found = {}
    for system, record in SYSTEMS.items():
        # What is trained on pictures of the size that a run has takes those of the toy runs.
        needs = [w for need in record.needs for w in (f"--{need}", f"{NEEDED[need]}")]
        good = [*"--data shapes:16 --out new --steps 2 --batch-size 4 --device cpu".split(),
                "--precision", "float32", *needs, *SMALL[system].split()]  # fmt: skip
        found[f"train {system}"] = Command(
            train.main, lambda s=system: _sub(train.make_parser([]), s), (system,), tuple(good)
        )
    # The demo itself takes minutes: it is called where it cannot begin.
    found["train demo"] = Command(
        train.main, lambda: _sub(train.make_parser([]), "demo"), ("demo",), ("--out", "good.png")
    )
    drawn = {"dalle": "circle --run demo --allow-unseen",
             "vqgan-prior": "cat --run demo/vqgan-prior",
             "vqgan-clip": "circle --run demo --allow-unseen --steps 2 --init codes",
             "unclip": "circle --run unclip --allow-unseen --steps 2"}  # fmt: skip
    for method, words in drawn.items():
        found[f"generate {method}"] = Command(
            generate.main, lambda m=method: generate.make_parser(m), ("--method", method),
            (*words.split(), "-n", "1", "--device", "cpu"),
        )  # fmt: skip
    for name, words in (
        ("classify", "good.png --labels cat,dog --clip demo --allow-unseen --device cpu"),
        ("search", "photos cat --clip demo --allow-unseen --device cpu"),
        ("reconstruct", "good.png --vqgan demo --device cpu"),
        ("caption", "good.png --run demo --device cpu"),
        ("evaluate", "unclip-vqgan --data folder:photos -n 2 --device cpu"),
        ("doctor", "--device cpu"),
    ):
        found[name] = Command(
            main.main, lambda n=name: _sub(main.make_parser(), n), (name,), tuple(words.split())
        )
    return found


NEEDED = {"vqgan": "unclip-vqgan", "clip": "unclip-clip", "decoder": "unclip/decoder"}
COMMANDS = _commands()


def values(action: argparse.Action) -> st.SearchStrategy[str]:
    """Values for a flag or a word, of its own kind or of any other."""
    if action.choices:
        own = tuple(action.choices)
    elif action.type is Path or "IMG" in str(action.metavar) or action.dest == "pictures":
        own = FILES
    elif action.dest == "data":
        own = SPECS
    elif action.type in (int, float, train.whole):
        own = REALS if action.type is float else NUMBERS
    elif action.type in (train.numbers, generate.shared.read_box, generate.shared.read_seeds):
        own = LISTS
    else:
        own = ("yes", "no") if action.type is train.truth else TEXTS
    odd = NONSENSE + TEXTS + FILES + (() if action.dest in LONG else HUGE)
    if action.dest == "minutes":
        own, odd = (tuple(value for value in some if not lasts(value)) for some in (own, odd))
    return st.one_of(*[st.sampled_from(own)] * 6, st.sampled_from(odd))


def lasts(value: str) -> bool:
    """Whether so many minutes are a training that takes them, which is no mistake."""
    try:
        return 0.1 < float(value) < float("inf")
    except ValueError:
        return False


def line(draw: Callable, name: str) -> list[str]:
    """Arguments for a command: those of a line that works, some left out, others added."""
    command = COMMANDS[name]
    actions = [a for a in command.parser()._actions if a.dest not in LEFT]
    words = list(command.good)
    if draw(st.integers(0, 3)) == 0 and len(words) > 1:
        del words[draw(st.integers(0, len(words) - 1))]
    for action in draw(st.lists(st.sampled_from(actions), min_size=0, max_size=4)):
        many = {None: (1, 1), "?": (0, 1), "*": (0, 3), "+": (1, 3), 0: (0, 0)}.get(action.nargs)
        least, most = many or (action.nargs, action.nargs)
        given = draw(st.lists(values(action), min_size=least, max_size=most))
        flag = [draw(st.sampled_from(action.option_strings))] if action.option_strings else []
        if flag and flag[0] in LINES:
            given = ["words.txt" if value == "pipe" else value for value in given]
        if len(given) == 1 and flag and flag[0].startswith("--") and draw(st.booleans()):
            words.append(f"{flag[0]}={given[0]}")
        else:
            words += flag + given
    if name == "train demo":
        words += ["--out", "good.png"]
    return [*command.start, *words]


# ---- a call


class TooLong(BaseException):
    """A command that does not end."""


@contextlib.contextmanager
def limited(seconds: float, argv: list[str]) -> Iterator[None]:
    """Raise TooLong, with the arguments, in a block of code after so many seconds."""

    def stop(*_: object) -> None:
        raise TooLong(f"{argv} after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(name: str, argv: list[str]) -> tuple[int, str, str]:
    """A command in this process: status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with limited(SECONDS, argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = COMMANDS[name].main(argv)
        except SystemExit as left:
            status = left.code
    return status, out.getvalue(), re.sub(r"[^\n]*\r", "", err.getvalue())

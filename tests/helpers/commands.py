"""Tiny untrained runs on the disk, and what every command's refusal looks like."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.tiny import make_clip, make_dalle, make_vqgan, shake
from minimodal.clip import CLIP
from minimodal.data.tokenizer import Tokenizer
from minimodal.training.checkpoint import save_config, save_weights

SIDE = 6  # pixels of the pictures that the tiny run draws
TOKENIZER = Tokenizer.train(["a large red circle", "a small blue square"], 300)


def write_run(out: Path, kind: str, model, *, data: str = "shapes", **more) -> None:
    described = {"kind": kind, "model": {**asdict(model.config), **more}, "train": {}, "data": data}
    save_config(out, described)
    save_weights(out, model)
    if kind != "vqgan":
        TOKENIZER.save(out / "tokenizer.json")


def write_demo(
    out: Path, *, data: str = "shapes", training: dict | None = None, pictures: int = 1, **sampling
) -> Path:
    """A demo folder with untrained runs."""
    more = {"sampling": sampling} if sampling else {}
    more |= {"training": training} if training else {}
    vocab = TOKENIZER.vocab_size
    vqgan = make_vqgan(image_size=SIDE, codes=(11,))
    dalle = make_dalle(vocab_size=vocab, text_length=20, pictures=pictures)
    write_run(out / "dalle", "dalle", dalle, data=data, **more)
    write_run(out / "dalle" / "vqgan", "vqgan", vqgan, data=data)
    write_run(out / "vqgan", "vqgan", vqgan, data=data)
    clip = make_clip(vocab_size=vocab, text_length=20, image_size=SIDE, patch_size=3)
    write_run(out / "clip", "clip", clip, data=data)
    return out


def refusal(result: tuple[int, str, str]) -> str:
    """The message of a command that must refuse, with one line on stderr and no other word."""
    status, out, err = result
    assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert len(err) < 400
    return err


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def make_reader(**changes) -> CLIP:
    """A CLIP of 8 pixels with a tokenizer; its weights are random."""
    clip = shake(make_clip(vocab_size=TOKENIZER.vocab_size, text_length=40, **changes))
    clip.tokenizer = TOKENIZER
    return clip

"""Two thousand pictures, sixty of them odd or broken in ten ways: a training uses what can be read,
names what cannot, and runs to its end."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzz import COMMANDS
from PIL import Image

from minimodal.cli.train import main
from minimodal.data.folder import open_folder
from minimodal.training.checkpoint import last_of_finished

MANY, EACH = 2000, 6


def bomb() -> bytes:
    """A PNG that says it has 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(999))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def unreadable(path: Path) -> None:
    """A file that the system refuses to read, also to root."""
    if os.path.exists("/proc/self/mem"):
        path.symlink_to("/proc/self/mem")  # nothing is at its beginning: an input/output error
    else:
        path.touch(mode=0)


def write_odd(folder: Path, i: int, picture: Image.Image) -> None:
    """One picture in each of the ten ways; what can be used is called usable."""
    picture.resize((40, 40)).save(folder / f"truncated{i}.jpg", quality=95)
    os.truncate(folder / f"truncated{i}.jpg", 900)
    (folder / f"zero{i}.png").touch()
    (folder / f"text{i}.jpg").write_text("<html>404 Not Found</html>")
    (folder / f"bomb{i}.png").write_bytes(bomb())
    unreadable(folder / f"unreadable{i}.png")
    picture.save(folder / f"usable-suffix{i}.jpg", "PNG")
    picture.convert("CMYK").save(folder / f"usable-cmyk{i}.jpg")
    deep = np.full((8, 8), 40_000 + i, np.uint16)
    Image.fromarray(deep).save(folder / f"usable-deep{i}.png")
    frames = [picture.rotate(turn) for turn in (90, 180)]
    picture.save(folder / f"usable-animated{i}.gif", save_all=True, append_images=frames)
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\xff\xff\xff\xff\x63\x63"
    picture.save(folder / f"usable-exif{i}.jpg", exif=exif)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(EACH)]
    for i in range(MANY - 10 * EACH):
        pictures[i % EACH].save(folder / f"{i}.png")
    for i, picture in enumerate(pictures):
        write_odd(folder, i, picture)
    assert len(list(folder.iterdir())) == MANY
    return folder


def test_a_training_on_it_ends_and_names_each_picture_that_it_could_not_use(
    folder, tmp_path, capsys
):
    command = COMMANDS["train vqgan"]
    flags = ["--data", f"folder:{folder}", "--image-size", "8", "--out", str(tmp_path / "run")]
    assert main([*command.start, *command.good, *flags]) == 0
    assert last_of_finished(tmp_path / "run")["step"] == 2
    said = capsys.readouterr().err
    for path in folder.iterdir():
        named = str(path) in said
        assert named == path.name.startswith(("truncated", "zero", "text", "bomb", "unreadable"))
    for reason in ("truncated", "not a picture", "50000", "Input/output error"):
        assert reason in said or not os.path.exists("/proc/self/mem")


def test_odd_pictures_that_can_be_read_are_used(folder):
    sources = [open_folder(folder, image_size=8, split=split) for split in ("train", "val")]
    assert sum(map(len, sources)) == MANY - 5 * EACH

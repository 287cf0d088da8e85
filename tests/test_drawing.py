"""Pictures for people: labelled grids and PNG files."""

import numpy as np
import pytest
import torch
from helpers.tiny import generator
from PIL import Image, ImageFont

from minimodal.drawing import (
    MARGIN,
    MOST_LINES,
    PALE,
    PAPER,
    RIGHT,
    WRONG,
    grid,
    save_gif,
    save_png,
    verdict_line,
    wrap,
)
from minimodal.errors import UserError
from minimodal.files import folders, make_folder
from minimodal.shapes.oracle import Verdict

GOOD = Verdict(True, True, True, None, True, None)
BAD = Verdict(False, False, False, False, False, False)
FONT = ImageFont.load_default(size=12)


def tiles(n: int, size: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=generator(), dtype=torch.uint8)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def test_a_tile_is_the_picture_enlarged_without_blur():
    pictures = tiles(1)
    drawn = pixels(grid(pictures, tile=32))[MARGIN : MARGIN + 32, MARGIN : MARGIN + 32]
    expected = pictures[0].permute(1, 2, 0).numpy().repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(drawn, expected)


@pytest.mark.parametrize(("size", "width"), [(8, 96), (32, 96), (60, 120), (128, 128)])
def test_a_tile_is_at_least_as_wide_as_asked(size, width):
    assert grid(tiles(1, size), tile=96).width == width + 2 * MARGIN


def test_rows_are_filled_from_the_left():
    picture = grid(tiles(5), columns=2, tile=8)
    assert picture.size == (2 * (8 + MARGIN) + MARGIN, 3 * (8 + MARGIN) + MARGIN)
    assert (pixels(picture)[-8 - MARGIN :, -8 - MARGIN :] == PAPER).all()  # the sixth place


def test_pictures_that_belong_together_begin_a_new_row():
    picture, step = pixels(grid(tiles(6), columns=2, each=3, tile=8)), 8 + MARGIN
    assert picture.shape == (4 * step + MARGIN, 2 * step + MARGIN, 3)
    places = picture[MARGIN:, MARGIN:].reshape(4, step, 2, step, 3)
    empty = (places == PAPER).all(axis=(1, 3, 4))
    assert empty.tolist() == [[False, False], [False, True]] * 2


def test_a_note_is_a_line_below_its_picture():
    noted = pixels(grid(tiles(2), ["a", "b"], notes=["", "0.3"], columns=2))
    left, right = np.split(noted, 2, axis=1)
    assert not (left == PALE).all(-1).any() and (right == PALE).all(-1).any()


def test_the_verdict_says_what_is_wrong():
    assert verdict_line(GOOD) == ("right", RIGHT)
    assert verdict_line(GOOD._replace(color=False, relation=False)) == (
        "wrong: color, relation",
        WRONG,
    )


def test_a_long_verdict_stays_below_its_own_picture():
    drawn = pixels(grid(tiles(2), ["a", "b"], [BAD, None], columns=2, tile=96))
    second = drawn[MARGIN + 96 + MARGIN :, MARGIN + 96 + MARGIN :]
    assert not ((second[..., 0] > 150) & (second[..., 1] < 120)).any()  # no red there


def test_lines_fit_the_width_and_keep_every_word():
    text = "a large turquoise triangle to the left of a little violet square"
    lines = wrap(text, FONT, 100)
    assert " ".join(lines) == text
    assert all(FONT.getlength(line) <= 100 for line in lines)


def test_a_word_without_spaces_is_cut_and_an_endless_text_shortened():
    assert "".join(wrap("W" * 20, FONT, 100)) == "W" * 20
    assert all(FONT.getlength(line) <= 100 for line in wrap("W" * 20, FONT, 100))
    endless = wrap("word " * 2000, FONT, 100)
    assert len(endless) == MOST_LINES and endless[-1] == "…"


@pytest.mark.parametrize(
    "text", ["🎉 star", "日本語", "عربى", "\x00\x07", "\ud83d", "a\nb\tc", "", "e\u0301" * 50]
)
def test_any_text_can_be_drawn(text):
    assert grid(tiles(1), [text], [GOOD]).height > 128


def test_a_png_holds_the_pixels(tmp_path):
    picture = grid(tiles(3))
    save_png(picture, tmp_path / "deep" / "er" / "grid.png")
    with Image.open(tmp_path / "deep" / "er" / "grid.png") as again:
        assert np.array_equal(pixels(again), pixels(picture))
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["grid.png"]


def test_a_failed_write_leaves_the_old_picture_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")

    def full(self, file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*grid\.png: No space left"):
        save_png(grid(tiles(1)), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_moving_picture_takes_its_time_though_frames_are_alike(tmp_path):
    frames = [Image.new("RGB", (9, 9), (red, 0, 0)) for red in (0, 0, 90, 90, 90)]
    save_gif(frames, tmp_path / "a.gif", seconds=0.1)
    with Image.open(tmp_path / "a.gif") as gif:
        times = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
    assert times == [200, 2200]


def test_folders_that_stay_empty_go_again_and_others_stay(tmp_path):
    (tmp_path / "old").mkdir()
    with (
        pytest.raises(UserError, match="no good"),
        folders(tmp_path / "old", tmp_path / "new" / "er", tmp_path / "full"),
    ):
        assert (tmp_path / "new" / "er").is_dir()
        (tmp_path / "full" / "a.txt").touch()
        raise UserError("no good")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "old"]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"file is a file, not a folder"):
            make_folder(folder)

"""minimodal/data/images.py: picture files of every kind, broken ones, splits, the source."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minimodal.data import images as im
from minimodal.data.captions import clean_caption
from minimodal.errors import UserError


def saved(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), 0 * x], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def colour(pixels: np.ndarray) -> list[int]:
    return pixels.reshape(3, -1).mean(1).round().astype(int).tolist()


# --- one picture ---------------------------------------------------------------------------------


def test_a_picture_of_the_wanted_size_keeps_every_pixel():
    picture = gradient(8, 8)
    out = im.decode(saved(picture), 8)
    assert out.dtype == np.uint8 and out.shape == (3, 8, 8)
    assert np.array_equal(out.transpose(1, 2, 0), np.asarray(picture))


def test_the_array_is_writable_and_contiguous_for_torch():
    for size in (1, 5):
        out = im.decode(saved(gradient(9, 7)), size)
        assert out.flags.writeable and out.flags.c_contiguous


@pytest.mark.parametrize("size", [(40, 8), (8, 40)])
def test_the_centre_of_a_long_picture_is_kept(size):
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", tuple(s // 2 - 4 for s in size) + tuple(s // 2 + 4 for s in size))
    assert colour(im.decode(saved(picture), 8)) == [0, 0, 255]


def test_shrinking_averages_instead_of_picking_pixels():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    out = im.decode(saved(Image.fromarray(checks)), 8)
    assert abs(out.astype(int) - 128).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that stores it turned
    upright = gradient(16, 16)
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = im.decode(saved(stored, "PNG", exif=exif), 16)
    assert np.array_equal(out.transpose(1, 2, 0), np.asarray(upright))


def test_damaged_exif_does_not_cost_the_picture():
    out = im.decode(saved(gradient(16, 16), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff"), 16)
    assert out.shape == (3, 16, 16)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "PA"])
def test_every_mode_becomes_rgb(mode):
    white = Image.new("RGB", (6, 6), "white")
    picture = white.convert("P").convert("PA") if mode == "PA" else white.convert(mode)
    out = im.decode(saved(picture, "TIFF" if mode in ("CMYK", "YCbCr", "PA") else "PNG"), 4)
    assert colour(out) == [255, 255, 255]


def test_cmyk_jpeg_keeps_its_colours():
    out = im.decode(saved(Image.new("RGB", (16, 16), "red").convert("CMYK"), "JPEG"), 8)
    r, g, b = colour(out)
    assert r > 220 and g < 40 and b < 40


@pytest.mark.parametrize("level", [0, 257 * 100, 65535])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(level, format):
    picture = Image.fromarray(np.full((4, 4), level, np.uint16))
    assert colour(im.decode(saved(picture, format), 4)) == [level // 257] * 3


def test_transparency_shows_white():
    clear_black = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half_black = Image.new("LA", (4, 4), (0, 128))
    assert colour(im.decode(saved(clear_black), 4)) == [255] * 3
    assert colour(im.decode(saved(half_black), 4)) == [127] * 3


def test_transparent_palette_and_colour_key_show_white():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert colour(im.decode(saved(palette, transparency=0), 4)) == [255] * 3
    assert colour(im.decode(saved(palette, "GIF", transparency=0), 4)) == [255] * 3
    assert colour(im.decode(saved(keyed, transparency=(1, 2, 3)), 4)) == [255] * 3


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 6), c) for c in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colour(im.decode(data, 4)) == [255, 0, 0]


def test_one_pixel_fills_the_picture():
    assert colour(im.decode(saved(Image.new("RGB", (1, 1), (9, 8, 7))), 16)) == [9, 8, 7]


def test_a_very_long_strip_needs_no_more_memory_than_a_square():
    out = im.decode(saved(Image.new("L", (60_000, 1), 50)), 256)
    assert colour(out) == [50] * 3


def test_a_large_jpeg_decoded_smaller_looks_nearly_the_same():
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((900, 900), 3)
    data = saved(blobs, "JPEG", quality=95)
    fast = im.decode(data, 32).astype(float)
    full = im.centre_square(im.open_rgb(data), 32).astype(float)
    assert abs(fast - full).mean() < 4  # its last, cut 8 x 8 block shifts edges by half a pixel


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [14_500, 30_000])
def test_a_giant_picture_is_refused_by_name_before_it_is_decoded(tmp_path, side):
    file = tmp_path / "giant.png"
    file.write_bytes(png_claiming(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="giant.png.*pixels"):
            im.decode(file, 8)


def test_a_picture_of_108_million_pixels_is_no_giant(tmp_path):
    file = tmp_path / "phone.png"
    file.write_bytes(png_claiming(12_000, 9_000))  # its pixels are missing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="truncated|broken"):
            im.decode(file, 8)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="is no file"):
        im.open_rgb(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        saved(gradient(64, 64), "JPEG")[:-300],
        saved(gradient(64, 64), "PNG")[:-40],
        saved(gradient(64, 64), "BMP")[:-400],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        saved(Image.new("F", (4, 4)), "TIFF"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "cut bmp", "postscript", "float"],
)
def test_a_broken_file_is_an_error_with_its_name(tmp_path, data):
    file = tmp_path / "bad.jpg"
    file.write_bytes(data)
    with pytest.raises(UserError, match="bad.jpg: cannot be read") as caught:
        im.decode(file, 8)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        im.decode(tmp_path / "none.png", 8)
    with pytest.raises(UserError, match="cannot be read"):
        im.decode(tmp_path, 8)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damaged_bytes_give_a_picture_or_a_user_error(format, data):
    good = bytearray(saved(gradient(20, 12), format))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            out = im.decode(bytes(good), 8)
        except UserError:
            return
    assert out.shape == (3, 8, 8) and out.dtype == np.uint8


# --- many pictures -------------------------------------------------------------------------------


def write_pictures(folder, count: int, broken: int):
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:03}.png")
        Image.new("RGB", (5, 5), (i, 0, 0)).save(paths[-1])
    for path in paths[10 : 10 + broken]:
        path.write_bytes(path.read_bytes()[:40])
    return paths


def test_order_is_kept_with_any_number_of_workers(tmp_path):
    paths = write_pictures(tmp_path, 50, 0)
    for workers in (1, 3):
        loaded = im.load_images(paths, 4, workers=workers)
        assert loaded.images[:, 0, 0, 0].tolist() == list(range(50))
        assert loaded.kept.tolist() == list(range(50)) and loaded.broken == []


def test_a_few_broken_files_are_skipped_and_named_once(tmp_path, capsys):
    paths = write_pictures(tmp_path, 40, 2)
    loaded = im.load_images(paths, 4, what="mine")
    assert loaded.kept.tolist() == [i for i in range(40) if i not in (10, 11)]
    assert loaded.images[:, 0, 0, 0].tolist() == loaded.kept.tolist()
    assert [path for path, _ in loaded.broken] == [str(p) for p in paths[10:12]]
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "mine" in printed.err and "2 broken of 40" in printed.err and "010.png" in printed.err


def test_more_than_five_percent_broken_stop_with_a_list(tmp_path):
    paths = write_pictures(tmp_path, 40, 3)
    with pytest.raises(UserError, match=r"3 of 40.*010\.png.*011\.png.*012\.png"):
        im.load_images(paths, 4)


def test_the_list_of_broken_files_ends_at_ten(tmp_path):
    with pytest.raises(UserError) as caught:
        im.load_images([tmp_path / f"{i}.png" for i in range(30)], 4)
    assert str(caught.value).count("no such file") == 10


def test_a_data_set_larger_than_the_memory_is_refused_at_once():
    with pytest.raises(UserError, match="GiB"):
        im.load_images(["x.png"] * 10_000, 1_000_000)


def test_resizing_in_memory_agrees_with_decoding_a_file():
    picture = gradient(32, 32)
    pixels = np.asarray(picture).transpose(2, 0, 1)[None]
    assert np.array_equal(im.resize_all(pixels, 20)[0], im.decode(saved(picture), 20))
    assert im.resize_all(pixels, 32) is pixels


# --- captions, splits ----------------------------------------------------------------------------


def test_captions_are_put_on_one_line():
    assert clean_caption("  a\tred \n circle ") == "a red circle"


@pytest.mark.parametrize("text", ["", " \n", None, 3, ["a"], "half \ud800", "c\0a\0t"])
def test_a_caption_that_no_tokenizer_can_read_is_refused(text):
    with pytest.raises(ValueError):
        clean_caption(text)


NAMES = [f"pictures/{i}.png" for i in range(2000)]


def test_train_and_val_share_nothing_and_leave_nothing_out():
    train, val = (im.split_by_name(NAMES, split).tolist() for split in ("train", "val"))
    assert sorted(train + val) == list(range(2000))
    assert 150 < len(val) < 250


def test_a_picture_stays_in_its_split_when_others_come_and_go():
    val = {NAMES[i] for i in im.split_by_name(NAMES, "val")}
    some = NAMES[500:1500][::-1]
    assert {some[i] for i in im.split_by_name(some, "val")} == val & set(some)


def test_another_seed_splits_differently():
    val = [im.split_by_name(NAMES, "val", seed=seed).tolist() for seed in (0, 1)]
    assert val[0] != val[1]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_pictures_still_give_both_splits(count):
    for seed in range(150):
        names = NAMES[:count]
        train, val = (im.split_by_name(names, s, seed=seed) for s in ("train", "val"))
        assert len(train) and len(val) and len(train) + len(val) == count


def test_a_single_picture_is_in_both_splits():
    assert (
        im.split_by_name(["a"], "train").tolist() == im.split_by_name(["a"], "val").tolist() == [0]
    )


def test_names_that_differ_only_in_unicode_form_split_alike():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for seed in range(40):
        kept = [im._hash_fraction(name, seed) for name in (composed, decomposed)]
        assert kept[0] == kept[1]


def test_a_larger_limit_only_adds_pictures():
    small, large = set(im.first_n(100, 10, seed=3)), set(im.first_n(100, 30, seed=3))
    assert len(small) == 10 and small < large
    assert small != set(im.first_n(100, 10, seed=4))


def test_a_limit_beyond_the_data_keeps_all():
    assert im.first_n(5, 9).tolist() == im.first_n(5, None).tolist() == [0, 1, 2, 3, 4]


# --- the source ----------------------------------------------------------------------------------


def source(**changes) -> im.ImageSource:
    pixels = np.arange(3 * 3 * 4 * 4, dtype=np.uint8).reshape(3, 3, 4, 4)
    lists = [["a"], ["b", "c"], ["d", "e", "f"]]
    return im.ImageSource(**{"name": "folder", "pixels": pixels, "caption_lists": lists, **changes})


def test_images_are_copies_in_the_order_asked():
    data = source()
    out = data.images(np.array([2, 0, 2]))
    assert np.array_equal(out, data.pixels[[2, 0, 2]])
    out[:] = 0
    assert data.pixels.any()


def test_captions_follow_the_generator_and_reach_every_one():
    data = source()
    indices = np.array([2, 1, 0] * 50)
    first = data.captions(indices, np.random.default_rng(5))
    assert first == data.captions(indices, np.random.default_rng(5))
    assert set(first) == set("abcdef")
    assert all(text in data.all_captions(i) for text, i in zip(first, indices, strict=True))


def test_the_fingerprint_tells_pictures_captions_and_labels_apart():
    base, pixels = source(), source().pixels.copy()
    pixels[0, 0, 0, 0] += 1
    others = [
        source(pixels=pixels),
        source(caption_lists=[["a"], ["b", "c"], ["d", "e"]]),
        source(labels=np.arange(3)),
        source(name="coco"),
    ]
    assert source().fingerprint() == base.fingerprint()
    assert len({s.fingerprint() for s in [base, *others]}) == 5
    assert len(base.fingerprint()) == 64


def test_without_captions_the_error_says_what_to_add():
    data = source(caption_lists=[[], [], []], add_captions="Add a .txt file")
    assert not data.has_captions and source().has_captions
    for ask in (lambda: data.captions([0], np.random.default_rng(0)), lambda: data.all_captions(0)):
        with pytest.raises(UserError, match=r"no captions.*\.txt"):
            ask()

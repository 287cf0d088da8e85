"""What is given before a drawing: pictures and rectangles that do not fit are refused in words."""

import numpy as np
import pytest
import torch
from helpers.decoding import ask
from helpers.tiny import WORDS, generator, integers, make_painter

from minimodal.blocks.given import outside
from minimodal.errors import UserError


def picture(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return integers(256, *shape).to(dtype)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (picture(3, 6, 6, dtype=torch.float32), r"torch.float32 \(3, 6, 6\)"),
        (picture(6, 6), r"torch.uint8 \(6, 6\)"),
        (picture(1, 6, 6), r"torch.uint8 \(1, 6, 6\)"),
        (np.zeros((3, 6, 6), np.uint8), "ndarray"),
    ],
)
@pytest.mark.parametrize(("name", "pictures"), [("complete", 1), ("first", 2)])
def test_what_is_no_picture_in_bytes_is_refused(name, pictures, given, found):
    said = rf"the (picture to complete|first picture) is {found}: expected a torch.uint8 tensor \(3"
    with pytest.raises(UserError, match=said):
        ask(make_painter(pictures=pictures), WORDS[0], generator=generator(), **{name: given})


def test_only_one_picture_can_be_completed():
    with pytest.raises(UserError, match=r"torch.uint8 \(1, 3, 6, 6\): expected .* \(3, height"):
        ask(make_painter(), WORDS[0], generator=generator(), complete=picture(1, 3, 6, 6))


@pytest.mark.parametrize(
    "box", [(), (0, 0, 2), (0, 0, 2, 2, 2), (0.5, 0, 2, 2), ("0", 0, 2, 2), 7, "0,0,2,2"]
)
def test_a_rectangle_is_four_ints(box):
    with pytest.raises(UserError, match="expected four ints, left, top, right and bottom"):
        outside(box, grid=3, factor=2)


@pytest.mark.parametrize("box", [(-5, 0, 3, 6), (0, 0, 7, 6), (2, 0, 2, 6), (0, 4, 6, 3)])
def test_a_rectangle_lies_inside_the_picture(box):
    with pytest.raises(UserError, match="is not inside a picture of 6 x 6 pixels"):
        outside(box, grid=3, factor=2)

"""The grammar of prompts, as a table of cases."""

import pytest

from minimodal.errors import UserError
from minimodal.vqgan_clip.prompts import (
    NO_STOP,
    Chapter,
    Prompt,
    read_prompt,
    read_prompts,
    read_story,
)

CASES = {
    "a red circle": Prompt("a red circle"),
    "  a red circle ": Prompt("a red circle"),
    "a red circle:1.5": Prompt("a red circle", weight=1.5),
    "a red circle : 1.5": Prompt("a red circle : 1.5"),  # a space in front: no number
    "text:-0.3": Prompt("text", weight=-0.3),
    "a star:.5": Prompt("a star", weight=0.5),
    "a star:1e-2": Prompt("a star", weight=0.01),
    "a star:2:0.6": Prompt("a star", weight=2, stop=0.6),
    "a star:-1:-0.4": Prompt("a star", weight=-1, stop=-0.4),
    "a star:2:-inf": Prompt("a star", weight=2),
    "time 12:30:2": Prompt("time 12", weight=30, stop=2),
    "time 12:30:2:-inf": Prompt("time 12:30", weight=2),
    "ratio 3: 4": Prompt("ratio 3: 4"),
    "a film: the sequel": Prompt("a film: the sequel"),
    "a film: the sequel:2": Prompt("a film: the sequel", weight=2),
    "a:b:c:2": Prompt("a:b:c", weight=2),
    "a circle:big:2": Prompt("a circle:big", weight=2),
    "image=dir/photo.png:0.5": Prompt("dir/photo.png", "image", weight=0.5),
    "image=C:photo.png": Prompt("C:photo.png", "image"),
    "noise=7:0.1": Prompt("7", "noise", weight=0.1),
    "[0, 0, 0.5, 1] a star:2": Prompt("a star", weight=2, box=(0, 0, 0.5, 1)),
    "[.25,.25,.75,.75]a star": Prompt("a star", box=(0.25, 0.25, 0.75, 0.75)),
    "[mask.png] a star": Prompt("a star", mask="mask.png"),
    "[0,0,1,.5] image=sky.jpg:2:0.1": Prompt("sky.jpg", "image", 2, 0.1, (0, 0, 1, 0.5)),
    "a star [in brackets]": Prompt("a star [in brackets]"),
}


@pytest.mark.parametrize(("text", "prompt"), CASES.items())
def test_a_prompt_reads_as(text, prompt):
    assert read_prompt(text) == prompt


def test_a_plain_prompt_has_weight_1_and_never_stops():
    assert read_prompt("a star")[2:4] == (1.0, NO_STOP)


def test_bars_are_between_prompts():
    assert read_prompts("a star | a ring:2|noise=3") == (
        Prompt("a star"), Prompt("a ring", weight=2), Prompt("3", "noise"),
    )  # fmt: skip


def test_carets_are_between_chapters():
    assert read_story("a star") == [Chapter((Prompt("a star"),))]
    assert read_story("100: a star | a ring ^ 50: a disc ^ a box:2") == [
        Chapter((Prompt("a star"), Prompt("a ring")), 100),
        Chapter((Prompt("a disc"),), 50),
        Chapter((Prompt("a box", weight=2),)),
    ]


WRONG = {
    "": "no prompt",
    "  ": "no prompt",
    "|": "empty prompt",
    "a star |": "empty prompt",
    "a star | | a ring": "empty prompt",
    "a star ^ ": "no prompt",
    "0: a star": "0 steps",
    ":2": "says nothing",
    "image=": "says nothing",
    "noise=": "says nothing",
    "[0,0,1,1]": "says nothing",
    "noise=seven": "noise= and a seed",
    "noise=-1": "noise= and a seed",
    "a star:": "nothing after the last colon",
    "a star:1.5x": "'1.5x' is no number",
    "a star:1:2y": "'2y' is no number",
    "a star:nan": "finite number",
    "a star:inf": "finite number",
    "a star:1:nan": "finite number",
    "a star:1:inf": "finite number",
    "[0,0,1] a star": "left, top, right, bottom",
    "[0,0,1,2] a star": "not within the picture",
    "[0.5,0,0.5,1] a star": "not within the picture",
    "[] a star": "left, top, right, bottom",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_what_cannot_be_read_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        read_story(text)
    assert "\n" not in str(error.value)

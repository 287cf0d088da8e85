"""Shapes in docstrings are claims, and `check_shapes` finds the false ones.

Here the checker itself is tried on toy functions, each right or wrong in one way.
"""

import importlib.util
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.margins import Margins, read_function
from helpers.shape_check import check_shapes
from torch import Tensor, nn


def function(docstring, parameters="x, y=None, n=0"):
    """A function with a docstring, which is all that the checker looks at."""
    namespace = {}
    exec(f"def toy({parameters}): pass", namespace)
    namespace["toy"].__doc__ = docstring
    return namespace["toy"]


def t(*shape):
    return torch.zeros(shape)


# (docstring, arguments, result) that fit together
RIGHT = [
    ("x: (B, T) ids\nreturns: (B, T, V) logits", {"x": t(2, 3)}, t(2, 3, 5)),
    ("x: (B, 3, H, W) pictures\nreturns: (B,)", {"x": t(2, 3, 8, 4)}, t(2)),
    ("x: (B, D)\nreturns: (B, 3*D)", {"x": t(2, 4)}, t(2, 12)),
    ("x: (B, T, 3 * D)\nreturns: (B, T, D)", {"x": t(2, 4, 12)}, t(2, 4, 4)),
    ("x: (B, 3*D)\nreturns: (B,)", {"x": t(2, 12)}, t(2)),
    ("x: (B, T)\ny: (B, N)\nreturns: (B, 1+T+N)", {"x": t(2, 3), "y": t(2, 4)}, t(2, 8)),
    ("x: (B, T+N)\ny: (B, T)\nreturns: (B, N)", {"x": t(2, 7), "y": t(2, 3)}, t(2, 4)),
    ("x: (B, S//2)\nreturns: (S,)", {"x": t(2, 3)}, t(6)),
    ("x: (N, …)\nreturns: (…)", {"x": t(2, 3, 4)}, t(7)),
    ("x: (..., D)\nreturns: (D,)", {"x": t(2, 3, 4)}, t(4)),
    ("x: (B', B)\nreturns: (B,)", {"x": t(4, 2)}, t(2)),
    ("x: (B,)\nreturns: ()", {"x": t(2)}, t()),
    ("x: (B,)\nreturns: () a number", {"x": t(2)}, 1.5),
    ("x, y: (N, 2)\nreturns: (N,)", {"x": t(3, 2), "y": t(3, 2)}, t(3)),
    ("x: (N,); y: (N, 2)", {"x": t(3), "y": t(3, 2)}, None),
    ("Does it. x: (N,); y: (N, 2); returns: (N,)", {"x": t(3), "y": t(3, 2)}, t(3)),
    ("Does it. x: no entry\n\nx: (N,); returns: (N, N)", {"x": t(3)}, t(3, 3)),
    ("x: (B, E)\ny: (B, E) or None\nreturns: (B,)", {"x": t(2, 3), "y": None}, t(2)),
    ("x: (B,)\nreturns: (B, n)", {"x": t(2), "n": 6}, t(2, 6)),
    ("x: (B,)\nreturns: (min(B, n),)", {"x": t(5), "n": 3}, t(3)),
    ("x: (B,)\nreturns: (N, B) all, N = 2 * n", {"x": t(2), "n": 3}, t(6, 2)),
    ("x: (B,) in (0, 1) (see above)\nreturns: (B,)", {"x": t(2)}, t(2)),
    ("x: (B,)\nreturns: (B, 2) these, (B,) those", {"x": t(2)}, (t(2, 2), t(2))),
    ("x: (B,)\nreturns: (B, 2) these, wrapped\n    here, (B,) those", {"x": t(2)}, (t(2, 2), t(2))),
    ("x: (B,)\nreturns: (B,) with names", {"x": t(2)}, (t(2), ["a", "b"])),
    ("x: parts, (B, T) each\nreturns: (B,)", {"x": [t(2, 3), t(2, 3)]}, t(2)),
    ("x: (B, T) a part each\nreturns: (B,)", {"x": (t(2, 3), t(2, 3))}, t(2)),
    ("x: (B,)\nreturns: pictures (B, 3)", {"x": np.zeros(2)}, np.zeros((2, 3))),
    ("x: (D, D)", {"x": t(3, 3)}, None),
    ("x: text without a shape", {"x": "a string"}, None),
]


@pytest.mark.parametrize(("docstring", "arguments", "result"), RIGHT)
def test_a_true_docstring_passes(docstring, arguments, result):
    check_shapes(function(docstring), arguments, result)


# (docstring, arguments, result, what the message says)
WRONG = [
    ("x: (B, T)\nreturns: (T, B)", {"x": t(2, 3)}, t(2, 3), r"returns: documented \(T, B\)"),
    ("x: (B, T)\nreturns: (B, T)", {"x": t(2, 3)}, t(2, 4), r"is \(2, 4\).*T = 3"),
    ("x: (B, T)\nreturns: (B,)", {"x": t(2, 3)}, t(2, 1), r"\(B,\), is \(2, 1\)"),
    ("x: (B, T)\nreturns: ()", {"x": t(2, 3)}, t(1), r"\(\), is \(1,\)"),
    ("x: (B, 3, H, W)\nreturns: ()", {"x": t(2, 4, 8, 8)}, t(), "x: documented"),
    ("x: (D, D)", {"x": t(3, 4)}, None, "D = 3"),
    ("x: (B, D)\nreturns: (B, 3*D)", {"x": t(2, 4)}, t(2, 13), r"3\*D does not fit D = 4"),
    ("x: (B, 3*D)\nreturns: (B,)", {"x": t(2, 13)}, t(2), r"3\*D"),
    ("x: (B, T)\ny: (B, N)\nreturns: (B, T+N)", {"x": t(2, 3), "y": t(2, 4)}, t(2, 8), "T.N"),
    ("x: (B, 5+N)\nreturns: (B,)", {"x": t(2, 3)}, t(2), "5.N"),
    ("x: (B, …, D)\nreturns: (D,)", {"x": t(4)}, t(4), "x: documented"),
    ("x: (…, D)\nreturns: (D,)", {"x": t(2, 4)}, t(2), "returns"),
    ("x: (B, K+L)", {"x": t(2, 4)}, None, "symbols"),
    ("x: (B,)\nreturns: (B, n)", {"x": t(2), "n": 6}, t(2, 5), "n = 6"),
    ("x: (B,)\nreturns: (N, B) all, N = 2 * n", {"x": t(2), "n": 3}, t(5, 2), r"N = 2 \* n, is 5"),
    ("returns: (B,)", {"x": t(2)}, t(2), "x has shape"),
    ("x: some pictures\nreturns: (B,)", {"x": t(2)}, t(2), "x has shape"),
    ("x: (B,)", {"x": t(2)}, t(2), "returns has shape"),
    ("x: (B,)\nreturns: nothing much", {"x": t(2)}, t(2), "nothing much"),
    ("", {"x": t(2)}, t(2), "no docstring line"),
    ("x: (B,)\nz: (B,)", {"x": t(2)}, None, "explains z"),
    ("x: (B,)", {"x": t(2), "w": 3}, None, "no argument w"),
    ("x: (B,)", {"x": "a string"}, None, "is a str"),
    ("x: (B of, them)", {"x": t(2, 3)}, None, "cannot read"),
    ("x: (B,)\nreturns: (B,), (B,)", {"x": t(2)}, (t(2), t(3)), r"returns\[1\]"),
    ("x: (B,)\nreturns: (B,)", {"x": t(2)}, (t(2), t(2)), "2 tensors.*1 shapes"),
    ("x: (B,)\nreturns: (B,), (B,), (B,)", {"x": t(2)}, (t(2), t(2)), "2 tensors.*3 shapes"),
    ("Does it. x: (N,); returns: (N, N)", {"x": t(3)}, t(3, 4), "returns: documented"),
    ("x: (B, T) each\nreturns: (B,)", {"x": [t(2, 3), t(2, 4)]}, t(2), r"x\[1\]"),
    ("x: a list of them", {"x": [t(2, 3)]}, None, "x holds tensors"),
]


@pytest.mark.parametrize(("docstring", "arguments", "result", "message"), WRONG)
def test_a_false_docstring_is_caught(docstring, arguments, result, message):
    with pytest.raises(AssertionError, match=f"^toy: .*{message}"):
        check_shapes(function(docstring), arguments, result)


# --- results with named parts --------------------------------------------------------------------


class Codes(NamedTuple):
    """What quantising gives.

    z: (B, C, h, w) vectors
    indices: (B, h, w) int64
    parts: (B, K) one for each factor
    name: what it is called
    """

    z: Tensor
    indices: Tensor
    parts: tuple[Tensor, ...] = ()
    name: str = ""


@dataclass
class Undocumented:
    """Nothing is said of its parts."""

    logits: Tensor


def test_fields_are_checked_by_the_class_docstring():
    toy = function("x: (B, 3, H, W)")
    check_shapes(toy, {"x": t(2, 3, 8, 8)}, Codes(t(2, 5, 4, 4), t(2, 4, 4), (t(2, 6), t(2, 6))))
    with pytest.raises(AssertionError, match=r"returns.indices: documented \(B, h, w\)"):
        check_shapes(toy, {"x": t(2, 3, 8, 8)}, Codes(t(2, 5, 4, 4), t(2, 16)))
    with pytest.raises(AssertionError, match=r"returns.parts\[1\]"):
        parts = (t(2, 6), t(2, 7))
        check_shapes(toy, {"x": t(2, 3, 8, 8)}, Codes(t(2, 5, 4, 4), t(2, 4, 4), parts))


class Reconstruction(NamedTuple):
    """pictures: (B, 3, H, W) painted back"""

    pictures: Tensor
    codes: Codes


def test_a_result_within_a_result_is_checked():
    toy = function("x: (B, 3, H, W)")
    good, bad = Codes(t(2, 5, 4, 4), t(2, 4, 4)), Codes(t(2, 5, 4, 4), t(2, 16))
    check_shapes(toy, {"x": t(2, 3, 8, 8)}, Reconstruction(t(2, 3, 8, 8), good))
    with pytest.raises(AssertionError, match="returns.codes.indices"):
        check_shapes(toy, {"x": t(2, 3, 8, 8)}, Reconstruction(t(2, 3, 8, 8), bad))


def test_an_argument_with_named_parts_is_checked():
    toy, codes = function("returns: (B, C, h, w)"), Codes(t(2, 5, 4, 4), t(2, 4, 4))
    check_shapes(toy, {"x": codes}, t(2, 5, 4, 4))
    with pytest.raises(AssertionError, match="returns"):
        check_shapes(toy, {"x": codes}, t(2, 6, 4, 4))


def test_letters_are_shared_between_the_arguments_and_the_class():
    with pytest.raises(AssertionError, match="returns.z"):
        toy = function("x: (B, 3, H, W)")
        check_shapes(toy, {"x": t(2, 3, 8, 8)}, Codes(t(1, 5, 4, 4), t(1, 4, 4)))


def test_fields_are_checked_by_lines_of_the_function():
    toy = function("x: (B, T)\nreturns.logits: (B, T, V) scores")
    check_shapes(toy, {"x": t(2, 3)}, Undocumented(t(2, 3, 5)))
    with pytest.raises(AssertionError, match="returns.logits"):
        check_shapes(toy, {"x": t(2, 3)}, Undocumented(t(3, 2, 5)))


def test_fields_are_checked_by_words_after_returns():
    toy = function("x: (B,)\nreturns: Codes with indices (B, B, w)")
    with pytest.raises(AssertionError, match="returns.indices"):
        check_shapes(toy, {"x": t(2)}, Codes(t(2, 5, 4, 4), t(2, 4, 4)))


def test_a_field_without_a_documented_shape_is_caught():
    with pytest.raises(AssertionError, match="returns.logits has shape"):
        check_shapes(function("x: (B, T)"), {"x": t(2, 3)}, Undocumented(t(2, 3, 5)))


# --- what can be called --------------------------------------------------------------------------


class Double(nn.Module):
    """Twice as wide."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, D) vectors; returns: (B, 2*D)"""
        return torch.cat([x, x], dim=-1)

    @torch.no_grad()
    def wrong(self, x: Tensor) -> Tensor:
        """x: (B, D) vectors; returns: (B, D)"""
        return self.forward(x)


def test_modules_and_methods_are_checked():
    model, x = Double(), t(2, 3)
    check_shapes(model, {"x": x}, model(x))
    check_shapes(model.forward, {"x": x}, model(x))
    with pytest.raises(AssertionError, match=r"Double\.wrong: returns"):
        check_shapes(model.wrong, {"x": x}, model.wrong(x))


def test_symbols_bind_letters_beforehand():
    model, x = Double(), t(2, 3)
    assert check_shapes(model, {"x": x}, model(x), {"D": 3}) == {"B": 2, "D": 3}
    with pytest.raises(AssertionError, match="D = 4"):
        check_shapes(model, {"x": x}, model(x), {"D": 4})


def test_symbols_help_where_the_sizes_cannot_tell():
    toy = function("x: (B, K+L)")
    assert check_shapes(toy, {"x": t(2, 4)}, None, {"K": 1})["L"] == 3


# --- margins -------------------------------------------------------------------------------------


def followed(body: str, tmp_path, *, strict: bool = False):
    """A call of a function on x: (B, T, D) = (2, 3, 4), with its margins held against it."""
    lines = ["import torch", "def toy(x, some=True):", "    'x: (B, T, D) vectors'"]
    path = tmp_path / "toy.py"
    path.write_text("\n".join([*lines, *(f"    {line}" for line in body.splitlines())]))
    spec = importlib.util.spec_from_file_location("toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    margins = Margins({module.toy.__code__: read_function(module.toy, strict=strict)})
    with margins:
        module.toy(t(2, 3, 4))
    return margins


@pytest.mark.parametrize(
    "body",
    [
        "y = x.flatten(1)  # (B, T*D) words, (D,) may follow",
        "y = x.mT  # (B, D, T)\nreturn y.mT  # (B, T, D)",
        "a, b = x.chunk(2, dim=-1)  # (B, T, D//2) each",
        "a, b = x[0], x[:, 0]  # (T, D), (B, D)",
        "parts = x.split(1)  # (1, T, D) each",
        "B, T, D = x.shape\ny = x.new_zeros(D, B)  # (D, B)",
        "for row in x:  # (T, D)\n    row = row[0]  # (D,)",
        "y = torch.cat(\n    [x, x]\n)  # (2*B, T, D)",
        "x = x[:, 0]  # (B, D): the name has another shape now\nreturn x, x  # (B, D) each",
        "held = {}\nheld['y'] = x[0]  # (T, D)",
        "y = 1  # (see above)",
    ],
)
def test_a_true_margin_passes(body, tmp_path):
    assert not followed(body, tmp_path, strict=True).unchecked


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = x.flatten(1)  # (B, T, D)", "`y = x.flatten.1.`: documented .* is .2, 12."),
        ("y = x.mT  # (B, T, D)", "does not fit"),
        ("return x.mT  # (B, T, D)", "`return x.mT`"),
        ("a, b = x[0], x[:, 0]  # (T, D), (T, D)", "is .2, 4."),
        ("a, b = x[0], x[1]  # (T, D)", "1 shapes for 2 values"),
        ("for row in x:  # (B, D)\n    pass", "`for row in x:`: documented"),
        ("B = 5\ny = x[0]  # (T, D)", "x: documented .* B = 5"),
        ("for n in (1, 2):\n    x = x[0]  # (T, D)", "is .4,."),
        ("y = None  # (B, T)", "has no shape"),
        ("x.flatten(1)  # (B, T*D)", "stands beside nothing that has a shape"),
        ("y = x.mT", "makes a new shape, .2, 4, 3., and has no margin"),
    ],
)
def test_a_false_or_missing_margin_is_caught(body, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        followed(body, tmp_path, strict=True)


def test_a_margin_that_no_call_reaches_is_known(tmp_path):
    body = "if not some:\n    y = x[0]  # (T, D)\nelse:\n    y = x[0]  # (T, D)"
    assert followed(body, tmp_path).unchecked == {("toy", 5)}

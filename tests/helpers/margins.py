"""Are the shapes in the margin true? `Margins` holds them against the calls made within it.

    q, k, v = qkv.unbind(0)  # (B, H, T, d) each
    x = self.patches(x)  # (B, D, h, w) words may follow

Every line of a watched function is followed while it runs. What a statement assigned or returned is
compared with its margin when it is done. The letters are those of the call's arguments, as the
docstring has them, of whole numbers among the local variables, and of the other margins; of a loop
the last round counts. In a `strict` function every tensor of a new shape needs a margin.
"""

import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any, NamedTuple

from helpers.shape_check import (
    SHAPE,
    Claim,
    Documented,
    claim,
    documentation,
    is_array,
    parse_shape,
    shape_of,
    solve,
    spread,
)

MARGIN = re.compile(rf"# ({SHAPE}(?:, {SHAPE})*)( each\b)?")


class Statement(NamedTuple):
    """A statement that gives values a name, or returns them."""

    line: int
    text: str
    targets: tuple[str, ...]  # expressions; none: values are returned
    shapes: tuple[Documented, ...]  # by the margin, one for each value; none: no margin
    body: range  # lines of a loop, which has assigned something where one of them is next


class Watched(NamedTuple):
    """A function whose lines are followed."""

    name: str
    docs: dict[str, str]
    statements: dict[int, Statement]  # by each of their lines
    strict: bool


def margin_of(comment: str, count: int) -> tuple[Documented, ...]:
    """The shapes that a comment begins with, one for each of `count` values; () for mere words."""
    match = MARGIN.match(comment)
    shapes = [parse_shape(inside) for inside in re.findall(SHAPE, match[1])] if match else [None]
    if None in shapes:
        return ()
    shapes *= count if match[0].endswith(" each") else 1
    assert len(shapes) == count, f"{comment}: {len(shapes)} shapes for {count} values"
    return tuple(shapes)


def statements_of(body: Iterable[ast.stmt]) -> Iterable[ast.stmt]:
    """A function's statements with values, but for those of functions inside it."""
    for node in body:
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.Return)):
            yield node
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            for part in ("body", "orelse", "finalbody"):
                yield from statements_of(getattr(node, part, []))


def read_function(function: Callable, *, strict: bool = False) -> Watched:
    """A function's statements and margins; complains of a margin that is beside no value."""
    lines, start = inspect.getsourcelines(function)
    text, name, found = textwrap.dedent("".join(lines)), function.__qualname__, {}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    beside = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT
              and t.line[: t.start[1]].strip() and MARGIN.match(t.string)}  # fmt: skip
    for node in statements_of(ast.parse(text).body[0].body):
        returns = isinstance(node, ast.Return)
        values = node.value if returns else (getattr(node, "targets", None) or [node.target])[0]
        parts = values.elts if isinstance(values, (ast.Tuple, ast.List)) else [values]
        last = node.lineno if isinstance(node, ast.For) else node.end_lineno
        said = [beside.pop(n) for n in range(node.lineno, last + 1) if n in beside]
        statement = Statement(
            line=start + node.lineno - 1,
            text=text.splitlines()[node.lineno - 1].partition("#")[0].strip(),
            targets=() if returns else tuple(ast.unparse(part).lstrip("*") for part in parts),
            shapes=margin_of(said[-1], len(parts)) if said else (),
            body=range(start + last, start + node.end_lineno)
            if last < node.end_lineno
            else range(0),
        )
        found |= dict.fromkeys(range(start + node.lineno - 1, start + last), statement)
    lost = [comment for comment in beside.values() if margin_of(comment, 1)]
    assert not lost, f"{name}: {lost[0]} stands beside nothing that has a shape"
    return Watched(name, documentation(inspect.getdoc(function)), found, strict)


class Margins:
    """Within it calls of the watched functions are followed; at its end it says what was wrong."""

    def __init__(self, functions: dict[CodeType, Watched]) -> None:
        self.functions = functions
        self.wrong: list[str] = []
        self.unchecked = {
            (watched.name, statement.line)
            for watched in functions.values()
            for statement in watched.statements.values()
            if statement.shapes
        }

    def __enter__(self) -> "Margins":
        self.wrong, self.before = [], sys.gettrace()
        sys.settrace(self.follow)
        return self

    def __exit__(self, kind, *_) -> None:
        sys.settrace(self.before)
        assert kind is not None or not self.wrong, "\n".join(dict.fromkeys(self.wrong))

    def follow(self, frame: FrameType, event: str, arg: Any) -> Callable | None:
        watched = self.functions.get(frame.f_code)
        return Call(watched, frame, self).line if watched else None


class Call:
    """One call of a watched function."""

    def __init__(self, watched: Watched, frame: FrameType, margins: Margins) -> None:
        self.watched, self.margins = watched, margins
        self.running: Statement | None = None
        given = frame.f_locals
        self.shapes = {shape_of(value) for value in given.values() if is_array(value)}
        documented = [n for n in given if re.match(SHAPE, watched.docs.get(n, ""))]
        self.claims = {0: [c for n in documented for c in claim(n, watched.docs[n], given[n])]}

    def line(self, frame: FrameType, event: str, arg: Any) -> Callable:
        after = self.watched.statements.get(frame.f_lineno) if event == "line" else None
        if self.running is not None and after is not self.running and event != "exception":
            self.finish(self.running, frame, arg)
        self.running = after
        if event == "return":
            self.compare({n: v for n, v in frame.f_locals.items() if type(v) is int and v >= 0})
        return self.line

    def finish(self, statement: Statement, frame: FrameType, returned: Any) -> None:
        """A statement is done: note the shapes that it made."""
        if statement.body and frame.f_lineno not in statement.body:
            return  # a loop is over
        if statement.targets:
            values = [eval(t, frame.f_globals, frame.f_locals) for t in statement.targets]
        else:
            values = list(returned) if len(statement.shapes) > 1 else [returned]
        new = [v for v in values if is_array(v) and v.ndim and shape_of(v) not in self.shapes]
        if statement.shapes:
            found = self.claims[statement.line] = []
            for shape, value in zip(statement.shapes, values, strict=True):
                for part in value if isinstance(value, (list, tuple)) else [value]:
                    found.append(Claim(f"`{statement.text}`", shape, shape_of(part)))
            self.shapes |= {c.actual for c in found}
        elif new and self.watched.strict and statement.targets:
            self.margins.wrong.append(
                f"{self.watched.name}: `{statement.text}` makes a new shape, {shape_of(new[0])}, "
                "and has no margin"
            )

    def compare(self, integers: dict[str, int]) -> None:
        """The call is over: do all its letters fit?"""
        claims = [c for several in self.claims.values() for c in several]
        try:
            for item in claims:
                assert item.actual is not None, f"{item.what} has no shape"
            solve(spread(claims), integers)
        except AssertionError as error:
            self.margins.wrong.append(f"{self.watched.name}: {error}")
        else:
            self.margins.unchecked -= {(self.watched.name, line) for line in self.claims}


def functions_of(owner: Any) -> Iterable[Callable]:
    """All functions of a module or a class that somebody wrote, private ones and methods too."""
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    for value in vars(owner).values():
        value = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
        if getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value):
            yield from functions_of(value)
        elif inspect.isfunction(value) and value.__code__.co_filename == inspect.getsourcefile(
            sys.modules[module]
        ):
            yield value

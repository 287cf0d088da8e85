"""Are the shapes in a docstring true? `check_shapes` holds them against a real call.

It reads the lines that the house style asks for:

    x: (B, T, 3*D) what it is            an argument
    shape, color: (N, 2) indices         several arguments
    returns: (B, N, D) this, (B, N) that one result, or several in order
    returns.logits: (B, V)               a field of a result that is a NamedTuple or dataclass;
    logits: (B, V)                       the same in the docstring of the result's class

and binds each letter to one size for the whole call. Dimensions are integers, letters, names of
integer arguments, and their sums, differences, products, quotients (//), min and max; `…` or
`...` stands for any number of dimensions. `S = size` behind a shape is held to as well.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

NAME = r"[A-Za-z_]\w*'*"
SHAPE = r"\(((?:[^()]|(?:min|max)\([^()]*\))*)\)"
NAMES = rf"(?:returns\.)?{NAME}(?:, {NAME})*"
LINE = re.compile(rf"{NAMES}: ")
EQUATION = re.compile(rf"(?:^|[ ,;])({NAME}) = ([^,;.]+?)(?=$|[,;.])")


class Documented(NamedTuple):
    """A shape that a docstring claims."""

    dims: tuple[str, ...]
    text: str  # as the docstring has it


class Claim(NamedTuple):
    """A documented shape beside the actual one."""

    what: str
    documented: Documented
    actual: tuple[int, ...]


def parse_shape(inside: str) -> Documented | None:
    """`B, 3*D` as dimensions; None for a parenthesis that is no shape."""
    parts = [part.strip() for part in re.split(r",(?![^()]*\))", inside)]
    if parts == [""]:
        return Documented((), "()")
    if len(parts) == 1 and parts[0] not in ("…", "..."):
        return None  # "(see below)"; a shape of one dimension is (N,)
    dims = tuple("…" if part == "..." else part for part in parts if part)
    if dims.count("…") > 1 or any(dim != "…" and parse_expression(dim) is None for dim in dims):
        return None
    return Documented(dims, f"({inside})")


def parse_expression(text: str) -> ast.expr | None:
    """A dimension as a syntax tree; None for what is no arithmetic."""
    try:
        tree = ast.parse(text.replace("'", "_prime").strip(), mode="eval").body
    except SyntaxError:
        return None
    allowed = (ast.BinOp, ast.Call, ast.Name, ast.Constant, ast.operator, ast.expr_context)
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            return None
        if isinstance(node, ast.Constant) and type(node.value) is not int:
            return None
    return tree


def names_in(text: str) -> set[str]:
    names = {node.id for node in ast.walk(parse_expression(text)) if isinstance(node, ast.Name)}
    return names - {"min", "max"}


def evaluate(node: ast.expr, sizes: dict[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.Call):
        return {"min": min, "max": max}[node.func.id](*(evaluate(a, sizes) for a in node.args))
    left, right = evaluate(node.left, sizes), evaluate(node.right, sizes)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.FloorDiv):
        return left // right
    if isinstance(node.op, ast.Pow):
        return left**right
    raise AssertionError(f"a dimension may not use {type(node.op).__name__}")


# --- reading docstrings --------------------------------------------------------------------------


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """(name, what follows it) for each `name: …` of a docstring, wrapped lines joined."""
    # "Draws it. x: (N,); returns: (N, 2)" on one line has its entries, too.
    docstring = re.sub(rf"[.;] +(?={NAMES}: *\(|returns: )", "\n", docstring)
    current: list[str] = []
    for line in [*map(str.strip, docstring.splitlines()), ""]:
        starts = LINE.match(line)
        if (starts or not line) and current:
            names, _, text = " ".join(current).partition(": ")
            yield from ((name.strip(), text) for name in names.split(","))
            current = []
        if starts or (current and line):
            current.append(line)


def shapes_in(text: str) -> list[tuple[str, Documented]]:
    """All shapes in the words behind `returns:`, each with the word before it."""
    found = []
    for match in re.finditer(rf"(\w*) ?{SHAPE}", text):
        documented = parse_shape(match[2])
        if documented is not None:
            found.append((match[1], documented))
    return found


def documentation(docstring: str | None) -> dict[str, str]:
    return dict(entries(inspect.cleandoc(docstring or "")))


def leading_shape(text: str, what: str) -> Documented | None:
    """The shape that an entry begins with, None where it begins with words."""
    if not (match := re.match(SHAPE, text)):
        return None
    documented = parse_shape(match[1])
    assert documented is not None, f"{what}: cannot read the shape ({match[1]})"
    return documented


# --- holding them against values -----------------------------------------------------------------


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor or array, () for a plain number; None for anything else."""
    if is_array(value):
        return tuple(value.shape)
    return () if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def is_array(value: Any) -> bool:
    return hasattr(value, "ndim")  # a configuration may say a shape, too


def fields(result: Any) -> dict[str, Any] | None:
    """The fields of a NamedTuple or dataclass, None for other results."""
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        return result._asdict()
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return None


def field_claims(what: str, docs: dict[str, str], value: Any) -> list[Claim]:
    """What is said of a value's fields, by its class and by lines `what.field: …` in docs."""
    in_class = documentation(type(value).__doc__)
    claims = []
    for name, part in fields(value).items():
        said = [docs.get(f"{what}.{name}"), in_class.get(name)]
        for text in [entry for entry in said if entry is not None] or [None]:
            claims += claim(f"{what}.{name}", text, part)
    return claims


def claim(what: str, text: str | None, value: Any) -> list[Claim]:
    """What an entry says of a value; complains of an array of which nothing is said."""
    if value is None or (isinstance(value, (tuple, list)) and not value):
        return []
    if fields(value) is not None:
        return field_claims(what, {}, value)
    documented = None if text is None else leading_shape(text, what)
    if isinstance(value, (tuple, list)) and any(is_array(v) for v in value):
        if documented is None:
            shapes = [found for _, found in shapes_in(text or "")]
            assert shapes, f"{what} holds tensors, but the docstring gives no shape for it"
            documented = shapes[0]
        return [Claim(f"{what}[{i}]", documented, shape_of(v)) for i, v in enumerate(value)]
    if documented is None:
        assert not is_array(value), (
            f"{what} has shape {shape_of(value)}, but no docstring line says so"
        )
        return []
    shape = shape_of(value)
    assert shape is not None, (
        f"{what} is documented as {documented.text}, but is a {type(value).__name__}"
    )
    return [Claim(what, documented, shape)]


def result_claims(docs: dict[str, str], result: Any) -> list[Claim]:
    """What the docstrings of a function and of its result's class say of the result."""
    text = docs.get("returns")
    if (parts := fields(result)) is not None:
        claims = field_claims("returns", docs, result)
        for name, documented in shapes_in(text or ""):
            if name in parts:  # "returns: Codes with indices (B, h, w)"
                claims.append(Claim(f"returns.{name}", documented, shape_of(parts[name])))
        return claims
    if isinstance(result, tuple) and (arrays := [r for r in result if is_array(r)]):
        shapes = [documented for _, documented in shapes_in(text or "")]
        assert len(shapes) == len(arrays), (
            f"returns: {len(arrays)} tensors, but the docstring has {len(shapes)} shapes: {text}"
        )
        return [
            Claim(f"returns[{i}]", documented, shape_of(value))
            for i, (documented, value) in enumerate(zip(shapes, arrays, strict=True))
        ]
    if is_array(result) and text is not None and leading_shape(text, "returns") is None:
        shapes = [documented for _, documented in shapes_in(text)]
        assert len(shapes) == 1, f"returns: one tensor, but the docstring says: {text}"
        return [Claim("returns", shapes[0], shape_of(result))]
    return claim("returns", text, result)


def spread(claims: list[Claim]) -> list[tuple[str, str, int, Claim]]:
    """Each claim as (dimension, size) pairs; the number of dimensions is compared here."""
    pairs = []
    for item in claims:
        dims, sizes = item.documented.dims, item.actual
        if "…" in dims:
            at = dims.index("…")
            extra = len(sizes) - (len(dims) - 1)
            assert extra >= 0, f"{item.what}: documented {item.documented.text}, is {item.actual}"
            dims, sizes = dims[:at] + dims[at + 1 :], sizes[:at] + sizes[at + extra :]
        assert len(dims) == len(sizes), (
            f"{item.what}: documented {item.documented.text}, is {item.actual}"
        )
        pairs += [(dim, size, item) for dim, size in zip(dims, sizes, strict=True)]
    return pairs


def solve(pairs: list[tuple[str, int, Claim]], bound: dict[str, int]) -> dict[str, int]:
    """Bind every letter; what has several unknown letters waits until the others are bound."""
    sizes = {name.replace("'", "_prime"): size for name, size in bound.items()}
    waiting = sorted(pairs, key=lambda pair: parse_expression(pair[0]).__class__ is not ast.Name)
    while waiting:
        postponed = []
        for dim, size, item in waiting:
            tree, unknown = parse_expression(dim), names_in(dim) - sizes.keys()
            if len(unknown) > 1:
                postponed.append((dim, size, item))
                continue
            if unknown:
                (name,) = unknown
                # Linear in one letter, as 3*D or T+N: two values give the third.
                at_0, at_1 = (evaluate(tree, {**sizes, name: value}) for value in (0, 1))
                guess = (size - at_0) // (at_1 - at_0) if at_1 != at_0 else size
                sizes[name] = guess
            found = evaluate(tree, sizes)
            letters = ", ".join(
                f"{n.replace('_prime', chr(39))} = {sizes[n]}" for n in sorted(names_in(dim))
            )
            assert found == size and all(value >= 0 for value in sizes.values()), (
                f"{item.what}: documented {item.documented.text}, is {item.actual}: "
                f"{dim} does not fit {letters}"
            )
        assert len(postponed) < len(waiting), (
            f"{postponed[0][2].what}: the letters of {postponed[0][0]} are bound by nothing; "
            "give them in symbols"
        )
        waiting = postponed
    return sizes


def check_equations(texts: list[str], sizes: dict[str, int]) -> None:
    """`S = size` behind a shape, where both sides are known."""
    for text in texts:
        for left, right in EQUATION.findall(text):
            tree = parse_expression(right)
            name = left.replace("'", "_prime")
            if tree is None or name not in sizes or names_in(right) - sizes.keys():
                continue
            value = evaluate(tree, sizes)
            assert sizes[name] == value, f"documented {left} = {right}, is {sizes[name]} = {value}"


def check_shapes(
    fn: Callable, arguments: dict[str, Any], result: Any, symbols: dict[str, int] | None = None
) -> dict[str, int]:
    """Hold the shapes in a function's docstring against one call of it.

    `arguments` by name, as passed; `result` as returned; `symbols` binds letters beforehand
    ({"D": model.config.width}). Raises AssertionError where a documented shape is wrong, where a
    tensor has none, or where a documented argument does not exist. Returns the letters' sizes.
    """
    name = getattr(fn, "__qualname__", type(fn).__name__)
    docs = documentation(inspect.getdoc(fn.forward if isinstance(fn, nn.Module) else fn))
    signature = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn)
    try:
        for given in arguments:
            assert given in signature.parameters, f"there is no argument {given}"
        for documented, text in docs.items():
            if not documented.startswith("returns") and re.match(SHAPE, text):
                assert documented in signature.parameters, (
                    f"the docstring explains {documented}, which is no argument"
                )
        claims = []
        for argument, value in arguments.items():
            claims += claim(argument, docs.get(argument), value)
        claims += result_claims(docs, result)
        integers = {n: v for n, v in arguments.items() if type(v) is int}
        sizes = solve(spread(claims), {**integers, **(symbols or {})})
        check_equations([text for text in docs.values() if re.match(SHAPE, text)], sizes)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None
    return {n.replace("_prime", "'"): size for n, size in sizes.items() if n not in integers}

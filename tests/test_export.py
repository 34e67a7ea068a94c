"""Exported programs say what the functions say, at sizes that they were not exported at.

All in fresh processes: a failed trace can spoil its own.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPORT_ONE = str(ROOT / "tests" / "export_one.py")
CASES = ["transformer", "llama", "rules", "padding", "segments", "alibi", "learned"]
CASES += ["dropout", "remat", "fused"]


def test_one_program_is_right_at_every_size_and_so_are_its_gradients(fresh_python):
    said = fresh_python(EXPORT_ONE, "program").splitlines()
    assert said == [f"{name} right" for name in CASES]


WIDTHS = """
import torch
import tinyfn
from tinyfn import random


class Dropout(torch.nn.Module):
    def forward(self, x, key):
        return tinyfn.dropout(x, key, dropout_p=0.3)


for shape in ((5,), (4, 6), (4, 5), (4, 2), (3, 1)):
    x, key = torch.ones(shape), random.key(0)
    sizes = {"x": {0: torch.export.Dim("n", max=1000)}, "key": None}
    program = torch.export.export(Dropout(), (x, key), dynamic_shapes=sizes).module()
    for size in (2, 5, 64, 101):
        x = torch.ones(size, *shape[1:])
        assert torch.equal(program(x, key), tinyfn.dropout(x, key, dropout_p=0.3)), (shape, size)
"""


def test_one_program_draws_the_same_for_any_number_of_rows_of_any_width(fresh_python):
    fresh_python("-c", WIDTHS)


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
from tinyfn import encoder, init_encoder, positions, random, tree

class Encoder(torch.nn.Module):
    def forward(self, params, x):
        return encoder(params, x, position=positions.add_sinusoidal)

counter, call = CompileCounter(), Encoder()
params = init_encoder(random.key(0), 8, 2, 16, 1)
axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
free = (tree.map(lambda _: None, params), axes)
example = (params, torch.rand(2, 5, 8))
program = torch.export.export(call, example, dynamic_shapes=free, strict=True)
compiled = torch.compile(call, backend=counter, dynamic=True)
for batch, seq in [(3, 5), (6, 7), (5, 9)]:  # none is a size of the params, which dynamo would note
    x = torch.rand(batch, seq, 8)
    torch.testing.assert_close(program.module()(params, x), call(params, x))
    torch.testing.assert_close(compiled(params, x), call(params, x))
print(counter.frame_count)
"""


def test_the_compiler_takes_all_sizes_at_once_too(fresh_python):
    assert fresh_python("-c", COMPILED).split()[-1:] == ["1"]

"""torch.compile with fullgraph, of the forward, of grad and of vmap of grad, in fresh processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cases import CASES

TESTS = Path(__file__).parents[1]
MODELS = [case.name for case in CASES if case.name.startswith("transformer")]
NAMES = [case.name for case in CASES]
BATCHES = [NAMES[start::4] for start in range(4)]


def compile_in_fresh_process(backend, names):
    return subprocess.run(
        [sys.executable, str(TESTS / "transforms" / "compile_one.py"), backend, *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("backend", "names"),
    [*(("aot_eager", names) for names in BATCHES), ("inductor", ["attention_weights"])],
    ids=[f"aot_eager {i}" for i in range(len(BATCHES))] + ["inductor"],
)
def test_compiles_whole_and_says_the_same(backend, names):
    result = compile_in_fresh_process(backend, names)
    lines = result.stdout.splitlines()
    assert lines == [f"{name} right 3" for name in names], result.stdout + result.stderr[-2000:]

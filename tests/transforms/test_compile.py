"""torch.compile with fullgraph, of the forward, of grad and of vmap of grad, in fresh processes.

Tracing is slow, so some cases stand for all: together they call every part. The profile `thorough`
compiles them all.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from cases import CASES

TESTS = Path(__file__).parents[1]
SOME = [
    "rms_norm",
    "dot_product_attention_grouped_with_bias_and_mask",
    "positions.alibi",
    "encoder_layer_of_other_parts",
    "transformer_of_tokens",
]
THOROUGH = settings.get_current_profile_name() == "thorough"
NAMES = [case.name for case in CASES] if THOROUGH else SOME
INDUCTOR = ["feed_forward_with_dropout"]


@pytest.mark.parametrize(
    ("backend", "names"),
    [("aot_eager", NAMES[::2]), ("aot_eager", NAMES[1::2]), ("inductor", INDUCTOR)],
    ids=["aot_eager, one half", "aot_eager, the other half", "inductor"],
)
def test_compiles_whole_and_says_the_same(backend, names):
    result = subprocess.run(
        [sys.executable, str(TESTS / "transforms" / "compile_one.py"), backend, *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    said = sorted(result.stdout.splitlines())
    assert said == sorted(f"{name} right 3" for name in names), result.stderr[-2000:]


def test_the_cases_that_stand_for_all_are_cases():
    assert {*SOME, *INDUCTOR} <= {case.name for case in CASES}

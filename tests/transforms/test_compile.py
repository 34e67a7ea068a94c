"""torch.compile with fullgraph, of the forward, of grad and of vmap of grad, in fresh processes.

Tracing is slow, so some cases stand for all: together they call every part. The profile `thorough`
compiles them all. What this library can break is the trace, so most stop there; one case and the
module go on to the compiler.
"""

from pathlib import Path

import pytest
from hypothesis import settings

from cases import CASES

COMPILE_ONE = str(Path(__file__).parent / "compile_one.py")
SOME = [
    "rms_norm",
    "dot_product_attention_grouped_with_bias_and_mask",
    "positions.alibi",
    "encoder_layer_of_other_parts",
    "transformer_of_tokens",
    "prefill",
    "encoder_model_of_features",
]
THOROUGH = settings.get_current_profile_name() == "thorough"
NAMES = [case.name for case in CASES] if THOROUGH else SOME
INDUCTOR = ["feed_forward_with_dropout"]


@pytest.mark.parametrize(
    ("backend", "names"),
    [("eager", NAMES[::2]), ("eager", NAMES[1::2]), ("inductor", INDUCTOR)],
    ids=["one half", "the other half", "inductor"],
)
def test_compiles_whole_and_says_the_same(fresh_python, backend, names):
    said = fresh_python(COMPILE_ONE, backend, *names).splitlines()
    assert sorted(said) == sorted(f"{name} right 3" for name in names)


def test_the_cases_that_stand_for_all_are_cases():
    assert {*SOME, *INDUCTOR} <= {case.name for case in CASES}


HESSIAN_VECTOR = """
import torch
from tinyfn import embedding, positions, random, tree

weights = {n: random.normal(random.key(i), (6, 3)) for i, n in enumerate(("e", "p", "before"))}
tokens, offset = torch.tensor([[1, 2, 2], [0, -1, 5]]), torch.tensor([0, 2])

def loss(params):
    x = embedding({"weight": params["e"]}, tokens)
    x = x + positions.learned({"weight": params["p"]}, 3, offset=offset)
    bias = positions.relative_bias({"before": params["before"]}, 3, 3)
    return (x.sin() * bias.cos().sum()).sum()

def product(params, tangents):
    return torch.func.jvp(torch.func.grad(loss), (params,), (tangents,))[1]

tangents = tree.map(torch.cos, weights)
found = torch.compile(product, fullgraph=True)(weights, tangents)
torch.testing.assert_close(found, product(weights, tangents), atol=1e-4, rtol=1e-4)
print("right")
"""


def test_a_compiled_hessian_vector_product_of_what_is_looked_up_is_right(fresh_python):
    assert fresh_python("-c", HESSIAN_VECTOR).split() == ["right"]

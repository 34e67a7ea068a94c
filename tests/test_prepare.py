"""Prepared params against the params that they were made of."""

import pytest
import torch

import tinyfn
from tinyfn import generation, random, tree

COMMON = """
import torch, tinyfn
from torch._dynamo.utils import counters
from tinyfn import generation, masks, positions, random, tree

def model(seed, dtype=torch.float64, **sizes):
    made = tinyfn.init_language_model(
        random.key(seed), 8, 2, 12, 1, vocab_size=6, num_kv_heads=1, dtype=dtype, **sizes
    )
    return tree.map(lambda leaf: 3 * leaf, made)

ROTARY = {"position": None, "attend": positions.rotary(tinyfn.dot_product_attention)}
PROMPTS = torch.tensor([[1, 2, 3], [4, 1, 0]])
"""

# Over more than one block, of prompts of other lengths; two models, of which each keeps its own;
# and a ring.
DECODERS = """
given = (PROMPTS, random.key(2), torch.tensor([3, 2]))
for seed in (0, 1):
    params = model(seed)
    ready = generation.prepare(params)
    made = generation.sample(ready, *given, max_len=40, **ROTARY)
    expected = generation.sample(params, *given, max_len=40, **ROTARY)
    assert torch.equal(made.tokens, expected.tokens)
    made = generation.greedy(ready, PROMPTS, max_len=70, **ROTARY)  # by what is compiled already
    assert torch.equal(made.tokens, generation.greedy(params, PROMPTS, max_len=70, **ROTARY).tokens)
window = masks.causal() & masks.window(4, 0)
made = generation.greedy(ready, PROMPTS, max_len=40, self_mask=window, **ROTARY)
expected = generation.greedy(params, PROMPTS, max_len=40, self_mask=window, **ROTARY)
assert torch.equal(made.tokens, expected.tokens)
print(counters["stats"]["unique_graphs"], len(counters["graph_break"]))
"""

# Weights are laid out: the product of inductor's own is in what was compiled.
ENCODER_DECODER = """
params = tinyfn.init_transformer(
    random.key(1), 32, 2, 12, 1, 1, src_vocab_size=6, tgt_vocab_size=5, dtype=torch.float32
)
params = tree.map(lambda leaf: 2 * leaf, params)
source, lengths = torch.tensor([[1, 2, 3, 4], [5, 4, 0, 0]]), torch.tensor([4, 2])
ready = generation.prepare(params)
given = (PROMPTS[:, :1], None, source, masks.padding(lengths))
options = {"max_len": 35, "num_beams": 3, "n_best": 2, "end": 0}
made = generation.beam_search(ready, *given, **options)
torch.testing.assert_close(made, generation.beam_search(params, *given, **options))
print(counters["stats"]["unique_graphs"], len(counters["graph_break"]))
print(counters["inductor"]["cpp_templated_kernel_counter"] > 0)
"""


def test_tokens_are_those_of_the_params(fresh_python):
    assert fresh_python("-W", "error", "-c", COMMON + DECODERS).split() == ["3", "0"]


def test_beams_are_those_of_the_params(fresh_python):
    printed = fresh_python("-W", "error", "-c", COMMON + ENCODER_DECODER).split()
    assert printed == ["1", "0", "True"]


def model():
    return tinyfn.init_language_model(random.key(0), 8, 2, 12, 1, vocab_size=6)


def test_a_transform_takes_the_params_as_they_are(monkeypatch):
    params, prompts = model(), torch.tensor([[1, 2], [3, 4]])
    ready = generation.prepare(params)
    monkeypatch.setattr(ready, "step", None)
    made = torch.vmap(lambda prompt: generation.greedy(ready, prompt, max_len=4).tokens)(prompts)
    assert torch.equal(made, generation.greedy(params, prompts, max_len=4).tokens)


def test_params_changed_in_their_place_are_an_error():
    params, prompt = model(), torch.tensor([1, 2])
    ready = generation.prepare(params)
    generation.greedy(ready, prompt, max_len=1)
    tree.leaves(params)[-1].add_(1)
    match = r"generation\.greedy: params must be as they were when prepared, got '.*' with other"
    with pytest.raises(ValueError, match=match):
        generation.greedy(ready, prompt, max_len=1)


@pytest.mark.parametrize(
    ("params", "error", "match"),
    [
        (3, TypeError, r"generation\.prepare: params must be a dict, got int\. Make params with "),
        ({"encoder": {}}, ValueError, r"generation\.prepare: params must have 'decoder', got \["),
        (
            {"decoder": {"bias": None}},
            TypeError,
            r"generation\.prepare: decoder\.bias must be a plain tensor, got NoneType\. Steps of",
        ),
    ],
)
def test_errors(unchecked, params, error, match):
    with pytest.raises(error, match=match):
        generation.prepare(params)

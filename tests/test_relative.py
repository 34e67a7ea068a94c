"""A bias by distance that all layers share, and the output that a model is given."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tinyfn
from tinyfn import generation, masks, positions, random, testing, tree

F64 = {"dtype": torch.float64}
RELATIVE = positions.relative(tinyfn.dot_product_attention, max_distance=6)
SIZES = {"num_features": 4, "num_heads": 2, "dim_feedforward": 3}
TOKENS = torch.tensor([3, 1, 4, 1])


def rows(distance, buckets, max_distance):
    """The range of a distance, by the sentence that describes it; two of them at an end of one."""
    exact = buckets // 2
    if distance < exact:
        return {distance}
    far = math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    return {min(exact + math.floor(far + shift), buckets - 1) for shift in (-1e-5, 1e-5)}


@given(
    st.integers(2, 32),
    st.integers(1, 3),
    st.tuples(st.integers(0, 9), st.integers(0, 200)),
    st.integers(0, 200),
    st.booleans(),
    st.integers(1, 150),
)
def test_the_bias_is_that_of_each_distance(buckets, heads, seqs, offset, after, more):
    params = positions.init_relative(random.key(0), buckets, heads, after=after)
    distance = buckets // 2 + more
    bias = positions.relative_bias(params, *seqs, offset=offset, max_distance=distance)
    assert bias.shape == (heads, *seqs)
    for q in range(seqs[0]):
        for k in range(0, seqs[1], 7):
            behind = q + offset - k
            table = params["after"] if behind < 0 and after else params["before"]
            at = rows(abs(behind) if after else max(behind, 0), buckets, distance)
            assert any(torch.equal(bias[:, q, k], table[row]) for row in at)


def test_an_offset_for_each_example_is_that_of_each_alone():
    params = positions.init_relative(random.key(0), 4, 2)
    both = positions.relative_bias(params, 3, 5, offset=torch.tensor([0, 7]), max_distance=9)
    for index, offset in enumerate((0, 7)):
        alone = positions.relative_bias(params, 3, 5, offset=offset, max_distance=9)
        assert torch.equal(both[index], alone)


def test_a_bias_of_the_callers_is_added():
    params, q = positions.init_relative(random.key(0), 4, 2), torch.ones(2, 3, 4)
    v, own = random.normal(random.key(1), (2, 3, 4)), random.normal(random.key(2), (3, 3))
    bias = own + positions.relative_bias(params, 3, 3, max_distance=6)
    mask = masks.causal()
    expected = tinyfn.dot_product_attention(q, q, v, mask, None, bias, scale=0.3)
    ours = RELATIVE(params, q, q, v=v, bias=own, mask=mask, scale=0.3)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def with_shared_attend(params, *stacks):
    for key, stack in enumerate(stacks):
        after = stack == "encoder"
        made = positions.init_relative(random.key(key + 9), 4, 2, after=after, **F64)
        params[stack]["attend"] = made
    return params


def test_params_of_a_stacks_attend_are_those_of_each_layer():
    own = tinyfn.init_encoder(random.key(0), **SIZES, num_layers=3, **F64)
    shared = with_shared_attend({"encoder": own}, "encoder")["encoder"]
    each = {
        "layers": [
            {**x, "self_attention": {**x["self_attention"], "attend": shared["attend"]}}
            for x in own["layers"]
        ]
    }
    x = random.normal(random.key(1), (5, 4), **F64)

    def loss(params, remat=False):
        return tinyfn.encoder(params, x, attend=RELATIVE, remat=remat).sin().sum()

    one, many = (torch.func.grad(loss)(params) for params in (shared, each))
    of_layers = [layer["self_attention"]["attend"] for layer in many["layers"]]
    added = tree.map(lambda *parts: sum(parts), *of_layers)
    tree.map(torch.testing.assert_close, one["attend"], added)
    assert torch.equal(loss(shared), loss(each))
    again = torch.func.grad(partial(loss, remat=True))(shared)
    tree.map(torch.testing.assert_close, again, one)


def test_a_token_at_a_time_is_all_at_once():
    params = tinyfn.init_transformer(
        random.key(0), **SIZES, num_encoder_layers=1, num_decoder_layers=2, tgt_vocab_size=7, **F64
    )
    params = with_shared_attend(params, "encoder", "decoder")
    memory = random.normal(random.key(1), (3, 4), **F64)
    output = lambda params, x: tinyfn.linear(params, 3 * x)  # noqa: E731 (short)
    options = {"position": None, "attend": RELATIVE, "output": output}
    testing.check_decoding(params, TOKENS, memory, **options)
    whole = tinyfn.transformer(params, memory, TOKENS, **options)
    plain = tinyfn.transformer(params, memory, TOKENS, **{**options, "output": tinyfn.linear})
    bias = params["linear"]["bias"]
    torch.testing.assert_close(whole - bias, 3 * (plain - bias))
    weights = tinyfn.transformer_attention_weights(params, memory, TOKENS, **options)
    assert [x["self_attention"].shape for x in weights["decoder"]] == [(2, 4, 4)] * 2
    scored = generation.log_probs(params, TOKENS[:1], TOKENS[1:], None, memory, **options)
    of_next = whole.log_softmax(-1)[:-1].gather(-1, TOKENS[1:, None])[:, 0]
    torch.testing.assert_close(scored, of_next)
    told = generation.greedy(params, TOKENS[:1], None, memory, max_len=1, **options).tokens
    assert torch.equal(told, whole[:1].argmax(-1))


def test_a_linear_of_a_bias_only_has_the_tied_matrix():
    sizes = {**SIZES, "num_layers": 1, "vocab_size": 7}
    tied = tinyfn.init_language_model(random.key(0), **sizes, tie_embeddings=True)
    bias = random.normal(random.key(1), (7,))
    logits = tinyfn.language_model({**tied, "linear": {"bias": bias}}, TOKENS)
    torch.testing.assert_close(logits, tinyfn.language_model(tied, TOKENS) + bias)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: positions.init_relative(random.key(0), 1, 2), "num_buckets must be at least 2"),
        (lambda: positions.init_relative(random.key(0), 2, 0), "num_heads must be at least 1"),
        (lambda: RELATIVE(*[torch.ones(2, 3, 4)] * 3), "params must have 'attend', got .*init_rel"),
        (lambda: positions.relative_bias({}, 2, 2), "params must have 'before'"),
        (
            lambda: positions.relative_bias({"before": torch.ones(8, 2)}, 2, 2, max_distance=4),
            "max_distance must be at least 5, got 4",
        ),
        *(
            (
                lambda after=after: positions.relative_bias(
                    {"before": torch.ones(8, 2), "after": torch.ones(after)}, 9, 9
                ),
                r"params must have 'after' of the shape of 'before', \(8, 2\), got shape \(",
            )
            for after in ((4, 2), (9, 2), (8, 1), (8,))
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=f"positions.*: {message}"):
        call()

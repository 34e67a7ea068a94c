"""Caches: a token at a time is all at once, for every scheme of positions and family of models."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

import tinyfn
from cases import LLAMA
from tinyfn import masks, positions, random, testing, tree

TOKENS = torch.tensor([3, 1, 4, 1, 5, 0])
WINDOW = masks.causal() & masks.window(2, None)


def rotary(attend=tinyfn.dot_product_attention, **options):
    return positions.rotary(attend, **options)


def model(*, dtype=torch.float64, num_layers=2, **options):
    params = tinyfn.init_language_model(
        random.key(0), 8, 4, 12, num_layers, vocab_size=6, dtype=dtype, **options
    )
    return tree.map(lambda leaf: 2 * leaf, params)  # far from attending evenly


def learned(max_len):
    return partial(positions.init_learned, max_len=max_len, num_features=8)


def additive_model():
    params = model()
    for number, layer in enumerate(params["decoder"]["layers"]):
        made = tinyfn.init_additive(random.key(number), 2, 3, dtype=torch.float64)
        layer["self_attention"]["attend"] = made
    return params


FAMILIES = {
    "sinusoidal": (lambda: model(), {}),
    "gpt": (
        lambda: model(init_position=learned(6), final_norm=True, tie_embeddings=True),
        {"position": positions.add_learned, "norm_first": True, "activation": F.gelu},
    ),
    "concatenated": (
        lambda: model(embedding_features=5),
        {"position": partial(positions.concatenate_sinusoidal, num_features=3)},
    ),
    "concatenated learned": (
        lambda: model(
            embedding_features=5,
            init_position=partial(positions.init_learned, max_len=6, num_features=3),
        ),
        {"position": positions.concatenate_learned},
    ),
    "llama": (
        lambda: model(
            num_kv_heads=2,
            bias=False,
            final_norm=True,
            init_norm=tinyfn.init_rms_norm,
            init_feed_forward=tinyfn.init_gated_feed_forward,
        ),
        LLAMA,
    ),
    "rotary with offsets": (
        lambda: model(num_kv_heads=1),
        {"position": None, "attend": rotary(offset=3, kv_offset=1)},
    ),
    "rotary in a partial": (
        lambda: model(),
        {"position": None, "attend": partial(rotary(), scale=0.9)},
    ),
    "alibi": (
        lambda: model(),
        {"position": None, "attend": positions.alibi(tinyfn.dot_product_attention)},
    ),
    "rotary and alibi": (
        lambda: model(num_kv_heads=2),
        {"position": None, "attend": rotary(positions.alibi(tinyfn.explicit_attention))},
    ),
    "additive": (additive_model, {"attend": tinyfn.additive_attention}),
    "rotary of additive": (
        additive_model,
        {"position": None, "attend": rotary(tinyfn.additive_attention)},
    ),
    "one layer": (lambda: model(num_layers=1), {"position": None}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_at_a_time_is_all_at_once(name):
    make, options = FAMILIES[name]
    testing.check_decoding(make(), TOKENS, **options)


@pytest.mark.parametrize("name", ["sinusoidal", "llama", "alibi", "rotary with offsets"])
@pytest.mark.parametrize("capacity", [3, 4, 6])
def test_a_window_needs_no_more_than_itself(name, capacity):
    make, options = FAMILIES[name]
    testing.check_decoding(make(), TOKENS, None, WINDOW, capacity=capacity, **options)


def test_single_precision_agrees_too():
    testing.check_decoding(model(dtype=torch.float32, num_kv_heads=2), TOKENS, attend=rotary())


@pytest.mark.parametrize(
    ("mask", "capacity"),
    [
        (masks.window(3, 0), 4),
        (masks.causal() & ~masks.window(1, -1), 6),
        (masks.causal() & ~masks.prefix(1), 6),
        (masks.causal() & (masks.window(1, None) | masks.prefix(1)), 6),
    ],
    ids=str,
)
def test_other_masks(mask, capacity):
    testing.check_decoding(model(), TOKENS, None, mask, capacity=capacity)


def test_a_key_that_nobody_sees_cannot_matter():
    params = {"decoder": tinyfn.init_decoder(random.key(0), 8, 2, 12, 1, cross_attention=False)}
    x = random.normal(random.key(1), (3, 8))
    x[0] = torch.nan
    mask = masks.causal() & ~masks.prefix(1)
    _, cache = tinyfn.prefill(params, tinyfn.init_cache(params, capacity=3), x[:2], None, mask)
    logits, _ = tinyfn.decode_step(params, cache, x[2], mask)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cross_attend": rotary()},
        {"attend": rotary(), "cross_attend": positions.alibi(tinyfn.dot_product_attention)},
        {"cross_mask": masks.padding(3)},
        {"cross_mask": masks.causal()},
        {"cross_mask": torch.tensor([[True, False, True, False]])},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("shared", [False, True])
def test_an_encoder_decoder_too(options, shared):
    params = tinyfn.init_transformer(
        random.key(1),
        8,
        4,
        12,
        1,
        2,
        src_vocab_size=6,
        tgt_vocab_size=6,
        share_embeddings=shared,
        tie_embeddings=shared,
        num_kv_heads=2,
        dtype=torch.float64,
    )
    memory = random.normal(random.key(2), (4, 8), dtype=torch.float64)
    testing.check_decoding(params, TOKENS, memory, **options)


def test_features_instead_of_tokens():
    params = {"decoder": tinyfn.init_decoder(random.key(0), 8, 2, 12, 2, cross_attention=False)}
    x = random.normal(random.key(1), (5, 8))
    expected = tinyfn.decoder(params["decoder"], x, position=positions.add_sinusoidal)
    _, cache = tinyfn.prefill(params, tinyfn.init_cache(params, capacity=5), x[:4])
    logits, _ = tinyfn.decode_step(params, cache, x[4])
    torch.testing.assert_close(logits, expected[-1])


def test_a_position_that_cannot_be_seen_breaks_the_law():
    hidden = rotary()
    with pytest.raises(AssertionError, match="check_decoding"):
        testing.check_decoding(model(), TOKENS, attend=lambda *a, **o: hidden(*a, **o))


def test_the_model_is_the_decoder_and_a_linear_map():
    params = model()
    x = tinyfn.decoder(params["decoder"], TOKENS, position=positions.add_sinusoidal)
    assert torch.equal(tinyfn.language_model(params, TOKENS), tinyfn.linear(params["linear"], x))


def filled(params, capacity=4, tokens=3, **options):
    cache = tinyfn.init_cache(params, capacity=capacity)
    return tinyfn.prefill(params, cache, TOKENS[:tokens], **options)[1]


def test_a_full_cache_says_so():
    params = model()
    logits, cache = tinyfn.decode_step(params, filled(params), TOKENS[3])
    assert logits.isfinite().all()
    for _ in range(2):
        logits, cache = tinyfn.decode_step(params, cache, TOKENS[3])
        assert logits.isnan().all()
    rows = tinyfn.init_cache(params, capacity=4, batch=(2,))
    prompts = TOKENS[:6].expand(2, 6)
    logits, _ = tinyfn.prefill(params, rows, prompts, torch.tensor([4, 5]))
    assert logits.isnan().all(-1).tolist() == [False, True]


def test_a_row_of_no_tokens_says_so():
    params = model()
    rows = tinyfn.init_cache(params, capacity=4, batch=(2,))
    logits, cache = tinyfn.prefill(params, rows, TOKENS[:2].expand(2, 2), torch.tensor([0, 2]))
    assert logits.isnan().all(-1).tolist() == [True, False]
    logits, _ = tinyfn.decode_step(params, cache, TOKENS[[0, 2]])
    expected = tinyfn.language_model(params, TOKENS[:3])
    torch.testing.assert_close(logits, expected[[0, 2]])


@pytest.mark.parametrize("mask", [masks.causal(), WINDOW])
def test_lengths_that_make_no_sense_say_so_for_ever(mask):
    params = model()
    rows = tinyfn.init_cache(params, capacity=9, batch=(4,))
    lengths = torch.tensor([2, 3, -1, 1])
    logits, cache = tinyfn.prefill(params, rows, TOKENS[:2].expand(4, 2), lengths, mask)
    assert logits.isnan().all(-1).tolist() == [False, True, True, False]
    logits, _ = tinyfn.decode_step(params, cache, TOKENS[:4], mask)
    assert logits.isnan().all(-1).tolist() == [False, True, True, False]


def test_remat_has_nothing_to_do():
    params = model()
    cache = tinyfn.init_cache(params, capacity=4)
    logits, _ = tinyfn.prefill(params, cache, TOKENS[:3], remat=True)
    torch.testing.assert_close(logits, tinyfn.language_model(params, TOKENS[:3], remat=True)[-1])


def test_autocast_fuses_as_without_a_cache():
    params = model(dtype=torch.float32)
    options = {"attend": tinyfn.fused_attention}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = tinyfn.language_model(params, TOKENS[:4], **options)[-1]
        cache = tinyfn.init_cache(params, capacity=4)
        _, cache = tinyfn.prefill(params, cache, TOKENS[:2], **options)
        for token in TOKENS[2:4]:
            logits, cache = tinyfn.decode_step(params, cache, token, **options)
    torch.testing.assert_close(logits.float(), expected.float(), atol=0.1, rtol=0.1)


def test_learned_positions_end_in_nan_and_hide_their_padding():
    params = model(init_position=learned(4))
    options = {"position": positions.add_learned}
    rows = tinyfn.init_cache(params, capacity=6, batch=(2,))
    _, cache = tinyfn.prefill(
        params, rows, TOKENS[:4].expand(2, 4), torch.tensor([4, 2]), **options
    )
    after, cache = tinyfn.prefill(
        params, cache, TOKENS[torch.tensor([[4, 4], [2, 4]])], torch.tensor([1, 1]), **options
    )
    assert after.isnan().all(-1).tolist() == [True, False]
    expected = tinyfn.language_model(params, TOKENS[:3], **options)[-1]
    torch.testing.assert_close(after[1], expected)


def test_arguments_are_left_alone():
    params = model()
    cache = filled(params)
    testing.check_pure(lambda c, t: tinyfn.decode_step(params, c, t), cache, TOKENS[3])
    testing.check_pure(
        lambda c, t: tinyfn.prefill(params, c, t), tinyfn.init_cache(params, capacity=4), TOKENS[:3]
    )


def test_beams_and_ensembles_are_mapped():
    params = model(num_kv_heads=2)
    cache = filled(params)
    following = torch.tensor([0, 5, 2])
    step = torch.vmap(tinyfn.decode_step, in_dims=(None, None, 0))
    logits, caches = step(params, cache, following)
    again, _ = torch.vmap(tinyfn.decode_step, in_dims=(None, 0, 0))(params, caches, following)
    for row, token in enumerate(following):
        one, kept = tinyfn.decode_step(params, cache, token)
        torch.testing.assert_close(logits[row], one)
        two, _ = tinyfn.decode_step(params, kept, token)
        torch.testing.assert_close(again[row], two.expand_as(again[row]), equal_nan=True)
    many = tree.stack([params, tree.map(lambda leaf: 0.5 * leaf, params)])
    caches = torch.vmap(lambda p: filled(p))(many)
    logits, _ = torch.vmap(tinyfn.decode_step, in_dims=(0, 0, None))(many, caches, TOKENS[3])
    one, _ = tinyfn.decode_step(params, cache, TOKENS[3])
    torch.testing.assert_close(logits[0], one)


def test_a_gradient_passes_through_the_cache():
    params = model()

    def cached(params):
        cache = tinyfn.init_cache(params, capacity=4)
        logits, cache = tinyfn.prefill(params, cache, TOKENS[:2])
        total = logits.sin().sum()
        for token in TOKENS[2:4]:
            logits, cache = tinyfn.decode_step(params, cache, token)
            total = total + logits.sin().sum()
        return total

    def whole(params):
        return tinyfn.language_model(params, TOKENS[:4])[1:].sin().sum()

    actual, expected = torch.func.grad(cached)(params), torch.func.grad(whole)(params)
    for a, b in zip(tree.leaves(actual), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_hidden_in_memory_leaks():
    params = tinyfn.init_transformer(random.key(1), 8, 2, 12, 1, 1, tgt_vocab_size=6)
    memory = random.normal(random.key(2), (2, 4, 8))
    mask = masks.padding(torch.tensor([2, 4]))

    def loss(params, memory):
        cache = tinyfn.init_cache(params, memory, mask, capacity=3)
        logits, _ = tinyfn.decode_step(params, cache, torch.tensor([1, 2]), cross_mask=mask)
        return logits.square().sum()

    spoiled = memory.clone()
    spoiled[0, 2:] = torch.nan
    expected = torch.func.grad(loss)(params, memory)
    actual = torch.func.grad(loss)(params, spoiled)
    for a, b in zip(tree.leaves(actual), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


COMPILED = """
import torch, tinyfn
from tinyfn import masks, positions, random

params = tinyfn.init_language_model(random.key(0), 8, 2, 12, 2, vocab_size=6, num_kv_heads=1)
options = {"position": None, "attend": positions.rotary(tinyfn.dot_product_attention)}
tokens = torch.tensor([[3, 1, 4, 1, 5, 0], [1, 1, 2, 3, 5, 0]])
expected = tinyfn.language_model(params, tokens, **options)
graphs = []

def count(graph, inputs):
    graphs.append(graph)
    return graph.forward

step = torch.compile(
    lambda params, cache, token: tinyfn.decode_step(params, cache, token, **options),
    fullgraph=True,
    backend=count,
    dynamic=False,
)
cache = tinyfn.init_cache(params, capacity=6, batch=(2,))
for at in range(6):
    logits, cache = step(params, cache, tokens[:, at])
    torch.testing.assert_close(logits, expected[:, at])
print(len(graphs))
"""


def test_compiled_steps_share_one_graph(fresh_python):
    assert fresh_python("-c", COMPILED).split() == ["1"]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda p: tinyfn.language_model({"encoder": {}, **p}, TOKENS),
            ValueError,
            r"language_model: params must have no encoder, got 'encoder'\. Call transformer",
        ),
        (
            lambda p: tinyfn.init_cache(p, capacity=0),
            ValueError,
            r"init_cache: capacity must be at least 1, got 0\. ",
        ),
        (
            lambda p: tinyfn.init_cache({"layers": []}, capacity=1),
            ValueError,
            r"init_cache: params must have 'decoder', got \['layers'\]\. Make params with init_l",
        ),
        (
            lambda p: tinyfn.prefill(p, tinyfn.init_cache(p, capacity=2), TOKENS),
            ValueError,
            r"prefill: tokens must be within the capacity, 2, got 6\. Give init_cache a larger",
        ),
        (
            lambda p: tinyfn.prefill(p, tinyfn.init_cache(p, capacity=2), TOKENS[:0]),
            ValueError,
            r"prefill: the length of tokens must be at least 1, got 0\. ",
        ),
        (
            lambda p: tinyfn.prefill(p, tinyfn.init_cache(p, capacity=9, batch=(2,)), TOKENS),
            ValueError,
            r"prefill: tokens must have the leading axes of the cache, \(2,\), got \(\)\. ",
        ),
        (
            lambda p: tinyfn.prefill(
                p, tinyfn.init_cache(p, capacity=9), TOKENS, torch.tensor([1])
            ),
            ValueError,
            r"prefill: lengths must have one number for each example, \(\), got shape \(1,\)\. ",
        ),
        (
            lambda p: tinyfn.decode_step(p, tinyfn.init_cache(p, capacity=9), 3),
            TypeError,
            r"decode_step: token must be a tensor, got int 3\. Make one with torch\.tensor\.",
        ),
        (
            lambda p: tinyfn.decode_step(
                p, tinyfn.init_cache(p, capacity=9), TOKENS[0], masks.full()
            ),
            ValueError,
            r"decode_step: self_mask must hide what comes later, .*, got full\(\)\. Combine it",
        ),
        (
            lambda p: tinyfn.decode_step(
                p, tinyfn.init_cache(p, capacity=9), TOKENS[0], torch.ones(1, 9).bool()
            ),
            TypeError,
            r"decode_step: self_mask must be a mask of tinyfn\.masks, .* got a bool tensor\. ",
        ),
        (
            lambda p: tinyfn.decode_step(
                p,
                tinyfn.init_cache(p, capacity=9),
                TOKENS[0],
                masks.causal() & masks.dense(torch.ones(1, 9).bool()),
            ),
            TypeError,
            r"decode_step: self_mask must be a mask of tinyfn\.masks, .* got causal\(offset=0\) & ",
        ),
        (
            lambda p: tinyfn.prefill(
                p, tinyfn.init_cache(p, capacity=9), TOKENS, None, masks.causal() | masks.prefix(3)
            ),
            ValueError,
            r"prefill: self_mask must hide what comes later, .* got .*prefix\(n=3\)\. Combine it",
        ),
        (
            lambda p: tinyfn.decode_step(p, tinyfn.init_cache(p, capacity=9, batch=(2,)), TOKENS),
            ValueError,
            r"decode_step: token must have the leading axes of the cache, \(2,\), got \(6,\)\. ",
        ),
        (
            lambda p: tinyfn.decode_step(
                p, tinyfn.init_cache(model(num_layers=1), capacity=9), TOKENS[0]
            ),
            ValueError,
            r"decode_step: cache must have keys for each of 2 layers, got 1\. Make it with init_c",
        ),
        (
            lambda p: tinyfn.decode_step(
                p, tinyfn.init_cache(model(num_kv_heads=2), capacity=9), TOKENS[0]
            ),
            ValueError,
            r"decode_step: cache must have \(kv_heads, head_dim\) = \(4, 2\), got \(2, 2\)\. Make",
        ),
        (
            lambda p: tinyfn.decode_step(p, tinyfn.init_cache(p, capacity=9), torch.tensor(1.0)),
            ValueError,
            r"decode_step: token must have shape \(\.\.\., features\), got shape \(\)\. ",
        ),
        (
            lambda p: tinyfn.init_cache(p, capacity=9, batch=3),
            TypeError,
            r"init_cache: batch must be a tuple of sizes, got int 3\. Write \(3,\) for one axis",
        ),
        (
            lambda p: tinyfn.init_language_model(
                random.key(0), 8, 2, 9, 1, 6, tie_embeddings=True, embedding_features=5
            ),
            ValueError,
            r"init_language_model: embedding_features must be num_features=8 .*, got 5\. ",
        ),
        (
            lambda p: tinyfn.language_model(p["decoder"], TOKENS),
            ValueError,
            r"language_model: params must have 'decoder', got \['embedding', 'layers'\]\. ",
        ),
    ],
)
def test_errors(unchecked, call, error, match):
    with pytest.raises(error, match=match):
        call(model())


def test_a_cross_mask_that_knows_other_queries_is_refused(unchecked):
    params = tinyfn.init_transformer(random.key(1), 8, 2, 12, 1, 1, tgt_vocab_size=6)
    memory = random.normal(random.key(2), (4, 8))
    mask = torch.ones(5, 4, dtype=torch.bool)
    cache = tinyfn.init_cache(params, memory, capacity=5)
    match = r"decode_step: cross_mask must say the same for every query, .*, got shape \(5, 4\)\. "
    with pytest.raises(ValueError, match=match):
        tinyfn.decode_step(params, cache, TOKENS[0], cross_mask=mask)
    with pytest.raises(ValueError, match=r"masks\.dense: tensor must have shape"):
        tinyfn.decode_step(params, cache, TOKENS[0], cross_mask=masks.dense(mask))

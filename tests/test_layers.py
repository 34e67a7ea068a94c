import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import reference
import tinyfn
from tinyfn import _dropout, masks, positions, random, testing

F64 = torch.float64
PARTS = {
    "paper": ({}, {}),
    "pre-norm": ({"norm_first": True}, {"norm_first": True}),
    "rms_norm and gelu": (
        {"norm": tinyfn.rms_norm, "activation": F.gelu},
        {"norm": reference.rms_norm, "activation": reference.gelu},
    ),
    "gated": (
        {"feed_forward": tinyfn.gated_feed_forward, "activation": F.silu},
        {"feed_forward": reference.gated_feed_forward, "activation": reference.silu},
    ),
    "rotary": (
        {"attend": positions.rotary(tinyfn.dot_product_attention)},
        {"attend": reference.rotary(reference.dot_product_attention)},
    ),
    "alibi": (
        {"attend": positions.alibi(tinyfn.dot_product_attention)},
        {"attend": reference.alibi(reference.dot_product_attention)},
    ),
}


def inits(name):
    if name == "rms_norm and gelu":
        return {"init_norm": tinyfn.init_rms_norm}
    return {"init_feed_forward": tinyfn.init_gated_feed_forward} if name == "gated" else {}


def x_of(*shape, seed=0):
    return random.normal(random.key(seed), shape, dtype=F64)


def close(actual, expected):
    expected = torch.tensor(expected, dtype=F64)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PARTS)
@given(st.data(), st.integers(1, 4), st.booleans())
def test_encoder_layer_agrees_with_the_reference(name, data, seq, bias):
    options, reference_options = PARTS[name]
    params = data.draw(testing.params(tinyfn.init_encoder_layer, 4, 2, 3, bias=bias, **inits(name)))
    x = x_of(seq, 4, seed=seq)
    mask = masks.padding(max(seq - 1, 1))
    expected = reference.encoder_layer(
        *map(reference.plain, (params, x)),
        reference.padding(seq, seq, max(seq - 1, 1)),
        **reference_options,
    )
    close(tinyfn.encoder_layer(params, x, mask, **options), expected)


@pytest.mark.parametrize("name", PARTS)
@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_decoder_layer_agrees_with_the_reference(name, data, seq, memory_seq):
    options, reference_options = PARTS[name]
    params = data.draw(testing.params(tinyfn.init_decoder_layer, 4, 2, 3, **inits(name)))
    x, memory = x_of(seq, 4, seed=seq), x_of(memory_seq, 4, seed=memory_seq + 9)
    expected = reference.decoder_layer(
        *map(reference.plain, (params, x, memory)), **reference_options
    )
    close(tinyfn.decoder_layer(params, x, memory, **options), expected)


def test_without_memory_a_decoder_layer_skips_it():
    params = tinyfn.init_decoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    x = x_of(3, 4)
    close(
        tinyfn.decoder_layer(params, x),
        reference.decoder_layer(*map(reference.plain, (params, x))),
    )
    torch.testing.assert_close(
        tinyfn.decoder_layer(params, x), tinyfn.encoder_layer(params, x, masks.causal())
    )


def test_queries_are_the_target_and_keys_the_memory():
    params = tinyfn.init_decoder_layer(random.key(0), 4, 2, 3, memory_features=6, dtype=F64)
    assert tinyfn.decoder_layer(params, x_of(2, 4), x_of(5, 6)).shape == (2, 4)
    testing.check_permutation_invariant(
        lambda memory: tinyfn.decoder_layer(params, x_of(2, 4), memory), x_of(5, 6)
    )


def test_an_encoder_layer_knows_no_order():
    params = tinyfn.init_encoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    testing.check_permutation_equivariant(lambda x: tinyfn.encoder_layer(params, x), x_of(4, 4))


def test_a_decoder_layer_is_causal_by_default():
    params = tinyfn.init_decoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    memory = x_of(3, 4, seed=1)
    testing.check_causal(lambda x: tinyfn.decoder_layer(params, x, memory), x_of(4, 4))


def test_masked_memory_cannot_matter():
    params = tinyfn.init_decoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    testing.check_masked_values_cannot_matter(
        lambda memory, params, x: tinyfn.decoder_layer(
            params, x, memory, masks.causal(), masks.padding(2), activation=F.gelu
        ),
        x_of(3, 4, seed=1),
        torch.tensor([False, False, True]),
        params,
        x_of(2, 4),
    )


@pytest.mark.parametrize("layer", ["encoder_layer", "decoder_layer"])
def test_dropout_is_a_function_of_the_key(layer):
    f = getattr(tinyfn, layer)
    params = getattr(tinyfn, f"init_{layer}")(random.key(0), 4, 2, 3, dtype=F64)
    x, keys = x_of(3, 4), random.split(random.key(1), 3)

    def dropped(key, p=0.5):
        arguments = (params, x) if layer == "encoder_layer" else (params, x, x)
        return f(*arguments, key=key, dropout_p=p)

    torch.testing.assert_close(torch.vmap(dropped)(keys)[1], dropped(keys[1]))
    assert torch.equal(dropped(keys[0]), dropped(keys[0]))
    assert not torch.allclose(dropped(keys[0]), dropped(keys[1]))
    assert torch.equal(dropped(None), dropped(keys[0], 0.0))


def foreign(f):
    """The same function, of which a layer does not know what it draws, and so gives it a key."""

    def called(*args, **options):
        assert not any(isinstance(x, _dropout.Drawn) for x in args)
        return f(*args, **options)

    return called


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 1, 5, 4)])
@pytest.mark.parametrize("part", ["none", "attend", "feed_forward", "cross_attend", "memory"])
def test_a_layer_that_draws_at_once_drops_what_its_parts_would(part, shape, dtype, monkeypatch):
    params = tinyfn.init_decoder_layer(random.key(0), 4, 2, 3, dtype=dtype)
    x, memory = x_of(*shape).to(dtype), x_of(*shape[:-2], 6, 4).to(dtype)
    given = (x, None if part == "memory" else memory)
    options = {"key": random.key(1), "dropout_p": 0.3, "feed_forward": tinyfn.feed_forward}
    options |= dict.fromkeys(("attend", "cross_attend"), tinyfn.dot_product_attention)
    if part in options:
        options[part] = foreign(options[part])
    asked = []
    bits_of_split = random.bits_of_split

    def noted(key, sizes):
        asked.append(bits_of_split(key, sizes))
        return asked[-1]

    monkeypatch.setattr(random, "bits_of_split", noted)
    at_once = tinyfn.decoder_layer(params, *given, **options)
    assert len(asked) == 1
    assert asked[0] is not None
    monkeypatch.setattr(random, "bits_of_split", lambda key, sizes: None)
    assert torch.equal(at_once, tinyfn.decoder_layer(params, *given, **options))
    assert not torch.equal(at_once, tinyfn.decoder_layer(params, *given))


@pytest.mark.usefixtures("unchecked")
def test_what_is_drawn_at_once_is_for_the_tensors_that_it_was_drawn_for():
    x, key = torch.ones(5, 4), random.key(0)
    drawn, last = _dropout.keys_or_drawn(
        key, 2, lambda: [(1, x.shape), (2, x.shape)], x, dropout_p=0.3
    )
    first, second = random.split(key)
    for shape, p in (((5, 4), 0.3), ((4, 5), 0.3), ((5, 4), 0.6), ((5, 4), 2**-9)):
        y = torch.ones(shape)
        expected = tinyfn.dropout(y, first, dropout_p=p)
        assert torch.equal(tinyfn.dropout(y, drawn, dropout_p=p), expected)
    for num in (1, 2, 3):
        both = _dropout.dropouts(last, num, x, dropout_p=0.3)
        alone = _dropout.dropouts(second, num, x, dropout_p=0.3)
        for a, b in zip(both, alone, strict=True):
            assert torch.equal(a(x), b(x))


def test_a_large_layer_draws_for_each_part():
    key = random.key(0)
    assert random.bits_of_split(key, [2**17, [2**17]]) is not None
    assert random.bits_of_split(key, [2**17, [2**17 + 1]]) is None
    assert torch.vmap(lambda k: torch.zeros(()) + (random.bits_of_split(k, [1]) is None))(key[None])


def test_each_place_of_dropout_has_a_draw_of_its_own(monkeypatch):
    seen = []

    def note(dropout_p, drawn, x):
        assert drawn.shape == x.shape
        seen.append(tuple(drawn.flatten()[:9].tolist()))
        return x

    monkeypatch.setattr(_dropout, "_dropped", note)
    params = tinyfn.init_decoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    options = {"key": random.key(1), "dropout_p": 0.5}
    tinyfn.decoder_layer(params, x_of(3, 4), x_of(3, 4), **options)
    assert len(seen) == len(set(seen)) == 6
    seen.clear()
    tinyfn.encoder_layer(params, x_of(3, 4), **options)
    assert len(seen) == len(set(seen)) == 4


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("layer", "change", "kind", "message"),
    [
        ("encoder_layer", {"x": torch.zeros(3, 5)}, ValueError, "attention: q must have shape"),
        ("encoder_layer", {"mask": torch.zeros(3, 3)}, TypeError, "attention: mask must be"),
        ("encoder_layer", {"params": {}}, ValueError, "encoder_layer: params must have 'self_att"),
        (
            "decoder_layer",
            {"memory": torch.zeros(3, 5)},
            ValueError,
            "attention: k must have shape",
        ),
        (
            "decoder_layer",
            {"params": tinyfn.init_encoder_layer(random.key(0), 4, 2, 3)},
            ValueError,
            "decoder_layer: params must have 'cross_attention'.*init_decoder_layer",
        ),
    ],
)
def test_what_does_not_fit_is_refused(layer, change, kind, message):
    params = getattr(tinyfn, f"init_{layer}")(random.key(0), 4, 2, 3)
    arguments = {"params": params, "x": torch.zeros(3, 4)}
    if layer == "decoder_layer":
        arguments["memory"] = torch.zeros(2, 4)
    with pytest.raises(kind, match=f"^{message}"):
        getattr(tinyfn, layer)(**arguments | change)

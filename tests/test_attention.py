import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
import tinyfn
from tinyfn import _attend, masks, positions, random, testing

F64 = torch.float64


def dense_mask(mask, lead, heads, q_seq, kv_seq):
    """The mask of every example and head, whatever form it came in."""
    if mask is None:
        return torch.ones(*lead, heads, q_seq, kv_seq, dtype=torch.bool)
    if isinstance(mask, masks.Mask):
        mask = mask.dense(q_seq, kv_seq)
        mask = mask.unsqueeze(-3) if mask.ndim > 2 else mask
    return mask.expand(*lead, heads, q_seq, kv_seq)


def heads_of(num_heads, kv_heads=None, q_seq=3, kv_seq=4, head_dim=2):
    kv_heads = kv_heads or num_heads
    keys = random.split(random.key(1), 3)
    shapes = [(num_heads, q_seq, head_dim)] + 2 * [(kv_heads, kv_seq, head_dim)]
    return [random.normal(k, s, dtype=F64) for k, s in zip(keys, shapes, strict=True)]


@given(testing.attention_inputs())
def test_dot_product_attention_agrees_with_the_reference(inputs):
    q, k, v, mask, bias = inputs
    actual = tinyfn.dot_product_attention(q, k, v, mask, None, bias)
    *lead, heads, q_seq, _ = q.shape
    full = dense_mask(mask, lead, heads, q_seq, k.shape[-2])
    for at in itertools.product(*map(range, lead)):
        # the oracle has one mask for all heads: ask it head by head
        for head in range(heads):
            group = heads // k.shape[-3]
            kv = slice(head // group, head // group + 1)
            whole = torch.zeros(1) if bias is None else bias
            own_bias = whole.expand(*lead, heads, q_seq, k.shape[-2])[at][head : head + 1]
            expected = reference.dot_product_attention(
                *(reference.plain(x) for x in (q[at][head : head + 1], k[at][kv], v[at][kv])),
                reference.plain(full[at][head]),
                reference.plain(own_bias),
            )
            torch.testing.assert_close(
                actual[at][head], torch.tensor(expected[0], dtype=F64), rtol=1e-10, atol=1e-12
            )


@given(testing.attention_inputs(max_leading=1))
def test_weights_sum_to_one_or_to_zero_where_nothing_is_visible(inputs):
    q, k, _, mask, bias = inputs
    weights = tinyfn.attend_weights(tinyfn.dot_product_attention, q, k, mask, bias)
    *lead, heads, q_seq, _ = q.shape
    visible = dense_mask(mask, lead, heads, q_seq, k.shape[-2])
    assert (weights[~visible] == 0).all()
    torch.testing.assert_close(weights.sum(-1), visible.any(-1).to(F64))


@given(
    testing.params(tinyfn.init_attention, 4, 2, num_kv_heads=st.sampled_from([1, 2])),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
)
def test_attention_agrees_with_the_reference(params, q_seq, kv_seq, causal):
    q = random.normal(random.key(q_seq), (q_seq, 4), dtype=F64)
    k = random.normal(random.key(kv_seq + 9), (kv_seq, 4), dtype=F64)
    mask = masks.causal() if causal else None
    expected = reference.attention(
        *map(reference.plain, (params, q, k, k)),
        reference.causal(q_seq, kv_seq) if causal else None,
    )
    actual = tinyfn.attention(params, q, k, k, mask)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=F64), rtol=1e-10, atol=1e-12)


def test_additive_attention_agrees_with_the_reference():
    q, k, v = heads_of(2)
    params = tinyfn.init_additive(random.key(2), 2, 3, dtype=F64)
    expected = reference.additive_attention(*map(reference.plain, (params, q, k, v)))
    actual = tinyfn.additive_attention(params, q, k, v)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=F64))


def test_the_similarity_is_a_function_that_is_passed():
    q, k, v = heads_of(2)
    plain = tinyfn.similarity_attention(tinyfn.dot_product, q, k, v)
    torch.testing.assert_close(plain, tinyfn.dot_product_attention(q, k, v, scale=1.0))
    assert not torch.allclose(plain, tinyfn.dot_product_attention(q, k, v))


def test_an_attend_with_params_gets_those_of_its_layer():
    params = tinyfn.init_attention(random.key(0), 4, 2, dtype=F64)
    params["attend"] = tinyfn.init_additive(random.key(1), 2, 3, dtype=F64)
    x = random.normal(random.key(2), (3, 4), dtype=F64)
    out = tinyfn.attention(params, x, x, x, attend=tinyfn.additive_attention)
    expected = reference.attention(
        *map(reference.plain, (params, x, x, x)), attend=reference.additive_attention
    )
    torch.testing.assert_close(out, torch.tensor(expected, dtype=F64))
    weights = tinyfn.attention_weights(params, x, x, attend=tinyfn.additive_attention)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, dtype=F64))


def test_queries_and_keys_pass_through_norms_that_the_params_have():
    params = tinyfn.init_attention(random.key(0), 6, 2, num_kv_heads=1, dtype=F64)
    x, seen = random.normal(random.key(1), (4, 6), dtype=F64), []

    def attend(*args, **options):
        seen.append(args[:3])
        return tinyfn.dot_product_attention(*args, **options)

    norms = {
        "q_norm": {"weight": random.normal(random.key(2), (3,), dtype=F64)},
        "k_norm": {"weight": random.normal(random.key(3), (3,), dtype=F64)},
    }
    for given_ in (params, params | norms):
        tinyfn.attention(given_, x, x, x, attend=attend)
    (q, k, v), normed = seen
    expected = (tinyfn.rms_norm(norms["q_norm"], q), tinyfn.rms_norm(norms["k_norm"], k), v)
    for actual, heads in zip(normed, expected, strict=True):
        torch.testing.assert_close(actual, heads, rtol=1e-12, atol=0)


def test_grouped_heads_are_repeated_heads():
    q, k, v = heads_of(4, kv_heads=2)
    repeated = [x.repeat_interleave(2, dim=0) for x in (k, v)]
    mask = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    torch.testing.assert_close(
        tinyfn.dot_product_attention(q, k, v, mask),
        tinyfn.dot_product_attention(q, *repeated, mask),
    )


def test_permuting_keys_with_values_changes_nothing():
    q, k, v = heads_of(2)
    testing.check_permutation_invariant(
        lambda kv: tinyfn.dot_product_attention(q, *kv), (k, v), dim=-2
    )


def test_weights_times_values_are_the_output():
    params = tinyfn.init_attention(random.key(0), 4, 2, dtype=F64)
    x = random.normal(random.key(2), (3, 4), dtype=F64)
    for attend in (
        tinyfn.dot_product_attention,
        positions.rotary(tinyfn.dot_product_attention),
        positions.alibi(tinyfn.dot_product_attention),
        partial(tinyfn.similarity_attention, tinyfn.dot_product),
    ):
        weights = tinyfn.attention_weights(params, x, x, masks.causal(), attend=attend)
        v = torch.einsum("hdf,sf->hsd", params["v_proj"]["weight"], x)
        v = v + params["v_proj"]["bias"].unsqueeze(1)
        merged = torch.einsum("hqs,hsd,fhd->qf", weights, v, params["out_proj"]["weight"])
        out = tinyfn.attention(params, x, x, x, masks.causal(), attend=attend)
        torch.testing.assert_close(merged + params["out_proj"]["bias"], out)


HIDDEN = torch.tensor([False, True, False, True])


@pytest.mark.parametrize(
    "mask",
    [
        ~HIDDEN.expand(3, 4),
        masks.dense((~HIDDEN).expand(3, 4)),
        masks.dense((~HIDDEN).expand(3, 4)) & masks.causal(),
        (~HIDDEN).expand(4, 3, 4) & torch.tensor([True, False, True]).unsqueeze(-1),
    ],
    ids=["plain", "value", "with causal", "with a row that sees nothing"],
)
def test_masked_keys_and_values_cannot_matter(mask):
    q, k, v = heads_of(4, kv_heads=2)
    bias = random.normal(random.key(8), (4, 3, 4), dtype=F64)
    testing.check_masked_values_cannot_matter(
        lambda kv, q, bias: tinyfn.dot_product_attention(q, *kv, mask, None, bias),
        (k, v),
        HIDDEN,
        q,
        bias,
    )


def test_masked_memory_cannot_matter_to_the_params_either():
    params = tinyfn.init_attention(random.key(0), 4, 2, dtype=F64)
    q, memory = (random.normal(random.key(i), (n, 4), dtype=F64) for i, n in ((1, 3), (2, 4)))
    testing.check_masked_values_cannot_matter(
        lambda memory, params, q: tinyfn.attention(
            params, q, memory, memory, masks.padding(torch.tensor(2))
        ),
        memory,
        torch.tensor([False, False, True, True]),
        params,
        q,
    )


def test_a_mask_never_leaks_whatever_the_scores():
    q, k, v = heads_of(2)
    for low in (-torch.inf, torch.finfo(F64).min, -1e300):
        bias = torch.full((3, 4), low, dtype=F64)
        changed = v.clone()
        changed[:, 1:] += 1e6
        mask = masks.causal()  # later queries see what the first must not, so it is not zeroed
        first, other = (
            tinyfn.dot_product_attention(q, k, x, mask, None, bias)[:, 0] for x in (v, changed)
        )
        assert first.isfinite().all()
        assert torch.equal(first, other)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_a_mask_of_few_axes_broadcasts(shape):
    params = tinyfn.init_attention(random.key(0), 4, 2)
    x = random.normal(random.key(1), (3, 4))
    mask = torch.ones(shape, dtype=torch.bool)
    if shape == (3,):
        mask[1] = False
    full = mask.expand(2, 3, 3)
    assert torch.equal(
        tinyfn.attention(params, x, x, x, mask), tinyfn.attention(params, x, x, x, full)
    )
    assert torch.equal(
        tinyfn.attention_weights(params, x, x, mask), tinyfn.attention_weights(params, x, x, full)
    )


def test_an_empty_sequence_reads_zeros():
    q, k, v = heads_of(2)
    out = tinyfn.dot_product_attention(q, k[:, :0], v[:, :0])
    assert torch.equal(out, torch.zeros_like(q))
    assert tinyfn.dot_product_attention(q[:, :0], k, v, masks.causal()).shape == (2, 0, 2)


def test_dropout_needs_a_key_and_keeps_the_mean():
    q, k, v = heads_of(2)
    plain = tinyfn.dot_product_attention(q, k, v)
    assert torch.equal(plain, tinyfn.dot_product_attention(q, k, v, dropout_p=0.5))
    draws = torch.vmap(lambda key: tinyfn.dot_product_attention(q, k, v, None, key, dropout_p=0.5))(
        random.split(random.key(0), 4000)
    )
    torch.testing.assert_close(draws.mean(0), plain, rtol=0, atol=0.06)
    assert draws.std(0).min() > 0.01


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"mask": torch.zeros(3, 4)}, TypeError, "mask must be .*bool.* got a float32 tensor"),
        ({"mask": [[True]]}, TypeError, "mask must be .*got list.*pass additive values as bias"),
        ({"mask": torch.ones(4, 3).bool()}, ValueError, r"mask must broadcast to .*\(2, 3, 4\)"),
        ({"mask": torch.ones(5, 1, 3, 4).bool()}, ValueError, "mask must broadcast to"),
        ({"mask": masks.dense(torch.ones(9, 9).bool())}, ValueError, "tensor must have shape"),
        ({"bias": torch.zeros(3, 5)}, ValueError, "bias must broadcast to"),
        ({"bias": torch.zeros(3, 4).bool()}, TypeError, "bias must be a floating tensor"),
        ({"q": torch.zeros(2, 3, 9, dtype=F64)}, ValueError, r"q, k and v must be \(\.\.\., heads"),
        ({"q": torch.zeros(3, 2, dtype=F64)}, ValueError, r"q must have shape \(\.\.\., heads"),
        ({"q": torch.zeros(2, 3, 2).long()}, TypeError, "q must be a floating tensor"),
        (
            {"q": torch.zeros(3, 3, 2, dtype=F64)},
            ValueError,
            "q, k and v must be .* where kv_heads divides heads, got shapes",
        ),
        (
            {"q": torch.zeros(7, 2, 3, 2, dtype=F64)},
            ValueError,
            "q, k and v must be .*Expand leading axes",
        ),
        ({"v": torch.zeros(2, 5, 2, dtype=F64)}, ValueError, "q, k and v must be"),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(change, kind, message):
    arguments = dict(zip("qkv", heads_of(2), strict=True)) | change
    with pytest.raises(kind, match=f"^(dot_product_attention|dropout|masks.dense): {message}"):
        tinyfn.dot_product_attention(**arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"q": torch.zeros(3, 5)},
            ValueError,
            r"q must have shape \(\.\.\., seq, 4\), as its params",
        ),
        ({"q": torch.zeros(4)}, ValueError, r"q must have shape \(..., seq, features\), got"),
        ({"q": [1.0]}, TypeError, "q must be a floating tensor, got list. Make a tensor"),
        ({"q": None}, TypeError, "q must be a floating tensor, got NoneType"),
        (dict.fromkeys("qkv"), TypeError, "q must be a floating tensor, got NoneType"),
        (dict.fromkeys("qkv", torch.zeros(4)), ValueError, r"q must have shape .* with unsqueeze"),
        ({"k": torch.zeros(3, 4).double()}, TypeError, "k must be a float32 tensor, got a float64"),
        ({"k": torch.zeros(2, 3, 4)}, ValueError, r"k must have shape \(seq, features\)"),
        ({"v": torch.zeros(5, 4)}, ValueError, "v must have as many positions as k, 3, got 5"),
        ({"v": torch.zeros(3, 4).long()}, TypeError, "v must be a floating tensor"),
        ({"mask": torch.ones(5, 5).bool()}, ValueError, r"mask must broadcast to .*\(2, 3, 3\)"),
        ({"mask": torch.ones(3, 3)}, TypeError, "mask must be a mask of tinyfn.masks or a bool"),
        ({"params": {}}, ValueError, r"params must have 'q_proj', got \[\].*init_attention"),
        ({"params": [1]}, TypeError, "params must be a dict, got list"),
    ],
)
def test_inputs_of_a_layer_that_do_not_fit_are_refused(change, kind, message):
    x = torch.zeros(3, 4)
    arguments = {"q": x, "k": x, "v": x, "params": tinyfn.init_attention(random.key(0), 4, 2)}
    with pytest.raises(kind, match=f"^attention: {message}"):
        tinyfn.attention(**arguments | change)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((8, 3), {}, r"num_heads must divide num_features=8, got 3. Choose one of \[1, 2, 4, 8\]"),
        ((8, 4), {"num_kv_heads": 3}, "num_kv_heads must divide num_heads=4, got 3"),
        ((8, 0), {}, "num_heads must be at least 1, got 0"),
        ((8, 2), {"head_dim": 0}, "head_dim must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, options, message):
    with pytest.raises(ValueError, match=f"^init_attention: {message}"):
        tinyfn.init_attention(random.key(0), *sizes, **options)


HEADS = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
SUITED = {
    "the usual": (HEADS, HEADS, HEADS, None),
    "causal": (HEADS, HEADS, HEADS, masks.causal()),
    "other keys": (HEADS, HEADS[..., :2, :], HEADS[..., :2, :], None),
    "double": (*[HEADS.double()] * 3, None),
    "params": (torch.nn.Parameter(HEADS, requires_grad=False), HEADS, HEADS, None),
}
UNSUITED = {
    "no batch": (HEADS[0], HEADS[0], HEADS[0], None),
    "few heads of keys": (HEADS, HEADS[:, :1], HEADS[:, :1], None),
    "other widths": (HEADS, HEADS, HEADS[..., :3], None),
    "no query": (HEADS[..., :0, :], HEADS, HEADS, None),
    "no key": (HEADS, HEADS[..., :0, :], HEADS[..., :0, :], None),
    "fewer axes of keys": (HEADS, *[torch.ones(2, 3, 4)] * 2, None),
    "more axes of keys": (HEADS, *[torch.ones(2, 3, 7, 4, 4)] * 2, None),
    "whole numbers": (*[HEADS.long()] * 3, None),
    "another dtype": (HEADS, HEADS.double(), HEADS.double(), None),
    "another dtype of values": (HEADS, HEADS, HEADS.double(), None),
    "another batch": (HEADS[:1], HEADS, HEADS, None),
    "another width": (HEADS[..., :3], HEADS, HEADS, None),
    "a mask": (HEADS, HEADS, HEADS, torch.ones(5, 5, dtype=torch.bool)),
    "causal and more": (HEADS, HEADS, HEADS, masks.causal() & masks.padding(3)),
    "causal over other keys": (HEADS, HEADS[..., :2, :], HEADS[..., :2, :], masks.causal()),
    "a gradient": (HEADS, HEADS.clone().requires_grad_(), HEADS, None),
    "another device": (*[HEADS.to("meta")] * 3, None),
    "no tensor": (HEADS, HEADS, HEADS.tolist(), None),
}


@pytest.mark.parametrize("given", SUITED.values(), ids=list(SUITED))
def test_torchs_own_function_says_the_same(given):
    assert _attend._suits_torch(*given)
    found = tinyfn.dot_product_attention(*given)
    torch.testing.assert_close(found, tinyfn.explicit_attention(*given))


@pytest.mark.parametrize("given", UNSUITED.values(), ids=list(UNSUITED))
def test_torchs_own_function_is_only_for_what_suits_it(given, unchecked):
    assert not _attend._suits_torch(*given)


def test_torchs_own_function_is_for_what_nobody_follows(unchecked):
    asked = []

    def f(q):
        asked.append(_attend._suits_torch(q, HEADS, HEADS, None))
        return q.sum()

    torch.func.grad(f)(HEADS)
    torch.func.jvp(f, (HEADS,), (HEADS,))
    torch.vmap(lambda q: [f(q), q][1])(HEADS.unsqueeze(0))
    with torch.autocast("cpu", torch.bfloat16):
        f(HEADS)
    assert asked == [False] * len(asked)
    f(HEADS)
    assert asked[-1]


@pytest.mark.parametrize("options", [{"scale": 2.0}, {"bias": HEADS[..., :1].mT}])
def test_a_scale_and_a_bias_count_where_torchs_own_function_would_do(options):
    found = tinyfn.dot_product_attention(HEADS, HEADS, HEADS, **options)
    torch.testing.assert_close(found, tinyfn.explicit_attention(HEADS, HEADS, HEADS, **options))
    assert not torch.allclose(found, tinyfn.dot_product_attention(HEADS, HEADS, HEADS))

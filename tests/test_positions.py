"""Positions: the four schemes against the specification, both joinings, and every error."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
import tinyfn
from tinyfn import dot_product_attention, masks, positions, random, testing

SIZES = st.integers(1, 5)
LEADING = st.lists(st.integers(1, 3), max_size=2)
SEEDS = st.integers(0, 999)
OFFSETS = st.integers(0, 50)
THETAS = st.sampled_from([10000.0, 10.0, 500000.0])


def normal(seed, *shape):
    return random.normal(random.key(seed), shape, dtype=torch.float64)


def exact(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 6), st.integers(1, 9), OFFSETS, THETAS)
def test_sinusoidal_is_the_formula_of_the_paper(seq, num_features, offset, theta):
    options = {"offset": offset, "theta": theta}
    table = positions.sinusoidal(seq, num_features, dtype=torch.float64, **options)
    expected = exact(reference.sinusoidal(seq, num_features, **options))
    assert close(table, expected.reshape(seq, num_features))


def test_sinusoidal_waves_reach_from_two_pi_to_theta():
    table = positions.sinusoidal(2, 512, dtype=torch.float64)
    assert table[1, :2].tolist() == pytest.approx([0.8414709848, 0.5403023059])
    assert table[1, -2].asin().item() == pytest.approx(10000 ** (-510 / 512))


@given(st.integers(1, 4), st.integers(1, 6))
def test_sinusoidal_products_depend_on_distance_only(pairs, shift):
    table = positions.sinusoidal(12, 2 * pairs, dtype=torch.float64)
    product = table @ table.T
    assert torch.allclose(product[shift:, shift:], product[:-shift, :-shift])
    assert not torch.allclose(product, product[0, 0])


@given(OFFSETS)
def test_an_offset_shifts_the_table(offset):
    table = positions.sinusoidal(offset + 4, 6)
    assert torch.equal(positions.sinusoidal(4, 6, offset=offset), table[offset:])
    assert torch.equal(positions.sinusoidal(4, 6, offset=torch.tensor(offset)), table[offset:])


def test_an_offset_can_be_mapped():
    offsets = torch.tensor([0, 3, 5])
    weight = normal(0, 9, 4)
    for table in (
        lambda offset: positions.sinusoidal(4, 6, offset=offset),
        lambda offset: positions.learned({"weight": weight}, 4, offset=offset),
        lambda offset: positions.rotate(weight, offset=offset),
        lambda offset: positions.alibi_bias(2, 3, 4, offset=offset),
    ):
        looped = torch.stack([table(offset) for offset in offsets.tolist()])
        assert torch.allclose(torch.vmap(table)(offsets), looped)


def test_a_table_has_the_dtype_and_device_asked_for():
    assert positions.sinusoidal(2, 2).dtype == torch.float32
    half = positions.sinusoidal(2000, 2, dtype=torch.bfloat16)
    assert torch.equal(half, positions.sinusoidal(2000, 2, dtype=torch.float64).bfloat16())
    assert positions.sinusoidal(2, 2, device="meta").device.type == "meta"


def test_far_positions_are_exact_in_float32():
    far = 2**24 + 1  # the first whole number that float32 has not
    near = positions.sinusoidal(1, 8, offset=far, dtype=torch.float32)
    assert torch.allclose(near.double(), exact(reference.sinusoidal(1, 8, far)), atol=1e-7)


@given(st.integers(1, 5), st.integers(0, 3), SIZES)
def test_learned_reads_its_rows(seq, offset, num_features):
    params = {"weight": normal(0, 8, num_features)}
    expected = exact(reference.learned(reference.plain(params), seq, offset))
    assert close(positions.learned(params, seq, offset=offset), expected)
    assert close(positions.learned(params, seq, offset=torch.tensor(offset)), expected)


def test_learned_begins_small():
    weight = positions.init_learned(random.key(0), 100, 50)["weight"]
    assert weight.shape == (100, 50)
    assert 0.018 < weight.std() < 0.022
    halved = positions.init_learned(random.key(0), 2, 3, dtype=torch.bfloat16)["weight"]
    assert halved.dtype == torch.bfloat16


@given(LEADING, SIZES, SIZES, SIZES, SEEDS)
def test_positions_are_added_or_concatenated(leading, seq, features, width, seed):
    x, table = normal(seed, *leading, seq, features), normal(seed + 1, seq, width)
    flat = x.reshape(-1, seq, features).tolist()
    joined = exact([reference.concatenate(one, table.tolist()) for one in flat])
    expected = joined.reshape(*leading, seq, features + width)
    assert torch.equal(positions.concatenate(x, table), expected)
    table = normal(seed + 1, seq, features)
    summed = exact([reference.add(one, table.tolist()) for one in flat])
    assert torch.equal(positions.add(x, table), summed.reshape(x.shape))


@given(LEADING, SIZES, SIZES, st.integers(0, 3), THETAS)
def test_a_stack_joins_its_positions(leading, seq, features, offset, theta):
    x, weight = normal(0, *leading, seq, features), {"weight": normal(1, 9, features)}
    options = {"offset": offset, "theta": theta}
    table = positions.sinusoidal(seq, features, dtype=torch.float64, **options)
    assert torch.equal(positions.add_sinusoidal({}, x, **options), positions.add(x, table))
    learned = positions.learned(weight, seq, offset=offset)
    assert torch.equal(positions.add_learned(weight, x, offset=offset), positions.add(x, learned))
    concatenated = positions.concatenate_learned(weight, x, offset=offset)
    assert torch.equal(concatenated, positions.concatenate(x, learned))
    wide = positions.sinusoidal(seq, 3, dtype=torch.float64, **options)
    concatenated = positions.concatenate_sinusoidal({}, x, num_features=3, **options)
    assert torch.equal(concatenated, positions.concatenate(x, wide))


def test_joining_keeps_the_dtype_of_the_features_and_the_features():
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    weight = {"weight": torch.ones(2, 4)}
    assert positions.add_sinusoidal({}, x).dtype == torch.bfloat16
    assert positions.concatenate_sinusoidal({}, x, num_features=2).dtype == torch.bfloat16
    assert positions.add_learned(weight, x).dtype == torch.bfloat16
    assert positions.concatenate_learned(weight, x).dtype == torch.bfloat16
    assert torch.equal(x, torch.ones_like(x))


@given(LEADING, SIZES, st.integers(1, 3), OFFSETS, THETAS, SEEDS)
def test_rotation_is_the_formula_of_the_paper(leading, seq, half, offset, theta, seed):
    x = normal(seed, *leading, seq, 2 * half)
    turned = [
        [reference.rotate(vector, offset + i, theta) for i, vector in enumerate(one)]
        for one in x.reshape(-1, seq, 2 * half).tolist()
    ]
    ours = positions.rotate(x, offset=offset, theta=theta)
    assert close(ours, exact(turned).reshape(x.shape))
    assert torch.allclose(ours.norm(dim=-1), x.norm(dim=-1))


@given(st.integers(1, 3), st.integers(0, 20), SEEDS)
def test_rotary_scores_depend_on_distance_only(half, shift, seed):
    q, k = normal(seed, 4, 2 * half), normal(seed + 1, 5, 2 * half)

    def scores(shift):
        return positions.rotate(q, offset=shift) @ positions.rotate(k, offset=shift).T

    assert torch.allclose(scores(shift), scores(0))
    same = torch.ones(6, 2 * half).double()
    product = positions.rotate(same) @ positions.rotate(same).T
    for distance in range(-5, 6):
        diagonal = product.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal))
    assert not torch.allclose(product[0, 1], product[0, 0])


def heads(seed, q_seq, kv_seq, num_heads, num_kv_heads, head_dim):
    return (
        normal(seed, num_heads, q_seq, head_dim),
        normal(seed + 1, num_kv_heads, kv_seq, head_dim),
        normal(seed + 2, num_kv_heads, kv_seq, 3),
    )


@st.composite
def attention_inputs(draw):
    """q, k, v with grouped heads, a mask with its loop, and a bias with its loop; or none."""
    q_seq, kv_seq, kv_heads, group = (draw(st.integers(1, 4)) for _ in range(4))
    num_heads = kv_heads * group
    qkv = heads(draw(SEEDS), q_seq, kv_seq, num_heads, kv_heads, 2 * draw(st.integers(1, 2)))
    mask, bias = draw(st.booleans()), draw(st.booleans())
    added = normal(9, num_heads, q_seq, kv_seq) if bias else None
    looped = reference.causal(q_seq, kv_seq, -1) if mask else None
    ours = (masks.causal(-1) if mask else None, None, added)
    return qkv, ours, (looped, reference.plain(added))


WRAPPERS = {
    "rotary": (positions.rotary, reference.rotary),
    "alibi": (positions.alibi, reference.alibi),
}
EACH_WRAPPER = pytest.mark.parametrize(("wrap", "loop"), WRAPPERS.values(), ids=list(WRAPPERS))


@EACH_WRAPPER
@given(attention_inputs(), st.integers(0, 5))
def test_inside_attention(wrap, loop, inputs, offset):
    qkv, ours, theirs = inputs
    attended = wrap(dot_product_attention, offset=offset)(*qkv, *ours)
    expected = loop(reference.dot_product_attention, offset)(*reference.plain(qkv), *theirs)
    assert close(attended, exact(expected))


@EACH_WRAPPER
def test_inside_attention_with_params_of_its_own(wrap, loop):
    params = tinyfn.init_additive(random.key(0), 4, 5, dtype=torch.float64)
    qkv = heads(1, 2, 3, 2, 1, 4)
    attended = wrap(tinyfn.additive_attention)(params, *qkv, masks.causal())
    additive = partial(reference.additive_attention, reference.plain(params))
    expected = loop(additive)(*reference.plain(qkv), reference.causal(2, 3))
    assert close(attended, exact(expected))


@EACH_WRAPPER
def test_inside_attention_keys_are_dropped_as_without(wrap, loop):
    qkv, key = heads(1, 4, 4, 2, 2, 4), random.key(0)
    dropped = wrap(dot_product_attention)(*qkv, None, key, dropout_p=0.5)
    assert torch.equal(dropped, wrap(dot_product_attention)(*qkv, None, key, dropout_p=0.5))
    assert not torch.allclose(dropped, wrap(dot_product_attention)(*qkv, dropout_p=0.5))


@given(st.integers(0, 6), SEEDS)
def test_rotary_attention_sees_distances_only(shift, seed):
    qkv = heads(seed, 3, 4, 2, 1, 4)
    attended = positions.rotary(dot_product_attention)(*qkv)
    shifted = positions.rotary(dot_product_attention, offset=shift, kv_offset=shift)(*qkv)
    assert torch.allclose(shifted, attended)


@EACH_WRAPPER
@given(st.integers(1, 3), SEEDS)
def test_the_last_queries_alone_need_their_offset(wrap, loop, last, seed):
    q, k, v = heads(seed, 4, 4, 2, 2, 4)
    whole = wrap(dot_product_attention)(q, k, v, masks.causal())
    offset = 4 - last
    part = wrap(dot_product_attention, offset=offset)(q[:, offset:], k, v, masks.causal(offset))
    assert torch.allclose(part, whole[:, offset:])


@given(st.integers(1, 40))
def test_alibi_slopes_are_those_of_the_paper(num_heads):
    slopes = positions.alibi_slopes(num_heads)
    assert slopes == pytest.approx(reference.alibi_slopes(num_heads), rel=1e-12)
    assert len(set(slopes)) == num_heads
    assert all(0 < slope < 1 for slope in slopes)


def test_alibi_slopes_known_by_heart():
    assert positions.alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert positions.alibi_slopes(6) == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]


@given(st.integers(1, 18), SIZES, SIZES, OFFSETS)
def test_alibi_bias_falls_with_the_distance(num_heads, q_seq, kv_seq, offset):
    sizes = (num_heads, q_seq, kv_seq)
    bias = positions.alibi_bias(*sizes, offset=offset, dtype=torch.float64)
    assert close(bias, exact(reference.alibi_bias(*sizes, offset)))
    assert positions.alibi_bias(*sizes).dtype == torch.float32


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda: positions.sinusoidal(-1, 2),
            ValueError,
            "positions.sinusoidal: seq must be at least 0, got -1. Pass 0 or more.",
        ),
        (
            lambda: positions.sinusoidal(1, 0),
            ValueError,
            "positions.sinusoidal: num_features must be at least 1, got 0. Pass 1 or more.",
        ),
        (
            lambda: positions.sinusoidal(1.5, 2),
            TypeError,
            "positions.sinusoidal: seq must be an int, got float 1.5. Pass a whole number.",
        ),
        (
            lambda: positions.init_learned(random.key(0), 0, 1),
            ValueError,
            "positions.init_learned: max_len must be at least 1, got 0. Pass 1 or more.",
        ),
        (
            lambda: positions.init_learned(random.key(0), 1, 0),
            ValueError,
            "positions.init_learned: num_features must be at least 1, got 0. Pass 1 or more.",
        ),
        (
            lambda: positions.learned({"weight": X}, 3),
            ValueError,
            "positions.learned: seq must end within max_len=2, got 3.",
        ),
        (
            lambda: positions.learned({"weight": X}, 1, offset=2),
            ValueError,
            "positions.learned: seq must end within max_len=2, got 3.",
        ),
        (
            lambda: positions.learned({"weight": X}, 3, offset=torch.tensor(0)),
            ValueError,
            "positions.learned: seq must end within max_len=2, got 3.",
        ),
        (
            lambda: positions.learned({}, 1),
            ValueError,
            r"positions.learned: params must have 'weight', got \[\]. Make params with ",
        ),
        (
            lambda: positions.add(X, torch.ones(2, 4)),
            ValueError,
            r"positions.add: table must have the features' \(seq, features\) = \(2, 3\)",
        ),
        (
            lambda: positions.concatenate(X, torch.ones(3, 4)),
            ValueError,
            r"positions.concatenate: table must have a row for each position of x, shape \(2, 3\)",
        ),
        (
            lambda: positions.concatenate(X[0], torch.ones(3, 4)),
            ValueError,
            r"positions.concatenate: x must have shape \(..., seq, features\), got shape \(3,\)",
        ),
        *(
            (
                lambda join=join: join(X[0]),
                ValueError,
                r"positions.\w+: x must have shape \(..., seq, features\), got shape \(3,\).",
            )
            for join in (
                partial(positions.add_sinusoidal, {}),
                partial(positions.add_learned, {"weight": X}),
                partial(positions.concatenate_sinusoidal, {}, num_features=2),
                partial(positions.concatenate_learned, {"weight": X}),
            )
        ),
        (
            lambda: positions.add_sinusoidal({}, X.long()),
            TypeError,
            "positions.add_sinusoidal: x must be a floating tensor, got an int64 tensor",
        ),
        (
            lambda: positions.rotate(X),
            ValueError,
            "positions.rotary: head_dim must be even, for its features turn in pairs, got 3.",
        ),
        (
            lambda: positions.rotate(X[0]),
            ValueError,
            r"positions.rotate: x must have shape \(..., seq, features\), got shape",
        ),
        (
            lambda: positions.sinusoidal(2, 2, theta=0),
            ValueError,
            "positions.sinusoidal: theta must be above 0, got 0. It is",
        ),
        (
            lambda: positions.learned({"weight": X}, 1, offset=-1),
            ValueError,
            "positions.learned: offset must be at least 0, got -1",
        ),
        (
            lambda: positions.rotate(normal(0, 2, 4), frequencies=torch.ones(3)),
            ValueError,
            r"positions.rotary: frequencies must have one number for each pair of features, 2, got "
            r"shape \(3,\). Make them with the head_dim of the params",
        ),
        *(
            (
                lambda make=make: make(5),
                ValueError,
                r"positions.\w+: head_dim must be even, for its features turn in pairs, got 5.",
            )
            for make in (
                positions.frequencies,
                lambda head_dim: positions.ntk_scaled(9, head_dim=head_dim, factor=2.0, max_len=8),
                partial(positions.yarn, factor=2.0, max_len=8),
                partial(positions.llama3, factor=2.0, max_len=8),
            )
        ),
        (
            lambda: positions.frequencies(4, theta=0.0),
            ValueError,
            "positions.frequencies: theta must be above 0, got 0.0. It is the longest wavelength",
        ),
        (
            lambda: positions.ntk_scaled(9, head_dim=2, factor=2.0, max_len=8),
            ValueError,
            "positions.ntk_scaled: head_dim must be at least 4, got 2.",
        ),
        (
            lambda: positions.yarn(4, factor=2.0, max_len=0),
            ValueError,
            "positions.yarn: max_len must be at least 1, got 0.",
        ),
        (
            lambda: positions.yarn(4, factor=2.0, max_len=8, slow=0.0),
            ValueError,
            "positions.yarn: slow must be above 0, got 0.0. ",
        ),
        *(
            (
                lambda theta=theta: positions.yarn(4, factor=2.0, max_len=8, theta=theta),
                ValueError,
                f"positions.yarn: theta must be above 1, got {theta}. At 1 every pair turns alike.",
            )
            for theta in (1.0, 0.5)
        ),
        *(
            (
                lambda short=short, long=long: positions.by_length(
                    torch.tensor([2, 9]), short=short, long=long, max_len=3
                ),
                ValueError,
                r"positions.by_length: long must have the shape of short, \(\d,\), got shape \(",
            )
            for short, long in (
                (torch.ones(2), torch.ones(1)),
                (torch.ones(1), torch.ones(2)),
                (torch.ones(2), torch.ones(2, 2)),
            )
        ),
        (
            lambda: positions.by_length(9, short=torch.ones(()), long=torch.ones(()), max_len=3),
            ValueError,
            r"positions.by_length: short must have shape \(..., pairs\), got shape \(\).",
        ),
        (
            lambda: positions.by_length(9, short=torch.ones(2), long=2.0, max_len=3),
            TypeError,
            "positions.by_length: long must be a floating tensor, got float 2.0.",
        ),
        (
            lambda: positions.llama3(4, factor=-1.0, max_len=8),
            ValueError,
            "positions.llama3: factor must be above 0, got -1.0. It says how many times longer",
        ),
        (
            lambda: positions.llama3(4, factor=2.0, max_len=8, low=4.0),
            ValueError,
            "positions.llama3: high must be above low=4.0, got 4.0. Between the two the",
        ),
        (
            lambda: positions.alibi_slopes(0),
            ValueError,
            "positions.alibi: num_heads must be at least 1, got 0. Pass 1 or more.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, kind, sentence, unchecked):
    with pytest.raises(kind, match=f"^{sentence}"):
        call()


@pytest.mark.parametrize("wrap", [positions.rotary, positions.alibi])
def test_a_wrapped_attend_takes_names_too(wrap):
    q = random.normal(random.key(0), (2, 3, 4))
    mask, bias = masks.causal(), torch.ones(3, 3).triu()
    attend = wrap(tinyfn.dot_product_attention)
    by_name = attend(q, q, v=q, bias=bias, mask=mask, scale=0.3)
    assert torch.equal(by_name, attend(q, q, q, mask, None, bias, scale=0.3))
    assert not torch.equal(by_name, attend(q, q, q, mask, scale=0.3))


SCALED = {
    "ntk": partial(positions.ntk_scaled, head_dim=4, factor=2.0, max_len=3, theta=50.0),
    "by_length": partial(
        positions.by_length, short=exact([1.0, 0.5]), long=exact([0.3, 0.2]), max_len=3
    ),
    "yarn": positions.yarn(4, factor=4.0, max_len=8, theta=50.0),
    "llama3": positions.llama3(4, factor=4.0, max_len=8, theta=50.0),
}


@given(st.integers(1, 8), THETAS, SEEDS)
def test_the_usual_frequencies_are_those_of_theta(half, theta, seed):
    x = normal(seed, 3, 2 * half)
    given_ = positions.rotate(x, offset=7, frequencies=positions.frequencies(2 * half, theta=theta))
    assert close(given_, positions.rotate(x, offset=7, theta=theta))
    by_function = partial(positions.ntk_scaled, head_dim=2 * half + 2, factor=9.0, max_len=50)
    x = normal(seed, 3, 2 * half + 2)
    given_ = positions.rotate(x, offset=7, frequencies=by_function)
    assert close(given_, positions.rotate(x, offset=7))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_scale_of_rotation_is_a_factor_with_a_gradient(scale, unchecked):
    x, number = normal(0, 3, 4), torch.tensor(scale, dtype=torch.float64)
    assert torch.allclose(positions.rotate(x, scale=scale), scale * positions.rotate(x))
    slope = torch.func.jacrev(lambda scale: positions.rotate(x, scale=scale))(number)
    assert torch.allclose(slope, positions.rotate(x))


def test_scaled_frequencies_lie_between_the_usual_ones_and_these_by_the_factor():
    usual = positions.frequencies(64, theta=500000.0)
    sizes = {"factor": 8.0, "max_len": 512, "theta": 500000.0}
    for scaled in (positions.yarn(64, **sizes), positions.llama3(64, **sizes)):
        assert torch.equal(scaled[0], usual[0])
        assert close(scaled[-1], usual[-1] / 8)
        assert ((scaled <= usual) & (scaled >= usual / 8 * (1 - 1e-15))).all()
        assert (scaled[1:] < scaled[:-1]).all()


def test_ntk_scaled_frequencies_stretch_the_slowest_pair_most():
    usual = positions.frequencies(8)
    long = positions.ntk_scaled(24, head_dim=8, factor=2.0, max_len=8)
    assert long[0] == 1
    assert close(long[-1], usual[-1] / (2.0 * 24 / 8 - 1))  # the whole stretch
    assert (long[1:] / usual[1:] < long[:-1] / usual[:-1]).all()


@pytest.mark.parametrize("kind", ["ntk", "by_length"])
def test_frequencies_by_length_take_a_length_for_each_example(kind):
    lengths = torch.tensor([[1, 9], [4, 3]])
    together = SCALED[kind](lengths)
    for row, column in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        assert close(together[row, column], SCALED[kind](int(lengths[row, column])))
    assert not close(together[0, 0], together[0, 1])
    mapped = torch.vmap(torch.vmap(SCALED[kind]))(lengths)
    assert close(mapped, together)


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_rotary_attention_is_that_of_scaled_and_turned_queries_and_keys(kind):
    q, k, v = (normal(seed, 2, 3, 5, 4) for seed in range(3))
    turn = {"frequencies": SCALED[kind], "scale": 1.3}
    actual = positions.rotary(dot_product_attention, **turn)(q, k, v)
    slow = SCALED[kind](5) if callable(SCALED[kind]) else SCALED[kind]
    angles = torch.arange(5.0, dtype=torch.float64)[:, None] * slow

    def turned(x):
        pairs = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1))
        return torch.view_as_real(pairs * torch.polar(torch.ones(()).double(), angles)) * 1.3

    scores = torch.einsum("...qpc,...kpc->...qk", turned(q), turned(k)) / 2
    assert close(actual, scores.softmax(-1) @ v)


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_rotary_attention_for_each_example_and_its_offset(kind):
    x = normal(0, 2, 3, 5, 4)
    turn = {"frequencies": SCALED[kind], "scale": 0.7}
    together = positions.rotate(x, offset=ROWS, **turn)
    for index in [(0, 0), (0, 1), (1, 2)]:
        assert close(together[index], positions.rotate(x[index], offset=int(ROWS[index]), **turn))


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_a_cache_follows_scaled_frequencies(kind):
    params = tinyfn.init_language_model(random.key(0), 8, 2, 5, 1, 7, dtype=torch.float64)
    attend = positions.rotary(dot_product_attention, frequencies=SCALED[kind], scale=1.3)
    tokens = torch.tensor([3, 1, 4, 1])
    testing.check_decoding(params, tokens, attend=attend, position=None)


ROWS = torch.tensor([[0, 4, 2], [7, 1, 1]])


@pytest.mark.parametrize(
    "f",
    [
        lambda x, n: positions.add_sinusoidal({}, x, offset=n),
        lambda x, n: positions.concatenate_sinusoidal({}, x, num_features=3, offset=n),
        lambda x, n: positions.add_learned({"weight": normal(1, 12, 4)}, x, offset=n),
        lambda x, n: positions.concatenate_learned({"weight": normal(1, 12, 3)}, x, offset=n),
        lambda x, n: positions.rotate(x, offset=n),
        lambda x, n: positions.alibi_bias(2, 5, 6, offset=n, dtype=torch.float64),
    ],
)
def test_an_offset_for_each_example_is_that_of_each_alone(f):
    x = normal(0, 2, 3, 5, 4)
    together = f(x, ROWS)
    for index in [(0, 0), (0, 1), (1, 0), (1, 2)]:
        assert close(together[index], f(x[index], int(ROWS[index])))


def test_heads_stand_between_the_examples_and_their_positions():
    q = normal(0, 2, 3, 4, 5, 6)  # two axes of examples, then heads
    together = positions.rotate(q, offset=ROWS)
    assert close(together[1, 0], positions.rotate(q[1, 0], offset=7))
    for wrap in (positions.rotary, positions.alibi):
        both = wrap(dot_product_attention, offset=ROWS)(q, q, q)
        assert close(both[1, 0], wrap(dot_product_attention, offset=7)(*[q[1, 0]] * 3))


def test_a_table_ends_in_nan_where_a_tensor_leads_beyond_it():
    rows = positions.learned({"weight": torch.ones(3, 1)}, 2, offset=torch.tensor([-1, 0, 2, 9]))
    assert rows[..., 0].isnan().tolist() == [[True, False], [False] * 2, [False, True], [True] * 2]


@pytest.mark.parametrize("wrap", [positions.rotary, positions.alibi])
def test_kept_keys_are_read_as_the_whole_would_be(wrap):
    attend = partial(wrap(dot_product_attention), scale=0.7)
    q, k, v = (normal(seed, 2, 6, 4) for seed in range(3))
    mask = masks.causal(4)
    expected = attend(q[:, 4:], k, v, mask) if wrap is positions.alibi else None
    whole = attend(q, k, v, masks.causal())[:, 4:]
    kept = torch.cat(
        [positions.kept(attend, k[:, :4], 0), positions.kept(attend, k[:, 4:], torch.tensor(4))], 1
    )
    over = positions.over_kept(attend, torch.tensor(4), torch.arange(6))
    assert close(over(q[:, 4:], kept, v, mask), whole)
    assert expected is None or not close(expected, whole)  # which knows nothing of the offset


def test_a_table_of_another_batch_is_refused(unchecked):
    x = torch.ones(2, 3, 4)
    match = r"positions\.add: table must have the features' .*, got shape \(5, 3, 4\)\. "
    with pytest.raises(ValueError, match=match):
        positions.add(x, torch.ones(5, 3, 4))
    with pytest.raises(ValueError, match=r"positions\.concatenate: table must have a row for each"):
        positions.concatenate(x, torch.ones(5, 3, 4))

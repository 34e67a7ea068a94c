"""The parts of a layer against the specification, their laws, how they begin, and every error."""

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import reference
import tinyfn
from tinyfn import _dropout, _primitives, initializers, random, tree

SIZES = st.integers(1, 5)
LEADING = st.lists(st.integers(0, 3), max_size=2)
SEEDS = st.integers(0, 999)


def normal(seed, *shape):
    return random.normal(random.key(seed), shape, dtype=torch.float64)


def noise(seed, params):
    """Params of the same shapes in which nothing is 0 or 1, so that nothing hides."""
    keys = iter(random.split(random.key(seed), len(tree.leaves(params))).unbind())
    return tree.map(lambda leaf: random.normal(next(keys), leaf.shape, dtype=torch.float64), params)


def each(f, x):
    """What `f` says of the vector at every position, whatever the leading axes."""
    flat = [f(vector) for vector in x.reshape(-1, x.shape[-1]).tolist()]
    out_features = len(f([1.0] * x.shape[-1]))
    return torch.tensor(flat, dtype=torch.float64).reshape(*x.shape[:-1], out_features)


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@given(LEADING, SIZES, SIZES, st.booleans(), SEEDS)
def test_linear_is_its_definition(leading, in_features, out_features, bias, seed):
    params = noise(seed, tinyfn.init_linear(random.key(0), in_features, out_features, bias=bias))
    assert ("bias" in params) == bias
    x = normal(seed + 1, *leading, in_features)
    loop = reference.plain(params)
    assert close(tinyfn.linear(params, x), each(lambda v: reference.linear(loop, v), x))


NORMS = {
    "layer_norm": (tinyfn.init_layer_norm, tinyfn.layer_norm, reference.layer_norm),
    "rms_norm": (tinyfn.init_rms_norm, tinyfn.rms_norm, reference.rms_norm),
}
EACH_NORM = pytest.mark.parametrize(("init", "norm", "loop"), NORMS.values(), ids=list(NORMS))


@EACH_NORM
@given(LEADING, SIZES, st.booleans(), SEEDS, st.sampled_from([None, 0.1, 1e-12]))
def test_norms_are_their_definitions(init, norm, loop, leading, features, bias, seed, eps):
    params = noise(seed, init(None, features, bias=bias))
    assert ("bias" in params) == bias
    x = normal(seed + 1, *leading, features)
    options = {} if eps is None else {"eps": eps}
    plain = reference.plain(params)
    expected = each(lambda v: loop(plain, v, **options), x)
    # With one feature and a tiny eps the layer norm divides rounding by rounding.
    if features > 1 or norm is tinyfn.rms_norm:
        assert close(norm(params, x, **options), expected)


@given(st.integers(2, 5), SEEDS)
def test_norms_are_those_of_torch(features, seed):
    params = noise(seed, tinyfn.init_layer_norm(None, features))
    x = normal(seed + 1, 3, features)
    theirs = F.layer_norm(x, (features,), params["weight"], params["bias"])
    assert close(tinyfn.layer_norm(params, x), theirs)
    theirs = F.rms_norm(x, (features,), params["weight"], eps=1e-6)
    assert close(tinyfn.rms_norm({"weight": params["weight"]}, x), theirs)


@given(st.integers(2, 5), SEEDS, st.floats(-5, 5), st.floats(0.5, 5))
def test_layer_norm_forgets_shift_and_scale(features, seed, shift, scale):
    params = noise(seed, tinyfn.init_layer_norm(None, features))
    x = normal(seed + 1, 3, features)
    normed = tinyfn.layer_norm(params, x, eps=0.0)
    assert torch.allclose(tinyfn.layer_norm(params, scale * x + shift, eps=0.0), normed, atol=1e-6)


def test_layer_norm_is_right_far_from_zero():
    x = normal(0, 5, 8) + 1e6
    params = tinyfn.init_layer_norm(None, 8, dtype=torch.float64)
    expected = each(lambda v: reference.layer_norm(reference.plain(params), v), x)
    assert torch.allclose(tinyfn.layer_norm(params, x), expected, atol=1e-8)


def test_equal_features_are_normed_to_the_bias():
    params = noise(0, tinyfn.init_layer_norm(None, 4))
    assert torch.equal(
        tinyfn.layer_norm(params, torch.full((2, 4), 3.0).double())[0], params["bias"]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EACH_NORM
def test_half_precision_is_normed_in_float32(init, norm, loop, dtype):
    x = (300 * normal(0, 4, 64)).to(dtype)  # the squares overflow float16
    params = init(None, 64, dtype=dtype)
    normed = norm(params, x)
    assert normed.dtype == dtype
    expected = each(lambda v: loop(reference.plain(params), v), x)
    assert (normed - expected).abs().max() < 4 * torch.finfo(dtype).eps


def test_layer_norm_has_the_right_second_derivative():
    """The one that torch's own layer norm gets wrong in forward mode over forward mode."""
    params = noise(0, tinyfn.init_layer_norm(None, 4))
    x, u, v = normal(1, 4), normal(2, 4), normal(3, 4)

    def f(x):
        return (tinyfn.layer_norm(params, x) * torch.arange(4.0).double()).sum()

    def along(g, direction):
        return lambda x: torch.func.jvp(g, (x,), (direction,))[1]

    step = 1e-5
    numeric = (along(f, u)(x + step * v) - along(f, u)(x - step * v)) / (2 * step)
    forward = along(along(f, u), v)(x)
    reverse = torch.func.jvp(torch.func.grad(f), (x,), (v,))[1] @ u
    assert torch.allclose(forward, numeric, rtol=1e-6)
    assert torch.allclose(forward, reverse, rtol=1e-10)


@given(LEADING, SIZES, SIZES, SEEDS, st.sampled_from([torch.int64, torch.int32, torch.uint8]))
def test_embedding_is_the_row_of_each_token(leading, vocab_size, features, seed, dtype):
    params = noise(seed, tinyfn.init_embedding(random.key(0), vocab_size, features))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, leading, generator=generator, dtype=dtype)
    loop, flat = reference.plain(params), tokens.flatten().tolist()
    for ours, definition in (
        (tinyfn.embedding, reference.embedding),
        (tinyfn.scaled_embedding, reference.scaled_embedding),
    ):
        expected = torch.tensor(definition(loop, flat), dtype=torch.float64)
        assert close(ours(params, tokens), expected.reshape(*leading, features))


def test_a_row_has_the_gradients_of_all_its_tokens():
    weights = {"weight": torch.ones(4, 2)}
    tokens = torch.tensor([[0, 2], [2, 2]])
    grads = torch.func.grad(lambda p: tinyfn.embedding(p, tokens).sum())(weights)["weight"]
    assert grads[:, 0].tolist() == [1.0, 0.0, 3.0, 0.0]


ACTIVATIONS = {
    "relu": (torch.relu, reference.relu),
    "silu": (F.silu, reference.silu),
    "gelu": (F.gelu, reference.gelu),
    "square": (torch.square, lambda x: x * x),
}


@pytest.mark.parametrize(("activation", "loop"), ACTIVATIONS.values(), ids=list(ACTIVATIONS))
@given(LEADING, SIZES, SIZES, st.booleans(), SEEDS)
def test_feed_forwards_are_their_definitions(activation, loop, leading, n, hidden, bias, seed):
    x = normal(seed + 1, *leading, n)
    params = noise(seed, tinyfn.init_feed_forward(random.key(0), n, hidden, bias=bias))
    plain = reference.plain(params)
    ours = tinyfn.feed_forward(params, x, activation=activation)
    assert close(ours, each(lambda v: reference.feed_forward(plain, v, loop), x))
    params = noise(seed, tinyfn.init_gated_feed_forward(random.key(0), n, hidden, bias=bias))
    plain = reference.plain(params)
    ours = tinyfn.gated_feed_forward(params, x, activation=activation)
    assert close(ours, each(lambda v: reference.gated_feed_forward(plain, v, loop), x))


def test_feed_forwards_have_the_activations_of_their_papers():
    x = normal(0, 3, 4)
    params = noise(1, tinyfn.init_gated_feed_forward(random.key(0), 4, 6))
    plain = {name: params[name] for name in ("up_proj", "down_proj")}
    relu = tinyfn.feed_forward(plain, x, activation=torch.relu)
    silu = tinyfn.gated_feed_forward(params, x, activation=F.silu)
    assert torch.equal(tinyfn.feed_forward(plain, x), relu)
    assert torch.equal(tinyfn.gated_feed_forward(params, x), silu)


@pytest.mark.parametrize("gated", [False, True])
def test_feed_forward_drops_hidden_numbers(gated):
    x, key = normal(0, 5, 4), random.key(7)
    init = tinyfn.init_gated_feed_forward if gated else tinyfn.init_feed_forward
    params = noise(1, init(random.key(0), 4, 6))
    hidden = torch.relu(tinyfn.linear(params["gate_proj" if gated else "up_proj"], x))
    hidden = hidden * tinyfn.linear(params["up_proj"], x) if gated else hidden
    dropped = tinyfn.dropout(hidden, key, dropout_p=0.5)
    f = tinyfn.gated_feed_forward if gated else tinyfn.feed_forward
    ours = f(params, x, key, activation=torch.relu, dropout_p=0.5)
    assert close(ours, tinyfn.linear(params["down_proj"], dropped))
    assert not close(ours, f(params, x, activation=torch.relu, dropout_p=0.5))


def test_autocast_sees_to_the_dtypes_of_products():
    params = tinyfn.init_linear(random.key(0), 3, 2, dtype=torch.float32)
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tinyfn.linear(params, x).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="linear: x must be a float32 tensor, got a bfloat16"):
        tinyfn.linear(params, x)


@given(st.floats(0.0, 0.99), SEEDS)
def test_dropout_keeps_or_zeroes(p, seed):
    x = normal(seed, 4, 5)
    dropped = tinyfn.dropout(x, random.key(seed), dropout_p=p)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], x[kept] / (1 - p))


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.5, 0.9, 0.999])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    n = 100_000
    dropped = tinyfn.dropout(torch.ones(n), random.key(1), dropout_p=p)
    assert abs((dropped == 0).double().mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert abs(dropped.double().mean() - 1) < 4 * math.sqrt(p / (1 - p) / n)


def test_dropout_is_decided_by_its_key():
    x = torch.ones(100)

    def dropped(seed):
        return tinyfn.dropout(x, random.key(seed), dropout_p=0.5)

    assert torch.equal(dropped(0), dropped(0))
    assert not torch.equal(dropped(0), dropped(1))
    assert tinyfn.dropout(x, None, dropout_p=0.5) is x
    assert tinyfn.dropout(x, random.key(0), dropout_p=0.0) is x


@pytest.mark.parametrize("p", [2**-8, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dropout_drops_its_share_of_all_that_can_be_drawn(p, dtype, monkeypatch):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    monkeypatch.setattr(random, "bits", lambda *_, **__: every)
    dropped = tinyfn.dropout(torch.ones(2**16, dtype=dtype), random.key(0), dropout_p=p)
    assert dropped.dtype == dtype
    assert (dropped == 0).sum() == round(p * 2**16)


@pytest.mark.parametrize("p", [2**-18, 1 - 2**-18])
def test_dropout_meets_rare_chances_too(p):
    kept = tinyfn.dropout(torch.ones(2**22), random.key(0), dropout_p=p) != 0
    assert 3 <= min(kept.sum(), (~kept).sum()) <= 40  # 16 are expected


@pytest.mark.parametrize("p", [0.5, 0.75])
def test_dropouts_of_one_draw_are_independent(p):
    x = torch.ones(20_000, dtype=torch.float64)
    drops = _dropout.dropouts(random.key(0), 3, x, dropout_p=p)
    kept = torch.stack([drop(x) != 0 for drop in drops]).double()
    assert ((kept.mean(-1) - (1 - p)).abs() < 0.02).all()
    assert (torch.corrcoef(kept) - torch.eye(3, dtype=torch.float64)).abs().max() < 0.03
    assert torch.equal(drops[1](x), drops[1](x))


@pytest.mark.parametrize("shape", [(3, 4, 5), (6,)])
def test_a_longer_batch_begins_with_the_draws_of_a_shorter(shape):
    x, key = torch.ones(shape), random.key(0)
    for long, short in zip(
        _dropout.dropouts(key, 2, x, dropout_p=0.5),
        _dropout.dropouts(key, 2, x[:2], dropout_p=0.5),
        strict=True,
    ):
        assert torch.equal(long(x)[:2], short(x[:2]))


def test_dropout_under_vmap_is_a_loop():
    x, keys = normal(0, 3, 20), random.split(random.key(0), 3)
    mapped = torch.vmap(lambda x, key: tinyfn.dropout(x, key, dropout_p=0.5))(x, keys)
    looped = [tinyfn.dropout(x[i], keys[i], dropout_p=0.5) for i in range(3)]
    assert torch.equal(mapped, torch.stack(looped))


LARGE = {"weight": normal(8, 576, 512).float(), "bias": normal(9, 576).float()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (1,), (2,), (1, 2), (3,), (0,)])
def test_a_row_or_two_by_blocks_are_what_they_are_among_others(lead, bias, monkeypatch):
    monkeypatch.setattr(_primitives, "_READS_BY_BLOCKS", True)
    x = normal(7, *lead, 512).float()
    params = {name: leaf for name, leaf in LARGE.items() if bias or name == "weight"}
    found = tinyfn.linear(params, x)
    assert _primitives._pays_by_blocks(x, *params.values()) == (0 < x.numel() <= 2 * 512)
    expected = F.linear(x.double(), *(leaf.double() for leaf in params.values()))
    torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-5)
    assert found.is_contiguous()
    with torch.no_grad():
        out = tinyfn.linear(tree.map(torch.nn.Parameter, params), x)
    assert torch.equal(out, found)
    out.mul_(torch.ones(576, requires_grad=True))  # as a view it could not be
    with torch.autocast("cpu", torch.bfloat16):
        assert tinyfn.linear(params, x).dtype == F.linear(x, *params.values()).dtype


ROW, WEIGHT, BIAS = normal(7, 512).float(), LARGE["weight"], LARGE["bias"]
DEVIATIONS = {
    "rows": (ROW.expand(3, 512), WEIGHT, BIAS),
    "a small weight": (ROW[:256], WEIGHT[:, :256].contiguous(), BIAS),
    "a long row": (normal(1, 4096).float(), normal(2, 576, 4096).float(), BIAS),
    "no blocks": (ROW, WEIGHT[:530], BIAS[:530]),
    "few blocks": (normal(1, 2048).float(), normal(2, 448, 2048).float(), BIAS[:448]),
    "a turned weight": (ROW, WEIGHT.mT.contiguous().mT, BIAS),
    "a bias that is repeated": (ROW, WEIGHT, BIAS[:1]),
    "double": (ROW.double(), WEIGHT.double(), BIAS.double()),
    "a gradient by x": (ROW.clone().requires_grad_(), WEIGHT, BIAS),
    "a gradient by the weight": (ROW, torch.nn.Parameter(WEIGHT), BIAS),
    "a gradient by the bias": (ROW, WEIGHT, torch.nn.Parameter(BIAS)),
    "another device": (ROW.to("meta"), WEIGHT, BIAS),
    "a bias of another device": (ROW, WEIGHT, BIAS.to("meta")),
}


@pytest.mark.parametrize("given", DEVIATIONS.values(), ids=list(DEVIATIONS))
def test_by_blocks_is_only_for(given, unchecked, monkeypatch):
    monkeypatch.setattr(_primitives, "_READS_BY_BLOCKS", True)
    assert _primitives._pays_by_blocks(ROW, WEIGHT, BIAS)
    assert not _primitives._pays_by_blocks(*given)
    try:
        expected = F.linear(*given)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            _primitives.affine(*given)
    else:
        assert torch.equal(_primitives.affine(*given), expected)


@pytest.mark.parametrize("faster", [False, True])
def test_by_blocks_is_for_where_that_is_faster(faster, monkeypatch):
    called = []
    monkeypatch.setattr(_primitives, "_READS_BY_BLOCKS", faster)
    by_blocks = _primitives._affine_by_blocks

    def noted(*given):
        called.append(given)
        return by_blocks(*given)

    monkeypatch.setattr(_primitives, "_affine_by_blocks", noted)
    _primitives.affine(ROW, WEIGHT, BIAS)
    assert len(called) == faster


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_by_blocks_is_for_what_nobody_follows(unchecked, monkeypatch):
    monkeypatch.setattr(_primitives, "_READS_BY_BLOCKS", True)
    asked = []

    def f(x, weight):
        asked.append(_primitives._pays_by_blocks(x, weight))
        return _primitives.affine(x, weight).sum()

    torch.func.grad(f)(ROW, WEIGHT)
    torch.func.grad(f, argnums=1)(ROW, WEIGHT)
    torch.func.jvp(f, (ROW, WEIGHT), (ROW, WEIGHT))
    torch.vmap(f, (0, None))(ROW.unsqueeze(0), WEIGHT)
    torch.vmap(f, (None, 0))(ROW, WEIGHT.unsqueeze(0))
    make_fx(f)(ROW, WEIGHT)
    make_fx(f, tracing_mode="symbolic")(ROW, WEIGHT)
    torch.jit.trace(f, (ROW, WEIGHT), check_trace=False)
    with FlopCounterMode(display=False):
        f(ROW, WEIGHT)
    assert asked == [False] * len(asked)
    f(ROW, WEIGHT)
    assert asked[-1]


def test_what_is_dropped_cannot_matter():
    key = random.key(0)
    kept = tinyfn.dropout(torch.ones(20), key, dropout_p=0.5) != 0
    poisoned = torch.where(kept, 1.0, torch.nan)

    def f(x):
        return tinyfn.dropout(x, key, dropout_p=0.5)

    assert torch.equal(f(poisoned), f(torch.ones(20)))
    gradient = torch.func.grad(lambda x: f(x).sum())(poisoned)
    assert torch.equal(gradient, 2.0 * kept)


INITS = {
    "linear": lambda **o: tinyfn.init_linear(random.key(0), 3, 4, **o),
    "layer_norm": lambda **o: tinyfn.init_layer_norm(random.key(0), 3, **o),
    "rms_norm": lambda **o: tinyfn.init_rms_norm(random.key(0), 3, **o),
    "embedding": lambda **o: tinyfn.init_embedding(random.key(0), 3, 4, **o),
    "feed_forward": lambda **o: tinyfn.init_feed_forward(random.key(0), 3, 4, **o),
    "gated_feed_forward": lambda **o: tinyfn.init_gated_feed_forward(random.key(0), 3, 4, **o),
}


@pytest.mark.parametrize("init", INITS.values(), ids=list(INITS))
def test_params_have_the_dtype_asked_for_and_come_again(init):
    for dtype in (torch.float64, torch.bfloat16):
        assert {leaf.dtype for leaf in tree.leaves(init(dtype=dtype))} == {dtype}
    first, again = tree.flatten(init()), tree.flatten(init())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {leaf.dtype for leaf in first.values()} == {torch.float32}


def shapes(params):
    return {name: tuple(leaf.shape) for name, leaf in tree.flatten(params).items()}


def test_params_have_output_axes_first():
    assert shapes(INITS["linear"]()) == {"weight": (4, 3), "bias": (4,)}
    assert shapes(INITS["embedding"]()) == {"weight": (3, 4)}
    assert shapes(INITS["layer_norm"]()) == {"weight": (3,), "bias": (3,)}
    assert shapes(INITS["rms_norm"]()) == {"weight": (3,)}
    up = {"up_proj.weight": (4, 3), "up_proj.bias": (4,)}
    down = {"down_proj.weight": (3, 4), "down_proj.bias": (3,)}
    gate = {"gate_proj.weight": (4, 3), "gate_proj.bias": (4,)}
    assert shapes(INITS["feed_forward"]()) == {**up, **down}
    assert shapes(INITS["gated_feed_forward"]()) == {**gate, **up, **down}


def test_norms_begin_as_plain_normalisation():
    for name in ("layer_norm", "rms_norm"):
        params = INITS[name](bias=True)
        assert params["weight"].tolist() == [1.0] * 3
        assert params["bias"].tolist() == [0.0] * 3


def test_linear_begins_within_the_bounds_of_xavier():
    params = tinyfn.init_linear(random.key(0), 300, 100)
    bound = math.sqrt(6 / 400)
    assert 0.99 * bound < params["weight"].abs().max() <= bound
    assert params["bias"].abs().max() == 0


def test_embeddings_begin_with_scaled_rows_of_unit_size():
    weight = tinyfn.init_embedding(random.key(0), 500, 64)["weight"]
    assert math.isclose(weight.std(), 1 / 8, rel_tol=0.02)


def test_every_part_draws_weights_of_its_own():
    params = tinyfn.init_gated_feed_forward(random.key(0), 4, 4)
    first = {name: proj["weight"][0, 0].item() for name, proj in params.items()}
    assert len(set(first.values())) == 3


def test_initializers_are_told_the_fans():
    told = []

    def watch(key, shape, **options):
        told.append((tuple(shape), options["in_axes"], options["out_axes"]))
        return initializers.ones(key, shape)

    tinyfn.init_linear(random.key(0), 3, 4, weight_init=watch)
    tinyfn.init_embedding(random.key(0), 3, 4, weight_init=watch)
    assert told == [((4, 3), (1,), (0,)), ((3, 4), (0,), (1,))]
    params = tinyfn.init_linear(random.key(0), 3, 4, bias_init=initializers.ones)
    assert params["bias"].tolist() == [1.0] * 4


X = torch.ones(2, 3)
LINEAR = tinyfn.init_linear(random.key(0), 4, 4)
NO_SIZE = "must be at least 1, got 0. Pass 1 or more."
FOUR = r"x must have shape \(..., 4\), as its params have, got shape \(2, 3\). Pass 4 features"


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: tinyfn.linear(LINEAR, X), ValueError, f"linear: {FOUR}"),
        (lambda: tinyfn.linear(LINEAR, torch.tensor(1.0)), ValueError, r"linear: x .* shape \(\)"),
        (lambda: tinyfn.linear({"bias": X}, X), ValueError, r"linear: params must .* \['bias'\]"),
        (lambda: tinyfn.linear([X], X), TypeError, "linear: params must be a dict, got list. Make"),
        (
            lambda: tinyfn.layer_norm({"weight": torch.ones(4)}, X),
            ValueError,
            f"layer_norm: {FOUR}",
        ),
        (lambda: tinyfn.layer_norm({}, X), ValueError, r"layer_norm: params must .*, got \[\]. M"),
        (lambda: tinyfn.rms_norm({"weight": torch.ones(4)}, X), ValueError, f"rms_norm: {FOUR}"),
        (lambda: tinyfn.rms_norm({}, X), ValueError, "rms_norm: params must have 'weight', got "),
        (
            lambda: tinyfn.embedding({"weight": X}, X),
            TypeError,
            "embedding: tokens must be an integer tensor, got a float32 tensor.",
        ),
        (
            lambda: tinyfn.embedding({}, X.long()),
            ValueError,
            "embedding: params must have 'weight'",
        ),
        (lambda: tinyfn.scaled_embedding({}, X.long()), ValueError, "embedding: params must have"),
        (
            lambda: tinyfn.feed_forward({}, X),
            ValueError,
            "feed_forward: params must have 'up_proj'",
        ),
        (
            lambda: tinyfn.feed_forward({"up_proj": {"weight": X}}, X),
            ValueError,
            "feed_forward: params must have 'down_proj', got .'up_proj'.. Make params with init_fe",
        ),
        (
            lambda: tinyfn.gated_feed_forward(tinyfn.init_feed_forward(random.key(0), 3, 2), X),
            ValueError,
            "gated_feed_forward: params must have 'gate_proj', got .'down_proj', 'up_proj'.. Make",
        ),
        (
            lambda: tinyfn.dropout(X, random.key(0), dropout_p=1.0),
            ValueError,
            r"dropout: dropout_p must be in \[0, 1\), got 1.0. It is the chance of being dropped.",
        ),
        (
            lambda: tinyfn.dropout(X, None, dropout_p=-0.5),
            ValueError,
            r"dropout: dropout_p must be in \[0, 1\), got -0.5. It is the chance",
        ),
        (
            lambda: tinyfn.init_linear(random.key(0), 0, 1),
            ValueError,
            f"init_linear: in_features {NO_SIZE}",
        ),
        (
            lambda: tinyfn.init_linear(random.key(0), 1, 0),
            ValueError,
            f"init_linear: out_features {NO_SIZE}",
        ),
        (
            lambda: tinyfn.init_linear(random.key(0), 1.5, 1),
            TypeError,
            "init_linear: in_features must be an int, got float 1.5. Pass a whole number.",
        ),
        (
            lambda: tinyfn.init_layer_norm(None, 0),
            ValueError,
            f"init_layer_norm: num_features {NO_SIZE}",
        ),
        (
            lambda: tinyfn.linear({"weight": torch.ones(1, 2)}, torch.ones(2).double()),
            TypeError,
            "linear: x must be a float32 tensor, got a float64 tensor. Convert it with .to",
        ),
        (
            lambda: tinyfn.linear({"weight": torch.ones(1, 2)}, [1.0, 2.0]),
            TypeError,
            "linear: x must be a floating tensor, got list. Make a tensor of it",
        ),
        (
            lambda: tinyfn.layer_norm({"weight": torch.ones(2)}, torch.ones(2).long()),
            TypeError,
            "layer_norm: x must be a floating tensor, got an int64 tensor",
        ),
        (
            lambda: tinyfn.dropout(torch.ones(2).long(), random.key(0), dropout_p=0.5),
            TypeError,
            "dropout: x must be a floating tensor, got an int64 tensor",
        ),
        (
            lambda: tinyfn.dropout(torch.ones(2), 3, dropout_p=0.5),
            TypeError,
            "random.bits: key must be an int64 scalar tensor, got int 3",
        ),
        (
            lambda: tinyfn.dropout(torch.ones(2), None, dropout_p="a"),
            ValueError,
            r"dropout: dropout_p must be in \[0, 1\), got a",
        ),
        (
            lambda: tinyfn.embedding({"weight": torch.ones(1, 2)}, torch.ones(2).bool()),
            TypeError,
            "embedding: tokens must be an integer tensor, got a bool tensor. A bool tensor is a m",
        ),
        (
            lambda: tinyfn.init_rms_norm(None, 0),
            ValueError,
            f"init_rms_norm: num_features {NO_SIZE}",
        ),
        (
            lambda: tinyfn.init_embedding(random.key(0), 0, 1),
            ValueError,
            f"init_embedding: vocab_size {NO_SIZE}",
        ),
        (
            lambda: tinyfn.init_feed_forward(random.key(0), 1, 0),
            ValueError,
            f"init_feed_forward: dim_feedforward {NO_SIZE}",
        ),
        (
            lambda: tinyfn.init_gated_feed_forward(random.key(0), 0, 1),
            ValueError,
            f"init_gated_feed_forward: num_features {NO_SIZE}",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, kind, sentence, unchecked):
    with pytest.raises(kind, match=f"^{sentence}"):
        call()


# Forward mode

PUSHED = {
    "linear": (tinyfn.linear, lambda p, x: F.linear(x, p["weight"], p["bias"])),
    "layer_norm": (
        tinyfn.layer_norm,
        lambda p, x: F.layer_norm(x, x.shape[-1:], p["weight"], p["bias"]),
    ),
    "rms_norm": (
        tinyfn.rms_norm,
        lambda p, x: F.rms_norm(x, x.shape[-1:], p["weight"], 1e-6) + p["bias"],
    ),
}


@pytest.mark.parametrize("dual", ["x", "weight", "bias", "x weight", "weight bias", "x bias"])
@pytest.mark.parametrize("name", PUSHED)
def test_a_tangent_of_some_of_the_arguments(name, dual):
    ours, theirs = PUSHED[name]
    shape = (5, 4) if name == "linear" else (4,)
    every = {"x": normal(0, 3, 4), "weight": normal(1, *shape), "bias": normal(2, shape[0])}
    some = {part: every[part] for part in dual.split()}

    def push(f):
        def of_some(some):
            params = every | some
            return f(params, params.pop("x"))

        return torch.func.jvp(of_some, (some,), (some,))

    torch.testing.assert_close(push(ours), push(theirs), rtol=1e-12, atol=1e-13)


def test_forward_mode_makes_no_products_with_tangents_of_zero():
    params = tinyfn.init_feed_forward(random.key(0), 8, 16)
    x = torch.ones(3, 8)

    def products(f):
        with FlopCounterMode(display=False) as counter:
            f()
        return counter.get_total_flops()

    once = products(lambda: tinyfn.feed_forward(params, x))
    by_x = products(lambda: torch.func.jvp(partial(tinyfn.feed_forward, params), (x,), (x,)))
    assert 0 < by_x == 2 * once


def test_forward_mode_under_autocast():
    params = tinyfn.init_linear(random.key(0), 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pushed = torch.func.jvp(
            lambda params: tinyfn.linear(params, torch.ones(3, 4)), (params,), (params,)
        )
    out, tangent = pushed[:2]
    assert out.dtype == tangent.dtype == torch.bfloat16
    torch.testing.assert_close(out, tangent, atol=0.05, rtol=0.05)


def test_tangents_are_new_tensors():
    params = {"weight": normal(0, 4), "bias": normal(1, 4)}
    tangent = torch.ones(4, dtype=torch.float64)
    for f, weight in ((tinyfn.linear, normal(0, 4, 4)), (tinyfn.layer_norm, normal(0, 4))):
        params["weight"] = weight

        def by_bias(bias, f=f, params=params):
            out = f({**params, "bias": bias}, normal(2, 4))
            return out.mul_(2.0) + bias

        _, pushed = torch.func.jvp(by_bias, (params["bias"],), (tangent,))[:2]
        assert pushed.equal(3 * torch.ones_like(pushed))
        assert tangent.equal(torch.ones_like(tangent))

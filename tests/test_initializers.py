"""Initializers: one contract for all, and each has the fans, moments and bounds of its paper."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyfn import initializers, random

CONSTANT = [initializers.zeros, initializers.ones]
RANDOM = [
    initializers.normal,
    initializers.truncated_normal,
    initializers.xavier_uniform,
    initializers.xavier_normal,
    initializers.kaiming_uniform,
    initializers.kaiming_normal,
    initializers.orthogonal,
]
ALL = pytest.mark.parametrize("initializer", CONSTANT + RANDOM, ids=lambda f: f.__name__)
EACH_RANDOM = pytest.mark.parametrize("initializer", RANDOM, ids=lambda f: f.__name__)


def test_the_table_is_complete():
    public = {
        function
        for name, function in vars(initializers).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }
    assert public == set(CONSTANT + RANDOM)


@ALL
def test_contract_signature(initializer):
    parameters = inspect.signature(initializer).parameters
    assert list(parameters)[:2] == ["key", "shape"]
    for name in ("in_axes", "out_axes", "dtype", "device"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    for parameter in list(parameters.values())[2:]:
        assert parameter.default is not inspect.Parameter.empty
    assert parameters["in_axes"].default == (-1,)
    assert parameters["out_axes"].default == (0,)


@ALL
@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=2), data=st.data())
def test_contract_shape_and_dtype(initializer, shape, data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, None]))
    weight = initializer(random.key(0), shape, dtype=dtype)
    assert weight.shape == tuple(shape)
    assert weight.dtype == (dtype or torch.float32)
    assert weight.is_contiguous()
    assert weight.isfinite().all()


@ALL
def test_contract_default_dtype(initializer):
    torch.set_default_dtype(torch.float64)
    try:
        assert initializer(random.key(0), (2, 3)).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@ALL
def test_contract_device(initializer):
    assert initializer(random.key(0), (2, 3), device="cpu").device.type == "cpu"
    assert initializer(random.key(0, device="cpu"), (2, 3)).device.type == "cpu"


@ALL
def test_contract_the_key_decides_and_nothing_else(initializer):
    state = torch.get_rng_state()
    first = initializer(random.key(1), (3, 4))
    torch.rand(3)
    assert torch.equal(first, initializer(random.key(1), (3, 4)))
    torch.set_rng_state(state)
    initializer(random.key(1), (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, initializer(random.key(2), (3, 4))) == (initializer in CONSTANT)


@ALL
def test_contract_vmap_over_keys_equals_a_loop(initializer):
    keys = random.split(random.key(0), 3)
    mapped = torch.vmap(lambda key: initializer(key, (3, 4)))(keys)
    looped = torch.stack([initializer(key, (3, 4)) for key in keys.unbind()])
    assert torch.allclose(mapped, looped, atol=1e-6)  # qr in batches differs in the last digit
    if initializer is not initializers.orthogonal:
        assert torch.equal(mapped, looped)


def test_constants_need_no_key():
    assert initializers.zeros(None, (2, 3)).tolist() == [[0.0] * 3] * 2
    assert initializers.ones(None, (2, 3)).tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("glorot_uniform", "xavier_uniform"),
        ("glorot_normal", "xavier_normal"),
        ("he_uniform", "kaiming_uniform"),
        ("he_normal", "kaiming_normal"),
    ],
)
def test_two_names_of_one_function(alias, name):
    assert getattr(initializers, alias) is getattr(initializers, name)


@st.composite
def weights(draw, whole=False):
    """A shape and its axes, parted into those summed, those produced and (unless whole) others."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    axes = draw(st.permutations(range(len(shape))))
    cut = draw(st.integers(1, len(shape) - 1))
    end = len(shape) if whole else draw(st.integers(cut + 1, len(shape)))
    signs = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    named = [
        axis - len(shape) if negative else axis for axis, negative in zip(axes, signs, strict=True)
    ]
    return tuple(shape), tuple(named[:cut]), tuple(named[cut:end])


def fan(shape, axes):
    size = 1
    for axis in axes:
        size *= shape[axis]
    return size


@given(weights(), st.integers(0, 9), st.sampled_from([1.0, 0.5]))
def test_normal_ones_are_scaled_by_their_fans(weight, seed, gain):
    shape, in_axes, out_axes = weight
    fan_in, fan_out = fan(shape, in_axes), fan(shape, out_axes)
    unit = random.normal(random.key(seed), shape, dtype=torch.float64)
    options = {"in_axes": in_axes, "out_axes": out_axes, "gain": gain, "dtype": torch.float64}
    xavier = initializers.xavier_normal(random.key(seed), shape, **options)
    kaiming = initializers.kaiming_normal(random.key(seed), shape, **options)
    assert torch.allclose(xavier, unit * gain * math.sqrt(2 / (fan_in + fan_out)))
    assert torch.allclose(kaiming, unit * gain / math.sqrt(fan_in))


@given(weights(), st.integers(0, 9), st.sampled_from([1.0, 0.5]))
def test_uniform_ones_are_scaled_by_their_fans(weight, seed, gain):
    shape, in_axes, out_axes = weight
    fan_in, fan_out = fan(shape, in_axes), fan(shape, out_axes)
    unit = 2 * random.uniform(random.key(seed), shape, dtype=torch.float64) - 1
    options = {"in_axes": in_axes, "out_axes": out_axes, "gain": gain, "dtype": torch.float64}
    xavier = initializers.xavier_uniform(random.key(seed), shape, **options)
    kaiming = initializers.kaiming_uniform(random.key(seed), shape, **options)
    assert torch.allclose(xavier, unit * gain * math.sqrt(6 / (fan_in + fan_out)))
    assert torch.allclose(kaiming, unit * gain * math.sqrt(3 / fan_in))


@pytest.mark.parametrize("name", ["xavier_uniform", "xavier_normal"])
@pytest.mark.parametrize("scheme", ["xavier", "kaiming"])
def test_moments_are_those_of_torch(name, scheme):
    name = name.replace("xavier", scheme)
    theirs = torch.empty(300, 200)
    options = {"nonlinearity": "relu"} if scheme == "kaiming" else {}
    generator = torch.Generator().manual_seed(0)
    getattr(torch.nn.init, f"{name}_")(theirs, generator=generator, **options)
    ours = getattr(initializers, name)(random.key(0), (300, 200))
    assert ours.mean().abs() < 5 * ours.std() / math.sqrt(ours.numel())
    assert math.isclose(ours.std(), theirs.std(), rel_tol=0.02)
    if "uniform" in name:
        assert math.isclose(ours.abs().max(), theirs.abs().max(), rel_tol=1e-3)


def largest_gap(x, cdf):
    """Kolmogorov's statistic, in units in which 1.95 is passed once in a thousand draws."""
    x = x.double().flatten().sort().values
    steps = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    gap = torch.maximum((cdf(x) - steps[:-1]).abs(), (cdf(x) - steps[1:]).abs()).max()
    return gap.item() * math.sqrt(len(x))


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_normal_is_normal(std):
    x = initializers.normal(random.key(3), (20000,), std=std)
    assert largest_gap(x / std, torch.special.ndtr) < 1.95
    assert largest_gap(x / std * 1.1, torch.special.ndtr) > 1.95


@pytest.mark.parametrize(("std", "bound"), [(1.0, 2.0), (0.02, 2.0), (1.0, 0.1), (3.0, 5.0)])
def test_truncated_normal_is_normal_within_its_bound(std, bound):
    x = initializers.truncated_normal(random.key(3), (20000,), std=std, bound=bound)
    assert x.abs().max() <= std * bound * (1 + 1e-6)

    def cdf(x):
        low = torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64))
        return (torch.special.ndtr(x) - low) / (1 - 2 * low)

    assert largest_gap(x / std, cdf) < 1.95
    assert largest_gap(x / std * 1.05, cdf) > 1.95


@given(weights(whole=True), st.integers(0, 9), st.sampled_from([1.0, 0.5]))
def test_orthogonal_rows_or_columns(weight, seed, gain):
    shape, in_axes, out_axes = weight
    options = {"in_axes": in_axes, "out_axes": out_axes, "gain": gain, "dtype": torch.float64}
    w = initializers.orthogonal(random.key(seed), shape, **options)
    assert w.shape == shape
    axes = [axis % len(shape) for axis in (*out_axes, *in_axes)]
    matrix = w.permute(axes).reshape(fan(shape, out_axes), fan(shape, in_axes))
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    assert torch.allclose(gram, gain**2 * torch.eye(len(gram), dtype=torch.float64))


def test_orthogonal_prefers_no_direction():
    keys = random.split(random.key(0), 4000)
    w = torch.vmap(lambda key: initializers.orthogonal(key, (2, 2), dtype=torch.float64))(keys)
    angles = torch.atan2(w[:, 1, 0], w[:, 0, 0])
    assert largest_gap(angles, lambda angle: angle / (2 * math.pi) + 0.5) < 1.95
    assert 0.45 < (torch.linalg.det(w) > 0).double().mean() < 0.55


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_truncated_normal_refuses_no_room(bound):
    sentence = f"^initializers.truncated_normal: bound must be positive, got {bound}. Count it in s"
    with pytest.raises(ValueError, match=sentence):
        initializers.truncated_normal(random.key(0), (2,), bound=bound)


@pytest.mark.parametrize(
    "name", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"]
)
@pytest.mark.parametrize(
    ("in_axes", "out_axes"), [((2,), (0,)), ((1,), (-3,))], ids=["too far", "too far back"]
)
def test_fans_are_axes_of_the_shape(name, in_axes, out_axes):
    sentence = (
        rf"^initializers\.{name}: in_axes and out_axes must be axes of a shape with 2, "
        rf"got in_axes=\({in_axes[0]},\), out_axes=\({out_axes[0]},\)\. A weight needs an axis"
    )
    with pytest.raises(ValueError, match=sentence):
        getattr(initializers, name)(random.key(0), (2, 3), in_axes=in_axes, out_axes=out_axes)


@pytest.mark.parametrize(
    ("shape", "in_axes", "out_axes"), [((2, 3, 4), (2,), (0,)), ((2, 3), (1, 0), (0,))]
)
def test_orthogonal_needs_every_axis_once(shape, in_axes, out_axes):
    sentence = (
        rf"^initializers\.orthogonal: in_axes and out_axes must name each of {len(shape)} axes "
        r"once, got in_axes=.*, out_axes=\(0,\)\. An orthogonal matrix has no other axes\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        initializers.orthogonal(random.key(0), shape, in_axes=in_axes, out_axes=out_axes)

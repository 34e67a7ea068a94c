import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tinyfn import random

MASK = 2**64 - 1
KEY = random.key(2024)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LOGITS = torch.tensor([[0.5, -1.0, 2.0, 0.0], [0.0, 0.0, -torch.inf, 1.0]])
DRAWS = {
    "uniform": lambda k: random.uniform(k, (3, 7)),
    "uniform64": lambda k: random.uniform(k, (21,), dtype=torch.float64),
    "normal": lambda k: random.normal(k, (3, 7)),
    "normal64": lambda k: random.normal(k, (21,), dtype=torch.float64),
    "normal16": lambda k: random.normal(k, (21,), dtype=torch.bfloat16),
    "bits": lambda k: random.bits(k, (3, 7)),
    "bits64": lambda k: random.bits(k, (3, 7), dtype=torch.int64),
    "bits16": lambda k: random.bits(k, (3, 7), dtype=torch.int16),
    "bernoulli": lambda k: random.bernoulli(k, 0.3, (3, 7)),
    "bernoulli_of_tensor": lambda k: random.bernoulli(k, torch.tensor([0.1, 0.5, 0.9]), (7, 3)),
    "categorical": lambda k: random.categorical(k, LOGITS, shape=(5, 2)),
    "permutation": lambda k: random.permutation(k, 9),
    "permutation_of_rows": lambda k: random.permutation(k, torch.arange(12.0).reshape(6, 2)),
    "split": lambda k: random.split(k, 3),
    "split_or_none": lambda k: torch.stack(random.split_or_none(k, 2)),
    "fold_in": lambda k: random.fold_in(k, 7),
}


def splitmix64(state: int, num: int) -> list[int]:
    """As published, on Python integers."""
    words = []
    for _ in range(num):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        words.append(z ^ (z >> 31))
    return words


def murmur_finaliser(z: int) -> int:
    z = ((z ^ (z >> 33)) * 0xFF51AFD7ED558CCD) & MASK
    z = ((z ^ (z >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
    return z ^ (z >> 33)


def words(key, num):
    return random.bits(key, (num,), dtype=torch.int64)


def unsigned(x):
    return [word & MASK for word in x.flatten().tolist()]


def ks_distance(x, cdf):
    """Kolmogorov and Smirnov's statistic times √n: above 1.95 once in 1000 samples."""
    x = x.double().flatten().sort().values
    n, f = len(x), cdf(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max((steps[1:] - f).max(), (f - steps[:-1]).max()).item()


def normal_cdf(x):
    return torch.tensor([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()]).double()


def correlation(a, b):
    """The correlation of two streams times √n: a standard normal number if they are unrelated."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return (math.sqrt(a.numel()) * (a * b).sum() / (a.norm() * b.norm())).item()


# The generator


def test_words_are_those_published():
    state_zero = torch.tensor(random._WORDS)
    assert splitmix64(0, 2) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    assert unsigned(words(state_zero, 100)) == splitmix64(0, 100)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 + 5, 10**30])
def test_words_of_any_seed_equal_python_integers(seed):
    key = random.key(seed)
    state = (int(key) & MASK) ^ random._WORDS
    assert unsigned(words(key, 50)) == splitmix64(state, 50)


def test_derived_keys_equal_python_integers():
    assert murmur_finaliser(1) == 0xB456BCFC34C2CB2C
    gamma, key = 0x9E3779B97F4A7C15, int(KEY) & MASK
    children = [murmur_finaliser((key ^ random._SPLIT) + i * gamma & MASK) for i in (1, 2, 3)]
    assert unsigned(random.split(KEY, 3)) == children
    start = (key ^ random._FOLD & MASK) * gamma
    for data in (0, 1, -1, 2**63 - 1):
        folded = murmur_finaliser(((start + data) ^ random._SPLIT) * gamma & MASK)
        assert unsigned(random.fold_in(KEY, data)) == [folded]
        seeded = murmur_finaliser((random._FOLD + data * gamma) & MASK)
        assert unsigned(random.key(data)) == [seeded]


def test_seeds_count_modulo_two_to_the_64():
    assert random.key(3) == random.key(3 + 2**64) == random.key(3 - 2**64)
    assert random.key(3).dtype == torch.int64
    assert random.key(3).shape == ()


def test_bits_are_balanced_and_unrelated():
    n = 100_000
    bits = (words(KEY, n)[:, None] >> torch.arange(64)) & 1
    signs = 1.0 - 2.0 * bits
    assert (signs.sum(0).abs() / math.sqrt(n)).max() < 4.5
    assert (signs[1:].T @ signs[:-1] / math.sqrt(n)).abs().max() < 5.5
    pairs = signs.T @ signs / math.sqrt(n)
    assert pairs.fill_diagonal_(0).abs().max() < 5.5


@pytest.mark.parametrize("lag", [1, 2, 3, 5, 16, 64, 1000])
def test_words_do_not_remember(lag):
    stream = words(KEY, 200_000)
    assert abs(correlation(stream[lag:], stream[:-lag])) < 4.5
    low = stream & 0xFFFFFFFF
    assert abs(correlation(low[lag:], low[:-lag])) < 4.5


def test_words_and_derived_keys_do_not_collide():
    n = 100_000
    folded = torch.vmap(lambda i: random.fold_in(KEY, i))(torch.arange(n))
    seeds = torch.stack([random.key(i) for i in range(1000)])
    grandchildren = torch.vmap(lambda k: random.split(k, 10))(random.split(KEY, n // 10))
    every = torch.cat([words(KEY, n), random.split(KEY, n), folded, seeds, grandchildren.flatten()])
    assert every.unique().numel() == every.numel()


def test_halves_of_words_collide_as_often_as_chance_says():
    n = 200_000
    for half in (words(KEY, n) & 0xFFFFFFFF, words(KEY, n) >> 32):
        collisions = n - half.unique().numel()
        expected = n * n / 2**33
        assert abs(collisions - expected) < 5 * math.sqrt(expected)


def test_words_split_and_fold_in_are_unrelated():
    n = 100_000
    children = random.split(KEY, n)
    folded = torch.vmap(lambda i: random.fold_in(KEY, i))(torch.arange(n))
    streams = [words(KEY, n), children, folded, words(children[0], n), words(folded[0], n)]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            for lag in (0, 1):
                assert abs(correlation(a[lag:], b[: n - lag])) < 4.5
                low = correlation(a[lag:] & 0xFFFF, b[: n - lag] & 0xFFFF)
                assert abs(low) < 4.5


def chain(num):
    keys = [KEY]
    while len(keys) < num:
        keys.append(random.split(keys[-1])[0])
    return torch.stack(keys)


RELATED = {
    "seeds": lambda: torch.stack([random.key(i) for i in range(3000)]),
    "split": lambda: random.split(KEY, 3000),
    "fold_in": lambda: torch.vmap(lambda i: random.fold_in(KEY, i))(torch.arange(3000)),
    "chain": lambda: chain(1000),
    "bare numbers": lambda: torch.arange(3000),
}


@pytest.mark.parametrize("kind", RELATED)
def test_neighbouring_keys_give_unrelated_streams(kind):
    keys = RELATED[kind]()
    streams = torch.vmap(lambda k: random.uniform(k, (8,), dtype=torch.float64))(keys)
    for word in range(8):
        assert ks_distance(streams[:, word], lambda x: x) < 2.2
    table = torch.cat([streams[:-1], streams[1:]], dim=1)  # neighbours side by side
    table = (table - table.mean(0)) / table.std(0)
    pairs = table.T @ table / math.sqrt(len(table))
    assert pairs.fill_diagonal_(0).abs().max() < 5


def test_flipping_a_bit_of_the_key_flips_half_of_every_draw():
    keys = random.split(KEY, 500)
    flipped = keys[:, None] ^ (torch.ones((), dtype=torch.int64) << torch.arange(64))
    word = torch.vmap(lambda k: words(k, 1)[0])
    child = torch.vmap(lambda k: random.split(k, 1)[0])
    for f in (word, child, torch.vmap(lambda k: random.fold_in(k, 3))):
        change = f(keys)[:, None] ^ f(flipped.flatten()).reshape(500, 64)
        share = ((change[..., None] >> torch.arange(64)) & 1).double().mean(0)
        assert (share - 0.5).abs().max() < 6 * 0.5 / math.sqrt(500)


# Draws


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_is_uniform(dtype):
    x = random.uniform(KEY, (100_000,), dtype=dtype)
    assert x.dtype == dtype
    assert x.min() >= 0
    assert x.max() < 1
    spread = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, 0.0)
    assert abs(x.double().mean() - 0.5 + spread / 2) < 4.5 / math.sqrt(12 * 1e5)
    if not spread:
        assert ks_distance(x, lambda v: v) < 1.95


def test_uniform_takes_the_top_bits():
    exact = [word >> 40 for word in unsigned(words(KEY, 1000))]
    x = random.uniform(KEY, (1000,), dtype=torch.float32)
    assert (x.double() * 2**24).tolist() == exact
    exact = [word >> 11 for word in unsigned(words(KEY, 1000))]
    assert (random.uniform(KEY, (1000,), dtype=torch.float64) * 2**53).tolist() == exact


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_normal_is_normal(dtype):
    x = random.normal(KEY, (200_000,), dtype=dtype).double()
    n = len(x)
    assert abs(x.mean()) < 4.5 / math.sqrt(n)
    assert abs(x.square().mean() - 1) < 4.5 * math.sqrt(2 / n)
    assert abs(x.pow(3).mean()) < 4.5 * math.sqrt(15 / n)
    assert abs(x.pow(4).mean() - 3) < 4.5 * math.sqrt(96 / n)
    assert ks_distance(x, normal_cdf) < 1.95
    assert abs(correlation(x[1:], x[:-1])) < 4.5
    assert abs(correlation(x[1:].square(), x[:-1].square())) < 4.5


def test_fixed_quantile_is_the_normal_one_far_into_the_tail():
    powers = 2.0 ** torch.arange(53).double()
    drawn = (2.0 ** (53 * random.uniform(KEY, (200_000,), dtype=torch.float64))).floor()
    centre = 2.0**53 - 1 - 2.0 ** (52 * random.uniform(KEY, (50_000,), dtype=torch.float64)).floor()
    odd = torch.cat([powers, drawn, centre]).clamp(1, 2**53 - 1)
    x = random._fixed_quantile(odd).double() / 2**32
    exact = -torch.special.ndtri(odd / 2**54)
    assert exact.max() > 8
    assert (x - exact).abs().max() < 3e-8
    assert ((x - exact).abs() / exact)[exact > 0.1].max() < 1e-7
    assert (x[odd.argsort()].diff() <= 0).all()


def test_normal_is_the_same_in_every_dtype():
    exact = random.normal(KEY, (10_000,), dtype=torch.float64)
    for dtype in DTYPES[1:]:
        x = random.normal(KEY, (10_000,), dtype=dtype)
        assert x.dtype == dtype
        torch.testing.assert_close(
            x.double(), exact, atol=1e-7, rtol=torch.finfo(dtype).eps / 2 + 1e-7
        )


def test_normal_has_both_tails():
    x = random.normal(KEY, (2_000_000,), dtype=torch.float32)
    for bound, chance in ((3.0, 1.3499e-3), (4.0, 3.1671e-5), (4.5, 3.3977e-6)):
        expected = len(x) * chance
        for tail in (x > bound, x < -bound):
            assert abs(tail.sum() - expected) < 4.5 * math.sqrt(expected)


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-12, 1.0])
def test_bernoulli_has_its_chance(p):
    n = 200_001
    x = random.bernoulli(KEY, p, (n,))
    assert x.dtype == torch.bool
    assert abs(x.double().mean() - p) <= 4.5 * math.sqrt(p * (1 - p) / n) + 2**-32
    assert torch.equal(x, random.bernoulli(KEY, torch.tensor(p, dtype=torch.float64), (n,)))


def test_bernoulli_neighbours_are_unrelated():
    x = random.bernoulli(KEY, 0.9, (400_000,))  # two share a word
    for lag in (1, 2, 3):
        assert abs(correlation(x[lag:], x[:-lag])) < 4.5
    for start in (0, 1):
        assert abs(x[start::2].double().mean() - 0.9) < 4.5 * 0.3 / math.sqrt(200_000)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_bits_are_all_fair_and_unrelated(dtype):
    n = 100_000
    x = random.bits(KEY, (n,), dtype=dtype)
    assert x.dtype == dtype
    for bit in range(8 * x.itemsize):
        assert abs(((x >> bit) & 1).double().mean() - 0.5) < 4.5 * 0.5 / math.sqrt(n)
    for lag in (1, 2, 3, 4):  # up to four share a word
        assert abs(correlation(x[lag:], x[:-lag])) < 4.5


def test_bits_are_the_words_in_parts():
    whole = words(KEY, 5)
    assert torch.equal(random.bits(KEY, (10,)), whole.view(torch.int32))
    assert torch.equal(
        random.bits(KEY, (3, 6), dtype=torch.int16).flatten(), whole.view(torch.int16)[:18]
    )


def test_bernoulli_of_a_tensor_has_each_chance():
    p = torch.tensor([0.0, 0.25, 0.8, 1.0])
    x = random.bernoulli(KEY, p, (100_000, 4)).double().mean(0)
    assert (x - p).abs().max() < 4.5 * 0.5 / math.sqrt(1e5)
    assert x[0] == 0
    assert x[3] == 1


def test_categorical_has_its_chances():
    n = 100_000
    drawn = random.categorical(KEY, LOGITS, shape=(n, 2))
    assert drawn.dtype == torch.int64
    for row in (0, 1):
        counts = torch.bincount(drawn[:, row], minlength=4).double()
        expected = n * LOGITS[row].double().softmax(-1)
        assert (counts[expected == 0] == 0).all()
        seen = expected > 0
        chi_square = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
        assert chi_square < 16.3  # once in 1000, 3 degrees of freedom
    assert abs(correlation(drawn[:, 0], drawn[:, 1])) < 4.5


def test_categorical_draws_one_per_row():
    assert random.categorical(KEY, LOGITS).shape == (2,)
    assert random.categorical(KEY, LOGITS[0]).shape == ()
    sure = torch.full((6, 5), -torch.inf).scatter(1, torch.tensor([[4], [0], [2]] * 2), 0.0)
    assert random.categorical(KEY, sure).tolist() == [4, 0, 2, 4, 0, 2]


def test_permutation_draws_every_order_alike():
    orders = torch.vmap(lambda k: random.permutation(k, 4))(random.split(KEY, 24_000))
    assert (orders.sort(-1).values == torch.arange(4)).all()
    counts = torch.bincount(orders @ torch.tensor([64, 16, 4, 1]))
    counts = counts[counts > 0].double()
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 49.7  # once in 1000, 23 degrees of freedom


def test_permutation_keeps_rows_whole():
    x = torch.arange(20).reshape(10, 2)
    y = random.permutation(KEY, x)
    assert torch.equal(y, x[random.permutation(KEY, 10)])
    assert not torch.equal(y, x)
    assert torch.equal(x, torch.arange(20).reshape(10, 2))


def test_split_or_none_hands_on_what_it_got():
    assert random.split_or_none(None, 3) == (None, None, None)
    assert torch.equal(torch.stack(random.split_or_none(KEY, 3)), random.split(KEY, 3))


def test_more_of_a_draw_begins_with_less_of_it():
    draws = random.bits, random.uniform, random.normal, lambda k, s: random.bernoulli(k, 0.4, s)
    for draw in draws:
        assert torch.equal(draw(KEY, (10,))[:7], draw(KEY, (7,)))
        assert torch.equal(draw(KEY, (2, 5)).flatten(), draw(KEY, (10,)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_draws_have_any_shape(shape):
    p = torch.full(shape, 0.5)
    for x in (
        random.uniform(KEY, shape),
        random.normal(KEY, shape),
        random.bits(KEY, shape, dtype=torch.int16),
        random.bernoulli(KEY, 0.5, shape),
        random.bernoulli(KEY, p, shape),
        random.categorical(KEY, torch.zeros(*shape, 3)),
    ):
        assert x.shape == shape
    assert random.permutation(KEY, 0).shape == (0,)
    assert random.permutation(KEY, torch.zeros(0, 2)).shape == (0, 2)


def test_draws_follow_the_default_dtype():
    assert random.uniform(KEY, ()).dtype == random.normal(KEY, ()).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert random.uniform(KEY, ()).dtype == random.normal(KEY, ()).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_draws_happen_on_the_device_of_the_key_or_the_one_asked_for():
    key = KEY.to("meta")
    for x in (
        *random.split(key),
        random.fold_in(key, 1),
        random.uniform(key, (2,)),
        random.normal(key, (2,)),
        random.bits(key, (2,)),
        random.bernoulli(key, 0.5, (2,)),
        random.permutation(key, 3),
        random.uniform(KEY, (2,), device="meta"),
        random.normal(KEY, (2,), device="meta"),
        random.key(0, device="meta"),
    ):
        assert x.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(set(DRAWS) - {"bernoulli_of_tensor", "categorical"}))
def test_draws_are_the_same_on_a_gpu(name):
    torch.testing.assert_close(
        DRAWS[name](KEY.cuda()).cpu(), DRAWS[name](KEY), rtol=1e-14 * ("64" in name), atol=0
    )


# Transforms


@pytest.mark.parametrize("name", DRAWS)
def test_vmap_over_keys_equals_a_loop(name):
    keys, draw = random.split(KEY, 6), DRAWS[name]
    mapped = torch.vmap(draw)(keys)
    assert torch.equal(mapped, torch.stack([draw(k) for k in keys]))
    assert len(mapped.unique(dim=0)) == 6
    nested = torch.vmap(torch.vmap(draw))(keys.reshape(2, 3))
    assert torch.equal(nested.flatten(0, 1), mapped)


@pytest.mark.parametrize("name", DRAWS)
def test_vmap_of_an_older_torch_equals_a_loop(name, monkeypatch):
    keys, draw = random.split(KEY, 6), DRAWS[name]
    each = torch.stack([draw(k) for k in keys])
    monkeypatch.setattr(random, "_MAPS_VIEWS", False)
    monkeypatch.setattr(torch.Tensor, "view", unmapped(torch.Tensor.view))
    assert torch.equal(torch.vmap(draw)(keys), each)


def unmapped(view):
    """As torch 2.11 has it: no rule of `vmap` for a view in another dtype."""

    def refusing(x, *arguments):
        assert not (isinstance(arguments[0], torch.dtype) and torch.func.debug_unwrap(x) is not x)
        return view(x, *arguments)

    return refusing


def test_vmap_over_the_other_arguments_equals_a_loop():
    keys, data = random.split(KEY, 4), torch.arange(4)
    p, logits = torch.rand(4), torch.randn(4, 5)
    rows = torch.randn(4, 6, 2)
    for f, x in (
        (random.fold_in, data),
        (lambda k, q: random.bernoulli(k, q, (5,)), p),
        (random.categorical, logits),
        (random.permutation, rows),
    ):
        for k, in_dims in ((keys, (0, 0)), (KEY, (None, 0))):
            each = [f(k[i] if k.ndim else k, x[i]) for i in range(4)]
            assert torch.equal(torch.vmap(f, in_dims)(k, x), torch.stack(each))


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_constants_of_derivatives(name):
    draw = DRAWS[name]

    def f(x, k):
        return (x * x * draw(k).double().nan_to_num()).sum()

    x = torch.tensor(1.5, dtype=torch.float64)
    total = draw(KEY).double().sum()
    close = torch.testing.assert_close
    close(torch.func.grad(f)(x, KEY), 3 * total)
    close(torch.func.hessian(f)(x, KEY), 2 * total)
    close(torch.func.jvp(lambda y: f(y, KEY), (x,), (torch.ones_like(x),))[1], 3 * total)
    keys = random.split(KEY, 3)
    each = torch.stack([torch.func.grad(f)(x, k) for k in keys])
    close(torch.vmap(torch.func.grad(f), (None, 0))(x, keys), each)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's own
@pytest.mark.parametrize("name", DRAWS)
def test_a_linearized_function_keeps_its_draw(name):
    total = DRAWS[name](KEY).double().nan_to_num().sum()
    x = torch.tensor(1.5, dtype=torch.float64)
    _, push = torch.func.linearize(lambda x: (x * DRAWS[name](KEY).double().nan_to_num()).sum(), x)
    for _ in range(3):
        torch.testing.assert_close(push(torch.ones_like(x)), total)


@pytest.mark.parametrize("name", DRAWS)
def test_functionalize_changes_nothing(name):
    assert torch.equal(torch.func.functionalize(DRAWS[name])(KEY), DRAWS[name](KEY))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_a_traced_draw_is_of_the_key_that_it_is_given(name, mapped):
    def mapped_draw(k):
        return torch.vmap(lambda zero: zero + DRAWS[name](k))(torch.zeros(2).long())

    draw, other = mapped_draw if mapped else DRAWS[name], random.key(5)
    for early in (False,) if mapped else (False, True):  # torch cannot trace a vmap early
        traced = make_fx(draw, pre_dispatch=early)(KEY.clone())
        assert torch.equal(traced(other), draw(other))
        assert not torch.equal(traced(other), draw(KEY))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["split", "fold_in"])
def test_a_derived_key_in_a_torchscript_is_of_the_key_that_it_is_given(name):
    traced = torch.jit.trace(DRAWS[name], (KEY.clone(),), check_trace=False)
    assert torch.equal(traced(random.key(5)), DRAWS[name](random.key(5)))


@pytest.mark.parametrize("name", ["split", "split_or_none", "fold_in"])
def test_modes_see_what_keys_are_derived_by(name):
    class Counts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, op, kinds, args=(), kwargs=None):
            self.count += 1
            return op(*args, **(kwargs or {}))

    with Counts() as counts:
        DRAWS[name](KEY)
    assert counts.count > 10


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_pure(name):
    state, key = torch.get_rng_state(), KEY.clone()
    first = DRAWS[name](key)
    torch.manual_seed(5)
    second = DRAWS[name](key)
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(5).get_state())
    torch.set_rng_state(state)
    assert torch.equal(first, second)
    assert torch.equal(key, KEY)


COMPILED = """
import torch
import torch._inductor.config
from tinyfn import random

def draws(k):
    return [
        random.split(k, 33),
        random.split(k, 2),
        random.fold_in(k, 5),
        random.normal(k, (3,)),
        random.normal(k, (33,)),
        random.uniform(k, (33,)),
        random.bernoulli(k, 0.3, (33,)),
    ]

def known(k):
    return draws(random.key(7))

def drawn_by_order(k):
    return [random.permutation(k, 33), random.categorical(k, torch.zeros(9, 5))]

def mapped(keys):
    return [torch.vmap(lambda k: random.normal(random.fold_in(k, 5), (33,)))(keys)]

def same(f, k):
    compiled = torch.compile(f, fullgraph=True)(k)
    for i, (x, y) in enumerate(zip(compiled, f(k), strict=True)):
        assert x.dtype == y.dtype and torch.equal(x, y), f"{i} differs"

k = random.key(3)
same(draws, k)
same(drawn_by_order, k)
same(mapped, random.split(k))
torch._dynamo.reset()
with torch._inductor.config.patch({"cpp.simdlen": 1}):  # plain loops, where an overflow shows
    same(draws, k)
    same(known, k)
sized = torch.compile(lambda x: random.split(k, len(x)), backend="eager", dynamic=True)
with torch._dynamo.config.patch(error_on_recompile=True):
    for size in (3, 15, 17, 40):
        assert torch.equal(sized(torch.zeros(size)), random.split(k, size))
print("every draw is the same")
"""


def test_compiled_draws_equal_eager_ones(fresh_python):
    assert fresh_python("-c", COMPILED) == "every draw is the same\n"


# Errors

KEYS = torch.zeros(2, dtype=torch.int64)
ERRORS = [
    (lambda: random.key(0.5), TypeError, r"random.key: seed must be an int, got float 0.5. Pass"),
    (lambda: random.split(5), TypeError, "random.split: key must be an int64 .* got int 5. Make"),
    (lambda: random.split(torch.ones(())), TypeError, "got a float32 tensor. Make one with random"),
    (lambda: random.split(KEYS), ValueError, r"got shape \(2,\). Map over keys with torch.vmap or"),
    (lambda: random.split(KEY, 0), ValueError, "random.split: num must be at least 1, got 0"),
    (lambda: random.split(KEY, 2.0), TypeError, "random.split: num must be an int, got float"),
    (lambda: random.split_or_none(KEYS, 2), ValueError, "random.split: key must be an int64"),
    (lambda: random.fold_in(KEYS, 2), ValueError, "random.fold_in: key must be an int64 scalar"),
    (lambda: random.fold_in(KEY, 0.5), TypeError, "fold_in: data must be an int64 scalar, got fl"),
    (lambda: random.fold_in(KEY, torch.ones(())), TypeError, "data must .* got a float32 tensor"),
    (lambda: random.fold_in(KEY, KEYS), ValueError, r"data must .* got shape \(2,\). Pass one"),
    (lambda: random.fold_in(KEY, 2**63), ValueError, "data must be an int64 scalar, got int 92233"),
    (lambda: random.uniform(KEYS, ()), ValueError, "random.uniform: key must be an int64 scalar"),
    (lambda: random.uniform(KEY, 3), TypeError, "random.uniform: shape must be a tuple of ints"),
    (lambda: random.uniform(KEY, (1.5,)), TypeError, r"shape must .* got \(1.5,\). Write \(n,\)"),
    (lambda: random.uniform(KEY, (-1,)), ValueError, r"shape must .* at least 0, got \(-1,\)"),
    (lambda: random.uniform(KEY, (), dtype=torch.int32), TypeError, "uniform: dtype must be one"),
    (lambda: random.normal(KEYS, ()), ValueError, "random.normal: key must be an int64 scalar"),
    (lambda: random.normal(KEY, (-1,)), ValueError, "random.normal: shape must be a tuple of in"),
    (lambda: random.normal(KEY, (), dtype=torch.bool), TypeError, "normal: dtype must be one of"),
    (lambda: random.bits(KEYS, ()), ValueError, "random.bits: key must be an int64 scalar"),
    (lambda: random.bits(KEY, 3), TypeError, "random.bits: shape must be a tuple of ints"),
    (lambda: random.bits(KEY, (), dtype=torch.int8), TypeError, "random.bits: dtype must be one"),
    (lambda: random.bernoulli(KEYS, 0.5, ()), ValueError, "random.bernoulli: key must be an in"),
    (lambda: random.bernoulli(KEY, 0.5, 3), TypeError, "random.bernoulli: shape must be a tuple"),
    (lambda: random.bernoulli(KEY, 1.5, ()), ValueError, r"p must be in \[0, 1\], got 1.5. It is"),
    (lambda: random.bernoulli(KEY, math.nan, ()), ValueError, r"p must be in \[0, 1\], got nan"),
    (lambda: random.bernoulli(KEY, "1", ()), TypeError, "p must be a number or a tensor, got str"),
    (lambda: random.bernoulli(KEY, KEYS, (2,)), TypeError, "bernoulli: p must be a floating ten"),
    (lambda: random.bernoulli(KEY, LOGITS, (4,)), ValueError, "bernoulli: p must broadcast to sha"),
    (lambda: random.categorical(KEYS, LOGITS), ValueError, "random.categorical: key must be an"),
    (lambda: random.categorical(KEY, KEYS), TypeError, "categorical: logits must be a floating"),
    (lambda: random.categorical(KEY, torch.ones(())), ValueError, "logits must have at least 1 cl"),
    (lambda: random.categorical(KEY, torch.ones(3, 0)), ValueError, "logits must have at least 1"),
    (lambda: random.categorical(KEY, LOGITS, shape=(3,)), ValueError, "logits must broadcast to"),
    (lambda: random.categorical(KEY, LOGITS, shape=2), TypeError, "categorical: shape must be a"),
    (lambda: random.permutation(KEYS, 3), ValueError, "random.permutation: key must be an int64"),
    (lambda: random.permutation(KEY, -1), ValueError, "permutation: x must be at least 0, got -1"),
    (lambda: random.permutation(KEY, 1.5), TypeError, "permutation: x must be an int, got float"),
    (lambda: random.permutation(KEY, KEY), ValueError, r"x must have rows, got shape \(\). Pass a"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "kind", "match"), ERRORS)
def test_errors_say_what_to_do(call, kind, match):
    with pytest.raises(kind, match=match):
        call()

"""Fused kernels say what their formulas say, under every transform, and run where they should."""

import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import tinyfn
from tinyfn import _attend, _fused, _kernels, _levels, masks, random, testing
from tinyfn.transforms import remat

F64 = torch.float64


def numbers(*shape, seed=0, dtype=F64):
    return random.normal(random.key(seed), shape, dtype=dtype)


def heads(q_seq=3, kv_seq=4, kv_heads=2, lead=()):
    shapes = [(2, q_seq, 2)] + 2 * [(kv_heads, kv_seq, 2)]
    return tuple(numbers(*lead, *shape, seed=i) for i, shape in enumerate(shapes))


@pytest.fixture
def small_kernels(monkeypatch):
    """Kernels run at any size, so that small derivative tests meet them."""
    monkeypatch.setattr(_kernels, "_LEAST_ELEMENTS", 0)
    monkeypatch.setattr(_attend, "_LEAST_SCORES", 0)


@pytest.fixture
def runs(monkeypatch):
    """How often a kernel's forward ran."""
    count = {"layer_norm": 0, "attention": 0}

    def counted(module, name, kernel):
        original = getattr(module, name)

        def run(*args, **kwargs):
            count[kernel] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, run)

    counted(_kernels, "_layer_norm", "layer_norm")
    counted(_kernels, "_cpu_attention", "attention")
    counted(_kernels.F, "scaled_dot_product_attention", "attention")
    return count


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_as_a_kernel_is_closed_under_every_transform(bias, small_kernels):
    params = tinyfn.init_layer_norm(None, 4, bias=bias, dtype=F64)
    params = tinyfn.tree.map(lambda leaf: leaf + 0.3 * numbers(4, seed=7), params)
    testing.check_transforms(lambda p, x: tinyfn.layer_norm(p, x).sin(), params, numbers(2, 3, 4))


@pytest.mark.parametrize("mask", [None, masks.causal(), torch.arange(12).reshape(3, 4) % 5 > 3])
def test_the_public_form_of_fused_attention_is_closed_too(mask, monkeypatch):
    monkeypatch.setattr(_kernels, "_CPU_PAIR", "absent")
    attend = partial(tinyfn.fused_attention, mask=mask)
    testing.check_transforms(lambda q, k, v: attend(q, k, v).sin(), *heads())


def test_a_layer_of_kernels_is_closed_under_every_transform(small_kernels):
    params = tinyfn.init_encoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    layer = partial(tinyfn.encoder_layer, activation=F.gelu)
    testing.check_transforms(layer, params, numbers(3, 4), masks.causal())


def test_the_tests_above_meet_the_kernels(small_kernels, runs):
    params = tinyfn.init_encoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    torch.func.grad(lambda params: tinyfn.encoder_layer(params, numbers(3, 4)).sum())(params)
    assert runs == {"layer_norm": 2, "attention": 1}


@given(testing.attention_inputs())
def test_fused_attention_says_what_explicit_attention_says(inputs):
    q, k, v, mask, bias = inputs
    if v.shape[-1] != q.shape[-1]:
        v = v[..., :1].expand(*v.shape[:-1], q.shape[-1])

    def value_and_gradients(attend):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        result = attend(*leaves, mask, None, bias)
        weights = numbers(*result.shape, seed=3)
        return result, torch.autograd.grad((result * weights).sum(), leaves)

    torch.testing.assert_close(
        value_and_gradients(tinyfn.fused_attention),
        value_and_gradients(tinyfn.explicit_attention),
        rtol=1e-10,
        atol=1e-12,
    )


MASKS = {
    "none": None,
    "causal": masks.causal(),
    "padding": masks.padding(torch.tensor([3, 0])),
    "both": masks.causal() & masks.padding(torch.tensor([3, 0])),
    "both of which hide": masks.causal() & masks.window(0, 1) & ~masks.window(0, 0),
    "by head": torch.rand(2, 2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.5,
    "by query": torch.tensor([[True], [False], [True]]),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("pair", [_kernels._CPU_PAIR, "absent"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_hidden_nan_is_contained_and_blind_queries_read_zeros(name, pair, kv_heads, monkeypatch):
    monkeypatch.setattr(_kernels, "_CPU_PAIR", pair)
    mask = MASKS[name]
    q, k, v = heads(3, 5, kv_heads, lead=(2,))
    if isinstance(mask, masks.Mask):
        visible = mask.dense(3, 5).unsqueeze(-3)
    else:
        visible = torch.ones(1, dtype=torch.bool) if mask is None else mask
    visible = visible.expand(2, 2, 3, 5)
    unseen = ~visible.unflatten(1, (kv_heads, -1)).any(2).any(2).unsqueeze(-1)
    k, v = (torch.where(unseen, torch.nan, x) for x in (k, v))

    def value_and_gradients(attend):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        result = attend(*leaves, mask)
        return result, torch.autograd.grad(result.sin().sum(), leaves)

    fused, gradients = value_and_gradients(tinyfn.fused_attention)
    torch.testing.assert_close(
        (fused, gradients), value_and_gradients(tinyfn.explicit_attention), rtol=1e-10, atol=1e-12
    )
    assert all(x.isfinite().all() for x in (fused, *gradients))
    assert (fused[~visible.any(-1)] == 0).all()


@pytest.mark.parametrize("dims", [(0, None, None, None), (None, 1, 0, None), (None, None, None, 0)])
@pytest.mark.parametrize("pair", [_kernels._CPU_PAIR, "absent"])
def test_vmap_of_some_arguments_says_what_a_loop_says(dims, pair, monkeypatch):
    monkeypatch.setattr(_kernels, "_CPU_PAIR", pair)
    shapes = [(4, 2, 5, 2)] * 3 + [(1, 1, 5, 5)]
    args = tuple(
        numbers(*shape, seed=i) if dim is None else numbers(3, *shape, seed=i).movedim(0, dim)
        for i, (shape, dim) in enumerate(zip(shapes, dims, strict=True))
    )

    def gradients(q, k, v, bias):
        def loss(q, k, v):
            return tinyfn.fused_attention(q, k, v, masks.causal(), None, bias).sin().sum()

        return torch.func.grad(loss, argnums=(0, 1, 2))(q, k, v)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = torch.vmap(gradients, dims)(*args)
    for i in range(3):
        pairs = zip(args, dims, strict=True)
        one = [x if dim is None else x.select(dim, i) for x, dim in pairs]
        expected = gradients(*one)
        torch.testing.assert_close(tuple(g[i] for g in mapped), expected, rtol=1e-10, atol=1e-12)


def test_a_pullback_can_be_carried_forward_later(small_kernels):
    # the reverse pass of a kernel may meet a forward mode that was not there in its forward
    params = tinyfn.init_encoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    x, g, t = (numbers(3, 4, seed=seed) for seed in range(3))
    layer = partial(tinyfn.encoder_layer, params, activation=F.gelu)
    pull = torch.func.vjp(layer, x)[1]
    carried = torch.func.jvp(pull, (g,), (t,))[1]
    torch.testing.assert_close(carried, pull(t))  # a pullback is linear


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("of", ["x", "weight", "bias", "x weight bias", "weight bias"])
def test_autograds_own_third_order_of_a_layer_norm(of, hooked, monkeypatch):
    if not hooked:  # a torch that does not say which node runs
        monkeypatch.setattr(_levels, "_running_node", None)
    everything = {"x": numbers(2, 4), "weight": numbers(4, seed=1), "bias": numbers(4, seed=2)}

    def normed(some):
        x, *rest = {**everything, **some}.values()
        return tinyfn.layer_norm(dict(zip(("weight", "bias"), rest, strict=True)), x)

    def slopes(*some):
        named = dict(zip(of.split(), some, strict=True))
        loss = (normed(named) * numbers(2, 4, seed=3)).sin().sum()
        return torch.autograd.grad(loss, some, create_graph=True)

    some = tuple(everything[name].requires_grad_() for name in of.split())
    node: Any = normed({}).grad_fn
    assert (type(node).__name__ == "NativeLayerNormBackward0") is hooked
    assert torch.autograd.gradcheck(slopes, some)
    assert torch.autograd.gradgradcheck(slopes, some)


@pytest.mark.parametrize("of", ["k", "q k v"])
@pytest.mark.parametrize(
    ("mask", "bias"),
    [(masks.causal(), None), (masks.causal(1) & masks.window(3, 0), (3, 4))],
    ids=["causal", "both"],
)
def test_autograds_own_third_order_of_attention(bias, mask, of):
    everything = dict(zip("qkv", heads(lead=(2,)), strict=True))
    added = None if bias is None else numbers(*bias, seed=4)

    def read(some):
        each = {**everything, **some}.values()
        return tinyfn.fused_attention(*each, mask, None, added)

    def slopes(*some):
        loss = (read(dict(zip(of.split(), some, strict=True))) * numbers(3, 2, seed=3)).sin().sum()
        return torch.autograd.grad(loss, some, create_graph=True)

    some = tuple(everything[name].requires_grad_() for name in of.split())
    assert torch.autograd.gradcheck(slopes, some)
    assert torch.autograd.gradgradcheck(slopes, some)


def normed(x):
    params = {"weight": numbers(4, seed=1).to(x), "bias": numbers(4, seed=2).to(x)}
    return tinyfn.layer_norm(params, x)


def normed_as_written_out(x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return scaled * numbers(4, seed=1) + numbers(4, seed=2)


def looked_up(x, attend=tinyfn.fused_attention):
    return attend(x, x.cos(), x.sin(), masks.causal())


def looked_up_with_bias(x, attend=tinyfn.fused_attention):
    return attend(x, x.cos(), x.sin(), masks.causal(), None, numbers(3, 3, seed=5).to(x))


RECORDED = {  # what autograd records by a kernel, and the same written out
    "layer norm": (normed, normed_as_written_out),
    "attention": (looked_up, partial(looked_up, attend=tinyfn.explicit_attention)),
    "attention with a bias": (
        looked_up_with_bias,
        partial(looked_up_with_bias, attend=tinyfn.explicit_attention),
    ),
}
SHAPE = (1, 2, 3, 4)
recorded = pytest.mark.parametrize(("f", "written_out"), RECORDED.values(), ids=RECORDED)


def kept_hooks():
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


@recorded
@pytest.mark.parametrize("where", ["forward", "backward", "checkpoint", "nowhere"])
def test_a_recorded_gradient_where_saving_has_hooks(where, f, written_out):
    def slope(x):
        if where == "checkpoint":
            y = checkpoint(f, x, use_reentrant=False)
        else:
            with kept_hooks() if where == "forward" else nullcontext():
                y = f(x)
        with kept_hooks() if where == "backward" else nullcontext():
            return torch.autograd.grad(y.sin().sum(), x, create_graph=True)[0]

    x = numbers(*SHAPE).requires_grad_()
    expected = torch.func.grad(lambda x: written_out(x).sin().sum())
    torch.testing.assert_close(slope(x), expected(x.detach()))
    (second,) = torch.autograd.grad(slope(x).cos().sum(), x)
    wanted = torch.func.grad(lambda x: expected(x).cos().sum())(x.detach())
    torch.testing.assert_close(second, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_gradient_is_the_same_recorded_or_not(dtype):
    params = {"weight": numbers(64, seed=1).to(dtype), "bias": numbers(64, seed=2).to(dtype)}
    x = numbers(5, 64).to(dtype).requires_grad_()
    y = tinyfn.layer_norm(params, x)
    given = {"retain_graph": True, "grad_outputs": numbers(5, 64, seed=3).to(dtype)}
    (plain,), (recorded,) = (
        torch.autograd.grad(y, x, create_graph=create, **given) for create in (False, True)
    )
    assert torch.equal(plain, recorded)


@recorded
def test_a_recorded_pullback_can_be_carried_forward_and_mapped(f, written_out):
    x, tangents = numbers(*SHAPE).requires_grad_(), numbers(5, *SHAPE, seed=3)
    y = f(x)

    def pull(g):
        return torch.autograd.grad(y, x, g, retain_graph=True)[0]

    of_written_out = torch.func.vjp(written_out, x.detach())[1]
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    carried = torch.func.jvp(pull, (tangents[0],), (tangents[1],))
    close(carried, tuple(of_written_out(t)[0] for t in tangents[:2]))
    close(torch.vmap(pull)(tangents), torch.vmap(of_written_out)(tangents)[0])


@recorded
def test_a_tensor_that_outlived_its_transform(f, written_out):
    left = []
    torch.func.grad(lambda x: [x.sum(), left.append(x)][0])(numbers(*SHAPE))
    torch.testing.assert_close(f(left[0]), written_out(numbers(*SHAPE)))


@pytest.mark.parametrize("name", [*RECORDED, "remat"])
def test_a_batched_gradient_can_be_differentiated_twice_more(name):
    remade = {"remat": (remat(normed_as_written_out), normed_as_written_out)}
    f, written_out = (RECORDED | remade)[name]
    x, basis = numbers(*SHAPE), torch.eye(24, dtype=F64).reshape(24, *SHAPE)

    def third(f):
        leaf = x.clone().requires_grad_()
        options = {"create_graph": True}
        (jacobian,) = torch.autograd.grad(f(leaf), leaf, basis, is_grads_batched=True, **options)
        loss = (jacobian * numbers(24, *SHAPE)).sin().sum()
        (second,) = torch.autograd.grad(loss, leaf, **options)
        return torch.autograd.grad(second.cos().sum(), leaf)[0]

    torch.testing.assert_close(third(f), third(written_out), rtol=1e-9, atol=1e-9)


def test_where_torch_hides_its_levels_everything_is_written_out(monkeypatch, runs):
    monkeypatch.setattr(_levels, "_functorch", None)
    q, k, v = heads()
    tinyfn.dot_product_attention(q, k, v)
    tinyfn.layer_norm(tinyfn.init_layer_norm(None, 2, dtype=F64), q)
    assert runs == {"layer_norm": 0, "attention": 0}


LONG = (1, 2, 128, 4)
ASKED = {
    "no derivative": (1, lambda f, x: f(x)),
    "autograd, no grad": (1, lambda f, x: torch.no_grad()(f)(x.requires_grad_())),
    "autograd": (1, lambda f, x: f(x.requires_grad_())),
    "grad": (1, lambda f, x: torch.func.grad(lambda x: f(x).sum())(x)),
    "vmap": (1, lambda f, x: torch.vmap(f)(x.unsqueeze(0))),
    "jvp": (0, lambda f, x: torch.func.jvp(f, (x,), (x,))),
    "jacfwd": (0, lambda f, x: torch.func.jacfwd(f)(x[:, :1, :1])),
    "functionalize": (0, lambda f, x: torch.func.functionalize(f)(x)),
    "a kind of tensor": (0, lambda f, x: f(x.as_subclass(type("Kind", (torch.Tensor,), {})))),
    "short, no derivative": (1, lambda f, x: f(x[:, :, :5])),
    "short": (0, lambda f, x: f(x[:, :, :5].requires_grad_())),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_default_runs_fused_where_that_is_right_and_pays(name, runs):
    expected, ask = ASKED[name]
    ask(lambda x: tinyfn.dot_product_attention(x, x, x, masks.causal()), numbers(*LONG))
    assert (runs["attention"] > 0) == bool(expected)


def test_the_default_is_explicit_where_a_kernel_cannot_be_right(runs, unchecked):
    x = numbers(*LONG)
    tinyfn.dot_product_attention(x, x, x, None, random.key(0), dropout_p=0.1)
    tinyfn.dot_product_attention(x, x, x, None, None, numbers(128, 128).requires_grad_())
    tinyfn.dot_product_attention(x, x, x[..., :3])
    tinyfn.dot_product_attention(x, x[..., :0, :], x[..., :0, :])
    tinyfn.dot_product_attention(x, x, x, scale=torch.tensor(0.5, dtype=F64))
    assert runs["attention"] == 0


Q, K, V = heads()
REFUSED = {
    "wider values": (
        {"v": V.repeat(1, 1, 2)},
        r"fused_attention: v must be as wide as q and k, 2, got 4\. Use dot_product_attention\.",
    ),
    "dropout": (
        {"key": random.key(0), "dropout_p": 0.1},
        r"dropout_p must be 0, since no kernel draws by key, got 0\.1",
    ),
    "a bias to learn": (
        {"bias": torch.zeros(3, 4, dtype=F64, requires_grad=True)},
        r"bias must require no gradient, got one that does",
    ),
    "a scale to learn": (
        {"scale": torch.tensor(1.0)},
        r"scale must be a number, got a float32 tensor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fused_attention_cannot_do_is_refused(name, unchecked):
    changed, message = REFUSED[name]
    kind = TypeError if "scale" in changed else ValueError
    with pytest.raises(kind, match=message):
        tinyfn.fused_attention(**{"q": Q, "k": K, "v": V, **changed})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_in_single_and_half_precision(dtype):
    q, k, v = (numbers(1, 2, 70, 16, seed=i, dtype=torch.float32).to(dtype) for i in range(3))
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    for mask in (None, masks.causal() & masks.padding(50)):
        fused = tinyfn.fused_attention(q, k, v, mask)
        expected = tinyfn.explicit_attention(*(x.double() for x in (q, k, v)), mask)
        assert fused.dtype == dtype
        torch.testing.assert_close(fused.double(), expected, **tolerance)


def test_fused_under_autocast_takes_its_dtype():
    x = numbers(1, 2, 70, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert tinyfn.fused_attention(x, x, x).dtype == torch.bfloat16
        assert tinyfn.explicit_attention(x, x, x).dtype == torch.bfloat16


STRIDED = {
    "every second": lambda x: x[..., ::2],
    "transposed": lambda x: x.transpose(-1, -2),
    "one of two": lambda x: x.unflatten(-1, (-1, 2))[..., 0],
}


@pytest.mark.parametrize("name", STRIDED)
@pytest.mark.parametrize("lead", [(), (2,), (2, 1)])
@pytest.mark.parametrize("mask", [None, masks.padding(9)])
def test_however_its_arguments_lie_in_memory(name, lead, mask):
    x = STRIDED[name](numbers(*lead, 2, 130, 130))
    assert x.stride(-1) != 1

    def value_and_gradient(attend):
        leaf = x.detach().requires_grad_()
        result = attend(leaf, leaf, leaf, mask)
        return result, torch.autograd.grad(result.sin().sum(), leaf)

    with torch.no_grad():
        fused = tinyfn.fused_attention(x, x, x, mask)
    expected, gradient = value_and_gradient(tinyfn.explicit_attention)
    torch.testing.assert_close(fused, expected.detach())
    torch.testing.assert_close(value_and_gradient(tinyfn.fused_attention), (expected, gradient))


def test_vmap_of_the_last_axis_says_what_a_loop_says():
    x = numbers(2, 130, 4, 3)

    def f(x):
        return tinyfn.fused_attention(x, x, x, masks.causal())

    mapped = torch.vmap(f, in_dims=-1)(x)
    torch.testing.assert_close(mapped, torch.stack([f(x[..., i]) for i in range(3)]))


@pytest.mark.parametrize("shift", [-1e9, 1e9, -1e7])
def test_a_bias_that_is_large_all_along_a_row_changes_nothing(shift):
    # each row of the weights sums to 1: so <v, gradient by v> is what the loss is, linear in v
    q, k, v = (numbers(1, 2, 40, 8, seed=i, dtype=torch.float32) for i in range(3))
    bias = torch.full((40, 40), shift)
    weights = numbers(1, 2, 40, 8, seed=5, dtype=torch.float32)

    def loss(v):
        return (tinyfn.fused_attention(q, k, v, masks.causal(), None, bias) * weights).sum()

    gradient, value = torch.func.grad_and_value(loss)(v)
    torch.testing.assert_close((gradient * v).sum(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, -0.5])
@pytest.mark.parametrize("lead", [(), (1,)])
def test_a_scale_of_any_sign(scale, lead):
    q, k, v = heads(5, 5, lead=lead)
    fused = tinyfn.fused_attention(q, k, v, masks.causal(), scale=scale)
    explicit = tinyfn.explicit_attention(q, k, v, masks.causal(), scale=scale)
    torch.testing.assert_close(fused, explicit, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1), (3, 1), (1, 5), (3, 5)])
@pytest.mark.parametrize("pair", [_kernels._CPU_PAIR, "absent"])
def test_a_bias_of_any_shape_beside_causal(shape, pair, monkeypatch):
    monkeypatch.setattr(_kernels, "_CPU_PAIR", pair)
    q, k, v = heads(3, 5)
    bias = numbers(*shape, seed=9)
    fused = tinyfn.fused_attention(q, k, v, masks.causal(), None, bias)
    explicit = tinyfn.explicit_attention(q, k, v, masks.causal(), None, bias)
    torch.testing.assert_close(fused, explicit, rtol=1e-10, atol=1e-12)


def test_sequences_of_several_blocks():
    q, k, v = (numbers(1, 1, n, 4, seed=i) for i, n in enumerate((600, 1100, 1100)))
    for mask in (masks.causal(), masks.padding(700) & ~masks.prefix(520)):
        fused = tinyfn.fused_attention(q, k, v, mask)
        torch.testing.assert_close(fused, tinyfn.explicit_attention(q, k, v, mask))


def test_meta_tensors_have_shapes():
    x = torch.zeros(1, 2, 3, 4, device="meta")
    assert tinyfn.dot_product_attention(x, x, x).shape == x.shape


def test_a_bias_of_another_dtype_is_refused_by_every_form(unchecked):
    q, k, v = heads()
    for attend in (tinyfn.fused_attention, tinyfn.explicit_attention, tinyfn.dot_product_attention):
        with pytest.raises(TypeError, match="bias must be a float64 tensor, got a float32 tensor"):
            attend(q, k, v, None, None, torch.zeros(3, 4))


def test_a_layer_norm_with_a_bias_of_another_size(unchecked):
    params = {"weight": torch.ones(4), "bias": torch.ones(1)}
    expected = tinyfn.layer_norm({**params, "bias": torch.ones(4)}, torch.arange(4.0))
    torch.testing.assert_close(tinyfn.layer_norm(params, torch.arange(4.0)), expected)
    with pytest.raises(ValueError, match=r"layer_norm: its bias must broadcast to \(features,\)"):
        tinyfn.layer_norm({**params, "bias": torch.ones(3)}, torch.arange(4.0))


@pytest.mark.parametrize(
    ("name", "bias", "q_seq", "kv_seq"),
    [
        ("none", None, 3, 5),
        ("causal", None, 5, 3),
        ("both of which hide", (3, 5), 3, 5),
        ("by query", (1, 5), 3, 5),
    ],
)
def test_by_chunks_of_queries_it_is_closed(name, bias, q_seq, kv_seq, small_kernels, monkeypatch):
    monkeypatch.setattr(_fused, "MOST_SCORES", 6)  # two queries at once, or one
    added = None if bias is None else numbers(*bias, seed=3)
    attend = partial(tinyfn.dot_product_attention, mask=MASKS[name], bias=added)
    testing.check_transforms(lambda q, k, v: attend(q, k, v).sin(), *heads(q_seq, kv_seq))


MEMORY = r"""
import re
import sys
from pathlib import Path
import torch
import tinyfn
from tinyfn import masks, random

attend = getattr(tinyfn, sys.argv[1])
loss = lambda x: attend(x, x, x, masks.causal()).sin().sum()
gradient = torch.func.grad(loss)
asked = {
    "jvp": lambda x: torch.func.jvp(loss, (x,), (x,)),
    "grad(grad)": lambda x: torch.func.grad(lambda x: gradient(x).sin().sum())(x),
}[sys.argv[2]]

def peak():  # of this process; ru_maxrss counts the parent's too
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

x = random.normal(random.key(0), (1, 1024, 8))
asked(x[:, :8])  # what a first call imports
before = peak()
asked(x)
print(peak() - before)
"""


@pytest.mark.parametrize("asked", ["jvp", "grad(grad)"])
def test_a_long_sequence_needs_no_matrix_of_scores_where_no_kernel_runs(asked, fresh_python):
    kibibytes = [
        int(fresh_python("-W", "ignore", "-c", MEMORY, attend, asked))
        for attend in ("dot_product_attention", "explicit_attention")
    ]
    assert kibibytes[0] < kibibytes[1] / 2, kibibytes


COMPILED = """
import torch
import tinyfn
from tinyfn import masks, random

called = []

def backend(graph, _):
    called.extend(getattr(node.target, "__name__", "") for node in graph.graph.nodes)
    return graph.forward

def check(f, *args, kernels):
    called.clear()
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(f, backend=backend, fullgraph=True)(*args), f(*args))
    assert called.count("scaled_dot_product_attention") == kernels, called

def asked(seq, lead, mask, bias):
    shape = (*lead, 4, seq, 8)
    operands = [random.normal(random.key(i), shape, dtype=torch.float64) for i in range(3)]
    def attend(q, k, v):
        return tinyfn.dot_product_attention(q, k, v, mask, None, bias)
    def loss(q, k, v):
        return attend(q, k, v).sin().sum()
    return operands, attend, loss

bias = random.normal(random.key(3), (128, 128), dtype=torch.float64)
padding = masks.padding(torch.tensor([100, 0]))
causal = masks.causal()
for mask, added in [(None, None), (causal, None), (causal & padding, None), (None, bias)]:
    operands, attend, loss = asked(128, (2,), mask, added)
    check(attend, *operands, kernels=1)
    check(torch.func.grad(loss), *operands, kernels=0)
    leaves = [x.requires_grad_() for x in operands]
    called.clear()
    compiled = torch.autograd.grad(torch.compile(loss, backend=backend)(*leaves), leaves)
    torch.testing.assert_close(compiled, torch.autograd.grad(loss(*leaves), leaves))
    assert called.count("scaled_dot_product_attention") == 1, called
    if added is not None:
        added.requires_grad_()
        check(attend, *leaves, kernels=0)
        with torch.no_grad():
            check(attend, *leaves, kernels=1)

def few(q, k, v, mask=None, bias=None, scale=None):
    k, v = k[..., :2, :, :], v[..., :2, :, :]
    return tinyfn.dot_product_attention(q, k, v, mask, None, bias, scale=scale)

bias = bias.detach()
operands, attend, loss = asked(128, (2,), None, None)
check(few, *operands, kernels=1)
check(lambda q, k, v: few(q[..., :120, :], k, v, causal), *operands, kernels=0)
check(lambda q, k, v: few(q, k[..., :64, :], v[..., :64, :], causal), *operands, kernels=0)
long = [torch.cat([x, x], -2) for x in operands]
check(lambda q, k, v: few(q[..., :128, :], k, v, causal), *long, kernels=1)
check(lambda q, k, v: few(q, k[..., :128, :], v[..., :128, :], causal), *long, kernels=1)
check(lambda q, k, v: few(q, k, v, causal, bias[:1]), *operands, kernels=1)
for scale in (-0.3, 0.0):
    check(lambda q, k, v: few(q, k, v, causal, None, scale), *operands, kernels=1)

torch.compiler.reset()
compiled = torch.compile(attend, backend=backend, fullgraph=True)
compiled(*operands)
with torch.autograd.forward_ad.dual_level():
    duals = [torch.autograd.forward_ad.make_dual(x, x) for x in operands]
    try:
        out = compiled(*duals)
    except torch._dynamo.exc.Unsupported as refused:  # newer torch says no itself
        assert "dual tensor" in str(refused)
        out = attend(*duals)
    tangents = [torch.autograd.forward_ad.unpack_dual(y).tangent for y in (out, attend(*duals))]
    torch.testing.assert_close(*tangents)

operands, attend, loss = asked(128, (), masks.causal(), None)
check(attend, *operands, kernels=1)
check(lambda *xs: torch.func.jvp(attend, xs, xs), *operands, kernels=0)
check(torch.vmap(attend), *(x.unsqueeze(0) for x in operands), kernels=0)
operands, attend, loss = asked(9, (2,), masks.causal(), None)
check(attend, *operands, kernels=0)
"""


def test_compiled_it_is_the_kernel_and_written_out_in_transforms_that_are_compiled(fresh_python):
    fresh_python("-W", "ignore", "-c", COMPILED)

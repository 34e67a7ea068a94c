"""per_sample_grad_norms: the norms of vmap(grad), whatever the function, without its memory."""

import math
from functools import partial

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap
from torch.nn import functional as F
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tinyfn
from tinyfn import _levels, masks, positions, random, transforms, tree
from tinyfn.transforms import _per_sample

F64 = {"dtype": torch.float64}
KEY = random.key(0)


def numbers(*shape, seed=0):
    return random.normal(random.key(seed), shape, **F64)


def norms_of_gradients(f, in_dims=0):
    """The slow way: every gradient, then its norm."""

    def norms(params, *args):
        dims = (in_dims,) * len(args) if isinstance(in_dims, int) else in_dims
        gradients = tree.leaves(vmap(grad(f), (None, *dims))(params, *args))
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()

    return norms


def weighed(x):
    return (x * torch.linspace(-1, 1, x.numel(), **F64).view_as(x)).sum()


LINEAR = tinyfn.init_linear(KEY, 6, 5, **F64)
LAYER = tinyfn.init_encoder_layer(KEY, 8, 2, 6, **F64)
STACK = tinyfn.init_encoder(KEY, 8, 2, 6, 2, vocab_size=7, **F64)
TIED = tinyfn.init_transformer(
    KEY,
    8,
    2,
    6,
    1,
    1,
    src_vocab_size=9,
    tgt_vocab_size=9,
    tie_embeddings=True,
    share_embeddings=True,
    **F64,
)
OTHER = tinyfn.init_encoder_layer(
    KEY,
    8,
    2,
    6,
    num_kv_heads=1,
    bias=False,
    init_norm=tinyfn.init_rms_norm,
    init_feed_forward=tinyfn.init_gated_feed_forward,
    **F64,
)
OPTIONS = {
    "norm": tinyfn.rms_norm,
    "norm_first": True,
    "feed_forward": tinyfn.gated_feed_forward,
    "attend": positions.rotary(tinyfn.dot_product_attention),
}
TOKENS = torch.tensor([[1, 4, 1, 0], [2, 2, 2, 2], [6, 5, -3, 3]])
TARGETS = torch.tensor([[1, 8, 1], [0, 2, 3], [4, 4, 4]])
X = numbers(3, 4, 8)


def tied(params, src, tgt, key=None):
    return F.cross_entropy(tinyfn.transformer(params, src, tgt, key=key, dropout_p=0.2), tgt)


class Doubled(torch.autograd.Function):
    """A linear map whose gradient by the weight is wrong on purpose: it must be believed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight):
        return x @ weight.T

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *grads):
        x, weight = ctx.saved_tensors
        return grads[0] @ weight, 2 * grads[0].mT @ x


def by_input(params, x):
    return grad(lambda x: tinyfn.linear(params, x).tanh().sum())(x).square().sum()


def after_a_step(params, x):
    step = grad(lambda params: tinyfn.linear(params, x).tanh().sum())(params)
    return tinyfn.linear(tree.map(lambda p, g: p - 0.1 * g, params, step), x).square().sum()


def assigned(weight, x):
    copy = torch.zeros_like(x)
    copy[:] = weight
    return copy


CASES = {
    "a_layer_with_a_mask": (
        lambda p, x: weighed(tinyfn.encoder_layer(p, x, masks.padding(3))),
        LAYER,
        (X,),
    ),
    "other_parts": (lambda p, x: weighed(tinyfn.encoder_layer(p, x, **OPTIONS)), OTHER, (X,)),
    "tokens_that_repeat": (lambda p, t: weighed(tinyfn.encoder(p, t)), STACK, (TOKENS,)),
    "tied_embeddings": (tied, TIED, (TOKENS, TARGETS)),
    "keys": (tied, TIED, (TOKENS, TARGETS, random.split(KEY, 3))),
    "remat": (lambda p, t: weighed(tinyfn.encoder(p, t, remat=True)), STACK, (TOKENS,)),
    "weights_used_twice": (
        lambda p, x: weighed(tinyfn.encoder_layer(p, tinyfn.encoder_layer(p, x))),
        LAYER,
        (X,),
    ),
    "long_sequences": (
        lambda p, x: weighed(tinyfn.linear(p, x)),
        LINEAR,
        (numbers(3, 40, 6),),
    ),
    "written_over": (
        lambda p, x: F.linear(x, p["weight"], p["bias"]).relu_().sin().sum(),
        LINEAR,
        (numbers(3, 2, 6),),
    ),
    "a_penalty": (
        lambda p, x: weighed(tinyfn.linear(p, x)) + p["weight"].square().sum(),
        LINEAR,
        (numbers(3, 2, 6),),
    ),
    "two_shapes_of_one_weight": (
        lambda p, x: (
            F.linear(x, p["weight"]).sum() + F.linear(x[:, :5], p["weight"].view(6, 5)).sum()
        ),
        LINEAR,
        (numbers(3, 2, 6),),
    ),
    "a_bias_for_all": (
        lambda p, x: (
            F.linear(x, p["weight"], p["bias"][:1]).sum() + F.linear(x, p["weight"][0]).sum()
        ).tanh(),
        LINEAR,
        (numbers(3, 6),),
    ),
    "one_number_as_a_bias": (
        lambda p, x: F.linear(x, p["weight"], p["bias"]).tanh().sum(),
        {"weight": LINEAR["weight"], "bias": numbers(1)},
        (numbers(3, 2, 6),),
    ),
    "linear_by_keyword": (
        lambda p, x: F.linear(x, p["weight"], bias=p["bias"]).tanh().sum(),
        LINEAR,
        (numbers(3, 2, 6),),
    ),
    "a_leaf_that_is_assigned": (
        lambda p, x: F.linear(x, p["weight"]).tanh().sum() + assigned(p["weight"], x).sin().sum(),
        LINEAR,
        (numbers(3, 5, 6),),
    ),
    "one_position": (lambda p, x: tinyfn.linear(p, x).tanh().sum(), LINEAR, (numbers(3, 6),)),
    "a_gradient_by_the_input_inside": (by_input, LINEAR, (numbers(3, 6),)),
    "a_step_inside": (after_a_step, LINEAR, (numbers(3, 6),)),
    "a_vmap_inside": (
        lambda p, x: vmap(partial(tinyfn.linear, p))(x).tanh().sum(),
        LINEAR,
        (numbers(3, 2, 6),),
    ),
    "a_vmap_of_params_inside": (
        lambda p, x: (vmap(torch.sum)(p["weight"]).sin() * tinyfn.linear(p, x)).sum(),
        LINEAR,
        (numbers(3, 2, 6),),
    ),
    "a_function_with_a_backward_of_its_own": (
        lambda p, x: Doubled.apply(x, p["weight"]).tanh().sum(),
        LINEAR,
        (numbers(3, 2, 6),),
    ),
}


def following(params):
    """The same params, by which somebody outside may differentiate."""
    return tree.map(lambda leaf: leaf.detach().requires_grad_(), params)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("followed", [False, True])
def test_the_norms_of_every_gradient(name, followed):
    f, params, args = CASES[name]
    params = following(params) if followed else params
    torch.testing.assert_close(
        transforms.per_sample_grad_norms(f)(params, *args),
        norms_of_gradients(f)(params, *args),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("name", ["a_layer_with_a_mask", "a_gradient_by_the_input_inside"])
def test_where_torch_hides_its_levels_gradients_are_made(monkeypatch, name):
    monkeypatch.setattr(_levels, "_functorch", None)
    test_the_norms_of_every_gradient(name, followed=False)


@pytest.mark.parametrize("name", ["tied_embeddings", "weights_used_twice", "a_penalty"])
def test_the_norms_can_be_differentiated_and_mapped(name):
    f, params, args = CASES[name]
    fast, slow = (
        lambda params, norms=norms: norms(f)(params, *args).sum()
        for norms in (transforms.per_sample_grad_norms, norms_of_gradients)
    )
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
    close(grad(fast)(params), grad(slow)(params))
    close(jvp(fast, (params,), (params,)), jvp(slow, (params,), (params,)))
    pair = tree.stack([params, tree.map(lambda leaf: 1.1 * leaf, params)])
    close(vmap(fast)(pair), vmap(slow)(pair))


def test_the_norms_can_be_differentiated_twice():
    f, params, args = CASES["one_position"]
    fast, slow = (
        hessian(lambda params, norms=norms: norms(f)(params, *args).sum())(params)
        for norms in (transforms.per_sample_grad_norms, norms_of_gradients)
    )
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_only_norms_have_gradients_in_a_layer_and_a_stack():
    for f, params, args in (CASES["a_layer_with_a_mask"], CASES["tokens_that_repeat"]):
        leaves, spec = _pytree.tree_flatten(params)
        plan = _per_sample._Plan(spec, leaves, _per_sample._noted(f, spec, leaves, 0, args))
        named = _pytree.tree_unflatten([i in plan.named for i in range(len(leaves))], spec)
        for name, is_named in tree.flatten(named).items():
            assert is_named == ("norm" not in name), name


def test_what_is_not_finite_stays_so():
    x = numbers(3, 2, 6)
    x[1, 0, 0], x[2, 0, 0] = math.nan, math.inf
    norms = transforms.per_sample_grad_norms(lambda p, x: tinyfn.linear(p, x).square().sum())
    assert norms(LINEAR, x).isfinite().tolist() == [True, False, False]


def test_under_autocast_squares_are_summed_in_single():
    params = tree.cast(LINEAR, torch.float32)
    x = 60 * numbers(3, 4, 6).float()

    def loss(params, x):
        return tinyfn.linear(params, x).float().square().sum()

    with torch.autocast("cpu", dtype=torch.float16):
        norms = transforms.per_sample_grad_norms(loss)(params, x)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, norms_of_gradients(loss)(params, x), rtol=0.02, atol=0)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that anything gives."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in _pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.untyped_storage().nbytes() // x.element_size())
        return result


def test_no_gradient_of_a_matrix_is_made():
    params = tinyfn.init_encoder(KEY, 32, 2, 64, 2, vocab_size=40)
    tokens = torch.arange(16).view(8, 2)

    def loss(params, tokens):
        return tinyfn.encoder(params, tokens).sin().sum()

    sizes = []
    for norms in (norms_of_gradients, transforms.per_sample_grad_norms):
        with Largest() as largest:
            norms(loss)(params, tokens)
        sizes.append(largest.size)
    assert sizes[0] >= 8 * 32 * 64  # a gradient of a sample each
    assert sizes[1] <= 32 * 64  # the weights, read as (out, in)


def test_where_the_samples_are():
    f, params, (src, tgt) = CASES["tied_embeddings"]
    torch.testing.assert_close(
        transforms.per_sample_grad_norms(f, (1, None))(params, src.T, tgt[0]),
        norms_of_gradients(f, (1, None))(params, src.T, tgt[0]),
        rtol=1e-12,
        atol=0,
    )


def test_a_gradient_of_zero_has_norm_zero_and_a_finite_derivative():
    def norm(params):
        return transforms.per_sample_grad_norms(lambda p, x: tinyfn.linear(p, x).square().sum())(
            params, torch.zeros(2, 6, **F64)
        ).sum()

    params = tree.map(torch.zeros_like, LINEAR)
    assert norm(params) == 0
    assert all(leaf.isfinite().all() for leaf in tree.leaves(grad(norm)(params)))


def test_in_half_precision_squares_are_summed_in_single():
    params = tree.cast(LINEAR, torch.float16)
    x = torch.full((2, 3, 6), 100.0, dtype=torch.float16)  # squares beyond 65504
    norms = transforms.per_sample_grad_norms(lambda p, x: tinyfn.linear(p, x).sum())(params, x)
    expected = norms_of_gradients(lambda p, x: tinyfn.linear(p, x).sum())(
        LINEAR, torch.full((2, 3, 6), 100.0, **F64)
    )
    assert norms.dtype == torch.float16
    torch.testing.assert_close(norms.double(), expected, rtol=1e-3, atol=0)


def test_errors_name_what_is_wrong():
    norms = transforms.per_sample_grad_norms(tinyfn.linear)
    with pytest.raises(ValueError, match=r"per_sample_grad_norms: the result of f must be one fl"):
        norms(LINEAR, numbers(3, 6))
    with pytest.raises(ValueError, match=r"linear: x must have shape \(\.\.\., 6\)"):
        transforms.per_sample_grad_norms(lambda p, x: tinyfn.linear(p, x).sum())(
            LINEAR, numbers(3, 5)
        )
    with pytest.raises(ValueError, match="per_sample_grad_norms: params must have a tensor, got n"):
        transforms.per_sample_grad_norms(lambda params, x: x.sum())({}, numbers(3, 6))


@pytest.mark.parametrize("calls", [(1, 0), (1, 2), (2, 1)])
def test_a_function_that_is_another_the_second_time_is_refused(calls):
    runs = iter(calls)

    def fickle(params, x):
        parts = [tinyfn.linear(params, x).sum() for _ in range(next(runs))]
        return sum(parts, (x @ params["weight"].T).sum() if not parts else x.sum())

    with pytest.raises(ValueError, match="per_sample_grad_norms: f must use params alike in ever"):
        transforms.per_sample_grad_norms(fickle)(following(LINEAR), numbers(3, 6))


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("a_layer_with_a_mask", 1),
        ("tied_embeddings", 1),
        ("a_penalty", 3),  # on what is used in two ways
        ("two_shapes_of_one_weight", 3),
        ("written_over", 3),
    ],
)
def test_who_is_not_followed_runs_once(name, runs):
    f, params, args = CASES[name]
    seen = []

    def noted(*args):
        seen.append(args)
        return f(*args)

    norms = transforms.per_sample_grad_norms(noted)
    norms(params, *args)
    assert len(seen) == runs
    seen.clear()
    norms(following(params), *args)
    assert len(seen) == 2


def test_the_norms_are_followed_by_autograd():
    f, params, args = CASES["a_layer_with_a_mask"]
    params = following(params)
    fast, slow = (
        torch.autograd.grad(norms(f)(params, *args).sum(), tree.leaves(params), allow_unused=True)
        for norms in (transforms.per_sample_grad_norms, norms_of_gradients)
    )
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    norms = transforms.per_sample_grad_norms(f)
    with torch.no_grad():
        assert not norms(params, *args).requires_grad

"""remat and value_and_grad: what torch.func gives, for less memory."""

from functools import partial

import pytest
import torch
from torch import nn

import tinyfn
from tinyfn import masks, random, transforms, tree

F64 = torch.float64


def numbers(*shape, seed=0):
    return random.normal(random.key(seed), shape, dtype=F64)


def layer_and_arguments():
    params = tinyfn.init_encoder_layer(random.key(0), 4, 2, 6, dtype=F64)
    layer = partial(tinyfn.encoder_layer, dropout_p=0.3)
    return layer, (params, numbers(3, 4), masks.padding(torch.tensor(2)), random.key(1))


def test_remat_says_what_the_function_says_draws_included():
    layer, args = layer_and_arguments()

    def gradient(f):
        return torch.func.grad_and_value(lambda *args: (f(*args) * numbers(3, 4, seed=3)).sum())

    torch.testing.assert_close(
        gradient(transforms.remat(layer))(*args), gradient(layer)(*args), rtol=1e-12, atol=1e-14
    )


def test_remat_takes_and_gives_trees_none_and_keywords():
    @transforms.remat
    def f(params, nothing, *, factor):
        assert nothing is None
        return {"double": params["x"] * factor, "parts": [params["x"].sin()]}

    def loss(params):
        results = f(params, None, factor=2.0)
        return (results["double"] * results["parts"][0]).sum()

    x = numbers(3)
    actual = torch.func.grad(loss)({"x": x})["x"]
    torch.testing.assert_close(actual, 2 * x.sin() + 2 * x * x.cos())
    assert f({"x": x}, None, factor=2.0)["double"].equal(2 * x)


def saved_by_autograd(f, *args):
    """How many numbers the graph keeps, arguments aside."""
    kept = {}
    leaves = [x.requires_grad_() for x in tree.leaves(args[0])] + [args[1].requires_grad_()]
    own = {x.data_ptr() for x in leaves}

    def keep(x):
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = f(*args)
    del result
    return sum(kept.values())


def test_remat_keeps_its_arguments_only():
    layer, args = layer_and_arguments()
    assert saved_by_autograd(layer, *args) > 100
    assert saved_by_autograd(transforms.remat(layer), *args) <= 2  # a key and a length


def test_remat_runs_twice_in_reverse_and_once_where_nothing_is_kept():
    runs = []

    @transforms.remat
    def f(x):
        runs.append(1)
        return x.sin()

    x = numbers(2)
    f(x)
    torch.func.jvp(f, (x,), (x,))
    torch.vmap(f)(x)
    assert len(runs) == 3
    torch.func.grad(lambda x: f(x).sum())(x)
    assert len(runs) == 5


HELD = numbers(3)


class Holder:
    def __init__(self):
        self.module = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda x, held=HELD: x * held, "a default"),
        (lambda x: x * HELD, "HELD"),
        ((lambda held: lambda x: x * held)(HELD), "held"),
        ((lambda held: lambda x: x * held[0]["a"])([{"a": HELD}]), "held"),
        (partial(torch.mul, HELD), "f"),
        ((lambda inner: lambda x: inner(x))(lambda x: x * HELD), "HELD"),
        (nn.Linear(3, 3), r"f\.weight"),
        (nn.Linear(3, 3).forward, r"f\.weight"),
        (partial(tinyfn.attention, attend=partial(tinyfn.dot_product_attention, HELD)), "f"),
    ],
)
def test_remat_refuses_a_captured_tensor(f, name):
    message = f"remat: f must capture no tensor, which would get no gradient, got {name} of shape"
    with pytest.raises(ValueError, match=message):
        transforms.remat(f)


def test_remat_of_the_layers_of_a_transformer():
    params = tinyfn.init_transformer(random.key(0), 4, 2, 6, 2, 2, dtype=F64)
    src, tgt, weights = numbers(2, 5, 4), numbers(2, 3, 4, seed=1), numbers(2, 3, 4, seed=2)

    def gradient(**options):
        def loss(params):
            key = random.key(3)
            result = tinyfn.transformer(params, src, tgt, key=key, dropout_p=0.2, **options)
            return (result * weights).sum()

        return torch.func.grad(loss)(params)

    torch.testing.assert_close(gradient(remat=True), gradient(), rtol=1e-10, atol=1e-12)
    plain, rematerialised = (
        saved_by_autograd(partial(tinyfn.transformer, tgt=tgt, remat=remat), params, src)
        for remat in (False, True)
    )
    assert rematerialised < 0.3 * plain


def test_remat_refuses_results_that_are_not_floating_tensors(unchecked):
    with pytest.raises(TypeError, match="remat: what f returns must be a floating tensor"):
        torch.func.grad(lambda x: transforms.remat(lambda x: (x.sum(), 3))(x)[0])(numbers(2))


@pytest.mark.parametrize("argnums", [0, 1, (0, 1), [1], -1])
@pytest.mark.parametrize("has_aux", [False, True])
def test_value_and_grad_says_what_torch_says(argnums, has_aux):
    def f(params, x):
        value = (params["w"] * x.sin()).sum()
        return (value, {"seen": x * 2}) if has_aux else value

    args = {"w": numbers(3)}, numbers(3, seed=1)
    value, gradient = transforms.value_and_grad(f, argnums, has_aux=has_aux)(*args)
    given = tuple(argnums) if isinstance(argnums, list) else argnums
    expected = torch.func.grad_and_value(f, given, has_aux)(*args)
    torch.testing.assert_close((gradient, value), expected, rtol=0, atol=0)
    assert all(leaf.grad_fn is None for leaf in tree.leaves([value, gradient]))


def test_autograd_outside_goes_through_value_and_grad():
    x = numbers(3).requires_grad_()
    _, gradient = transforms.value_and_grad(lambda x: x.sin().sum())(x)
    torch.testing.assert_close(torch.autograd.grad(gradient.sum(), x)[0], -x.detach().sin())


CAPTURED = {
    "a leaf": lambda w: w,
    "a result": lambda w: (w * 2).exp(),
    "a view": lambda w: w[:],
    "nothing that autograd follows": lambda w: w.detach(),
}


@pytest.mark.parametrize("kind", CAPTURED)
@pytest.mark.parametrize("has_aux", [False, True])
def test_autograd_outside_goes_through_what_f_captures(kind, has_aux):
    w, x = numbers(3).requires_grad_(), numbers(3, seed=1)
    captured = CAPTURED[kind](w)

    def f(x):
        value = (captured * x.sin()).sum()
        return (value, captured * 2) if has_aux else value

    value, gradient = transforms.value_and_grad(f, has_aux=has_aux)(x)
    expected, expected_value = torch.func.grad_and_value(f, has_aux=has_aux)(x)
    torch.testing.assert_close((gradient, value), (expected, expected_value), rtol=0, atol=0)
    followed = kind != "nothing that autograd follows"
    assert all(leaf.requires_grad == followed for leaf in tree.leaves([value, gradient]))
    if followed:
        each = [
            torch.autograd.grad(sum(x.sum() for x in tree.leaves(found)), w, retain_graph=True)[0]
            for found in ([gradient, value], [expected, expected_value])
        ]
        torch.testing.assert_close(*each, rtol=1e-12, atol=0)
    with torch.no_grad():
        value, gradient = transforms.value_and_grad(f, has_aux=has_aux)(x)
    assert not any(leaf.requires_grad for leaf in tree.leaves([value, gradient]))


def test_value_and_grad_of_what_does_not_depend():
    x = {"used": numbers(2), "not": numbers(3)}
    for f in (lambda x: x["used"].sum(), lambda x: torch.tensor(2.0), lambda x: x["used"][0]):
        expected = torch.func.grad_and_value(f)(x)
        torch.testing.assert_close(transforms.value_and_grad(f)(x)[::-1], expected)


@pytest.mark.parametrize(
    ("f", "argnums", "args"),
    [
        (torch.dot, (0, 0), (numbers(2), numbers(2))),
        (torch.dot, (0, -2), (numbers(2), numbers(2))),
        (lambda x: x["w"].sum(), 0, ({"w": numbers(2), "n": 3},)),
    ],
)
def test_value_and_grad_refuses_what_torch_refuses(f, argnums, args):
    with pytest.raises(Exception) as expected:  # noqa: PT011  whichever it is
        torch.func.grad_and_value(f, argnums)(*args)
    with pytest.raises(type(expected.value)) as found:
        transforms.value_and_grad(f, argnums)(*args)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "f", [lambda x: x[:2], lambda x: [x.sum(), x], lambda x: (x.sum(), x, x), lambda x: x.sum()]
)
def test_value_and_grad_wants_a_pair(f, recorded):
    x = numbers(3).requires_grad_(recorded)
    with pytest.raises(TypeError, match=r"the result of f must be a pair \(value, aux\), got "):
        transforms.value_and_grad(f, has_aux=True)(x)


@pytest.mark.parametrize("recorded", [False, True])
def test_what_is_beside_the_value_may_be_anything(recorded):
    def f(x):
        return x.square().sum(), {"name": "a", "none": None, "seen": [x * 2, 3]}

    for call in (lambda g: g(numbers(3).requires_grad_(recorded)), _mapped_once):
        (value, aux), gradient = call(transforms.value_and_grad(f, has_aux=True))
        x = numbers(3)
        torch.testing.assert_close(
            (value.flatten()[0], gradient.reshape(3)), ((x * x).sum(), 2 * x)
        )
        assert (aux["name"], aux["none"], aux["seen"][1]) == ("a", None, 3)
        torch.testing.assert_close(aux["seen"][0].reshape(3), 2 * x)


def _mapped_once(g):
    beside = []

    def tensors(x):
        (value, aux), gradient = g(x)
        beside[:] = [aux]
        return value, gradient, aux["seen"][0]

    value, gradient, seen = torch.vmap(tensors)(numbers(3)[None])
    return (value, beside[0] | {"seen": [seen, beside[0]["seen"][1]]}), gradient


def test_what_value_and_grad_gives_leads_nowhere():
    def outer(x):
        _, inner = transforms.value_and_grad(lambda y: (x * y.sin()).sum())(numbers(3, seed=1))
        return (inner * x).sum()

    x, unused = numbers(3), {"b": numbers(2)}
    value, gradient = transforms.value_and_grad(outer)(x)
    expected = torch.func.grad_and_value(outer)(x)
    torch.testing.assert_close((gradient, value), expected)
    w = numbers(3, seed=2).requires_grad_()
    (loss, aux), zeros = transforms.value_and_grad(lambda p: (w.sum(), p["b"]), has_aux=True)(
        unused
    )
    assert [x.requires_grad for x in (value, gradient, loss, aux, zeros["b"])] == [
        *(False, False),
        *(True, False, False),
    ]


def test_value_and_grad_takes_data_of_inference():
    with torch.inference_mode():
        data = numbers(3)
    f = transforms.value_and_grad(lambda w, x: (w * x).sum())
    torch.testing.assert_close(f(numbers(3), data)[1], data.clone())
    w = numbers(2).requires_grad_()
    with torch.no_grad():  # no params, and yet a graph
        assert transforms.value_and_grad(lambda p: w.sum())({})[1] == {}
    assert transforms.value_and_grad(lambda p, x: x.sum())({}, numbers(2))[1] == {}


def test_value_and_grad_runs_the_fused_kernels():
    ran = []
    params, x = tinyfn.init_layer_norm(None, 3, dtype=torch.float64), numbers(2, 3)

    def f(x):
        result = tinyfn.layer_norm(params, x)
        ran.append(type(result.grad_fn).__name__)
        return (result**3).sum()

    _, gradient = transforms.value_and_grad(f)(x)
    torch.testing.assert_close(gradient, torch.func.grad(f)(x), rtol=1e-12, atol=1e-12)
    assert ran[0] == "NativeLayerNormBackward0"


def test_value_and_grad_wants_one_number():
    with pytest.raises(ValueError, match=r"the result of f must be one floating number, got shape"):
        transforms.value_and_grad(torch.sin)(numbers(2))
    with pytest.raises(ValueError, match=r"got an int64 tensor\. Return a float tensor"):
        transforms.value_and_grad(lambda x: x.sum().long())(numbers(2))


@pytest.mark.parametrize("argnums", [2, (0, -3)])
def test_value_and_grad_wants_arguments_that_are_there(argnums):
    with pytest.raises(ValueError, match="value_and_grad: argnums must be below 2"):
        transforms.value_and_grad(torch.dot, argnums)(numbers(2), numbers(2))

"""The laws themselves: each passes on right functions, and catches one broken on purpose."""

import contextlib
import functools
import importlib.util
import random as python_random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import tinyfn
from tinyfn import masks, random, testing, tree
from tinyfn.testing import _calls, _purity, _strategies, _verdicts

F64 = torch.float64


# private names, that no user of tinyfn needs: functions broken on purpose peek with them
_torch: Any = torch
is_batchedtensor = _torch._C._functorch.is_batchedtensor
is_functional = _torch._is_functional_tensor


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def _norm(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Right on rows that may look nowhere, and deaf to keys that nobody sees."""
    seen = mask.any(-2).unsqueeze(-1)
    k, v = (torch.where(seen, x, torch.zeros_like(x)) for x in (k, v))
    weights = torch.softmax((q @ k.mT).masked_fill(~mask, -torch.inf), -1)
    blind = ~mask.any(-1, keepdim=True)
    return torch.where(blind, torch.zeros_like(weights), weights) @ v


def _attend_with_additive_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    weights = torch.softmax(q @ k.mT + bias, -1)
    return torch.where(mask.any(-1, keepdim=True), weights, torch.zeros_like(weights)) @ v


def _attend_with_finite_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax((q @ k.mT).masked_fill(~mask, -1e9), -1) @ v


CAUSAL = torch.ones(3, 3, dtype=torch.bool).tril()
BLIND = torch.tensor([[True, False, False], [False, False, False], [True, True, False]])


def _failure(law: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        law(*args, **options)
    return str(caught.value)


def _rows(message: str) -> dict[str, str]:
    """What a failed law says of each transform."""
    rows = [line.split("  ", 1) for line in message.splitlines()[2:]]
    return {name: rest.strip() for name, rest in rows}


def test_right_functions_meet_every_transform() -> None:
    params = {"w": _x(3, 3), "b": _x(3, seed=1)}
    table = testing.check_transforms(
        lambda p, x: _norm(torch.tanh(x @ p["w"] + p["b"])), params, _x(2, 3)
    )
    assert {line.split("  ")[0] for line in table.splitlines()} >= {
        "vmap",
        "grad(jvp(grad))",
        "jvp(jvp)",
        "vmap(grad)",
        "functionalize",
    }
    assert all("right" in line for line in table.splitlines()[1:])


def test_attention_with_blind_rows_meets_every_transform() -> None:
    q, k, v = (_x(3, 2, seed=i) for i in range(3))
    testing.check_transforms(_attend, q, k, v, BLIND, order=2)


def test_functions_of_the_core_meet_every_transform() -> None:
    params = tinyfn.init_attention(random.key(0), 4, 2, dtype=F64)
    params = tree.map(lambda p: p + 0.1, params)
    x = _x(3, 4)
    mask = masks.causal() & masks.padding(torch.tensor(2))
    f = functools.partial(tinyfn.attention, dropout_p=0.3)
    testing.check_transforms(f, params, x, x, x, mask, random.key(1), order=1)
    testing.check_derivatives(tinyfn.layer_norm, {"weight": _x(3), "bias": _x(3)}, _x(2, 3))


def test_vmap_catches_a_branch_on_values() -> None:
    def f(x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_fill(~mask, 0.0) if mask.any() else x

    mask = torch.tensor([[True, False], [False, False]])
    failed = _rows(_failure(testing.check_vmap, f, _x(2, 2), mask))
    assert "data-dependent control flow" in failed["vmap"]
    assert "vmap of args[0] alone" not in failed  # the mask is whole there


def test_vmap_catches_hidden_randomness() -> None:
    assert "randomness" in _failure(testing.check_vmap, lambda x: x * torch.rand(3), _x(2, 3))
    assert "randomness" in _failure(testing.check_vmap, F.dropout, _x(2, 3))


def test_vmap_catches_a_function_that_knows_it_is_mapped() -> None:
    def f(x: Tensor) -> Tensor:
        return 2 * x if is_batchedtensor(x) else x

    assert "max error" in _rows(_failure(testing.check_vmap, f, _x(2, 3)))["vmap"]


def test_vmap_counts_a_warning_as_a_failure() -> None:
    def loud(x: Tensor) -> Tensor:
        warnings.warn("look", stacklevel=2)
        return x

    assert "warns   look" in _failure(testing.check_vmap, loud, _x(2, 3))
    q = _x(2, 1, 1, 3, 4)  # torch warns once in a process, unless asked: so twice here
    for _ in range(2):
        failed = _failure(testing.check_vmap, F.scaled_dot_product_attention, q, q, q)
        assert "performance drop" in failed


def test_vmap_maps_params_masks_and_keys() -> None:
    keys = random.split(random.key(0), 2)
    x, lengths = _x(2, 3, 4), masks.padding(torch.tensor([1, 3]))
    params = tree.stack([tinyfn.init_attention(key, 4, 2, dtype=F64) for key in keys])
    f = functools.partial(tinyfn.attention, dropout_p=0.5)
    testing.check_vmap(f, params, x, x, x, lengths, keys)
    testing.check_vmap(lambda x, causal: x, x, masks.causal(), in_dims=(1, None))


def test_leading_axes_catch_a_mean_over_the_batch() -> None:
    def f(x: Tensor) -> Tensor:
        return x - x.mean(0)

    x = _x(2, 3, 4)
    testing.check_vmap(f, x)  # it never sees the batch there
    failed = _rows(_failure(testing.check_leading_axes, f, x))
    assert "differs from a loop" in failed["one leading axis"]


def test_leading_axes_catch_what_allows_one_only() -> None:
    def f(x: Tensor) -> Tensor:
        return x.sum(-1) if x.ndim < 3 else x.sum(1)

    failed = _rows(_failure(testing.check_leading_axes, f, _x(2, 3)))
    assert failed.keys() == {"two leading axes"}


def test_leading_axes_hold_where_params_have_none() -> None:
    testing.check_leading_axes(
        tinyfn.linear, {"weight": _x(2, 3), "bias": _x(2)}, _x(2, 4, 3), in_dims=(None, 0)
    )


def test_derivatives_catch_torchs_layer_norm() -> None:
    failed = _rows(_failure(testing.check_derivatives, lambda x: F.layer_norm(x, (4,)), _x(2, 4)))
    assert {"jvp(jvp)", "grad(jvp)", "jacfwd(jacfwd)", "grad(grad(grad))"} <= failed.keys()
    assert not {"grad", "jvp", "grad(grad)", "jvp(grad)", "hessian"} & failed.keys()
    assert "finite differences say" in failed["jvp(jvp)"]


def test_derivatives_catch_an_additive_mask_on_blind_rows() -> None:
    q, k, v = (_x(3, 2, seed=i) for i in range(3))
    args = (q, k, v, BLIND)
    testing.check_pure(_attend_with_additive_mask, *args)
    assert _attend_with_additive_mask(*args).isfinite().all()
    failed = _rows(_failure(testing.check_derivatives, _attend_with_additive_mask, *args, order=1))
    assert failed["grad"].startswith("wrong   got nan")
    assert "by args[0] alone nan" in failed["grad"]


class _Cube(torch.autograd.Function):
    """x³, whose second derivative in reverse mode is 0, as a detached factor makes it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0].detach() ** 2 * slope

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


def test_derivatives_catch_a_wrong_double_backward() -> None:
    failed = _rows(_failure(testing.check_derivatives, _Cube.apply, _x(3), order=2))
    assert {"grad(grad)", "autograd, order 2", "jacrev(jacrev)"} <= failed.keys()
    assert not {"grad", "jvp", "vjp"} & failed.keys()


def test_derivatives_catch_a_detached_factor_and_name_the_tensor() -> None:
    def f(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return x @ params["w"] * params["b"].detach().sin()

    params = {"w": _x(2, 2), "b": _x(2)}
    failed = _rows(_failure(testing.check_derivatives, f, params, _x(3, 2), order=1))
    assert "by args[0]['b'] alone" in failed["grad"]
    testing.check_derivatives(f, params, _x(3, 2), argnums=1, order=1)


def test_derivatives_catch_modes_that_disagree() -> None:
    def f(weight: Tensor) -> Tensor:
        return F.embedding(torch.tensor([0, 1]), weight, padding_idx=0).sin()

    failed = _rows(_failure(testing.check_derivatives, f, _x(2, 2), order=1))
    assert "jacrev" in failed
    assert "jacfwd" not in failed


def test_derivatives_catch_small_errors_and_forgive_kinks_nearby() -> None:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            return slope * ctx.saved_tensors[0].cos() * (1 + 1e-5)

    failed = _rows(_failure(testing.check_derivatives, Scaled.apply, _x(3), order=1))
    assert "finite differences say" in failed["grad"]
    testing.check_derivatives(torch.relu, torch.tensor([1e-3, -1.0, 1.0], dtype=F64))


def test_derivatives_say_that_an_output_is_not_finite() -> None:
    assert "the output itself is not finite" in _failure(
        testing.check_derivatives, lambda x: x / 0, _x(2), order=1
    )
    assert "no floating output" in _failure(
        testing.check_derivatives, lambda x: x > 0, _x(2), order=1
    )


@pytest.mark.parametrize("f", [lambda x: 3 * x, lambda x: x.sum() ** 2 * 1e-8, torch.ones_like])
def test_derivatives_that_vanish_are_right(f: Callable[[Tensor], Tensor]) -> None:
    testing.check_derivatives(f, _x(3))


def test_causal_catches_a_leak_by_one_position() -> None:
    x = _x(3, 2)
    leaky = torch.ones(3, 3, dtype=torch.bool).tril(1)
    testing.check_causal(lambda x: _attend(x, x, x, CAUSAL), x)
    failed = _rows(_failure(testing.check_causal, lambda x: _attend(x, x, x, leaky), x))
    assert "positions before 1 changed" in failed["noise from position 1 on"]


def test_causal_holds_along_any_axis_and_with_nan() -> None:
    testing.check_causal(lambda x: x.cumsum(1), _x(2, 4, 3), dim=1, with_nan=True)
    testing.check_causal(lambda t: t.cumsum(-1), torch.tensor([3, 1, 2]), dim=-1)
    assert "nan from position 1 on" in _failure(
        testing.check_causal, lambda x: _attend(x, x, x, CAUSAL), _x(3, 2), with_nan=True
    )


def test_masked_values_cannot_matter_in_attention() -> None:
    q, kv = _x(3, 2), {"k": _x(3, 2, seed=1), "v": _x(3, 2, seed=2)}
    hidden = ~BLIND.any(0)

    def attend(attend: Any, kv: dict[str, Tensor], q: Tensor) -> Tensor:
        return attend(q, kv["k"], kv["v"], BLIND)

    def check(f: Any) -> None:
        testing.check_masked_values_cannot_matter(functools.partial(attend, f), kv, hidden, q)

    check(_attend)
    check(lambda *args: tinyfn.dot_product_attention(*(x.unsqueeze(0) for x in args)))
    finite = _rows(_failure(check, _attend_with_finite_mask))
    assert "outputs changed" in finite["outputs, hidden: noise"]
    assert "not finite" in finite["outputs, hidden: nan"]
    additive = _rows(_failure(check, _attend_with_additive_mask))
    assert "outputs, hidden: noise" not in additive
    assert "not finite" in additive["gradients, hidden: what is given"]
    assert "second derivatives, hidden: what is given" in additive


def test_masked_values_catch_a_gradient_that_reaches_them() -> None:
    hidden = torch.tensor([False, True])

    class Leak(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x[:1].clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None: ...

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            return slope.repeat(2, 1)

    failed = _failure(testing.check_masked_values_cannot_matter, Leak.apply, _x(2, 3), hidden)
    assert "gradient by hidden values of args[0] is not zero" in failed


def test_masked_values_cannot_matter_to_what_stays_visible_of_an_encoder() -> None:
    params = tinyfn.init_encoder_layer(random.key(0), 4, 2, 3, dtype=F64)
    visible = torch.tensor([True, True, False])

    def f(x: Tensor) -> Tensor:
        return tinyfn.encoder_layer(params, x, masks.padding(torch.tensor(2)))[visible]

    testing.check_masked_values_cannot_matter(f, _x(3, 4), ~visible, gradients=False)


def test_permutations_catch_cross_attention_with_query_and_key_swapped() -> None:
    """With source and target of one length no shape tells, but then the memory's order does."""
    tgt, everything = _x(3, 2), torch.ones(3, 3, dtype=torch.bool)

    def right(memory: Tensor) -> Tensor:
        return _attend(tgt, memory, memory, everything)

    def swapped(memory: Tensor) -> Tensor:
        return _attend(memory, tgt, memory, everything)

    testing.check_permutation_invariant(right, _x(3, 2, seed=1))
    failed = _rows(_failure(testing.check_permutation_invariant, swapped, _x(3, 2, seed=1)))
    assert failed.keys() == {"reversed", "rotated", "shuffled"}


def test_permutations_catch_positions() -> None:
    x, everything = _x(3, 2), torch.ones(3, 3, dtype=torch.bool)
    testing.check_permutation_equivariant(lambda x: _attend(x, x, x, everything), x)
    assert "max error" in _failure(
        testing.check_permutation_equivariant, lambda x: _attend(x, x, x, CAUSAL), x
    )


counter = 0
cache: dict[int, Tensor] = {}


def _counts(x: Tensor) -> Tensor:
    global counter
    counter += 1
    return x


def _caches(x: Tensor) -> Tensor:
    return cache.setdefault(len(cache), x)


@functools.lru_cache
def _positions(length: int) -> Tensor:
    return torch.arange(length)


def _pops(params: dict[str, Tensor]) -> Tensor:
    return params.pop("w", torch.ones(1))


def _replaces(params: dict[str, Tensor]) -> Tensor:
    params["w"] = params["w"].clone()
    return params["w"]


def _sets_dtype(x: Tensor) -> Tensor:
    torch.set_default_dtype(F64)
    return x


def _turns_off_flash(x: Tensor) -> Tensor:
    torch.backends.cuda.enable_flash_sdp(False)
    return x


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x.add_(torch.arange(3)), "args[0] was changed"),
        (lambda x: x.mul_(1.0), "args[0] was written to in place"),
        (lambda x: x.requires_grad_(), "args[0] changed from"),
        (lambda x: x * torch.rand(3), "moved the global generator of torch"),
        (F.dropout, "moved the global generator of torch"),
        (lambda x: x * np.random.rand(), "moved the global generator of numpy"),
        (lambda x: _counts(_counts(x)), "remembers something in counter"),
        (_caches, "remembers something in cache"),
        (lambda x: x + _positions(int(x.sum() * 0) + counter + len(x)), "_positions"),
        (_sets_dtype, "default dtype from torch.float32 to torch.float64"),
        (_turns_off_flash, "flash sdp from True to False"),
        (lambda x: x + 1 if torch.set_grad_enabled(False) else x, "grad mode from True to False"),
    ],
)
def test_pure_catches(f: Callable[[Tensor], Tensor], message: str) -> None:
    _positions.cache_clear()
    assert message in _failure(testing.check_pure, f, torch.ones(3))
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_pure_catches_changes_to_structure() -> None:
    assert "the structure of the arguments changed" in _failure(
        testing.check_pure, _pops, {"w": torch.ones(2)}
    )
    assert "args[0]['w'] was replaced" in _failure(
        testing.check_pure, _replaces, {"w": torch.ones(2)}
    )


def test_pure_catches_pythons_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor) -> Tensor:
        return x * python_random.random()

    monkeypatch.setattr(_purity, "_types_are_checked", lambda: True)  # they draw from it too
    assert "says something else" in _failure(testing.check_pure, f, torch.ones(3))
    monkeypatch.setattr(_purity, "_types_are_checked", lambda: False)
    assert "moved the global generator of random" in _failure(testing.check_pure, f, torch.ones(3))


def test_pure_catches_a_buffer_that_is_used_again() -> None:
    buffer = torch.zeros(3)

    def f(x: Tensor) -> Tensor:
        return buffer.copy_(x).mul_(buffer._version)

    assert "remembers something in buffer" in _failure(testing.check_pure, f, torch.ones(3))


def _remembers_while_it_runs(x: Tensor) -> Tensor:
    double = functools.cache(lambda: 2.0 * x)
    return double() + double()


def test_pure_passes_a_cache_of_one_call() -> None:
    testing.check_pure(_remembers_while_it_runs, torch.ones(3))


def test_pure_passes_what_is_pure_and_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    params = tinyfn.init_attention(random.key(0), 4, 2)
    x = torch.ones(3, 4)
    f = functools.partial(tinyfn.attention, dropout_p=0.5)
    testing.check_pure(f, params, x, x, x, masks.causal(), random.key(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_transforms_show_a_table_of_what_failed() -> None:
    def f(x: Tensor) -> Tensor:
        return F.dropout(_norm(x), 0.5)

    message = _failure(testing.check_transforms, f, _x(4, 16), order=1)
    assert message.startswith("check_transforms: ")
    rows = _rows(message)
    assert rows["arguments"] == "right"
    assert rows["global generators"].startswith("wrong   moved")
    assert rows["vmap"].startswith("raises  RuntimeError: vmap: ")
    assert rows["functionalize"].startswith("wrong   differs from eager")


@pytest.mark.parametrize(
    ("f", "row"),
    [
        (lambda x: 2 * x if is_functional(x) else x, "functionalize"),
        (lambda x: x.sin() if x.requires_grad else x.detach().sin(), "jvp"),
        (lambda x: x.detach() * x, "vjp"),
        (lambda x: x * torch.ones(3, dtype=F64).mul_(2), "linearize"),
    ],
)
def test_transforms_catch(f: Callable[[Tensor], Tensor], row: str) -> None:
    assert "right" not in _rows(_failure(testing.check_transforms, f, _x(3), order=1))[row]


def test_transforms_vary_keys_and_permute_integers() -> None:
    def f(x: Tensor, key: Tensor, tokens: Tensor) -> Tensor:
        return x[tokens] * random.uniform(key, (2,), dtype=F64)

    x, key, tokens = _x(3), random.key(0), torch.tensor([0, 2])
    testing.check_transforms(f, x, key, tokens, order=1)
    xs, keys, ids = _calls.batch((x, key, tokens), 3)
    assert len({tuple(row) for row in xs.tolist()}) == len(set(keys.tolist())) == 3
    assert ids.tolist() == [[0, 2], [2, 0], [0, 2]]
    batch = (_x(2, 3), random.split(random.key(0)), torch.tensor([[0, 1], [2, 2]]))
    testing.check_transforms(f, *(b[0] for b in batch), order=1, batch=batch)


def test_one_position_has_nothing_later() -> None:
    with pytest.raises(ValueError, match=r"check_causal: x must have 2 positions or more, got 1"):
        testing.check_causal(lambda x: x, torch.ones(1, 2))


def test_what_is_bound_to_a_function_is_watched() -> None:
    kept: list[int] = []

    def append(kept: list[int], x: Tensor) -> Tensor:
        kept.append(1)
        return x

    def by_default(x: Tensor, kept: list[int] = kept) -> Tensor:
        kept.append(1)
        return x

    for impure in (functools.partial(append, kept), by_default):
        with pytest.raises(AssertionError, match="check_pure"):
            testing.check_pure(impure, torch.ones(2))


COMPILED = """
import torch
from tinyfn import testing
x = torch.linspace(-1, 1, 3, dtype=torch.float64)
print(testing.check_transforms(torch.tanh, x, order=1, compile="eager"))
def breaks(x):
    print("look")
    return x.tanh()
try:
    testing.check_transforms(breaks, x, order=1, compile="eager")
except AssertionError as error:
    print("caught", *[row for row in str(error).splitlines() if row.startswith("compile ")])
"""


def test_transforms_compile_in_a_process_of_their_own(fresh_python) -> None:
    said = fresh_python("-c", COMPILED)
    rows = {line.split("  ")[0]: line.split()[-1] for line in said.splitlines()}
    assert rows["compile(vmap(grad))"] == "right"
    assert "caught compile" in said
    assert "raises" in said


@given(testing.shapes(st.integers(1, 5), 8))
def test_shapes_have_leading_axes(shape: tuple[int, ...]) -> None:
    assert 2 <= len(shape) <= 4
    assert shape[-1] == 8
    assert 1 <= shape[-2] <= 5
    assert all(0 <= size <= 3 for size in shape[:-2])


def test_masks_come_in_every_form_and_with_blind_rows() -> None:
    seen = set()

    @settings(max_examples=60, derandomize=True, database=None)
    @given(testing.masks(2, 3, (4,)))
    def draw(mask: Any) -> None:
        if mask is None:
            seen.add("none")
            return
        seen.add("plain" if isinstance(mask, Tensor) else "mask")
        dense = mask if isinstance(mask, Tensor) else mask.dense(2, 3)
        assert dense.dtype == torch.bool
        if isinstance(mask, Tensor):
            assert dense.shape in ((4, 1, 2, 3), (1, 2, 3))
        else:
            assert dense.shape in ((4, 2, 3), (2, 3))
        seen.add("blind" if not dense.any(-1).all() else "sighted")

    draw()
    assert seen == {"none", "plain", "mask", "blind", "sighted"}


INITS = [
    getattr(tinyfn, name)
    for name in dir(tinyfn)
    if name.startswith("init_") and name != "init_cache"  # which makes no params
]


@pytest.mark.parametrize("init", INITS, ids=lambda init: init.__name__)
@settings(max_examples=3)
@given(st.data())
def test_params_are_drawn_for_every_init_function(init: Any, data: st.DataObject) -> None:
    params = data.draw(testing.params(init))
    for leaf in tree.leaves(params):
        assert leaf.dtype == F64
        assert leaf.isfinite().all()
        assert leaf.numel() == 0 or leaf.abs().max() > 0  # no bias stays zero


@given(testing.params(tinyfn.init_attention, num_features=6), testing.shapes(st.integers(1, 3), 6))
def test_params_meet_the_sizes_that_are_given(params: Any, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, dtype=F64)
    assert tinyfn.attention(params, x, x, x).shape == x.shape


@given(testing.attention_inputs())
def test_attention_inputs_fit_attention(inputs: testing.AttentionInputs) -> None:
    q, k, v, mask, bias = inputs
    out = tinyfn.dot_product_attention(q, k, v, mask, bias=bias)
    assert out.shape == q.shape
    assert out.isfinite().all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        (
            ValueError,
            lambda: testing.check_vmap(torch.sin, _x(2, 3), in_dims=(0, 0)),
            r"testing\.check_vmap: in_dims must have an entry for each of 1 arguments, got 2",
        ),
        (
            ValueError,
            lambda: testing.check_vmap(torch.add, _x(2, 3), _x(3, 3)),
            r"testing\.check_vmap: args must have mapped axes of one length.*'args\[0\]': 2",
        ),
        (
            ValueError,
            lambda: testing.check_leading_axes(torch.sin, _x(3), in_dims=None),
            r"testing\.check_leading_axes: args must have mapped axes",
        ),
        (
            TypeError,
            lambda: testing.check_derivatives(torch.sin, torch.ones(3)),
            r"testing\.check_derivatives: args\[0\] must be float64, got a float32 tensor",
        ),
        (
            ValueError,
            lambda: testing.check_transforms(torch.sin, torch.ones(3, dtype=torch.int64)),
            r"testing\.check_transforms: args must hold a floating tensor in some argument",
        ),
        (
            ValueError,
            lambda: testing.check_derivatives(torch.sin, _x(3), order=4),
            r"testing\.check_derivatives: order must be 1, 2 or 3, got 4",
        ),
        (
            ValueError,
            lambda: testing.check_causal(lambda x: x.sum(-2), _x(3, 2)),
            r"testing\.check_causal: f must return 3 positions along dim=-2",
        ),
        (
            ValueError,
            lambda: testing.check_causal(torch.sin, _x(3)),
            r"testing\.check_causal: x must hold tensors of one length along dim=-2",
        ),
        (
            ValueError,
            lambda: testing.check_masked_values_cannot_matter(
                torch.sin, _x(3, 2), torch.zeros(3, dtype=torch.bool)
            ),
            r"check_masked_values_cannot_matter: hidden must be a bool tensor with a True",
        ),
        (
            ValueError,
            lambda: testing.check_masked_values_cannot_matter(
                torch.sin, _x(3, 2), torch.ones(2, dtype=torch.bool)
            ),
            r"check_masked_values_cannot_matter: hidden must broadcast to the axes of x",
        ),
        (
            ValueError,
            lambda: testing.check_permutation_invariant(torch.sin, (_x(3, 2), _x(2, 2))),
            r"testing\.check_permutation_invariant: x must hold tensors of one length",
        ),
    ],
)
def test_errors_say_what_to_do(
    kind: type[Exception], call: Callable[[], None], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_strategies_ask_for_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    spec = importlib.util.spec_from_file_location("without", _strategies.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(
        ImportError, match=r"hypothesis must be installed.*pip install tinyfn\[test"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(
    ("others", "error", "seen"), [(1e3, 1e-11, False), (1e3, 1e-10, True), (1.0, 1e-11, True)]
)
def test_what_cancels_to_zero_rounds_as_the_other_outputs_do(others, error, seen):
    expected = [torch.tensor([others], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    actual = [expected[0], expected[1] + error]
    with pytest.raises(AssertionError, match="output 1") if seen else contextlib.nullcontext():
        _verdicts.same("sum", actual, expected)

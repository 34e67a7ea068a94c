"""Draws for property tests: structure from hypothesis, numbers from a drawn key.

Sizes are 1 to 5, and 0 where asked for; valid values are built, never filtered.
"""

import functools
import inspect
import operator
import random as python_random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import tinyfn.masks as values
from tinyfn import _checks, random, tree
from tinyfn.types import Key, Params

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise _checks.fail(
        ImportError,
        "tinyfn.testing",
        "hypothesis",
        "be installed",
        f"{error}",
        "Install it with: pip install tinyfn[test]",
    ) from error

Size = int | SearchStrategy[int]
Draw = Callable[..., Any]  # hypothesis' own DrawFn is a protocol that cannot be checked at run time


def _composite(build: Callable[..., Any]) -> Callable[..., SearchStrategy[Any]]:
    """`st.composite` of a function that leaves Python's generator alone, checked types or not."""

    @functools.wraps(build)
    def still(draw: Draw, *args: Any, **kwargs: Any) -> Any:
        # beartype draws which element of a list to check, and hypothesis forbids such draws
        state = python_random.getstate()
        try:
            return build(draw, *args, **kwargs)
        finally:
            python_random.setstate(state)

    return st.composite(still)


@_composite
def keys(draw: Draw) -> Key:
    """Random keys.

    Example:
        >>> from hypothesis import given
        >>> @given(keys())
        ... def test_key_splits_into_two(key):
        ...     assert len(random.split(key)) == 2
        >>> test_key_splits_into_two()
    """
    return random.key(draw(st.integers(0, 2**32 - 1)))


def shapes(
    *last: Size, max_leading: int = 2, min_size: int = 0, max_size: int = 3
) -> SearchStrategy[tuple[int, ...]]:
    """Shapes of any number of leading axes, followed by `last`.

    Args:
        last: The sizes of the last axes: numbers, or strategies of them.
        max_leading: How many leading axes at most; there may be none.
        min_size: The least size of a leading axis; 0 makes empty batches, on purpose.
        max_size: The largest size of a leading axis.

    Example:
        >>> from hypothesis import given, strategies as st
        >>> @given(shapes(st.integers(1, 5), 8))
        ... def test_features_stay_last(shape):
        ...     assert torch.relu(torch.ones(shape)).shape[-1] == 8
        >>> test_features_stay_last()
    """
    leading = st.lists(st.integers(min_size, max_size), max_size=max_leading)
    return st.tuples(leading, *map(_size, last)).map(lambda drawn: (*drawn[0], *drawn[1:]))


def _size(size: Any) -> SearchStrategy[Any]:
    return size if isinstance(size, SearchStrategy) else st.just(size)


@_composite
def masks(
    draw: Draw,
    q_seq: int,
    kv_seq: int,
    leading: Sequence[int] = (),
    *,
    plain: bool = True,
    none: bool = True,
) -> values.Mask | Tensor | None:
    """Masks of every kind and combination, with rows that may look nowhere among them.

    Args:
        q_seq: How many queries.
        kv_seq: How many keys.
        leading: The batch's axes; a mask may have them or not.
        plain: Also plain bool tensors, with a heads axis of size 1.
        none: Also None, no mask at all.

    Example:
        >>> from hypothesis import given
        >>> @given(masks(2, 3, plain=False, none=False))
        ... def test_not_not_is_nothing(mask):
        ...     assert torch.equal((~~mask).dense(2, 3), mask.dense(2, 3))
        >>> test_not_not_is_nothing()
    """
    rule = _rule(draw, q_seq, kv_seq, tuple(leading))
    for combine in draw(st.sampled_from(_COMBINATIONS)):
        rule = combine(rule, _rule(draw, q_seq, kv_seq, tuple(leading)))
    forms = ["mask", *["none"] * none, *["plain"] * plain]
    form = draw(st.sampled_from(forms))
    if form == "plain":
        return rule.dense(q_seq, kv_seq).unsqueeze(-3)
    return None if form == "none" else rule


_COMBINATIONS: Sequence[tuple[Callable[[values.Mask, values.Mask], values.Mask], ...]] = (
    (),
    (operator.and_,),
    (operator.or_,),
    (lambda mask, _: ~mask,),
    (operator.and_, operator.or_),
    (lambda mask, _: ~mask, operator.and_),
)


def _rule(draw: Draw, q_seq: int, kv_seq: int, leading: tuple[int, ...]) -> values.Mask:
    """A mask value of one kind; its kind is drawn, its numbers come from a drawn seed."""
    kind = draw(st.sampled_from(_KINDS))
    axes = leading if draw(st.booleans()) else ()
    seed = draw(st.integers(0, 2**32 - 1))

    def upto(highest: int, *shape: int) -> Tensor:
        return _integers(seed, (*axes, *shape), highest + 1)

    match kind:
        case "causal":
            return values.causal(upto(4) - 2)
        case "padding":
            return values.padding(upto(kv_seq))  # 0 too: then nobody may look anywhere
        case "window":
            return values.window(seed % 3, None if seed % 5 == 0 else upto(2))
        case "prefix":
            return values.prefix(upto(kv_seq))
        case "segments":
            return values.segments(upto(2, q_seq), _integers(seed + 1, (*axes, kv_seq), 3))
        case "dense":
            return values.dense(upto(1, q_seq, kv_seq).bool())
        case "blind rows":
            return values.dense(upto(1, q_seq, 1).bool().expand(*axes, q_seq, kv_seq))
        case _:
            return values.full()


_KINDS = ("full", "causal", "padding", "window", "prefix", "segments", "dense", "blind rows")


def _integers(seed: int, shape: Sequence[int], high: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, tuple(shape), generator=generator)


@_composite
def params(
    draw: Draw,
    init_function: Callable[..., Params],
    *sizes: Size,
    max_size: int = 5,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Params:
    """Params of any init function, away from zero biases and unit scales.

    Sizes that are not given are drawn: every parameter of `init_function` that has no default,
    `num_features` as a multiple of `num_heads` where it has both. Every leaf is then moved a
    little, so that a zero bias hides nothing.

    Args:
        init_function: `init_function(key, *sizes, **options)`.
        sizes: The first sizes: numbers, or strategies of them.
        max_size: The largest size that is drawn.
        dtype: Of every leaf.
        options: Further arguments by name: values, or strategies of them (`bias=st.booleans()`).

    Example:
        >>> from hypothesis import given
        >>> from tinyfn import init_linear, linear
        >>> @given(params(init_linear, 3))
        ... def test_linear_has_its_sizes(params):
        ...     assert linear(params, torch.ones(3).double()).shape == params["bias"].shape
        >>> test_linear_has_its_sizes()
    """
    signature = inspect.signature(init_function)
    names = [name for name, p in signature.parameters.items() if p.kind in _BY_POSITION][1:]
    given = dict(zip(names, sizes, strict=False)) | options
    given = {name: draw(_size(value)) for name, value in given.items()}
    for name, value in _missing_sizes(draw, signature, given, max_size).items():
        given[name] = value
    made = tree.cast(init_function(draw(keys()), **given), dtype)
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)

    def move(x: Tensor) -> Tensor:
        return x + 0.2 * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)

    return tree.map(move, made)


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _missing_sizes(
    draw: Draw, signature: inspect.Signature, given: dict[str, Any], max_size: int
) -> dict[str, int]:
    without_default = [
        name
        for name, p in list(signature.parameters.items())[1:]
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    names = [name for name in without_default if name not in given]
    drawn: dict[str, int] = {}
    for name in sorted(names, key=("num_features".__eq__)):  # the features after the heads
        if name == "num_heads" and "num_features" in given:
            features = given["num_features"]
            fits = [n for n in range(1, features + 1) if features % n == 0]
            drawn[name] = draw(st.sampled_from(fits))
        elif name == "num_features" and "num_heads" in signature.parameters:
            heads = {**given, **drawn}["num_heads"]
            drawn[name] = heads * draw(st.integers(1, max(max_size // heads, 1)))
        else:
            few = name.endswith(("heads", "layers"))  # they multiply the cost
            drawn[name] = draw(st.integers(1, min(max_size, 2) if few else max_size))
    return drawn


class AttentionInputs(NamedTuple):
    """What an attend takes, by position but for the key.

    Example:
        >>> x = torch.ones(1, 2, 3)
        >>> AttentionInputs(x, x, x, None, None).mask is None
        True
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: values.Mask | Tensor | None
    bias: Tensor | None


@_composite
def attention_inputs(
    draw: Draw,
    *,
    max_leading: int = 2,
    min_size: int = 1,
    max_size: int = 4,
    dtype: torch.dtype = torch.float64,
) -> AttentionInputs:
    """Queries (..., heads, q_seq, head_dim), keys and values of grouped heads, a mask, a bias.

    Lengths differ, heads divide by kv_heads, rows may be fully masked; mask and bias may be None.

    Args:
        max_leading: How many leading axes at most.
        min_size: The least size of a leading axis.
        max_size: The largest length, head_dim and leading axis.
        dtype: Of all floating tensors.

    Example:
        >>> from hypothesis import given
        >>> from tinyfn import dot_product_attention
        >>> @given(attention_inputs())
        ... def test_attention_is_finite(inputs):
        ...     q, k, v, mask, bias = inputs
        ...     assert dot_product_attention(q, k, v, mask, bias=bias).isfinite().all()
        >>> test_attention_is_finite()
    """
    leading = draw(shapes(max_leading=max_leading, min_size=min_size, max_size=min(max_size, 3)))
    q_seq, kv_seq, head_dim = (draw(st.integers(1, max_size)) for _ in range(3))
    kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads = kv_heads * groups
    mask = draw(masks(q_seq, kv_seq, leading))
    bias_shape = draw(
        st.none()
        | st.sampled_from([(q_seq, kv_seq), (heads, 1, kv_seq), (*leading, heads, q_seq, kv_seq)])
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return AttentionInputs(
        q=normal(*leading, heads, q_seq, head_dim),
        k=normal(*leading, kv_heads, kv_seq, head_dim),
        v=normal(*leading, kv_heads, kv_seq, head_dim),
        mask=mask,
        bias=None if bias_shape is None else normal(*bias_shape),
    )

"""Batches: mapping a function says what a loop says, and so do leading axes."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tinyfn import _checks
from tinyfn.testing import _calls, _verdicts

Dims = Sequence[int | None]


def check_vmap(
    f: Callable[..., Any], *args: Any, in_dims: int | Sequence[int | None] | None = 0
) -> None:
    """`vmap(f)` equals a loop: over all arguments, each alone, from the last axis, and nested.

    Args:
        f: Any function of pytrees of tensors.
        args: Batches, as `vmap(f, in_dims)` takes them; what holds no tensor is passed whole.
        in_dims: The axis to map in every tensor of an argument, None for not mapped; one for all
            arguments, or one each.

    Raises:
        AssertionError: Some way of mapping is wrong, raises or warns.
        ValueError: No argument is mapped, or the axes differ in length.

    Example:
        >>> check_vmap(torch.cumsum, torch.ones(2, 3), 0)
        >>> check_vmap(lambda x: x - x.mean(), torch.ones(2, 3), in_dims=1)
    """
    call, dims = _mapped("testing.check_vmap", f, args, in_dims)
    _verdicts.demand("check_vmap", vmap_checks(call, dims))


def vmap_checks(call: _calls.Call, dims: Dims) -> Iterator[_verdicts.Check]:
    """Every way of mapping a call whose tensors are batched along `dims`."""
    owners = sorted({o for o, d in zip(call.owners, dims, strict=True) if d is not None})
    yield "vmap", lambda: _check_one_map(call, dims)
    if len(owners) > 1:
        for owner in owners:
            alone = [d if o == owner else None for o, d in zip(call.owners, dims, strict=True)]
            first = _first_where(call, _others(dims, alone))
            yield (
                f"vmap of args[{owner}] alone",
                lambda first=first, alone=alone: _check_one_map(first, alone),
            )
    yield "vmap of the last axis", lambda: _check_last_axis(call, dims)
    yield "vmap(vmap)", lambda: _check_nested(call, dims)
    for outer, inner in pairwise(owners):
        yield (
            f"vmap of args[{outer}] over vmap of args[{inner}]",
            lambda outer=outer, inner=inner: _check_product(call, dims, outer, inner),
        )


def loop(call: _calls.Call, dims: Dims) -> tuple[Tensor, ...]:
    """What `vmap(call.f, dims)` should say."""
    results = [call.f(*_select(call.tensors, dims, i)) for i in range(_size(call, dims))]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def _check_one_map(call: _calls.Call, dims: Dims) -> None:
    mapped = torch.vmap(call.f, tuple(dims))(*call.tensors)
    _verdicts.same("differs from a loop", mapped, loop(call, dims))


def _check_last_axis(call: _calls.Call, dims: Dims) -> None:
    moved = [x if d is None else x.movedim(d, -1) for x, d in zip(call.tensors, dims, strict=True)]
    last = tuple(None if d is None else -1 for d in dims)
    mapped = torch.vmap(call.f, last, -1)(*moved)
    expected = [y.movedim(0, -1) for y in loop(call, dims)]
    _verdicts.same("differs from a loop", mapped, expected)


def _check_nested(call: _calls.Call, dims: Dims) -> None:
    flipped = call._replace(
        tensors=tuple(
            x if d is None else x.flip(d) for x, d in zip(call.tensors, dims, strict=True)
        )
    )
    outer = tuple(None if d is None else 0 for d in dims)
    inner = tuple(
        None if d is None else d % x.ndim for x, d in zip(call.tensors, dims, strict=True)
    )
    both = [
        x if d is None else torch.stack([x, y])
        for x, y, d in zip(call.tensors, flipped.tensors, dims, strict=True)
    ]
    mapped = torch.vmap(torch.vmap(call.f, inner), outer)(*both)
    pairs = zip(loop(call, dims), loop(flipped, dims), strict=True)
    _verdicts.same("differs from two loops", mapped, [torch.stack(pair) for pair in pairs])


def _check_product(call: _calls.Call, dims: Dims, outer: int, inner: int) -> None:
    first = _first_where(
        call, [None if o in (outer, inner) else d for o, d in zip(call.owners, dims, strict=True)]
    )
    of_outer, of_inner = (
        tuple(d if o == owner else None for o, d in zip(call.owners, dims, strict=True))
        for owner in (outer, inner)
    )
    mapped = torch.vmap(torch.vmap(call.f, of_inner), of_outer)(*first.tensors)
    rows = [
        loop(first._replace(tensors=_select(first.tensors, of_outer, i)), of_inner)
        for i in range(_size(first, of_outer))
    ]
    expected = [torch.stack(parts) for parts in zip(*rows, strict=True)]
    _verdicts.same("differs from two loops", mapped, expected)


def check_leading_axes(
    f: Callable[..., Any], *args: Any, in_dims: int | Sequence[int | None] | None = 0
) -> None:
    """`f` of a batch is the batch of `f`: with one leading axis, two, and one of length 0.

    Args:
        f: Any function of pytrees of tensors.
        args: Batches, with the leading axis first.
        in_dims: 0 where an argument has the leading axis, None where it has not (params, mostly).

    Raises:
        AssertionError: Leading axes change what is computed.
        ValueError: No argument has a leading axis, or they differ in length.

    Example:
        >>> check_leading_axes(lambda x: x - x.mean(-1, keepdim=True), torch.ones(2, 3))
    """
    call, dims = _mapped("testing.check_leading_axes", f, args, in_dims)
    moved = tuple(
        x if d is None else x.movedim(d, 0) for x, d in zip(call.tensors, dims, strict=True)
    )
    dims = [None if d is None else 0 for d in dims]
    _verdicts.demand("check_leading_axes", _leading_checks(call._replace(tensors=moved), dims))


def _leading_checks(call: _calls.Call, dims: Dims) -> Iterator[_verdicts.Check]:
    def of(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [x if d is None else change(x) for x, d in zip(call.tensors, dims, strict=True)]

    def one() -> None:
        _verdicts.same("differs from a loop", call.f(*call.tensors), loop(call, dims))

    def two() -> None:
        flipped = call._replace(tensors=tuple(of(lambda x: x.flip(0))))
        pairs = zip(loop(call, dims), loop(flipped, dims), strict=True)
        both = call.f(*of(lambda x: torch.stack([x, x.flip(0)])))
        _verdicts.same("differs from a loop", both, [torch.stack(pair) for pair in pairs])

    def none() -> None:
        empty = call.f(*of(lambda x: x[:0]))
        _verdicts.same("differs from an empty loop", empty, [y[:0] for y in loop(call, dims)])

    yield "one leading axis", one
    yield "two leading axes", two
    yield "a leading axis of length 0", none


def _mapped(
    law: str, f: Callable[..., Any], args: Sequence[Any], in_dims: int | Sequence[int | None] | None
) -> tuple[_calls.Call, list[int | None]]:
    call = _calls.call(f, args)
    each = [in_dims] * len(args) if in_dims is None or isinstance(in_dims, int) else list(in_dims)
    if len(each) != len(args):
        raise _checks.fail(
            ValueError,
            law,
            "in_dims",
            f"have an entry for each of {len(args)} arguments",
            f"{len(each)} entries",
            "Use None for an argument that is not mapped",
        )
    dims = [each[owner] for owner in call.owners]
    sizes = {
        name: x.shape[d] if x.ndim else "no axis"
        for name, x, d in zip(call.names, call.tensors, dims, strict=True)
        if d is not None
    }
    if len(set(sizes.values())) != 1 or not all(isinstance(s, int) and s for s in sizes.values()):
        raise _checks.fail(
            ValueError,
            law,
            "args",
            "have mapped axes of one length, 1 or more",
            sizes,
            "Batch every argument, or say in_dims=None for those that are not",
        )
    return call, dims


def _size(call: _calls.Call, dims: Dims) -> int:
    return next(x.shape[d] for x, d in zip(call.tensors, dims, strict=True) if d is not None)


def _select(tensors: Sequence[Tensor], dims: Dims, index: int) -> tuple[Tensor, ...]:
    return tuple(x if d is None else x.select(d, index) for x, d in zip(tensors, dims, strict=True))


def _others(dims: Dims, alone: Dims) -> Dims:
    return [d if a is None else None for d, a in zip(dims, alone, strict=True)]


def _first_where(call: _calls.Call, dims: Dims) -> _calls.Call:
    return call._replace(tensors=_select(call.tensors, dims, 0))

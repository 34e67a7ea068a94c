"""Orders that do not matter: of a sequence without positions, of keys together with values."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tinyfn.testing import _calls, _independence, _verdicts


def check_permutation_equivariant(f: Callable[[Any], Any], x: Any, *, dim: int = -2) -> None:
    """Permuting the input permutes the output, and does nothing else.

    Args:
        f: A function of sequences to sequences.
        x: A tensor, or a pytree of tensors that are permuted together.
        dim: The axis to permute, in `x` and in every output.

    Raises:
        AssertionError: The output is not the permuted one.
        ValueError: The tensors of `x` are not of one length along `dim`.

    Example:
        >>> x = torch.arange(6.0).reshape(3, 2)
        >>> check_permutation_equivariant(lambda x: x - x.mean(-2, keepdim=True), x)
        >>> check_permutation_equivariant(lambda x: x.cumsum(-2), x)
        Traceback (most recent call last):
        AssertionError: check_permutation_equivariant: 3 not right...
    """

    def expected(y: Tensor, order: Tensor) -> Tensor:
        return y.index_select(dim, order.to(y.device))

    checks = _permuted("testing.check_permutation_equivariant", f, x, dim, expected)
    _verdicts.demand("check_permutation_equivariant", checks)


def check_permutation_invariant(f: Callable[[Any], Any], x: Any, *, dim: int = -2) -> None:
    """Permuting the input changes nothing: keys together with values, say.

    Args:
        f: Any function.
        x: A tensor, or a pytree of tensors that are permuted together.
        dim: The axis to permute.

    Raises:
        AssertionError: The output changes.
        ValueError: The tensors of `x` are not of one length along `dim`.

    Example:
        >>> q, kv = torch.ones(2, 4), torch.arange(12.0).reshape(3, 4)
        >>> check_permutation_invariant(
        ...     lambda kv: torch.softmax(q @ kv["k"].mT, -1) @ kv["v"], {"k": kv, "v": kv.sin()}
        ... )
    """
    checks = _permuted("testing.check_permutation_invariant", f, x, dim, lambda y, order: y)
    _verdicts.demand("check_permutation_invariant", checks)


def _permuted(
    law: str,
    f: Callable[[Any], Any],
    x: Any,
    dim: int,
    expected: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[_verdicts.Check]:
    call = _calls.call(f, (x,))
    length = _independence.length(law, call.tensors, dim)
    generator = torch.Generator().manual_seed(29)
    orders = {
        "reversed": torch.arange(length).flip(0),
        "rotated": torch.arange(length).roll(1),
        "shuffled": torch.randperm(length, generator=generator),
    }
    base = call.f(*call.tensors)
    for name, order in orders.items():

        def check(order: Tensor = order) -> None:
            moved = call.f(*(x.index_select(dim, order.to(x.device)) for x in call.tensors))
            _verdicts.same(f"order {order.tolist()}", moved, [expected(y, order) for y in base])

        yield name, check

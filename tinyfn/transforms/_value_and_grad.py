"""A value and its gradient, with no graph of the backward where nobody can ask for it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from tinyfn import _checks, _levels


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """The value of `f` and its gradient, as `torch.func.grad_and_value` has them.

    torch's function always keeps a graph of its own backward. Here none is kept unless another
    transform, or autograd outside, may ask for it.

    Args:
        f: Its result is one number; with `has_aux`, a pair of that and anything else.
        argnums: By which positional arguments.
        has_aux: Whether `f` returns a pair.

    Returns:
        A function of the same arguments to (value, gradient), where value is the pair if
        `has_aux`.

    Raises:
        ValueError: The first result of `f` is not one number.

    Example:
        >>> value_and_grad(torch.sin)(torch.tensor(0.0))
        (tensor(0.), tensor(1.))
    """
    given = argnums if isinstance(argnums, int) else tuple(argnums)
    numbers = (given,) if isinstance(given, int) else given

    @functools.wraps(f)
    def both(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for number in numbers:
            if not -len(args) <= number < len(args):
                requirement = f"be below {len(args)}, the number of positional arguments"
                remedy = "Pass what is differentiated by position"
                raise _checks.fail(
                    ValueError, "value_and_grad", "argnums", requirement, number, remedy
                )
        tensors = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if _levels.transformed() or _levels.live(*tensors) is not _levels.Derivatives.NONE:
            gradient, value = torch.func.grad_and_value(f, given, has_aux)(*args, **kwargs)
            return value, gradient

        def of_some(*some: Any) -> Any:
            changed = list(args)
            for number, arg in zip(numbers, some, strict=True):
                changed[number] = arg
            return f(*changed, **kwargs)

        value, pull, *aux = torch.func.vjp(
            of_some, *(args[number] for number in numbers), has_aux=has_aux
        )
        _checks.one_number("value_and_grad", value)
        with torch.no_grad():
            gradients = pull(torch.ones_like(value), retain_graph=False)
        gradient = gradients[0] if isinstance(given, int) else gradients
        return ((value, *aux) if has_aux else value), gradient

    return both

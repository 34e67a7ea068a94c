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

    torch's function always keeps a graph of its own backward, and a transform has a price for each
    operation. Here torch's autograd does it, and keeps no graph, unless another transform, or
    autograd outside (by an argument, or by a tensor that `f` captures), may ask for a derivative.
    What `f` captures shows in its result only: `f` then runs once more, by torch's function.

    Args:
        f: Its result is one number; with `has_aux`, a pair of that and anything else.
        argnums: By which positional arguments.
        has_aux: Whether `f` returns a pair.

    Returns:
        A function of the same arguments to (value, gradient), where value is the pair if
        `has_aux`.

    Raises:
        ValueError: The first result of `f` is not one floating number.
        TypeError: With `has_aux`, `f` does not return a pair.

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
        if _levels.free(*tensors) and not any(x.is_inference() for x in tensors):
            found = _by_autograd(f, numbers, args, kwargs, has_aux)
            if found is not None:
                result, gradients = found
                return result, gradients[0] if isinstance(given, int) else gradients
        if has_aux and not torch.compiler.is_compiling():
            return _with_any_aux(f, given, args, kwargs)
        gradient, value = torch.func.grad_and_value(f, given, has_aux)(*args, **kwargs)
        return value, gradient

    return both


def _with_any_aux(
    f: Callable[..., Any], argnums: int | tuple[int, ...], args: tuple[Any, ...], kwargs: Any
) -> tuple[Any, Any]:
    """By torch's function, which takes tensors only as what is beside the value."""
    kept: list[Any] = []

    def of_tensors(*args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        value, aux = _pair(f(*args, **kwargs))
        leaves, structure = _pytree.tree_flatten(aux)
        kept[:] = leaves, structure
        return value, [x for x in leaves if isinstance(x, Tensor)]

    gradient, (value, tensors) = torch.func.grad_and_value(of_tensors, argnums, True)(
        *args, **kwargs
    )
    (leaves, structure), found = kept, iter(tensors)
    leaves = [next(found) if isinstance(x, Tensor) else x for x in leaves]
    return (value, _pytree.tree_unflatten(leaves, structure)), gradient


def _pair(result: Any) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        requirement, actual = "be a pair (value, aux)", _checks.shape(result)
        remedy = "Return both, or leave out has_aux"
        name = "value_and_grad"
        raise _checks.fail(TypeError, name, "the result of f", requirement, actual, remedy)
    return result


def _by_autograd(
    f: Callable[..., Any],
    numbers: Sequence[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    has_aux: bool,
) -> tuple[Any, tuple[Any, ...]] | None:
    """The value and the gradients by torch's autograd, or None where it would not do.

    That is where torch's function has an error to raise, or autograd outside may ask for more: a
    graph by autograd leads to leaves of this call's own, which nobody else is to meet.
    """
    leaves, structure = _pytree.tree_flatten([args[number] for number in numbers])
    repeated = len({number % len(args) for number in numbers}) < len(numbers)
    floating = all(isinstance(x, Tensor) and x.is_floating_point() for x in leaves)
    if not leaves or repeated or not floating or torch.is_inference_mode_enabled():
        return None
    asked = torch.is_grad_enabled() or has_aux
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in leaves]
        changed = list(args)
        for number, arg in zip(numbers, _pytree.tree_unflatten(inputs, structure), strict=True):
            changed[number] = arg
        result = f(*changed, **kwargs)
    value = _pair(result)[0] if has_aux else result
    _checks.one_number("value_and_grad", value)
    if asked and _reaches_others(result, inputs):
        return None
    if value.requires_grad:
        gradients = torch.autograd.grad(value, inputs, materialize_grads=True)
    else:
        gradients = tuple(map(torch.zeros_like, leaves))
    result = _pytree.tree_map_only(Tensor, Tensor.detach, result)
    return result, tuple(_pytree.tree_unflatten(gradients, structure))


def _reaches_others(result: Any, inputs: Sequence[Tensor]) -> bool:
    """Whether autograd would go from a result to a leaf that is not among the inputs."""
    own, seen = set(map(id, inputs)), set()
    tensors = [x for x in _pytree.tree_leaves(result) if isinstance(x, Tensor)]
    if any(x.requires_grad and x.is_leaf and id(x) not in own for x in tensors):
        return True
    nodes = [x.grad_fn for x in tensors if x.grad_fn is not None]
    while nodes:
        node: Any = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable") and id(node.variable) not in own:
            return True
        nodes += [following for following, _ in node.next_functions if following is not None]
    return False

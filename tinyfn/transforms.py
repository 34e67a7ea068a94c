"""Transforms of functions that torch.func does not have, closed under those that it has.

remat            a function that computes again what its derivative needs, in place of keeping it
value_and_grad   torch.func.grad_and_value, without the graph of its backward where nobody asks
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils import _pytree

from tinyfn import _checks, _levels

Flat: TypeAlias = Callable[..., tuple[Tensor, ...]]


def remat(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, which in reverse mode keeps its arguments only, and runs again for its derivative.

    Memory for time: a stack of layers then keeps what goes into each and not what happens inside.
    Draws by key are the same when `f` runs again. In forward mode, which keeps nothing, and in
    compiled code `f` runs as it is.

    Args:
        f: A pure function of tensors and trees of them. Whatever else it is given is not
            differentiated.

    Returns:
        The same function, closed under every transform.

    Raises:
        ValueError: `f` has captured a tensor, which would get no gradient: pass it.

    Example:
        >>> remat(torch.sin)(torch.zeros(2))
        tensor([0., 0.])
        >>> torch.func.grad(remat(torch.sin))(torch.tensor(0.0))
        tensor(1.)

    Reference: Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016,
    arXiv 1604.06174.
    """
    name, captured = next(_captured(f, "f", set()), ("", None))
    if captured is not None:
        raise _checks.fail(
            ValueError,
            "remat",
            "f",
            "capture no tensor, which would get no gradient",
            f"{name} of {_checks.shape(captured)}",
            "Pass it as an argument",
        )

    @functools.wraps(f)
    def rematerialised(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = _pytree.tree_flatten((args, kwargs))
        tensors = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        floating = {i: x for i, x in tensors.items() if x.is_floating_point()}
        if _levels.live(*floating.values()) is not _levels.Derivatives.REVERSE:
            return f(*args, **kwargs)
        ordered = floating | tensors  # those that have gradients first
        structure: list[Any] = []

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            given = dict(enumerate(leaves)) | dict(zip(ordered, values, strict=True))
            args, kwargs = _pytree.tree_unflatten(given.values(), spec)
            results, structure[:] = _split_structure(f(*args, **kwargs))
            return results

        results = _Remat.apply(flat, len(floating), *ordered.values())
        return _pytree.tree_unflatten(results, *structure)

    return rematerialised


def _split_structure(results: Any) -> tuple[tuple[Tensor, ...], list[Any]]:
    leaves, spec = _pytree.tree_flatten(results)
    for leaf in leaves:
        _checks.floating("remat", "what f returns", leaf)
    return tuple(leaves), [spec]


class _Remat(Function):
    """Its backward is itself again, of the pullback: a graph of the backward keeps no more."""

    @staticmethod
    def forward(f: Flat, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return f(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.f, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        f, results, count = ctx.f, len(grads), ctx.count

        def pull(*given: Tensor) -> tuple[Tensor, ...]:
            grads, inputs = given[:results], given[results : results + count]
            fixed = given[results + count :]
            pullback = torch.func.vjp(lambda *xs: f(*xs, *fixed), *inputs)[1]
            return pullback(grads, retain_graph=torch.is_grad_enabled())

        given = (*grads, *map(_levels.alive, ctx.saved_tensors))
        if _levels.live(*given) is _levels.Derivatives.REVERSE:
            pulled = _Remat.apply(pull, results + count, *given)
        else:
            pulled = pull(*given)
        return None, None, *pulled, *(None,) * (len(given) - results - count)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], f: Flat, count: int, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        mapped = torch.vmap(f, in_dims[2:], randomness=info.randomness)
        results = _Remat.apply(mapped, count, *tensors)
        return results, (0,) * len(results)


def _captured(x: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a function holds on to, whatever it has wrapped them in."""
    if id(x) in seen:
        return
    seen.add(id(x))
    if isinstance(x, Tensor):
        yield name, x
    elif isinstance(x, nn.Module):
        for part, tensor in (*x.named_parameters(), *x.named_buffers()):
            yield f"{name}.{part}", tensor
    elif isinstance(x, functools.partial):
        yield from _captured((x.func, x.args, x.keywords), name, seen)
    elif isinstance(x, types.MethodType):
        yield from _captured((x.__func__, x.__self__), name, seen)
    elif isinstance(x, types.FunctionType):
        held = inspect.getclosurevars(x)
        tensors = {n: v for n, v in held.globals.items() if isinstance(v, Tensor)}
        defaults = (x.__defaults__, x.__kwdefaults__)
        for part, value in ({**held.nonlocals, **tensors, "a default": defaults}).items():
            yield from _captured(value, part, seen)
    else:
        leaves = _pytree.tree_leaves(x)
        for leaf in leaves if len(leaves) != 1 or leaves[0] is not x else ():
            yield from _captured(leaf, name, seen)


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
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            raise _checks.fail(
                ValueError,
                "value_and_grad",
                "the result of f",
                "be one floating number",
                _checks.shape(value),
                "Sum it, or use has_aux for more results",
            )
        with torch.no_grad():
            gradients = pull(torch.ones_like(value), retain_graph=False)
        gradient = gradients[0] if isinstance(given, int) else gradients
        return ((value, *aux) if has_aux else value), gradient

    return both

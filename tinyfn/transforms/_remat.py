"""Computing again in place of keeping: remat(f) is f, and keeps its arguments only."""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
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
        # Through autograd's own mapping the graph of a Function is lost.
        mapped = any(map(_levels.mapped_by_autograd, grads))
        if _levels.live(*given) is _levels.Derivatives.REVERSE and not mapped:
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

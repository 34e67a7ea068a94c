"""Everything at once: one table of what a function does under every transform."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tinyfn.testing import _batching, _calls, _derivatives, _purity, _verdicts


def check_transforms(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    order: int = 3,
    batch: Sequence[Any] | None = None,
    compile: str | None = None,
) -> str:
    """Closed under every transform: `check_pure`, `check_derivatives`, `check_vmap`, and nestings.

    On top of those laws come derivatives under `vmap` and `vmap` under derivatives,
    `functionalize`, and `torch.compile` where asked for. A warning counts as a failure.

    Args:
        f: Any function of pytrees of tensors; set its static arguments with `functools.partial`.
        args: One example, not a batch; its floating tensors are float64.
        argnums: The arguments to differentiate by; all that hold floating tensors, by default.
        order: The highest order of derivatives, 1 to 3.
        batch: The arguments with a batch axis in front of every tensor; by default made of `args`
            by noise, by reordering integers and bools, and by splitting keys. A scalar length
            or offset has nothing to reorder and stays the same: give `batch` to vary it.
        compile: A backend of `torch.compile` ("eager", "aot_eager", "inductor") to try, with
            fullgraph. What fails there can spoil later transforms of the process.

    Returns:
        A table with a row for each transform, all of them right.

    Raises:
        AssertionError: Something is wrong, raises or warns; the message is the table.
        TypeError: A tensor to differentiate by is not float64.
        ValueError: There is nothing to differentiate by.

    Example:
        >>> x = torch.linspace(-1, 1, 4, dtype=torch.float64)
        >>> print(check_transforms(torch.tanh, x, order=1))
        transform                      status  detail
        the same result twice          right
        ...
    """
    call = _calls.call(f, args)
    indices = _calls.differentiable("testing.check_transforms", call, argnums)
    if batch is None:
        batched = call._replace(tensors=_calls.batch(call.tensors, 2))
    else:
        batched = _calls.call(f, batch)
    checks = [
        _purity.purity_checks(f, args),
        _batching.vmap_checks(batched, [0] * len(batched.tensors)),
        _derivatives.derivative_checks(call, indices, order),
        _nested_checks(batched, indices, order),
        _functionalize_checks(call, indices),
        _compile_checks(call, batched, indices, compile) if compile else (),
    ]
    verdicts = [_verdicts.judge(check) for group in checks for check in group]
    failed = sum(verdict.status != "right" for verdict in verdicts)
    if failed:
        table = _verdicts.table(verdicts)
        raise AssertionError(f"check_transforms: {failed} not right\n{table}")
    return _verdicts.table(verdicts)


_Results = Callable[..., tuple[Tensor, ...]]


def _gradient(f: _Results, indices: Sequence[int]) -> _Results:
    return torch.func.grad(lambda *tensors: _calls.contract(f(*tensors)), tuple(indices))


def _tangent(f: _Results, indices: Sequence[int]) -> _Results:
    """The outputs' change along the tensors themselves and their sines."""

    def tangent(*tensors: Tensor) -> tuple[Tensor, ...]:
        def of_some(*some: Tensor) -> tuple[Tensor, ...]:
            filled = list(tensors)
            for index, x in zip(indices, some, strict=True):
                filled[index] = x
            return tuple(y for y in f(*filled) if y.is_floating_point())

        some = tuple(tensors[index] for index in indices)
        finite = [torch.where(x.isfinite(), x, torch.zeros_like(x)) for x in some]
        directions = tuple(x + torch.sin(3 * x) + 1 for x in finite)
        return torch.func.jvp(of_some, some, directions)[1]

    return tangent


def _nested_checks(
    batched: _calls.Call, indices: Sequence[int], order: int
) -> Iterator[_verdicts.Check]:
    """Derivatives of each example under vmap, against a loop; vmap within derivatives."""
    operators = {"grad": _gradient, "jvp": _tangent}
    words = [("grad",), ("jvp",)]
    if order > 1:
        words += [(a, b) for a in operators for b in operators]
    everything = [0] * len(batched.tensors)
    for word in words:
        f = batched.f
        for name in reversed(word):
            f = operators[name](f, indices)
        name = "(".join(word) + ")" * (len(word) - 1)
        yield f"vmap({name})", lambda f=f: _check_mapped(batched._replace(f=f), everything)
    owners = {batched.owners[index] for index in indices}
    params = [None if owner == min(owners) else 0 for owner in batched.owners]
    if any(dim == 0 for dim in params):

        def per_sample() -> None:
            first = [x[0] if d is None else x for x, d in zip(batched.tensors, params, strict=True)]
            each = batched._replace(f=_gradient(batched.f, indices), tensors=tuple(first))
            _check_mapped(each, params)

        yield f"vmap(grad), args[{min(owners)}] not mapped", per_sample
    for name, operator in operators.items():

        def within(operator: Callable[..., _Results] = operator) -> None:
            mapped = operator(torch.vmap(batched.f), indices)(*batched.tensors)
            looped = operator(lambda *xs: _looped(batched.f, xs), indices)(*batched.tensors)
            _verdicts.same("differs from a loop", mapped, looped)

        yield f"{name}(vmap)", within


def _looped(f: _Results, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    results = [f(*(x[i] for x in tensors)) for i in range(len(tensors[0]))]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def _check_mapped(call: _calls.Call, dims: Sequence[int | None]) -> None:
    mapped = torch.vmap(call.f, tuple(dims))(*call.tensors)
    _verdicts.same("differs from a loop", mapped, _batching.loop(call, dims))


def _functionalize_checks(call: _calls.Call, indices: Sequence[int]) -> Iterator[_verdicts.Check]:
    for name, f in (("functionalize", call.f), ("functionalize(grad)", _gradient(call.f, indices))):

        def check(f: _Results = f) -> None:
            functional = torch.func.functionalize(f)(*call.tensors)
            _verdicts.same("differs from eager", functional, f(*call.tensors))

        yield name, check


def _compile_checks(
    call: _calls.Call, batched: _calls.Call, indices: Sequence[int], backend: str
) -> Iterator[_verdicts.Check]:
    gradient = _gradient(call.f, indices)
    for name, f, tensors in (
        ("compile", call.f, call.tensors),
        ("compile(grad)", gradient, call.tensors),
        ("compile(vmap(grad))", torch.vmap(gradient), batched.tensors),
    ):

        def check(f: _Results = f, tensors: tuple[Tensor, ...] = tensors) -> None:
            compiled = torch.compile(f, backend=backend, fullgraph=True)(*tensors)
            _verdicts.same("differs from eager", compiled, f(*tensors))

        yield name, check

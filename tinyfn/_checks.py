"""Every error sentence: {function}: {argument} must {requirement}, got {actual}. {remedy}.

Checks read shapes, dtypes and Python numbers, never a tensor's values: they hold under every
transform and cost no synchronisation. The plain path through each is a comparison or two.
"""

import operator
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from tinyfn.types import Params

E = TypeVar("E", bound=Exception)


def fail(
    kind: type[E], function: str, argument: str, requirement: str, actual: object, remedy: str
) -> E:
    """The exception with the one sentence that every error of this library speaks."""
    return kind(f"{function}: {argument} must {requirement}, got {actual}. {remedy}.")


def part(function: str, params: Params, name: str, maker: str | None = None) -> Any:
    """`params[name]`, or an error that says what is missing and what was there."""
    try:
        return params[name]
    except (KeyError, TypeError, IndexError):
        _fail_part(function, params, name, maker or f"init_{function}")


def _fail_part(function: str, params: Params, name: str, maker: str) -> NoReturn:
    remedy = f"Make params with {maker}, or pass the sub-dict that {function} eats"
    if not isinstance(params, dict):
        kind = type(params).__name__
        raise fail(TypeError, function, "params", "be a dict", kind, remedy) from None
    raise fail(ValueError, function, "params", f"have {name!r}", sorted(params), remedy) from None


def features(function: str, argument: str, x: Tensor, size: int, *, min_ndim: int = 1) -> None:
    """The last axis of `x`, a floating tensor, is as long as the params say."""
    if (
        isinstance(x, Tensor)
        and x.is_floating_point()
        and x.ndim >= min_ndim
        and x.shape[-1] == size
    ):
        return
    floating(function, argument, x)
    axes = ("seq", "features")[-min_ndim:]
    pattern = ", ".join(("...", *axes[:-1], str(size)))
    raise fail(
        ValueError,
        function,
        argument,
        f"have shape ({pattern}), as its params have",
        shape(x),
        f"Pass {size} features on the last axis, or make params for other sizes",
    )


def operand(function: str, argument: str, x: Tensor, weight: Tensor, *, min_ndim: int = 1) -> None:
    """A weight can multiply `x`: it has the weight's features and dtype.

    Where all is well that is one question, as there are 48 in a small model's forward.
    """
    if (
        isinstance(x, Tensor)
        and x.dtype == weight.dtype
        and x.ndim >= min_ndim
        and x.shape[-1] == weight.shape[-1]
        and x.is_floating_point()
    ):
        return
    features(function, argument, x, weight.shape[-1], min_ndim=min_ndim)
    product_dtype(function, argument, x, weight)


def axes(function: str, argument: str, x: Tensor, *names: str) -> None:
    """`x` has the axes that are named, and any before them."""
    if x.ndim < len(names):
        requirement = f"have shape (..., {', '.join(names)})"
        remedy = "Insert axes of size 1 with unsqueeze"
        raise fail(ValueError, function, argument, requirement, shape(x), remedy)


def floating(function: str, argument: str, x: Tensor) -> None:
    """`x` holds real numbers."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        remedy = "Convert it with .float()" if isinstance(x, Tensor) else "Make a tensor of it"
        raise fail(TypeError, function, argument, "be a floating tensor", kind_of(x), remedy)


def product_dtype(function: str, argument: str, x: Tensor, other: Tensor) -> None:
    """`x` has the dtype of what it is multiplied by, unless autocast sees to it."""
    if x.dtype != other.dtype and not torch.is_autocast_enabled(x.device.type):
        dtype = str(other.dtype).removeprefix("torch.")
        remedy = f"Convert it with .to(torch.{dtype}), or params with tree.cast"
        raise fail(TypeError, function, argument, f"be a {dtype} tensor", kind_of(x), remedy)


def integers(function: str, argument: str, x: Tensor) -> None:
    """`x` holds whole numbers."""
    mask = isinstance(x, Tensor) and x.dtype == torch.bool
    if mask or not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex():
        remedy = "A bool tensor is a mask: use masks.dense" if mask else "Convert it with .long()"
        raise fail(TypeError, function, argument, "be an integer tensor", kind_of(x), remedy)


def probability(function: str, argument: str, p: float) -> None:
    """`p` is the chance of a drop, below certainty."""
    if not isinstance(p, int | float) or not 0.0 <= p < 1.0:
        raise fail(
            ValueError, function, argument, "be in [0, 1)", p, "It is the chance of being dropped"
        )


def at_least(function: str, argument: str, value: int, least: int = 1) -> None:
    """`value` is a whole number, and large enough."""
    try:  # operator.index of a size that is traced would fix it for good
        whole = value if isinstance(value, int | torch.SymInt) else operator.index(value)
    except TypeError:
        raise fail(
            TypeError, function, argument, "be an int", kind_of(value), "Pass a whole number"
        ) from None
    if whole < least:
        raise fail(
            ValueError, function, argument, f"be at least {least}", value, f"Pass {least} or more"
        )


def divides(function: str, argument: str, part: int, whole_name: str, whole: int) -> None:
    """`part` divides `whole`."""
    if whole % part:
        options = [d for d in range(1, whole + 1) if whole % d == 0]
        raise fail(
            ValueError,
            function,
            argument,
            f"divide {whole_name}={whole}",
            part,
            f"Choose one of {options}",
        )


def broadcasts(function: str, argument: str, x: Tensor, target: Sequence[int], axes: str) -> None:
    """`x` broadcasts to `target` without making it larger."""
    fits = x.ndim <= len(target) and all(
        size in (1, full)
        for size, full in zip(reversed(x.shape), reversed(tuple(target)), strict=False)
    )
    if not fits:
        raise fail(
            ValueError,
            function,
            argument,
            f"broadcast to {axes} = {tuple(target)}",
            shape(x),
            "Give each axis its full size or 1, and insert axes with unsqueeze",
        )


def one_number(function: str, x: object) -> None:
    """What a function to be differentiated gives."""
    requirement, actual, remedy = "be one floating number", kind_of(x), "Return a float tensor"
    if isinstance(x, Tensor) and x.is_floating_point():
        if not x.ndim:
            return
        actual, remedy = shape(x), "Sum it"
    raise fail(ValueError, function, "the result of f", requirement, actual, remedy)


def shape(x: object) -> str:
    """How an error shows a tensor."""
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else kind_of(x)


def kind_of(x: object) -> str:
    """How an error shows the kind of a thing."""
    if isinstance(x, Tensor):
        name = str(x.dtype).removeprefix("torch.")
        return f"{'an' if name.startswith('int') else 'a'} {name} tensor"
    return f"{type(x).__name__} {x!r}" if isinstance(x, int | float | str) else type(x).__name__


def sizes(function: str, **counts: int) -> None:
    """Every named size is an int of one or more."""
    for name, value in counts.items():
        at_least(function, name, value)

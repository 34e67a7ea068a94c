"""What cannot matter: the future to the past, and what a mask hides to everything else."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tinyfn import _checks
from tinyfn.testing import _calls, _verdicts


def check_causal(f: Callable[[Any], Any], x: Any, *, dim: int = -2, with_nan: bool = False) -> None:
    """The output at t ignores what follows, to the last bit.

    Everything after t is replaced by noise and by huge numbers, for each t.

    Args:
        f: A function of sequences to sequences of the same length along `dim`.
        x: A tensor, or a pytree of tensors that all go through time together.
        dim: The axis of time, in `x` and in the output (-1 for tokens needs `f` to end there too).
        with_nan: Replace by NaN and infinity too. Attention is not held to this: the last query
            sees every key, and 0 times NaN is NaN for the others.

    Raises:
        AssertionError: Something later reaches an output.
        ValueError: The tensors of `x` are not of one length along `dim`, or shorter than 2.

    Example:
        >>> x = torch.ones(4, 2)
        >>> check_causal(lambda x: x.cumsum(-2), x)
        >>> check_causal(lambda x: x + x.roll(-1, -2), x)
        Traceback (most recent call last):
        AssertionError: check_causal: 6 not right...
    """
    law = "testing.check_causal"
    call = _calls.call(f, (x,))
    size = length(law, call.tensors, dim)
    if size < 2:
        remedy = "One position has none after it"
        raise _checks.fail(ValueError, law, "x", "have 2 positions or more", size, remedy)
    _verdicts.demand("check_causal", _causal_checks(law, call, size, dim, with_nan))


def _causal_checks(
    law: str, call: _calls.Call, length: int, dim: int, with_nan: bool
) -> Iterator[_verdicts.Check]:
    expected = call.f(*call.tensors)
    if any(y.ndim < (-dim if dim < 0 else dim + 1) or y.shape[dim] != length for y in expected):
        raise _checks.fail(
            ValueError,
            law,
            "f",
            f"return {length} positions along dim={dim}, as it was given",
            [tuple(y.shape) for y in expected],
            "Compose it with what keeps the sequence",
        )
    for t in range(1, length):
        later = torch.arange(length) >= t
        for name, fill in _fills(with_nan):

            def check(t: int = t, later: Tensor = later, fill: _Fill = fill) -> None:
                changed = [_replace(x, later, dim, fill) for x in call.tensors]
                _verdicts.identical(
                    f"positions before {t} changed",
                    [y.narrow(dim, 0, t) for y in call.f(*changed)],
                    [y.narrow(dim, 0, t) for y in expected],
                )

            yield f"{name} from position {t} on", check


def check_masked_values_cannot_matter(
    f: Callable[..., Any],
    x: Any,
    hidden: Bool[Tensor, "..."],
    *rest: Any,
    dim: int = -2,
    gradients: bool = True,
) -> None:
    """Values that a mask hides from every query reach nothing, NaN and infinity included.

    They are replaced by noise, huge numbers, infinities and NaN. Outputs stay the same to the last
    bit; first and second derivatives by everything else stay the same and finite; derivatives by
    the hidden values are zero.

    Args:
        f: `f(x, *rest)`, its mask within, and of its outputs only those that are to stay: for an
            encoder, the rows of visible positions (`lambda x: encoder(params, x, mask)[visible]`).
        x: The values, a tensor or a pytree of them: keys and values, or an encoder's input.
        hidden: True where no query may look; shape (..., n), against the axes of `x` up to `dim`.
        rest: What else `f` depends on and is differentiated by (queries, params).
        dim: The axis of positions in every tensor of `x`.
        gradients: False where a hidden position is also a query, as in an encoder: what is NaN
            itself sends NaN back to the params.

    Raises:
        AssertionError: A hidden value matters.
        ValueError: `hidden` does not fit the tensors of `x`, or hides nothing.

    Example:
        >>> hidden = torch.tensor([False, True, False])
        >>> x = torch.ones(3, 2, dtype=torch.float64)
        >>> check_masked_values_cannot_matter(lambda x: x[~hidden].sin(), x, hidden)
        >>> check_masked_values_cannot_matter(lambda x: x * ~hidden[:, None], x, hidden)
        Traceback (most recent call last):
        AssertionError: check_masked_values_cannot_matter: 3 not right...
    """
    law = "testing.check_masked_values_cannot_matter"
    call = _calls.call(f, (x, *rest))
    if hidden.dtype != torch.bool or not bool(hidden.any()):
        raise _checks.fail(
            ValueError,
            law,
            "hidden",
            "be a bool tensor with a True somewhere",
            _checks.kind_of(hidden),
            "Hide at least one position",
        )
    masks = {i: _over_features(law, hidden, call.tensors[i], dim) for i in call.of(0)}
    _verdicts.demand("check_masked_values_cannot_matter", _hidden_checks(call, masks, gradients))


def _hidden_checks(
    call: _calls.Call, hidden: dict[int, Tensor], gradients: bool
) -> Iterator[_verdicts.Check]:
    def replaced(fill: "_Fill") -> _calls.Call:
        return call._replace(
            tensors=tuple(
                torch.where(hidden[i], fill(x), x) if i in hidden else x
                for i, x in enumerate(call.tensors)
            )
        )

    results = [("outputs", lambda call: call.f(*call.tensors))]
    if gradients:
        results += [
            ("gradients", lambda call: _slopes(call, hidden)),
            ("second derivatives", lambda call: _curvatures(call, hidden)),
        ]
    for name, result in results:
        bases: list[tuple[Tensor, ...]] = []
        for fill_name, fill in (("what is given", lambda x: x), *_fills(with_nan=True)):

            def check(
                name: str = name,
                bases: list[tuple[Tensor, ...]] = bases,
                fill: _Fill = fill,
                result: Callable[[_calls.Call], tuple[Tensor, ...]] = result,
            ) -> None:
                if not bases:
                    bases.append(result(call))
                actual = result(replaced(fill))
                if not all(bool(y.isfinite().all()) for y in actual):
                    raise AssertionError(f"{name} are not finite")
                compare = _verdicts.identical if name == "outputs" else _verdicts.same
                compare(f"{name} changed", actual, bases[0])

            yield f"{name}, hidden: {fill_name}", check


def _weighted(call: _calls.Call, indices: list[int]) -> Callable[..., Tensor]:
    restricted = call.restricted(indices)

    def weighted(*tensors: Tensor) -> Tensor:
        return _calls.contract(restricted.f(*tensors))

    return weighted


def _slopes(call: _calls.Call, hidden: dict[int, Tensor]) -> tuple[Tensor, ...]:
    indices = [i for i, x in enumerate(call.tensors) if x.is_floating_point()]
    weighted = _weighted(call, indices)
    slopes = torch.func.grad(weighted, tuple(range(len(indices))))(
        *(call.tensors[i] for i in indices)
    )
    for i, slope in zip(indices, slopes, strict=True):
        if i in hidden and bool((slope.nan_to_num() * hidden[i] != 0).any()):
            raise AssertionError(f"the gradient by hidden values of {call.names[i]} is not zero")
    return slopes


def _curvatures(call: _calls.Call, hidden: dict[int, Tensor]) -> tuple[Tensor, ...]:
    """The Hessian times a direction, backward over backward."""
    indices = [i for i, x in enumerate(call.tensors) if x.is_floating_point()]
    weighted = _weighted(call, indices)
    positions = tuple(range(len(indices)))
    like = _calls.noise(19)
    tensors = [call.tensors[i] for i in indices]
    direction = [like(x) for x in tensors]

    def along(*tensors: Tensor) -> Tensor:
        slopes = torch.func.grad(weighted, positions)(*tensors)
        return torch.stack([(s * d).sum() for s, d in zip(slopes, direction, strict=True)]).sum()

    return torch.func.grad(along, positions)(*tensors)


_Fill = Callable[[Tensor], Tensor]


def _fills(with_nan: bool) -> Iterator[tuple[str, _Fill]]:
    """Ways to replace values, by name; what is no number is put in another order."""

    def of_floats(fill: _Fill) -> _Fill:
        return lambda x: fill(x) if x.is_floating_point() else x.flatten().roll(1).reshape(x.shape)

    yield "noise", of_floats(lambda x: _calls.noise(23)(x) * _calls.spread(x))
    # large enough to leak past a finite -1e9, small enough to be squared in a norm
    yield "huge", of_floats(lambda x: torch.full_like(x, torch.finfo(x.dtype).max ** 0.25))
    if with_nan:
        yield "inf", of_floats(lambda x: torch.full_like(x, torch.inf))
        yield "-inf", of_floats(lambda x: torch.full_like(x, -torch.inf))
        yield "nan", of_floats(lambda x: torch.full_like(x, torch.nan))


def _replace(x: Tensor, where: Tensor, dim: int, fill: _Fill) -> Tensor:
    axes = x.ndim - (dim % x.ndim) - 1
    return torch.where(where.to(x.device).reshape(-1, *[1] * axes), fill(x), x)


def _over_features(law: str, hidden: Tensor, x: Tensor, dim: int) -> Tensor:
    """`hidden` with an axis of size 1 for each that follows `dim` in `x`."""
    after = -dim - 1 if dim < 0 else x.ndim - dim - 1
    wide = hidden.reshape(*hidden.shape, *[1] * after)
    _checks.broadcasts(law, "hidden", wide, x.shape, "the axes of x up to dim")
    return wide


def length(law: str, tensors: tuple[Tensor, ...], dim: int) -> int:
    fits = [x.ndim >= (-dim if dim < 0 else dim + 1) for x in tensors]
    lengths = {x.shape[dim] if fit else None for x, fit in zip(tensors, fits, strict=True)}
    if len(lengths) != 1 or None in lengths:
        raise _checks.fail(
            ValueError,
            law,
            "x",
            f"hold tensors of one length along dim={dim}",
            [tuple(x.shape) for x in tensors],
            "Pass what does not go through time with functools.partial",
        )
    return lengths.pop() or 0

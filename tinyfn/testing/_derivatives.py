"""Derivatives of every order and mode, against finite differences and against each other.

The function is contracted with fixed random weights w to one number, and moved along random
directions u, v, t (a plain sum would hide errors: after a LayerNorm it is constant). A word such as
jvp(grad) is then one number too, here (w·f)''(u, v), and each of its operators adds an order. What
it should be is a central difference, along the last direction, of a derivative one order lower that
has already been found right; so the order below vouches for the next, and the values for the first.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tinyfn import _checks
from tinyfn.testing import _calls, _verdicts

Scalar: TypeAlias = Callable[..., Tensor]
Direction: TypeAlias = tuple[Tensor, ...]


def check_derivatives(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    order: int = 3,
) -> None:
    """Every mode of differentiation is right: grad, jvp, and all they nest to, up to `order`.

    Tried are `grad`, `vjp`, `jvp`, `linearize`, `jacrev`, `jacfwd` and `torch.autograd`; every word
    of `jvp` and `grad` of each length, such as `jvp(jvp)` or `grad(jvp(grad))`; every Hessian, and
    its `jacfwd`.
    Each is tried by all arguments together and, to the second order, by every argument alone.

    Args:
        f: Any function of pytrees of tensors, smooth near `args` (a ReLU exactly at 0 is not).
        args: What it is called with; its floating tensors are float64.
        argnums: The arguments to differentiate by; all that hold floating tensors, by default.
        order: The highest order, 1 to 3.

    Raises:
        AssertionError: Some derivative is wrong, raises or warns.
        TypeError: A tensor to differentiate by is not float64.
        ValueError: There is nothing to differentiate by, or `order` is not 1, 2 or 3.

    Example:
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
        >>> check_derivatives(torch.softmax, x, -1)
        >>> try:
        ...     check_derivatives(lambda x: torch.nn.functional.layer_norm(x, (3,)), x, order=2)
        ... except AssertionError as error:
        ...     print("jvp(jvp)" in str(error))
        True
    """
    if order not in (1, 2, 3):
        raise _checks.fail(
            ValueError,
            "testing.check_derivatives",
            "order",
            "be 1, 2 or 3",
            order,
            "Higher orders are not measured",
        )
    call = _calls.call(f, args)
    indices = _calls.differentiable("testing.check_derivatives", call, argnums)
    _verdicts.demand("check_derivatives", derivative_checks(call, indices, order))


def derivative_checks(
    call: _calls.Call, indices: Sequence[int], order: int = 3
) -> Iterator[_verdicts.Check]:
    """Every derivative of a call by some of its tensors, together and argument by argument."""
    owners = sorted({call.owners[index] for index in indices})
    groups = [list(indices)]
    if len(owners) > 1:
        groups += [[i for i in indices if call.owners[i] == owner] for owner in owners]
    points = [_Point(call.restricted(group)) for group in groups]
    for name, word in _words(order):

        def check(word: Sequence[str] = word) -> None:
            # each alone to second order: third orders cost most, and mix nothing new
            for point in points if len(word) < 3 else points[:1]:
                point.check(word)

        yield name, check


def _words(order: int) -> Iterator[tuple[str, Sequence[str]]]:
    first = ("autograd", "grad", "jvp", "vjp", "linearize", "jacrev", "jacfwd")
    yield from ((name, (name,)) for name in first)
    for length in range(2, order + 1):
        yield f"autograd, order {length}", ("autograd",) * length
        for word in product(("grad", "jvp"), repeat=length):
            yield "(".join(word) + ")" * (length - 1), word
        if length == 2:
            yield "hessian", ("jacfwd", "jacrev")
            for word in (("jacrev", "jacrev"), ("jacfwd", "jacfwd"), ("jacrev", "jacfwd")):
                yield f"{word[0]}({word[1]})", word
        else:
            yield "jacfwd(hessian)", ("jacfwd", "jacfwd", "jacrev")


class _Point:
    """A call at its tensors, three directions, and what was found right there so far."""

    def __init__(self, call: _calls.Call) -> None:
        self.call = call
        like = _calls.noise(11)
        spreads = [_calls.spread(x) for x in call.tensors]
        self.directions = [
            tuple(s * like(x) * x.isfinite() for s, x in zip(spreads, call.tensors, strict=True))
            for _ in range(3)
        ]
        self.right: dict[int, tuple[Scalar, float]] = {}
        self.measured: dict[tuple[int, float], float] = {}

    def vector(self, *tensors: Tensor) -> Tensor:
        """The outputs in at most 8 random combinations, so that a Jacobian stays small."""
        outputs = [y.flatten() for y in self.call.f(*tensors) if y.is_floating_point()]
        if not outputs:
            raise AssertionError("there is no floating output to differentiate")
        y = torch.cat([y.to(torch.float64) for y in outputs])
        return (_calls.weights(min(8, len(y)), y) * y).sum(-1)

    def scalar(self, *tensors: Tensor) -> Tensor:
        """The outputs in one random combination."""
        return self.vector(*tensors).sum()

    def check(self, word: Sequence[str]) -> None:
        """One derivative along the first directions, or AssertionError."""
        order = len(word)
        if not self.right:
            value = float(self.scalar(*self.call.tensors).detach())
            if value != value or abs(value) == float("inf"):
                raise AssertionError("the output itself is not finite")
            self.right[0] = (self.scalar, value)
        if order - 1 not in self.right:
            raise AssertionError(f"no derivative of order {order - 1} is right to measure it by")
        *before, last = self.directions[:order]
        derivative = self.along(word, before, last)
        value = float(derivative(*self.call.tensors).detach())
        expected = self.difference(order, last, value, self.measured)
        if expected is not None:
            raise AssertionError(
                f"got {value:.9g}, finite differences say {expected:.9g}{self.place(word)}"
            )
        if order in self.right:
            other = self.right[order][1]
            if not abs(value - other) <= 1e-9 * abs(value) + 1e-10 * self.size(order):
                raise AssertionError(f"got {value:.15g}, another mode says {other:.15g}")
        elif word[0] in ("autograd", *_OPERATORS):
            self.right[order] = (derivative, value)

    def along(self, word: Sequence[str], before: Sequence[Direction], last: Direction) -> Scalar:
        """The derivative that a word names, as a function of the call's tensors."""
        directions = [*before, last]
        if word[0] in _MATRICES:
            return _on_a_plane(self.vector, word, directions)
        derivative: Scalar = self.scalar
        if word[0] == "autograd":
            return _autograd(derivative, directions)
        if word[0] == "vjp":
            return _vjp(self.vector, last)
        if word[0] == "linearize":
            return _linearize(self.scalar, last)
        for operator, direction in zip(reversed(word), directions, strict=True):
            derivative = _OPERATORS[operator](derivative, direction)
        return derivative

    def size(self, order: int) -> float:
        """How large the numbers are that cancel in a derivative of this order."""
        return max(abs(value) for n, (_, value) in self.right.items() if n < order)

    def difference(
        self,
        order: int,
        direction: Direction,
        value: float,
        measured: dict[tuple[int, float], float],
    ) -> float | None:
        """None where a central difference at some step agrees, else the closest of them."""
        below, _ = self.right[order - 1]
        closest = float("nan")
        for step in (1e-4, 1e-3, 1e-5):
            if (order, step) not in measured:
                difference = _central_difference(below, self.call.tensors, direction, step)
                measured[order, step] = difference
            expected = measured[order, step]
            if abs(value - expected) <= 1e-6 * abs(expected) + 1e-8 * self.size(order):
                return None
            if not abs(closest - value) <= abs(expected - value):
                closest = expected
        return closest

    def place(self, word: Sequence[str]) -> str:
        """Which tensor the last derivative is wrong by."""
        *before, last = self.directions[: len(word)]
        if len(last) == 1:
            return f", by {self.call.names[0]}"
        for index, name in enumerate(self.call.names):
            only = tuple(d if i == index else 0.0 * d for i, d in enumerate(last))
            value = float(self.along(word, before, only)(*self.call.tensors).detach())
            expected = self.difference(len(word), only, value, {})
            if expected is not None:
                return f"; by {name} alone {value:.9g} and {expected:.9g}"
        return ", by all together"


def _jvp(f: Scalar, direction: Direction) -> Scalar:

    def along(*tensors: Tensor) -> Tensor:
        _, tangent, *_ = torch.func.jvp(f, tensors, direction)
        return tangent

    return along


def _grad(f: Scalar, direction: Direction) -> Scalar:
    positions = tuple(range(len(direction)))
    return lambda *tensors: _dot(torch.func.grad(f, positions)(*tensors), direction)


_OPERATORS = {"jvp": _jvp, "grad": _grad}


def _vjp(f: Scalar, direction: Direction) -> Scalar:
    def along(*tensors: Tensor) -> Tensor:
        y, pull, *_ = torch.func.vjp(f, *tensors)
        return _dot(pull(torch.ones_like(y)), direction)

    return along


def _linearize(f: Scalar, direction: Direction) -> Scalar:
    """The second push: in-place operations on constants are traced, and repeated by each push."""

    def along(*tensors: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # torch's own way to hold constants
            warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node", UserWarning)
            _, push = torch.func.linearize(f, *tensors)
        push(*direction)
        return push(*direction)

    return along


def _autograd(f: Scalar, directions: Sequence[Direction]) -> Scalar:
    def along(*tensors: Tensor) -> Tensor:
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        value = f(*leaves)
        for direction in directions:
            if not value.requires_grad:
                return torch.zeros_like(value)
            slopes = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
            value = _dot(slopes, direction)
        return value

    return along


_MATRICES = {"jacrev": torch.func.jacrev, "jacfwd": torch.func.jacfwd}


def _on_a_plane(f: Scalar, word: Sequence[str], directions: Sequence[Direction]) -> Scalar:
    """Full Jacobians, but of f on the plane that the directions span: their cost stays small."""

    def along(*tensors: Tensor) -> Tensor:
        def plane(s: Tensor) -> Tensor:
            moved = [
                x + sum(s[i] * d[leaf] for i, d in enumerate(directions))
                for leaf, x in enumerate(tensors)
            ]
            return f(*moved)

        jacobian = plane
        for name in reversed(word):
            jacobian = _MATRICES[name](jacobian)
        corner = (..., *range(len(directions)))
        return jacobian(tensors[0].new_zeros(len(directions)))[corner].sum()

    return along


def _dot(slopes: Sequence[Tensor], direction: Direction) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(slopes, direction, strict=True)]).sum()


def _central_difference(
    f: Scalar, tensors: Sequence[Tensor], direction: Direction, step: float
) -> float:
    """The slope along a direction, from six values, right to the sixth order of the step."""
    total = 0.0
    for steps, coefficient in ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60)):
        for sign in (1, -1):
            at = sign * steps * step
            moved = [x + at * d for x, d in zip(tensors, direction, strict=True)]
            total += sign * coefficient * float(f(*moved).detach())
    return total / step

"""How a law speaks: one verdict for each thing tried, a table of them, and an AssertionError."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Check: TypeAlias = tuple[str, Callable[[], None]]
"""What is tried, and a function that raises AssertionError where it is wrong."""


class Verdict(NamedTuple):
    """What came of one check: `right`, `wrong`, `raises` or `warns`, and why."""

    transform: str
    status: str
    detail: str = ""


def judge(check: Check) -> Verdict:
    """Try one check; an exception, or a warning, is a verdict too."""
    transform, attempt = check
    always = torch.is_warn_always_enabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", _TORCH_ITSELF)
        torch.set_warn_always(True)  # else torch warns once in a process, of some other function
        try:
            attempt()
        except AssertionError as error:
            return Verdict(transform, "wrong", str(error))
        except Exception as error:
            return Verdict(transform, "raises", f"{type(error).__name__}: {_first_line(error)}")
        finally:
            torch.set_warn_always(always)
    if caught:
        return Verdict(transform, "warns", _first_line(caught[0].message))
    return Verdict(transform, "right")


# The first jvp in a process, and inductor, load parts of torch that use its old compiler still.
_TORCH_ITSELF = r"`torch\.jit\.script(_method)?` is deprecated"


def _first_line(error: object) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return line if len(line) <= 120 else line[:117] + "..."


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as text, a row each."""
    rows = [Verdict("transform", "status", "detail"), *verdicts]
    wide = max(len(row.transform) for row in rows)
    return "\n".join(f"{r.transform:<{wide}}  {r.status:<6}  {r.detail}".rstrip() for r in rows)


def demand(law: str, checks: Iterable[Check]) -> None:
    """Every check must come out right; else an AssertionError says what did not."""
    failed = [verdict for verdict in map(judge, checks) if verdict.status != "right"]
    if failed:
        raise AssertionError(f"{law}: {len(failed)} not right\n{table(failed)}")


_RTOL = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def same(what: str, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal up to rounding; AssertionError with the largest error and its place if not."""
    _compare(what, actual, expected, exact=False)


def identical(what: str, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal to the last bit, NaN to NaN."""
    _compare(what, actual, expected, exact=True)


def _compare(what: str, actual: Sequence[Tensor], expected: Sequence[Tensor], exact: bool) -> None:
    if len(actual) != len(expected):
        raise AssertionError(f"{what}: {len(actual)} output tensors, expected {len(expected)}")
    largest = max((_size(b) for b in expected), default=0.0)
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        place = f"{what}, output {index}" if len(actual) > 1 else what
        if a.shape != b.shape:
            raise AssertionError(f"{place}: shape {tuple(a.shape)}, expected {tuple(b.shape)}")
        if a.dtype != b.dtype:
            raise AssertionError(f"{place}: dtype {a.dtype}, expected {b.dtype}")
        _compare_values(place, a.detach(), b.detach(), exact, largest)


def _size(x: Tensor) -> float:
    """The largest number by size, of those that are finite."""
    finite = x.detach()[x.isfinite()].double() if x.is_floating_point() else x.new_empty(0)
    return float(finite.abs().max()) if finite.numel() else 0.0


def _compare_values(place: str, a: Tensor, b: Tensor, exact: bool, largest: float) -> None:
    equal = (a == b) | ((a != a) & (b != b))
    if bool(equal.all()):
        return
    error = (a.double() - b.double()).abs()
    error = torch.where(equal, 0.0, torch.where(error.isnan(), torch.inf, error))
    tolerance = 0.0
    if not exact and b.is_floating_point():
        # What cancels to zero, as the gradient of a key's bias, rounds as the other outputs do.
        rounding = torch.finfo(b.dtype).eps * max(1.0, largest)
        tolerance = _RTOL[b.dtype] * _size(b) + 100 * rounding
    worst = int(error.argmax())
    if float(error.flatten()[worst]) > tolerance:
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), a.shape))
        got, wanted = a.flatten()[worst].item(), b.flatten()[worst].item()
        raise AssertionError(
            f"{place}: max error {float(error.flatten()[worst]):.3g} at {at}, "
            f"got {got:.6g}, expected {wanted:.6g}"
        )

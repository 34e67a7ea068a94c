"""How fast each pair of features turns in rotary attention: the usual way, and for longer texts.

A frequency is an angle per position. Models that read further than they were trained to turn more
slowly, some pairs more than others; these are the ways in use.
"""

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from tinyfn import _checks
from tinyfn.positions._counting import exact_dtype
from tinyfn.positions._tables import check_theta

Frequencies = Float[Tensor, "... pairs"]
Length = int | Integer[Tensor, "..."]


def frequencies(head_dim: int, *, theta: float = 10000.0) -> Frequencies:
    """One angle per position for each pair of features, falling from 1 to nearly 1 / theta.

    Divide them by a factor for linear scaling: text so many times as long, at the same angles.

    Args:
        head_dim: Width of a head, twice the number of pairs.
        theta: The longest wavelength is 2π theta.

    Raises:
        ValueError: `head_dim` is odd or below 2, or `theta` is not above 0.

    Example:
        >>> frequencies(4)
        tensor([1.0000, 0.0100], dtype=torch.float64)

    Reference: Su et al., "RoFormer", 2021, arXiv 2104.09864.
    """
    return _powers("frequencies", head_dim, theta)


def _powers(function: str, head_dim: int, theta: float | Tensor) -> Tensor:
    name = f"positions.{function}"
    _checks.at_least(name, "head_dim", head_dim, least=2)
    if head_dim % 2:
        remedy = "Choose another head_dim"
        requirement = "be even, for its features turn in pairs"
        raise _checks.fail(ValueError, name, "head_dim", requirement, head_dim, remedy)
    if not isinstance(theta, Tensor):
        check_theta(name, theta)
        theta = torch.tensor(theta, dtype=torch.float64)
    exponents = torch.arange(0, head_dim, 2, dtype=theta.dtype, device=theta.device) / head_dim
    return torch.exp(-exponents * theta.log().unsqueeze(-1))


def _check_factor(function: str, **numbers: float) -> None:
    for argument, number in numbers.items():
        if not number > 0:
            remedy = "It says how many times longer texts become"
            name = f"positions.{function}"
            raise _checks.fail(ValueError, name, argument, "be above 0", number, remedy)


def ntk_scaled(
    length: Length, *, head_dim: int, factor: float, max_len: int, theta: float = 10000.0
) -> Frequencies:
    """Frequencies that fall faster the longer the text is, beyond the length of training.

    With all but `length` fixed by `functools.partial` it is `frequencies=` of `rotary`. What is
    kept in a cache has turned by the length of its time.

    Args:
        length: How many positions there are; one number for each example, if a tensor.
        head_dim: Width of a head, 4 or more.
        factor: How strongly the frequencies follow the length.
        max_len: The length of training, up to which nothing changes.
        theta: As in `frequencies`.

    Raises:
        ValueError: A size is too small or odd, or `factor` is not above 0.

    Example:
        >>> ntk_scaled(8, head_dim=4, factor=1.0, max_len=8)
        tensor([1.0000, 0.0100], dtype=torch.float64)
        >>> ntk_scaled(16, head_dim=4, factor=1.0, max_len=8)
        tensor([1.0000, 0.0050], dtype=torch.float64)

    Reference: bloc97 and emozilla, "Dynamically Scaled RoPE", 2023; Peng et al., arXiv 2309.00071.
    """
    _checks.at_least("positions.ntk_scaled", "head_dim", head_dim, least=4)
    _checks.at_least("positions.ntk_scaled", "max_len", max_len)
    _check_factor("ntk_scaled", factor=factor)
    device = length.device if isinstance(length, Tensor) else None
    reached = torch.as_tensor(length, device=device).to(exact_dtype(device)).clamp(min=max_len)
    stretch = factor * reached / max_len - (factor - 1)
    return _powers("ntk_scaled", head_dim, theta * stretch ** (head_dim / (head_dim - 2)))


def yarn(
    head_dim: int,
    *,
    factor: float,
    max_len: int,
    theta: float = 10000.0,
    fast: float = 32.0,
    slow: float = 1.0,
    whole: bool = True,
) -> Frequencies:
    """Frequencies divided by a factor where they are slow, left where fast, and mixed between.

    YaRN also multiplies queries and keys by 0.1 · log(factor) + 1: `scale=` of `rotary`.

    Args:
        head_dim: Width of a head.
        factor: How many times longer texts become.
        max_len: The length of training.
        theta: As in `frequencies`; above 1.
        fast: Pairs that turn more often than this within `max_len` are left.
        slow: Pairs that turn less often than this are divided.
        whole: Whether the two bounds are rounded outwards to whole pairs.

    Raises:
        ValueError: A size is too small or odd, `theta` is not above 1, or another number not
            above 0.

    Example:
        >>> yarn(4, factor=4.0, max_len=32)
        tensor([1.0000, 0.0025], dtype=torch.float64)

    Reference: Peng et al., "YaRN", 2023, arXiv 2309.00071.
    """
    usual = _powers("yarn", head_dim, theta)
    _checks.at_least("positions.yarn", "max_len", max_len)
    _check_factor("yarn", factor=factor, fast=fast, slow=slow)
    if not theta > 1:
        remedy = "At 1 every pair turns alike"
        raise _checks.fail(ValueError, "positions.yarn", "theta", "be above 1", theta, remedy)

    def pair(turns: float) -> float:
        """The pair that turns so often within max_len, between two pairs as a rule."""
        return head_dim * math.log(max_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(fast), pair(slow)
    if whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    last = last + 0.001 if first == last else last
    index = torch.arange(head_dim // 2, dtype=usual.dtype)
    slowed = ((index - first) / (last - first)).clamp(0, 1)
    return usual * (slowed / factor + (1 - slowed))


def llama3(
    head_dim: int,
    *,
    factor: float,
    max_len: int,
    theta: float = 10000.0,
    low: float = 1.0,
    high: float = 4.0,
) -> Frequencies:
    """Frequencies divided by a factor where waves are long, left where short, and mixed between.

    Args:
        head_dim: Width of a head.
        factor: How many times longer texts become.
        max_len: The length of training.
        theta: As in `frequencies`.
        low: Pairs that turn less often than this within `max_len` are divided.
        high: Pairs that turn more often than this are left; above `low`.

    Raises:
        ValueError: A size is too small or odd, a number is not above 0, or `high` not above `low`.

    Example:
        >>> llama3(4, factor=8.0, max_len=16)
        tensor([0.5761, 0.0012], dtype=torch.float64)

    Reference: Grattafiori et al., "The Llama 3 Herd of Models", 2024, arXiv 2407.21783.
    """
    usual = _powers("llama3", head_dim, theta)
    _checks.at_least("positions.llama3", "max_len", max_len)
    _check_factor("llama3", factor=factor, low=low)
    if not high > low:
        remedy = "Between the two the frequencies are mixed"
        raise _checks.fail(
            ValueError, "positions.llama3", "high", f"be above low={low}", high, remedy
        )
    turns = max_len * usual / (2 * math.pi)
    left = ((turns - low) / (high - low)).clamp(0, 1)
    return usual * (left + (1 - left) / factor)


def by_length(
    length: Length, *, short: Frequencies, long: Frequencies, max_len: int
) -> Frequencies:
    """One set of frequencies up to a length, another beyond it, as LongRoPE has them.

    With all but `length` fixed by `functools.partial` it is `frequencies=` of `rotary`. What is
    kept in a cache has turned by the length of its time.

    Args:
        length: How many positions there are; one number for each example, if a tensor.
        short: Up to `max_len`.
        long: Beyond it; as many.
        max_len: The length of training.

    Raises:
        ValueError: `short` and `long` are not of one shape.

    Example:
        >>> both = {"short": frequencies(4), "long": frequencies(4) / 2}
        >>> by_length(9, **both, max_len=8)
        tensor([0.5000, 0.0050], dtype=torch.float64)

    Reference: Ding et al., "LongRoPE", 2024, arXiv 2402.13753.
    """
    for name, given in (("short", short), ("long", long)):
        _checks.floating("positions.by_length", name, given)
        _checks.axes("positions.by_length", name, given, "pairs")
    if long.shape != short.shape:
        requirement, actual = f"have the shape of short, {tuple(short.shape)}", _checks.shape(long)
        remedy = "Make both with one head_dim"
        raise _checks.fail(ValueError, "positions.by_length", "long", requirement, actual, remedy)
    if not isinstance(length, Tensor):
        return long if length > max_len else short
    beyond = (length > max_len).unsqueeze(-1)
    return torch.where(beyond, long.to(length.device), short.to(length.device))

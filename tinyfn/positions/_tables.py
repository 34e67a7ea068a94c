"""Tables of positions: sines and cosines, or a row of a weight for each."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tinyfn import _checks, initializers
from tinyfn._primitives import rows
from tinyfn.positions._counting import Offset, counted, exact_dtype
from tinyfn.types import Initializer, Key, Params


def sinusoidal(
    seq: int,
    num_features: int,
    *,
    offset: Offset = 0,
    theta: float = 10000.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "... seq features"]:
    """A table of sines and cosines of geometrically falling frequencies, interleaved.

    Args:
        seq: How many positions.
        num_features: How many numbers stand for each; any number, odd ones end with a sine.
        offset: The first position.
        theta: The longest wavelength is 2π theta.
        dtype: Of the table, which is computed in float64.
        device: Of the table.

    Raises:
        ValueError: A size is below 1 (0 for `seq`), or `theta` is not above 0.

    Example:
        >>> sinusoidal(2, 2)
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, section 3.5, arXiv 1706.03762.
    """
    _checks.at_least("positions.sinusoidal", "seq", seq, least=0)
    _checks.at_least("positions.sinusoidal", "num_features", num_features)
    check_theta("positions.sinusoidal", theta)
    angles = angles_of(seq, num_features, offset, theta, device)
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :num_features]
    return table.to(dtype or torch.get_default_dtype())


def check_theta(function: str, theta: float) -> None:
    """That the longest wavelength has a length."""
    if not theta > 0:
        remedy = "It is the longest wavelength over 2π"
        raise _checks.fail(ValueError, function, "theta", "be above 0", theta, remedy)


def angles_of(
    seq: int, num_features: int, offset: Offset, theta: float, device: torch.device | str | None
) -> Tensor:
    """Position times frequency, (... seq ⌈features / 2⌉), in float64 where the device has it."""
    pair = torch.arange(0, num_features, 2, dtype=exact_dtype(device), device=device)
    frequency = torch.exp(pair * (-math.log(theta) / num_features))
    return counted(seq, offset, device).to(frequency.dtype).unsqueeze(-1) * frequency


def init_learned(
    key: Key,
    max_len: int,
    num_features: int,
    *,
    weight_init: Initializer = initializers.normal,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Params:
    """Params of `learned`: `weight` (max_len, features).

    Args:
        key: Randomness of the weights.
        max_len: The longest sequence that it can number.
        num_features: How many numbers stand for each position.
        weight_init: How the weight begins.
        dtype: Of the params.
        device: Of the params.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> from tinyfn import random
        >>> init_learned(random.key(0), max_len=5, num_features=3)["weight"].shape
        torch.Size([5, 3])
    """
    _checks.sizes("positions.init_learned", max_len=max_len, num_features=num_features)
    fans = {"in_axes": (0,), "out_axes": (1,)}
    weight = weight_init(key, (max_len, num_features), **fans, dtype=dtype, device=device)
    return {"weight": weight}


def learned(params: Params, seq: int, *, offset: Offset = 0) -> Float[Tensor, "... seq features"]:
    """The first rows of a table that is trained.

    Args:
        params: From `init_learned`: `weight` (max_len, features).
        seq: How many positions.
        offset: The first position. Where a tensor leads beyond the table, the row is NaN.

    Raises:
        ValueError: The sequence is longer than the table, or `offset` is below 0.

    Example:
        >>> learned({"weight": torch.tensor([[1.0], [2.0], [3.0]])}, 2, offset=1)
        tensor([[2.],
                [3.]])

    Reference: Gehring et al., "Convolutional Sequence to Sequence Learning", 2017,
    arXiv 1705.03122.
    """
    weight = _checks.part("positions.learned", params, "weight")
    if not isinstance(offset, Tensor):
        _checks.at_least("positions.learned", "offset", offset, least=0)
    end = seq if isinstance(offset, Tensor) else seq + offset
    if end > weight.shape[0]:
        raise _checks.fail(
            ValueError,
            "positions.learned",
            "seq",
            f"end within max_len={weight.shape[0]}",
            end,
            "Shorten the sequence, or make a longer table with init_learned",
        )
    if isinstance(offset, Tensor):
        at = counted(seq, offset, weight.device)
        within = (at >= 0) & (at < weight.shape[0])
        found = rows(weight, torch.where(within, at, 0))
        return torch.where(within.unsqueeze(-1), found, torch.nan)
    return weight[offset:end]


def check_features(name: str, x: Tensor) -> None:
    """That there are positions, and features at each."""
    _checks.floating(f"positions.{name}", "x", x)
    _checks.axes(f"positions.{name}", "x", x, "seq", "features")

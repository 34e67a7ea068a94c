"""Rotary attention: q and k turned by their positions, so that scores see distances only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinyfn import _checks
from tinyfn.positions._counting import Offset, counted, exact_dtype
from tinyfn.positions._kept import Scheme, kept, over_kept, split_arguments
from tinyfn.positions._tables import angles_of, check_features, check_theta
from tinyfn.types import Attend

Turns = Float[Tensor, "pairs"] | Callable[[Offset], Float[Tensor, "... pairs"]]
"""Frequencies of rotary attention, or a function that makes them of the number of positions."""


def rotate(
    x: Float[Tensor, "... seq head_dim"],
    *,
    offset: Offset = 0,
    theta: float = 10000.0,
    frequencies: Turns | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "... seq head_dim"]:
    """Every pair of features turned by its position times its frequency.

    Pairs are (i, i + head_dim / 2), as in the weights of Llama and GPT-NeoX; the paper pairs
    neighbours, which is the same up to the order of a projection's rows.

    Args:
        x: Queries or keys of a head.
        offset: The position of the first.
        theta: The longest wavelength is 2π theta.
        frequencies: One for each pair in place of theta's, such as `llama3` or `yarn` give; or a
            function that makes them of the number of positions: a `partial` of `ntk_scaled`, say.
        scale: What the result is multiplied by.

    Raises:
        ValueError: head_dim is odd, `theta` is not above 0, or there is not a frequency for each
            pair.

    Example:
        >>> rotate(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor([[1.0000, 0.0000],
                [0.5403, 0.8415]])

    Reference: Su et al., "RoFormer", 2021, arXiv 2104.09864.
    """
    check_features("rotate", x)
    check_theta("positions.rotate", theta)
    head_dim = x.shape[-1]
    if head_dim % 2:
        raise _checks.fail(
            ValueError,
            "positions.rotary",
            "head_dim",
            "be even, for its features turn in pairs",
            head_dim,
            "Choose other num_features, num_heads or head_dim",
        )
    if frequencies is None:
        angles = angles_of(x.shape[-2], head_dim, offset, theta, x.device)
    else:
        angles = _turned(x, offset, frequencies)
    if angles.ndim > 2:  # the batch's axes come first; between them and these may stand heads
        between = (1,) * (x.ndim - angles.ndim)
        angles = angles.reshape(*angles.shape[:-2], *between, *angles.shape[-2:])
    cos, sin = angles.cos(), angles.sin()
    if isinstance(scale, Tensor) or scale != 1.0:
        cos, sin = scale * cos, scale * sin
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _turned(x: Tensor, offset: Offset, frequencies: Turns) -> Tensor:
    """The angles (... seq pairs) by frequencies that were given."""
    if callable(frequencies):
        frequencies = frequencies(offset + x.shape[-2])
    if not isinstance(frequencies, Tensor) or frequencies.shape[-1:] != (x.shape[-1] // 2,):
        requirement = f"have one number for each pair of features, {x.shape[-1] // 2}"
        actual = _checks.shape(frequencies)
        remedy = "Make them with the head_dim of the params"
        raise _checks.fail(
            ValueError, "positions.rotary", "frequencies", requirement, actual, remedy
        )
    exact = frequencies.to(exact_dtype(x.device)).to(x.device)
    at = counted(x.shape[-2], offset, x.device).to(exact.dtype)
    return at.unsqueeze(-1) * (exact.unsqueeze(-2) if exact.ndim > 1 else exact)


def rotary(
    attend: Attend,
    *,
    offset: Offset = 0,
    kv_offset: Offset = 0,
    theta: float = 10000.0,
    frequencies: Turns | None = None,
    scale: float = 1.0,
) -> Attend:
    """An attend that turns q and k by their positions first.

    Args:
        attend: What attends to the turned q and k.
        offset: The position of the first query, as in `masks.causal`.
        kv_offset: The position of the first key.
        theta: As in `rotate`.
        frequencies: As in `rotate`. A function of the number of positions is given the end of the
            keys; in a cache, that of the time when a key was kept.
        scale: What q and k are multiplied by, each.

    Example:
        >>> from tinyfn import dot_product_attention
        >>> q = torch.ones(1, 3, 4)
        >>> rotary(dot_product_attention)(q, q, q).shape
        torch.Size([1, 3, 4])

    Reference: Su et al., "RoFormer", 2021, arXiv 2104.09864.
    """
    turn = {"theta": theta, "frequencies": frequencies, "scale": scale}
    return _Rotary(attend, offset, kv_offset, turn)


@dataclass(frozen=True, eq=False)
class _Rotary(Scheme):
    """What `rotary` returns: an attend, and what a cache asks of it."""

    attend: Attend
    offset: Any
    kv_offset: Any
    turn: dict[str, Any]

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        params, (q, k, v, *rest), options = split_arguments(args, options)
        turn: dict[str, Any] = self.turn
        if callable(turn["frequencies"]):  # those of the keys' end, for queries too
            turn = {**turn, "frequencies": turn["frequencies"](self.kv_offset + k.shape[-2])}
        q = rotate(q, offset=self.offset, **turn)
        k = rotate(k, offset=self.kv_offset, **turn)
        return self.attend(*params, q, k, v, *rest, **options)

    def kept(self, k: Tensor, kv_offset: Tensor | int) -> Tensor:
        turned = rotate(k, offset=self.kv_offset + kv_offset, **self.turn)
        return kept(self.attend, turned, kv_offset)

    def over_kept(self, offset: Tensor, kv_at: Tensor) -> Attend:
        return _Turning(over_kept(self.attend, offset, kv_at), self.offset + offset, self.turn)


@dataclass(frozen=True, eq=False)
class _Turning:
    """Rotary attention where the keys have turned already."""

    attend: Attend
    offset: Any
    turn: dict[str, Any]

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        params, (q, *rest), options = split_arguments(args, options)
        return self.attend(*params, rotate(q, offset=self.offset, **self.turn), *rest, **options)

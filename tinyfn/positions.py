"""Where a token stands, told to a function that would not know: five schemes.

    sinusoidal   PE(pos, 2i) = sin(pos / theta^(2i/features)), PE(pos, 2i+1) = cos(the same)
    learned      a row of a weight for each position
    rotary       q and k turned by an angle that grows with the position; scores see distances only
    alibi        a bias of -slope · distance on the scores, a slope for each head
    relative     a bias that is trained, for each head and each range of distances

The first two are tables, joined to the features by adding or by concatenating. A stack takes the
joining as `position=`, a function of (params, x): `add_sinusoidal`, `concatenate_learned`, ... The
others act inside attention: they wrap an attend, and are passed as `attend=`.

An offset is the position of the first of a sequence; one for each example, if a tensor with the
batch's leading axes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Tensor

from tinyfn import _checks, initializers, random
from tinyfn._frequencies import by_length as by_length
from tinyfn._frequencies import frequencies as frequencies
from tinyfn._frequencies import llama3 as llama3
from tinyfn._frequencies import ntk_scaled as ntk_scaled
from tinyfn._frequencies import yarn as yarn
from tinyfn.types import Attend, Initializer, Key, Params

Offset = int | Integer[Tensor, "..."]
Turns = Float[Tensor, "pairs"] | Callable[[Offset], Float[Tensor, "... pairs"]]
"""Frequencies of rotary attention, or a function that makes them of the number of positions."""


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
    _check_theta("positions.sinusoidal", theta)
    angles = _angles(seq, num_features, offset, theta, device)
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :num_features]
    return table.to(dtype or torch.get_default_dtype())


def _check_theta(function: str, theta: float) -> None:
    if not theta > 0:
        remedy = "It is the longest wavelength over 2π"
        raise _checks.fail(ValueError, function, "theta", "be above 0", theta, remedy)


def _angles(
    seq: int, num_features: int, offset: Offset, theta: float, device: torch.device | str | None
) -> Tensor:
    """Position times frequency, (... seq ⌈features / 2⌉), in float64 where the device has it."""
    pair = torch.arange(0, num_features, 2, dtype=_exact(device), device=device)
    frequency = torch.exp(pair * (-math.log(theta) / num_features))
    return _count(seq, offset, device).to(frequency.dtype).unsqueeze(-1) * frequency


def _count(seq: int, offset: Offset, device: torch.device | str | None) -> Tensor:
    """The positions from an offset on, (... seq)."""
    first = offset.unsqueeze(-1) if isinstance(offset, Tensor) else offset
    return torch.arange(seq, device=device) + first


def _exact(device: torch.device | str | None) -> torch.dtype:
    return torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64


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
        at = _count(seq, offset, weight.device)
        within = (at >= 0) & (at < weight.shape[0])
        rows = weight[torch.where(within, at, 0)]
        return torch.where(within.unsqueeze(-1), rows, torch.nan)
    return weight[offset:end]


def add(
    x: Float[Tensor, "... seq features"], table: Float[Tensor, "*batch seq features"]
) -> Float[Tensor, "... seq features"]:
    """Positions added to the features: as many numbers as before.

    Args:
        x: Features.
        table: A row for each position, as wide as the features; one table for all of the batch, or
            one for each example.

    Raises:
        ValueError: The table has other sizes than the features.

    Example:
        >>> add(torch.ones(2, 2), sinusoidal(2, 2))
        tensor([[1.0000, 2.0000],
                [1.8415, 1.5403]])
    """
    _check_features("add", x)
    if x.shape[-2:] != table.shape[-2:] or (table.ndim > 2 and x.shape != table.shape):
        raise _checks.fail(
            ValueError,
            "positions.add",
            "table",
            f"have the features' (seq, features) = {tuple(x.shape[-2:])}",
            _checks.shape(table),
            "Concatenate positions of another width",
        )
    return x + table.to(x.dtype)


def concatenate(
    x: Float[Tensor, "... seq features"], table: Float[Tensor, "*batch seq position_features"]
) -> Float[Tensor, "... seq joined_features"]:
    """Positions put behind the features: more numbers than before, none of them mixed.

    Args:
        x: Features.
        table: A row for each position, of any width; one for all, or one for each example.

    Raises:
        ValueError: The table has another number of positions.

    Example:
        >>> concatenate(torch.ones(2, 1), sinusoidal(2, 2))
        tensor([[1.0000, 0.0000, 1.0000],
                [1.0000, 0.8415, 0.5403]])
    """
    _check_features("concatenate", x)
    if x.shape[-2] != table.shape[-2] or (table.ndim > 2 and x.shape[:-1] != table.shape[:-1]):
        raise _checks.fail(
            ValueError,
            "positions.concatenate",
            "table",
            f"have a row for each position of x, {_checks.shape(x)}",
            _checks.shape(table),
            "Make it with seq=x.shape[-2]",
        )
    return torch.cat([x, table.to(x.dtype).expand(*x.shape[:-1], table.shape[-1])], dim=-1)


def add_sinusoidal(
    params: Params,
    x: Float[Tensor, "... seq features"],
    *,
    offset: Offset = 0,
    theta: float = 10000.0,
) -> Float[Tensor, "... seq features"]:
    """Sinusoidal positions added: `position=` of a stack, the architecture's own.

    Args:
        params: Not read; a stack has no params for it.
        x: Features.
        offset: The first position.
        theta: As in `sinusoidal`.

    Example:
        >>> add_sinusoidal({}, torch.zeros(1, 2))
        tensor([[0., 1.]])
    """
    _check_features("add_sinusoidal", x)
    options = {"offset": offset, "theta": theta, "device": x.device, "dtype": x.dtype}
    return add(x, sinusoidal(x.shape[-2], x.shape[-1], **options))


def concatenate_sinusoidal(
    params: Params,
    x: Float[Tensor, "... seq features"],
    *,
    num_features: int,
    offset: Offset = 0,
    theta: float = 10000.0,
) -> Float[Tensor, "... seq joined_features"]:
    """Sinusoidal positions concatenated: `position=` of a stack, with `num_features` fixed.

    Args:
        params: Not read; a stack has no params for it.
        x: Features.
        num_features: Width of the table; fix it with `functools.partial`. The stack's features
            are those of x and these.
        offset: The first position.
        theta: As in `sinusoidal`.

    Example:
        >>> concatenate_sinusoidal({}, torch.zeros(1, 2), num_features=2)
        tensor([[0., 0., 0., 1.]])
    """
    _check_features("concatenate_sinusoidal", x)
    options = {"offset": offset, "theta": theta, "device": x.device, "dtype": x.dtype}
    return concatenate(x, sinusoidal(x.shape[-2], num_features, **options))


def add_learned(
    params: Params, x: Float[Tensor, "... seq features"], *, offset: Offset = 0
) -> Float[Tensor, "... seq features"]:
    """Learned positions added: `position=` of a stack.

    Args:
        params: From `init_learned`; a stack keeps them under `"position"`.
        x: Features.
        offset: The first position.

    Example:
        >>> add_learned({"weight": torch.ones(3, 2)}, torch.zeros(1, 2))
        tensor([[1., 1.]])
    """
    _check_features("add_learned", x)
    return add(x, learned(params, x.shape[-2], offset=offset))


def concatenate_learned(
    params: Params, x: Float[Tensor, "... seq features"], *, offset: Offset = 0
) -> Float[Tensor, "... seq joined_features"]:
    """Learned positions concatenated: `position=` of a stack.

    Args:
        params: From `init_learned`; a stack keeps them under `"position"`.
        x: Features. The stack's features are these and those of the table.
        offset: The first position.

    Example:
        >>> concatenate_learned({"weight": torch.ones(3, 1)}, torch.zeros(1, 2))
        tensor([[0., 0., 1.]])
    """
    _check_features("concatenate_learned", x)
    return concatenate(x, learned(params, x.shape[-2], offset=offset))


def _check_features(name: str, x: Tensor) -> None:
    _checks.floating(f"positions.{name}", "x", x)
    _checks.axes(f"positions.{name}", "x", x, "seq", "features")


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
    _check_features("rotate", x)
    _check_theta("positions.rotate", theta)
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
        angles = _angles(x.shape[-2], head_dim, offset, theta, x.device)
    else:
        angles = _turned(x, offset, frequencies)
    if angles.ndim > 2:  # the batch's axes come first; between them and these may stand heads
        between = (1,) * (x.ndim - angles.ndim)
        angles = angles.reshape(*angles.shape[:-2], *between, *angles.shape[-2:])
    cos, sin = (scale * angles.cos()).to(x.dtype), (scale * angles.sin()).to(x.dtype)
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
    exact = frequencies.to(_exact(x.device)).to(x.device)
    at = _count(x.shape[-2], offset, x.device).to(exact.dtype)
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
class _Rotary:
    """What `rotary` returns: an attend, and what a cache asks of it."""

    attend: Attend
    offset: Any
    kv_offset: Any
    turn: dict[str, Any]

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        params, (q, k, v, *rest), options = _split_arguments(args, options)
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
        params, (q, *rest), options = _split_arguments(args, options)
        return self.attend(*params, rotate(q, offset=self.offset, **self.turn), *rest, **options)


def alibi(attend: Attend, *, offset: Offset = 0) -> Attend:
    """An attend that adds a bias falling with the distance, faster or slower by head.

    Args:
        attend: What attends with the bias; a bias of the caller's is added to it.
        offset: The position of the first query among the keys, as in `masks.causal`.

    Example:
        >>> from tinyfn import dot_product_attention
        >>> q = torch.ones(2, 3, 4)
        >>> alibi(dot_product_attention)(q, q, q).shape
        torch.Size([2, 3, 4])

    Reference: Press, Smith and Lewis, "Train Short, Test Long", 2021, arXiv 2108.12409.
    """
    return _Alibi(attend, offset)


@dataclass(frozen=True, eq=False)
class _Alibi:
    """What `alibi` returns: an attend, and what a cache asks of it."""

    attend: Attend
    offset: Any
    q_offset: Any = 0
    kv_at: Tensor | None = None

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        params, (q, k, v, mask, key, bias), options = _split_arguments(args, options)
        q_at = _count(q.shape[-2], self.offset + self.q_offset, q.device)
        kv_at = _count(k.shape[-2], 0, q.device) if self.kv_at is None else self.kv_at
        falling = _falling(q.shape[-3], q_at, kv_at, q.dtype)
        bias = falling if bias is None else bias + falling
        return self.attend(*params, q, k, v, mask, key, bias, **options)

    def kept(self, k: Tensor, kv_offset: Tensor | int) -> Tensor:
        return kept(self.attend, k, kv_offset)

    def over_kept(self, offset: Tensor, kv_at: Tensor) -> Attend:
        return _Alibi(over_kept(self.attend, offset, kv_at), self.offset, offset, kv_at)


def init_relative(
    key: Key,
    num_buckets: int,
    num_heads: int,
    *,
    after: bool = True,
    weight_init: Initializer = initializers.normal,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Params:
    """Params of `relative`: `before` and, unless left out, `after`, both (buckets, heads).

    Args:
        key: Randomness of the weights.
        num_buckets: How many ranges of distances, in each direction.
        num_heads: How many heads look.
        after: Whether keys after the query have numbers of their own; else theirs is that of
            distance 0, as where a causal mask hides them.
        weight_init: How the weights begin.
        dtype: Of the params.
        device: Of the params.

    Raises:
        ValueError: `num_buckets` is below 2, or `num_heads` below 1.

    Example:
        >>> from tinyfn import random
        >>> {name: leaf.shape for name, leaf in init_relative(random.key(0), 16, 2).items()}
        {'before': torch.Size([16, 2]), 'after': torch.Size([16, 2])}
    """
    _checks.at_least("positions.init_relative", "num_buckets", num_buckets, least=2)
    _checks.sizes("positions.init_relative", num_heads=num_heads)
    names = ("before", "after") if after else ("before",)
    made = {"in_axes": (0,), "out_axes": (1,), "dtype": dtype, "device": device}
    return {
        name: weight_init(random_key, (num_buckets, num_heads), **made)
        for name, random_key in zip(names, random.split(key), strict=False)
    }


def relative(attend: Attend, *, offset: Offset = 0, max_distance: int = 128) -> Attend:
    """An attend with params: a bias for each head and each range of distances.

    The params stand under `"attend"`, in an attention's params or, for all of its layers, in a
    stack's.

    Args:
        attend: What attends with the bias; a bias of the caller's is added to it.
        offset: The position of the first query among the keys, as in `masks.causal`.
        max_distance: From here on all is one range.

    Raises:
        ValueError: There are no params, or `max_distance` is not above half of the buckets.

    Example:
        >>> from tinyfn import dot_product_attention, random
        >>> params, q = init_relative(random.key(0), 4, num_heads=2), torch.ones(2, 3, 4)
        >>> relative(dot_product_attention)(params, q, q, q).shape
        torch.Size([2, 3, 4])

    Reference: Raffel et al., "Exploring the Limits of Transfer Learning", 2019, arXiv 1910.10683.
    """
    return _Relative(attend, offset, max_distance)


@dataclass(frozen=True, eq=False)
class _Relative:
    """What `relative` returns: an attend, and what a cache asks of it."""

    attend: Attend
    offset: Any
    max_distance: int
    q_offset: Any = 0
    kv_at: Tensor | None = None

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        params, (q, k, v, mask, key, bias), options = _split_arguments(args, options)
        maker = "positions.init_relative"
        given = dict(zip(["attend"], params, strict=False))
        own = _checks.part("positions.relative", given, "attend", maker)
        q_at = _count(q.shape[-2], self.offset + self.q_offset, q.device)
        kv_at = _count(k.shape[-2], 0, q.device) if self.kv_at is None else self.kv_at
        learned = _by_distance(own, q_at, kv_at, self.max_distance)
        bias = learned if bias is None else bias + learned
        return self.attend(q, k, v, mask, key, bias, **options)

    def kept(self, k: Tensor, kv_offset: Tensor | int) -> Tensor:
        return kept(self.attend, k, kv_offset)

    def over_kept(self, offset: Tensor, kv_at: Tensor) -> Attend:
        moved = over_kept(self.attend, offset, kv_at)
        return _Relative(moved, self.offset, self.max_distance, offset, kv_at)


def relative_bias(
    params: Params, q_seq: int, kv_seq: int, *, offset: Offset = 0, max_distance: int = 128
) -> Float[Tensor, "... heads q_seq kv_seq"]:
    """The bias that `relative` adds: half of the ranges are single distances, the others grow.

    Args:
        params: From `init_relative`.
        q_seq: How many queries.
        kv_seq: How many keys.
        offset: The position of the first query among the keys.
        max_distance: From here on all is one range.

    Raises:
        ValueError: `max_distance` is not above half of the buckets.

    Example:
        >>> relative_bias({"before": torch.tensor([[1.0], [2.0]])}, 2, 2)
        tensor([[[1., 1.],
                 [2., 1.]]])

    Reference: Raffel et al., 2019, arXiv 1910.10683.
    """
    device = _checks.part(
        "positions.relative_bias", params, "before", "positions.init_relative"
    ).device
    q_at, kv_at = _count(q_seq, offset, device), _count(kv_seq, 0, device)
    return _by_distance(params, q_at, kv_at, max_distance)


def _by_distance(params: Params, q_at: Tensor, kv_at: Tensor, max_distance: int) -> Tensor:
    """The bias between positions (... q_seq) and (... kv_seq)."""
    before = _checks.part("positions.relative", params, "before", "positions.init_relative")
    buckets = before.shape[0]
    _checks.at_least("positions.relative", "max_distance", max_distance, least=buckets // 2 + 1)
    behind = q_at.unsqueeze(-1) - kv_at.unsqueeze(-2)
    row = _bucket(behind.abs() if "after" in params else behind.clamp(min=0), buckets, max_distance)
    if "after" in params:
        before = torch.cat([before, params["after"]])
        row = torch.where(behind < 0, row + buckets, row)
    return rearrange(before[row], "... q_seq kv_seq heads -> ... heads q_seq kv_seq")


def _bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Which range a distance lies in; in float32, where the weights of others were trained."""
    exact = buckets // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = exact + (growth * (buckets - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


def kept(attend: Attend, k: Tensor, kv_offset: Tensor | int) -> Tensor:
    """Keys (... kv_heads kv_seq head_dim) as a cache keeps them for an attend: turned, say.

    Args:
        attend: Of this module around any other, or any other; in a `partial` or not.
        k: New keys.
        kv_offset: The position of the first.

    Example:
        >>> kept(lambda q, k, v, *rest: v, torch.ones(1, 2, 2), 3).shape
        torch.Size([1, 2, 2])
    """
    if isinstance(attend, partial):
        return kept(attend.func, k, kv_offset)
    return attend.kept(k, kv_offset) if isinstance(attend, _Rotary | _Alibi | _Relative) else k


def over_kept(attend: Attend, offset: Tensor, kv_at: Tensor) -> Attend:
    """The attend for queries from an offset on, and keys that were `kept` at these positions.

    Args:
        attend: As in `kept`.
        offset: The position of the first query.
        kv_at: The position of each key, (... kv_seq).

    Example:
        >>> from tinyfn import dot_product_attention
        >>> q, k = torch.ones(1, 1, 4), torch.ones(1, 3, 4)
        >>> over_kept(alibi(dot_product_attention), torch.tensor(2), torch.arange(3))(q, k, k).shape
        torch.Size([1, 1, 4])
    """
    if isinstance(attend, partial):
        moved = over_kept(attend.func, offset, kv_at)
        return partial(moved, *attend.args, **attend.keywords)
    if isinstance(attend, _Rotary | _Alibi | _Relative):
        return attend.over_kept(offset, kv_at)
    return attend


def _split_arguments(args: tuple, options: dict) -> tuple[tuple, tuple, dict]:
    """The params of an attend that has any, (q, k, v, mask, key, bias), and the other options."""
    first = 1 if args and isinstance(args[0], dict) else 0
    names = ("q", "k", "v", "mask", "key", "bias")[len(args) - first :]
    named = tuple(options.get(name) for name in names)
    others = {name: value for name, value in options.items() if name not in names}
    return args[:first], (*args[first:], *named), others


def alibi_bias(
    num_heads: int,
    q_seq: int,
    kv_seq: int,
    *,
    offset: Offset = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "... heads q_seq kv_seq"]:
    """The bias that `alibi` adds: -slope · |query's position - key's position|.

    Args:
        num_heads: How many heads, each with a slope of its own.
        q_seq: How many queries.
        kv_seq: How many keys.
        offset: The position of the first query among the keys.
        dtype: Of the bias, which is computed in float64.
        device: Of the bias.

    Raises:
        ValueError: `num_heads` is below 1.

    Example:
        >>> alibi_bias(1, 2, 2)
        tensor([[[-0.0000, -0.0039],
                 [-0.0039, -0.0000]]])

    Reference: Press, Smith and Lewis, 2021, arXiv 2108.12409.
    """
    q_at, kv_at = _count(q_seq, offset, device), _count(kv_seq, 0, device)
    return _falling(num_heads, q_at, kv_at, dtype or torch.get_default_dtype())


def _falling(num_heads: int, q_at: Tensor, kv_at: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias between positions (... q_seq) and (... kv_seq)."""
    device = q_at.device
    distance = (q_at.unsqueeze(-1) - kv_at.unsqueeze(-2)).abs().unsqueeze(-3)
    slopes = torch.tensor(alibi_slopes(num_heads), dtype=_exact(device), device=device)
    return (-rearrange(slopes, "heads -> heads 1 1") * distance).to(dtype)


def alibi_slopes(num_heads: int) -> list[float]:
    """A slope for each head: 2^(-8h/n) for h = 1..n, n a power of two.

    For other numbers, those of the power of two below, then every second one of the power above,
    as in the paper's code.

    Raises:
        ValueError: `num_heads` is below 1.

    Example:
        >>> alibi_slopes(2), alibi_slopes(3)
        ([0.0625, 0.00390625], [0.0625, 0.00390625, 0.25])

    Reference: Press, Smith and Lewis, 2021, arXiv 2108.12409.
    """
    _checks.at_least("positions.alibi", "num_heads", num_heads)
    below = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * head / below) for head in range(1, below + 1)]
    between = [2.0 ** (-4.0 * head / below) for head in range(1, 2 * below + 1, 2)]
    return slopes + between[: num_heads - below]

"""Dropout by key: each element zeroed or kept, as a draw says.

A layer has several, of keys that it splits from its own. Where they are small, a draw costs as much
as what it decides about, and `keys_or_drawn` makes one for all: the numbers stay those of the keys.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tinyfn import _checks, _levels, random
from tinyfn.types import Key

Drop: TypeAlias = Callable[[Tensor], Tensor]


def dropout(
    x: Float[Tensor, "..."], key: "Key | Drawn | None", *, dropout_p: float
) -> Float[Tensor, "..."]:
    """Each element zeroed with chance `dropout_p`, the others divided by 1 - dropout_p.

    Args:
        x: Any shape.
        key: Randomness; the same key drops the same elements. Without it nothing is dropped.
        dropout_p: Chance that an element is dropped, in [0, 1); met to 2⁻¹⁷ from 2⁻⁸ to ½, and
            else to 2⁻³².

    Raises:
        ValueError: `dropout_p` is not in [0, 1).
        TypeError: `x` is not floating, or `key` not an int64 tensor.

    Example:
        >>> x = torch.ones(1000)
        >>> dropout(x, None, dropout_p=0.5) is x
        True
        >>> bool((dropout(x, random.key(0), dropout_p=0.5) == 0).sum() in range(400, 600))
        True

    Reference: Srivastava et al., "Dropout", 2014.
    """
    (drop,) = dropouts(key, 1, x, dropout_p=dropout_p)
    return drop(x)


def dropouts(
    key: "Key | Drawn | None", num: int, like: Float[Tensor, "..."], *, dropout_p: float
) -> list[Drop]:
    """Several dropouts for tensors of one shape, of one draw: where those are small, it is quicker.

    Args:
        key: Randomness; without it each gives what it is given.
        num: How many.
        like: A tensor of the shape, dtype and device of those of which elements will be dropped.
        dropout_p: As in `dropout`.

    Raises:
        ValueError: As `dropout`.
        TypeError: As `dropout`.

    Example:
        >>> x = torch.ones(1000)
        >>> first, second = dropouts(random.key(0), 2, x, dropout_p=0.5)
        >>> bool((first(x) != second(x)).any())
        True
    """
    _checks.probability("dropout", "dropout_p", dropout_p)
    if key is None or dropout_p == 0.0:
        return [_kept] * num
    _checks.floating("dropout", "x", like)
    if isinstance(key, Drawn):
        drops = key.drops(num, like, dropout_p)
        if drops is not None:
            return drops
        key = key.key
    shape = like.shape if num == 1 else (*like.shape[:1], num, *like.shape[1:])
    with _levels.below(key):
        if _is_coarse(dropout_p):
            drawn = random.bits(key, shape, dtype=torch.int16, device=like.device)
            if _compares_quickly(like):
                drawn = drawn.to(like.dtype)
        else:
            drawn = random.bernoulli(key, dropout_p, shape, device=like.device)
        each = (drawn,) if num == 1 else _apart(drawn, num, like.shape)
        return [partial(_dropped, dropout_p, one) for one in each]


def _is_coarse(dropout_p: float) -> bool:
    """Whether 16 bits meet a chance as well as it matters."""
    return 2**-8 <= dropout_p <= 2**-1


def _apart(drawn: Tensor, num: int, shape: Sequence[int]) -> Sequence[Tensor]:
    """Draws for several tensors of a shape, which lie behind its first axis.

    So a longer batch begins with the draws of a shorter one.
    """
    batch, rest = shape[:1], shape[1:]
    return drawn.view(*batch, num, *rest).unbind(len(batch))


def _compares_quickly(x: Tensor) -> bool:
    return (
        isinstance(x, Tensor)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
    )


def _kept(x: Tensor) -> Tensor:
    return x


def _dropped(dropout_p: float, drawn: Tensor, x: Tensor) -> Tensor:
    scaled = x * (1.0 / (1.0 - dropout_p))
    if drawn.dtype == torch.bool:
        return torch.where(drawn, 0.0, scaled)
    last = round(dropout_p * 2**16) - 2**15 - 1
    if drawn.dtype == x.dtype:
        # The same choice in a third of the time: zero where the second is at most the third. It
        # keeps the second for the derivative, as F.dropout does, where the other keeps bools.
        return torch.ops.aten.threshold_backward.default(scaled, drawn, last)
    return torch.where(drawn <= last, 0.0, scaled)


Part: TypeAlias = "tuple[int, Sequence[int]] | list[Part] | None"
"""What a key is for: so many dropouts of a shape, more keys for more, or what is not known."""


class Drawn:
    """What stands in a key's place where its dropouts, or its children's, have been drawn."""

    def __init__(
        self,
        find: Callable[[], Key],
        drawn: Sequence[Tensor],
        shape: Sequence[int],
        children: tuple[Any, ...] = (),
    ) -> None:
        self.children, self._find, self._drawn, self._shape = children, find, drawn, shape

    def drops(self, num: int, like: Tensor, dropout_p: float) -> list[Drop] | None:
        """The dropouts, unless others are asked for than were drawn."""
        drawn = self._drawn
        fits = len(drawn) == num and self._shape == like.shape and like.device == drawn[0].device
        if not fits or not _is_coarse(dropout_p):
            return None
        return [partial(_dropped, dropout_p, one) for one in drawn]

    @property
    def key(self) -> Key:
        """The key itself."""
        return self._find()


def keys_or_drawn(
    key: Key | Drawn | None,
    num: int,
    parts: Callable[[], Sequence[Part]],
    like: Float[Tensor, "..."],
    *,
    dropout_p: float,
) -> tuple[Any, ...]:
    """The keys of `random.split_or_none`, or in their places what they draw, all in one go.

    Args:
        key: Randomness, or None for none.
        num: How many.
        parts: Gives for each key what it is for.
        like: A tensor of the dtype and device of those of which elements will be dropped.
        dropout_p: As in `dropout`.

    Example:
        >>> x, key = torch.ones(4, 5), random.key(0)
        >>> drawn, _ = keys_or_drawn(key, 2, lambda: [(1, x.shape), None], x, dropout_p=0.5)
        >>> first, _ = random.split(key)
        >>> torch.equal(dropout(x, drawn, dropout_p=0.5), dropout(x, first, dropout_p=0.5))
        True
    """
    if key is None:
        return (None,) * num
    if isinstance(key, Drawn):
        if len(key.children) == num:
            return key.children
        key = key.key
    _checks.probability("dropout", "dropout_p", dropout_p)
    if not _is_coarse(dropout_p) or not _compares_quickly(like):
        return random.split_or_none(key, num)
    try:
        known = parts()
    except (AttributeError, IndexError, KeyError, TypeError):
        return random.split_or_none(key, num)  # who is given the wrong thing says what is wrong
    sizes = _sizes(known)
    with _levels.below(key):
        bits = random.bits_of_split(key, sizes)
        if bits is None:
            return random.split_or_none(key, num)
        runs = bits.to(like.dtype).split_with_sizes(list(_run_lengths(sizes)))
        return _drawn(lambda: key, known, iter(runs))


def _sizes(parts: Sequence[Part]) -> list[Any]:
    return [_sizes(part) if isinstance(part, list) else _size(part) for part in parts]


def _size(part: tuple[int, Sequence[int]] | None) -> int:
    return 0 if part is None else part[0] * math.prod(part[1])


def _run_lengths(sizes: Sequence[Any]) -> Iterator[int]:
    for size in sizes:
        if isinstance(size, int):
            yield size + -size % 4
        else:
            yield from _run_lengths(size)


class _Family:
    """The keys that one is split into, found when somebody asks for one."""

    def __init__(self, parent: Callable[[], Key], num: int) -> None:
        self._parent, self._num = parent, num

    def __getitem__(self, at: int) -> Key:
        return self._keys[at]

    @cached_property
    def _keys(self) -> tuple[Any, ...]:
        return random.split_or_none(self._parent(), self._num)


def _drawn(
    parent: Callable[[], Key], parts: Sequence[Part], runs: Iterator[Tensor]
) -> tuple[Any, ...]:
    """For each part what stands in its key's place, or the key."""
    family = _Family(parent, len(parts))
    finds = (partial(family.__getitem__, at) for at in range(len(parts)))
    return tuple(_stand_in(find, part, runs) for find, part in zip(finds, parts, strict=True))


def _stand_in(find: Callable[[], Key], part: Part, runs: Iterator[Tensor]) -> Key | Drawn:
    if isinstance(part, list):
        return Drawn(find, (), (), _drawn(find, part, runs))
    run = next(runs)
    if part is None:
        return find()
    num, shape = part
    size = _size(part)
    run = run if run.shape[0] == size else run.narrow(0, 0, size)
    return Drawn(find, (run.view(shape),) if num == 1 else _apart(run, num, shape), shape)

"""Who may attend to whom, as values: True = may attend.

A mask is a rule over positions. It knows nothing of heads, sizes or devices: its leading axes are
the batch's, and q_seq and kv_seq are read off where it is used. Masks combine with `&`, `|` and
`~`, and are pytrees, so `vmap` maps them (their tensors are leaves, their Python numbers are not).

    causal() & padding(lengths)          a decoder over sentences of different lengths
    causal() | prefix(n)                 a prefix language model
    causal() & window(128, 0)            a sliding window
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Bool, Integer
from torch import Tensor
from torch.utils import _pytree

from tinyfn import _checks


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """A rule that says which query may attend to which key.

    Made by the functions of this module, not by hand.

    Example:
        >>> causal() & padding(torch.tensor([2, 3]))
        causal(offset=0) & padding(lengths=Tensor(2,))
        >>> (causal() & ~window(0, 0)).dense(2, 2)
        tensor([[False, False],
                [ True, False]])
    """

    rule: Callable[..., Tensor]
    leaves: dict[str, Any]
    statics: dict[str, Any]

    def dense(
        self, q_seq: int, kv_seq: int, *, device: torch.device | str | None = None
    ) -> Bool[Tensor, "... q_seq kv_seq"]:
        """The mask of these sizes as a bool tensor, its leading axes those of the mask.

        Args:
            q_seq: How many queries.
            kv_seq: How many keys.
            device: Where; by default where the mask's own tensors are.

        Raises:
            ValueError: The mask holds sequences of another length, or stands on another device.

        Example:
            >>> causal().dense(2, 3)
            tensor([[ True, False, False],
                    [ True,  True, False]])
        """
        for name, size in (("q_seq", q_seq), ("kv_seq", kv_seq)):
            _checks.at_least("masks.Mask.dense", name, size, least=0)
        compact = self.compact(q_seq, kv_seq, device)
        return compact.expand(*compact.shape[:-2], q_seq, kv_seq)

    def compact(
        self, q_seq: int, kv_seq: int, device: torch.device | str | None = None
    ) -> Bool[Tensor, "..."]:
        """The same, an axis that the rule does not look at left at size 1.

        Example:
            >>> padding(torch.tensor([1, 2])).compact(5, 2).shape
            torch.Size([2, 1, 2])
        """
        own = next((x.device for x in _tensors(self) if x.ndim), None)
        device = torch.device(device) if device is not None else own
        if own is not None and device is not None and own.type != device.type:
            raise _checks.fail(
                ValueError,
                "masks.Mask",
                "mask",
                f"be on the device of what it masks, {device}",
                own,
                "Move it with mask.to(device)",
            )
        return _apply(self, _Grid(q_seq, kv_seq, device))

    def to(self, device: torch.device | str) -> "Mask":
        """The same mask with its tensors on another device.

        Example:
            >>> padding(torch.tensor([1, 2])).to("cpu")
            padding(lengths=Tensor(2,))
        """
        return _pytree.tree_map(lambda leaf: leaf.to(device), self)

    def __and__(self, other: "Mask | Bool[Tensor, '...']") -> "Mask":
        """Where both may attend."""
        return _mask(_and, a=self, b=_as_mask("&", other))

    def __or__(self, other: "Mask | Bool[Tensor, '...']") -> "Mask":
        """Where either may attend."""
        return _mask(_or, a=self, b=_as_mask("|", other))

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> "Mask":
        """Where this one may not attend."""
        return _mask(_not, a=self)

    def __bool__(self) -> bool:
        """A mask has no one truth: always an error."""
        raise _checks.fail(
            TypeError,
            "masks.Mask",
            "a mask",
            "not be used as a bool",
            "bool(mask)",
            "Combine masks with & | ~ in place of and, or, not",
        )

    def __repr__(self) -> str:
        """The calls that make it."""
        if self.rule is _made:
            return repr(self.leaves["mask"])
        name = self.rule.__name__.removeprefix("_")
        if name == "not":
            return f"~({self.leaves['a']!r})"
        if name in ("and", "or"):
            nested = [
                f"({mask!r})" if mask.rule in (_and, _or) else repr(mask)
                for mask in self.leaves.values()
            ]
            return f" {'&' if name == 'and' else '|'} ".join(nested)
        shown = {
            **self.statics,
            **{n: f"Tensor({', '.join(map(str, x.shape))},)" for n, x in self.leaves.items()},
        }
        return f"{name}({', '.join(f'{n}={value}' for n, value in shown.items())})"


def _mask(rule: Callable[..., Tensor], **args: Any) -> Mask:
    """Tensors and masks are leaves, that vmap can map; Python numbers are not."""
    leaves = {name: arg for name, arg in args.items() if isinstance(arg, Tensor | Mask)}
    statics = {name: arg for name, arg in args.items() if name not in leaves}
    return Mask(rule, leaves, statics)


class _Grid(NamedTuple):
    """The sizes that a rule is asked for, and the positions if it looks at them."""

    q_seq: int
    kv_seq: int
    device: torch.device | None
    q_at: Tensor | None = None
    kv_at: Tensor | None = None

    @property
    def q(self) -> Tensor:
        at = torch.arange(self.q_seq, device=self.device) if self.q_at is None else self.q_at
        return at.unsqueeze(-1)

    @property
    def kv(self) -> Tensor:
        at = torch.arange(self.kv_seq, device=self.device) if self.kv_at is None else self.kv_at
        return at.unsqueeze(-2)


def _apply(mask: Mask, grid: _Grid) -> Tensor:
    return mask.rule(grid, **mask.leaves, **mask.statics)


# vmap, grad and compile look into a mask only through this registry, and torch has no public name
# for it yet.
def _flatten(mask: Mask) -> tuple[list[Any], Any]:
    return list(mask.leaves.values()), (mask.rule, tuple(mask.leaves), mask.statics)


def _unflatten(leaves: Any, context: Any) -> Mask:
    rule, names, statics = context
    return Mask(rule, dict(zip(names, leaves, strict=True)), statics)


def _flatten_with_names(mask: Mask) -> tuple[list[Any], Any]:
    leaves, context = _flatten(mask)
    return [(_pytree.GetAttrKey(n), x) for n, x in zip(mask.leaves, leaves, strict=True)], context


_pytree.register_pytree_node(Mask, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_names)


def _tensors(mask: Mask) -> Iterator[Tensor]:
    for arg in mask.leaves.values():
        if isinstance(arg, Mask):
            yield from _tensors(arg)
        else:
            yield arg


def _as_mask(operator: str, other: Any) -> Mask:
    if isinstance(other, Mask):
        return other
    if isinstance(other, Tensor):
        return dense(other)
    raise _checks.fail(
        TypeError,
        f"masks.Mask {operator}",
        "other",
        "be a mask or a bool tensor",
        _checks.kind_of(other),
        "Make one with tinyfn.masks",
    )


def _and(grid: _Grid, a: Mask, b: Mask) -> Tensor:
    return _apply(a, grid) & _apply(b, grid)


def _or(grid: _Grid, a: Mask, b: Mask) -> Tensor:
    return _apply(a, grid) | _apply(b, grid)


def _not(grid: _Grid, a: Mask) -> Tensor:
    return ~_apply(a, grid)


Batched: TypeAlias = int | Integer[Tensor, "..."]
"""A whole number, or one for each example."""


def full() -> Mask:
    """Every query may attend to every key.

    Example:
        >>> full().dense(1, 2)
        tensor([[True, True]])
    """
    return _mask(_full)


def _full(grid: _Grid) -> Tensor:
    return grid.kv >= 0


def causal(offset: Batched = 0) -> Mask:
    """Query i may attend to keys up to i + offset, aligned at the top left.

    Args:
        offset: The position of the first query among the keys; one for each example, if a tensor.

    Example:
        >>> causal(1).dense(2, 3)
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """
    return _mask(_causal, offset=_whole("causal", "offset", offset))


def _causal(grid: _Grid, offset: Batched) -> Tensor:
    return grid.kv <= grid.q + _over_positions(offset)


def padding(lengths: Batched | Sequence[int]) -> Mask:
    """Only the first `lengths` keys of each example are real.

    Args:
        lengths: One number for each example, with the batch's leading axes.

    Raises:
        TypeError: `lengths` are not whole numbers.

    Example:
        >>> padding(torch.tensor([1, 2])).dense(1, 2)
        tensor([[[ True, False]],
        <BLANKLINE>
                [[ True,  True]]])
    """
    if isinstance(lengths, list | tuple):
        try:
            lengths = torch.tensor(lengths)
        except (RuntimeError, TypeError, ValueError):
            requirement, remedy = "hold ints of 64 bits, in rows alike", _COUNT
            raise _checks.fail(
                TypeError, "masks.padding", "lengths", requirement, repr(lengths), remedy
            ) from None
    return _mask(_padding, lengths=_whole("padding", "lengths", lengths))


def _padding(grid: _Grid, lengths: Batched) -> Tensor:
    return grid.kv < _over_positions(lengths)


def window(left: Batched | None, right: Batched | None) -> Mask:
    """Query i may attend to keys i - left to i + right; None is no limit on that side.

    Args:
        left: How many keys back.
        right: How many keys ahead.

    Example:
        >>> window(1, 0).dense(3, 3)
        tensor([[ True, False, False],
                [ True,  True, False],
                [False,  True,  True]])
    """
    left = left if left is None else _whole("window", "left", left)
    right = right if right is None else _whole("window", "right", right)
    return _mask(_window, left=left, right=right)


def _window(grid: _Grid, left: Batched | None, right: Batched | None) -> Tensor:
    q, kv = grid.q, grid.kv
    allowed = kv >= 0
    if left is not None:
        allowed = allowed & (kv >= q - _over_positions(left))
    if right is not None:
        allowed = allowed & (kv <= q + _over_positions(right))
    return allowed


def prefix(n: Batched) -> Mask:
    """Every query may attend to the first n keys.

    Args:
        n: How many; one for each example, if a tensor.

    Example:
        >>> (causal() | prefix(2)).dense(2, 3)
        tensor([[ True,  True, False],
                [ True,  True, False]])
    """
    return _mask(_prefix, n=_whole("prefix", "n", n))


def _prefix(grid: _Grid, n: Batched) -> Tensor:
    return grid.kv < _over_positions(n)


def segments(
    q_ids: Integer[Tensor, "... q_seq"], kv_ids: Integer[Tensor, "... kv_seq"] | None = None
) -> Mask:
    """A query may attend to keys of its own segment: several texts packed into one sequence.

    Args:
        q_ids: The segment of each query.
        kv_ids: The segment of each key; without it, as `q_ids`.

    Raises:
        ValueError: Where used, the ids are not as long as the sequences.

    Example:
        >>> segments(torch.tensor([0, 0, 1])).dense(3, 3)
        tensor([[ True,  True, False],
                [ True,  True, False],
                [False, False,  True]])
    """
    kv_ids = q_ids if kv_ids is None else kv_ids
    for name, ids in (("q_ids", q_ids), ("kv_ids", kv_ids)):
        _checks.integers("masks.segments", name, ids)
    return _mask(_segments, q_ids=q_ids, kv_ids=kv_ids)


def _segments(grid: _Grid, q_ids: Tensor, kv_ids: Tensor) -> Tensor:
    for name, ids, size in (("q_ids", q_ids, grid.q_seq), ("kv_ids", kv_ids, grid.kv_seq)):
        if ids.ndim == 0 or ids.shape[-1] != size:
            raise _checks.fail(
                ValueError,
                "masks.segments",
                name,
                f"have an id for each of {size} positions",
                _checks.shape(ids),
                "Give both q_ids and kv_ids where the two sequences differ",
            )
    return q_ids.unsqueeze(-1) == kv_ids.unsqueeze(-2)


def dense(tensor: Bool[Tensor, "... q_seq kv_seq"]) -> Mask:
    """Any bool tensor as a mask value; its leading axes are the batch's, without heads.

    Raises:
        TypeError: The tensor is not bool.
        ValueError: Where used, it does not have the sizes of the sequences.

    Example:
        >>> (dense(torch.eye(2).bool()) | causal()).dense(2, 2)
        tensor([[ True, False],
                [ True,  True]])
    """
    _check_bool("masks.dense", tensor)
    _checks.axes("masks.dense", "tensor", tensor, "q_seq", "kv_seq")
    return _mask(_dense, tensor=tensor)


def _dense(grid: _Grid, tensor: Tensor) -> Tensor:
    sizes = (grid.q_seq, grid.kv_seq)
    if any(axis not in (1, size) for axis, size in zip(tensor.shape[-2:], sizes, strict=True)):
        raise _checks.fail(
            ValueError,
            "masks.dense",
            "tensor",
            f"have shape (..., q_seq={sizes[0]}, kv_seq={sizes[1]})",
            _checks.shape(tensor),
            "Give both axes their full size or 1",
        )
    return tensor


def _over_positions(x: Batched) -> Batched:
    """A number for each example, set against (q_seq, kv_seq)."""
    return x[..., None, None] if isinstance(x, Tensor) else x


def _whole(name: str, argument: str, x: Any) -> Batched:
    if isinstance(x, Tensor):
        _checks.integers(f"masks.{name}", argument, x)
        return x
    if isinstance(x, bool) or not isinstance(x, int | torch.SymInt):
        raise _checks.fail(
            TypeError,
            f"masks.{name}",
            argument,
            "be an int or an integer tensor",
            _checks.kind_of(x),
            _COUNT,
        )
    return cast(int, x)


_COUNT = "Count positions in whole numbers"


def _check_bool(function: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
        raise _checks.fail(
            TypeError,
            function,
            "mask",
            "be a mask of tinyfn.masks or a bool tensor, True where a query may attend",
            _checks.kind_of(tensor),
            "Compare to make it bool (m > 0), or pass additive values as bias",
        )


def over_heads(
    function: str, mask: Mask | Tensor | None, q_seq: int, kv_seq: int, device: torch.device
) -> Bool[Tensor, "..."] | None:
    """What attention reads: a bool tensor against (... heads q_seq kv_seq), or None.

    A mask value gets a heads axis of size 1; a plain tensor is taken to have one already.

    Example:
        >>> over_heads("f", padding(torch.tensor([1, 2])), 2, 2, torch.device("cpu")).shape
        torch.Size([2, 1, 1, 2])
    """
    if mask is None:
        return None
    if not isinstance(mask, Mask):
        _check_bool(function, mask)
        return mask if mask.ndim > 1 else mask.reshape((1,) * (2 - mask.ndim) + mask.shape)
    compact = mask.compact(q_seq, kv_seq, device)
    return compact.unsqueeze(-3) if compact.ndim > 2 else compact


def may_hide_keys(mask: Mask | Tensor | None, q_seq: int, kv_seq: int) -> bool:
    """Whether some key might be hidden from every query; False only where sizes alone tell.

    Example:
        >>> may_hide_keys(causal(), 3, 3), may_hide_keys(causal(), 3, 4)
        (False, True)
    """
    if mask is None or (isinstance(mask, Mask) and mask.rule in (_full, _shown)):
        return False
    if isinstance(mask, Mask) and mask.rule is _made:
        return may_hide_keys(mask.leaves["mask"], q_seq, kv_seq)
    if isinstance(mask, Mask) and mask.rule is _causal and "offset" in mask.statics:
        return q_seq + mask.statics["offset"] < kv_seq
    return True


def split_causal(mask: Mask | Tensor | None) -> tuple[bool, Mask | Tensor | None]:
    """A mask as `causal() &` the rest: whether it is causal, and what is left, None if nothing.

    Example:
        >>> split_causal(causal() & padding(2))
        (True, padding(lengths=2))
    """
    if not isinstance(mask, Mask):
        return False, mask
    if mask.rule is _full:
        return False, None
    if mask.rule is _causal and mask.statics.get("offset") == 0:
        return True, None
    if mask.rule is _and:
        (a_causal, a), (b_causal, b) = map(split_causal, mask.leaves.values())
        if a_causal or b_causal:
            return True, b if a is None else a if b is None else a & b
    return False, mask


def built(mask: Mask, q_seq: int, kv_seq: int, device: torch.device) -> Mask | None:
    """The same mask with its rule run for these sizes already, for layers that all ask it.

    That it is causal stays a rule, which a kernel wants to know and which is quickly run.

    Args:
        mask: What is asked for.
        q_seq: How many queries.
        kv_seq: How many keys; whoever asks for another number gets the rule.
        device: Where.

    Example:
        >>> mask = built(causal() & padding(torch.tensor([1, 2])), 2, 2, torch.device("cpu"))
        >>> mask
        causal(offset=0) & padding(lengths=Tensor(2,))
        >>> mask.dense(2, 3).shape
        torch.Size([2, 2, 3])
    """
    is_causal, rest = split_causal(mask)
    if isinstance(rest, Mask):
        made = rest.compact(q_seq, kv_seq, device)
        rest = _mask(_made, mask=rest, made=made, q_seq=q_seq, kv_seq=kv_seq)
        return causal() & rest if is_causal else rest
    return causal() if is_causal else None


def _made(grid: _Grid, mask: Mask, made: Tensor, q_seq: int, kv_seq: int) -> Tensor:
    counted = grid.q_at is None and grid.kv_at is None
    fits = counted and (grid.q_seq, grid.kv_seq) == (q_seq, kv_seq)
    return made if fits else _apply(mask, grid)


def between(
    mask: Mask,
    q_at: Integer[Tensor, "... q_seq"],
    kv_at: Integer[Tensor, "... kv_seq"],
) -> Bool[Tensor, "..."]:
    """Whether a query at a position may attend to a key at another, as a cache has them.

    Args:
        mask: Of rules over positions.
        q_at: The position of each query.
        kv_at: The position of each key.

    Raises:
        ValueError: The mask holds a tensor of another size, such as `dense`.

    Example:
        >>> between(causal(), torch.tensor([5]), torch.tensor([4, 5, 6]))
        tensor([[ True,  True, False]])
    """
    return _apply(mask, _Grid(q_at.shape[-1], kv_at.shape[-1], q_at.device, q_at, kv_at))


def reach(mask: Mask) -> tuple[int | None, int | None]:
    """How many keys back and how many ahead a query may look at most; None where no limit is known.

    Example:
        >>> reach(causal()), reach(causal() & window(2, 5))
        ((None, 0), (2, 0))
    """
    if mask.rule is _made:
        return reach(mask.leaves["mask"])
    if mask.rule is _causal:
        return None, mask.statics.get("offset")
    if mask.rule is _window:
        return mask.statics.get("left"), mask.statics.get("right")
    if mask.rule in (_and, _or):
        choose = _closest if mask.rule is _and else _farthest
        (back, ahead), (other_back, other_ahead) = map(reach, mask.leaves.values())
        return choose(back, other_back), choose(ahead, other_ahead)
    return None, None


def _closest(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _farthest(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(a, b)


def by_rule(mask: Mask) -> bool:
    """Whether a mask is made of rules over positions alone, and not of a tensor of some size.

    Example:
        >>> by_rule(causal() & padding(2)), by_rule(causal() & dense(torch.ones(2, 2).bool()))
        (True, False)
    """
    nested = [leaf for leaf in mask.leaves.values() if isinstance(leaf, Mask)]
    return mask.rule not in (_dense, _segments, _shown) and all(map(by_rule, nested))


def sees_itself(mask: Mask) -> bool:
    """Whether every query may look at the key of its own position; False where it is not known.

    Example:
        >>> sees_itself(causal() & window(2, None)), sees_itself(causal(-1))
        (True, False)
    """
    if mask.rule is _causal:
        return mask.statics.get("offset", -1) >= 0
    if mask.rule is _window:
        limits = [mask.statics.get(side, -1) for side in ("left", "right")]
        return all(limit is None or limit >= 0 for limit in limits)
    if mask.rule in (_and, _or):
        sides = map(sees_itself, mask.leaves.values())
        return all(sides) if mask.rule is _and else any(sides)
    return False


def shown(tensor: Bool[Tensor, "... q_seq kv_seq"]) -> Mask:
    """A mask over kept keys, each of which some query saw: `may_hide_keys` says no.

    Nothing that it hides has to be zeroed again, which would copy all that is kept.

    Example:
        >>> may_hide_keys(shown(torch.tensor([[True, False]])), 1, 2)
        False
    """
    return _mask(_shown, tensor=tensor)


def _shown(grid: _Grid, tensor: Tensor) -> Tensor:
    return tensor

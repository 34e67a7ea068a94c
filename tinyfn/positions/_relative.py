"""A bias on the scores that is trained, for each head and each range of distances."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tinyfn import _checks, initializers, random
from tinyfn._primitives import rows
from tinyfn.positions._counting import Offset, counted
from tinyfn.positions._kept import Scheme, kept, over_kept, split_arguments
from tinyfn.types import Attend, Initializer, Key, Params


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
class _Relative(Scheme):
    """What `relative` returns: an attend, and what a cache asks of it."""

    attend: Attend
    offset: Any
    max_distance: int
    q_offset: Any = 0
    kv_at: Tensor | None = None

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        params, (q, k, v, mask, key, bias), options = split_arguments(args, options)
        maker = "positions.init_relative"
        given = dict(zip(["attend"], params, strict=False))
        own = _checks.part("positions.relative", given, "attend", maker)
        q_at = counted(q.shape[-2], self.offset + self.q_offset, q.device)
        kv_at = counted(k.shape[-2], 0, q.device) if self.kv_at is None else self.kv_at
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
    q_at, kv_at = counted(q_seq, offset, device), counted(kv_seq, 0, device)
    return _by_distance(params, q_at, kv_at, max_distance)


def _by_distance(params: Params, q_at: Tensor, kv_at: Tensor, max_distance: int) -> Tensor:
    """The bias between positions (... q_seq) and (... kv_seq)."""
    before = _checks.part("positions.relative", params, "before", "positions.init_relative")
    buckets = before.shape[0]
    _checks.at_least("positions.relative", "max_distance", max_distance, least=buckets // 2 + 1)
    behind = q_at.unsqueeze(-1) - kv_at.unsqueeze(-2)
    row = _bucket(behind.abs() if "after" in params else behind.clamp(min=0), buckets, max_distance)
    if "after" in params:
        _check_after(before, params["after"])
        before = torch.cat([before, params["after"]])
        row = torch.where(behind < 0, row + buckets, row)
    return rearrange(rows(before, row), "... q_seq kv_seq heads -> ... heads q_seq kv_seq")


def _check_after(before: Tensor, after: Tensor) -> None:
    if after.shape != before.shape:
        requirement = f"have 'after' of the shape of 'before', {tuple(before.shape)}"
        actual, remedy = _checks.shape(after), "Make them with positions.init_relative"
        raise _checks.fail(ValueError, "positions.relative", "params", requirement, actual, remedy)


def _bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Which range a distance lies in; in float32, where the weights of others were trained."""
    exact = buckets // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = exact + (growth * (buckets - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=buckets - 1))

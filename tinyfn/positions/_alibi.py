"""ALiBi: a bias of -slope · distance on the scores, a slope for each head."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tinyfn import _checks
from tinyfn.positions._counting import Offset, counted, exact_dtype
from tinyfn.positions._kept import Scheme, kept, over_kept, split_arguments
from tinyfn.types import Attend


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
class _Alibi(Scheme):
    """What `alibi` returns: an attend, and what a cache asks of it."""

    attend: Attend
    offset: Any
    q_offset: Any = 0
    kv_at: Tensor | None = None

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        params, (q, k, v, mask, key, bias), options = split_arguments(args, options)
        q_at = counted(q.shape[-2], self.offset + self.q_offset, q.device)
        kv_at = counted(k.shape[-2], 0, q.device) if self.kv_at is None else self.kv_at
        falling = _falling(q.shape[-3], q_at, kv_at, q.dtype)
        bias = falling if bias is None else bias + falling
        return self.attend(*params, q, k, v, mask, key, bias, **options)

    def kept(self, k: Tensor, kv_offset: Tensor | int) -> Tensor:
        return kept(self.attend, k, kv_offset)

    def over_kept(self, offset: Tensor, kv_at: Tensor) -> Attend:
        return _Alibi(over_kept(self.attend, offset, kv_at), self.offset, offset, kv_at)


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
    q_at, kv_at = counted(q_seq, offset, device), counted(kv_seq, 0, device)
    return _falling(num_heads, q_at, kv_at, dtype or torch.get_default_dtype())


def _falling(num_heads: int, q_at: Tensor, kv_at: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias between positions (... q_seq) and (... kv_seq)."""
    device = q_at.device
    distance = (q_at.unsqueeze(-1) - kv_at.unsqueeze(-2)).abs().unsqueeze(-3)
    slopes = torch.tensor(alibi_slopes(num_heads), dtype=exact_dtype(device), device=device)
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

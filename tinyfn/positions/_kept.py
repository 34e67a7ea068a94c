"""What a cache asks of an attend that knows positions: how keys are kept, and how they are read."""

from functools import partial
from typing import Any

from torch import Tensor

from tinyfn.types import Attend


class Scheme:
    """An attend around another that tells it positions. `kept` and `over_kept` ask it."""

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        """What the attend reads."""
        raise NotImplementedError

    def kept(self, k: Tensor, kv_offset: Tensor | int) -> Tensor:
        """New keys as a cache keeps them."""
        raise NotImplementedError

    def over_kept(self, offset: Tensor, kv_at: Tensor) -> Attend:
        """The attend over such keys."""
        raise NotImplementedError


def kept(attend: Attend, k: Tensor, kv_offset: Tensor | int) -> Tensor:
    """Keys (... kv_heads kv_seq head_dim) as a cache keeps them for an attend: turned, say.

    Args:
        attend: Of this module around any other, or any other; in a `partial` or not.
        k: New keys.
        kv_offset: The position of the first.

    Example:
        >>> import torch
        >>> kept(lambda q, k, v, *rest: v, torch.ones(1, 2, 2), 3).shape
        torch.Size([1, 2, 2])
    """
    if isinstance(attend, partial):
        return kept(attend.func, k, kv_offset)
    return attend.kept(k, kv_offset) if isinstance(attend, Scheme) else k


def over_kept(attend: Attend, offset: Tensor, kv_at: Tensor) -> Attend:
    """The attend for queries from an offset on, and keys that were `kept` at these positions.

    Args:
        attend: As in `kept`.
        offset: The position of the first query.
        kv_at: The position of each key, (... kv_seq).

    Example:
        >>> import torch
        >>> from tinyfn import dot_product_attention
        >>> from tinyfn.positions import alibi
        >>> q, k = torch.ones(1, 1, 4), torch.ones(1, 3, 4)
        >>> over_kept(alibi(dot_product_attention), torch.tensor(2), torch.arange(3))(q, k, k).shape
        torch.Size([1, 1, 4])
    """
    if isinstance(attend, partial):
        moved = over_kept(attend.func, offset, kv_at)
        return partial(moved, *attend.args, **attend.keywords)
    if isinstance(attend, Scheme):
        return attend.over_kept(offset, kv_at)
    return attend


def split_arguments(args: tuple, options: dict) -> tuple[tuple, tuple, dict]:
    """The params of an attend that has any, (q, k, v, mask, key, bias), and the other options."""
    first = 1 if args and isinstance(args[0], dict) else 0
    names = ("q", "k", "v", "mask", "key", "bias")[len(args) - first :]
    named = tuple(options.get(name) for name in names)
    others = {name: value for name, value in options.items() if name not in names}
    return args[:first], (*args[first:], *named), others

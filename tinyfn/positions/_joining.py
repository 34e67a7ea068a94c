"""Tables of positions joined to features, by adding or by concatenating."""

import torch
from jaxtyping import Float
from torch import Tensor

from tinyfn import _checks
from tinyfn.positions._counting import Offset
from tinyfn.positions._tables import check_features, learned, sinusoidal
from tinyfn.types import Params


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
    check_features("add", x)
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
    check_features("concatenate", x)
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
    check_features("add_sinusoidal", x)
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
    check_features("concatenate_sinusoidal", x)
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
    check_features("add_learned", x)
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
    check_features("concatenate_learned", x)
    return concatenate(x, learned(params, x.shape[-2], offset=offset))

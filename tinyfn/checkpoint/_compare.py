"""What a file holds against what a model wants: all names, shapes and kinds that differ."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from tinyfn import _checks, tree
from tinyfn.types import Params


class Leaf(NamedTuple):
    """What is known of a leaf before it is read."""

    shape: tuple[int, ...]
    kind: str


def check_shapes(params: Params, like: Params) -> None:
    """That params have the names, shapes and kinds of others.

    Args:
        params: From `load`.
        like: What they should be like, such as fresh params from an init function.

    Raises:
        ValueError: With all names that are missing, or too many, or of another shape, or of
            another kind: floating, integer, bool or complex. The precision is free.

    Example:
        >>> import torch
        >>> check_shapes({"w": torch.ones(2)}, {"w": torch.zeros(2)})
        >>> check_shapes({"w": torch.ones(2), "b": torch.ones(1)}, {"w": torch.zeros(3)})
        Traceback (most recent call last):
        ValueError: checkpoint.check_shapes: params must have the names and shapes of `like`, got
        b extra; w (2,), not (3,). Load a checkpoint of these sizes, or make params of its sizes.
    """
    function = "checkpoint.check_shapes"
    compare(function, "params", outline(function, "params", params), like)


def compare(function: str, argument: str, found: Mapping[str, Leaf], like: Params) -> None:
    """`check_shapes` of what is known of the leaves."""
    wanted = outline(function, "like", like)
    odd = [f"{name} missing" for name in wanted if name not in found]
    odd += [f"{name} extra" for name in found if name not in wanted]
    for name, leaf in wanted.items():
        there = found.get(name, leaf)
        odd += [f"{name} {there.shape}, not {leaf.shape}"] * (there.shape != leaf.shape)
        odd += [f"{name} {there.kind}, not {leaf.kind}"] * (there.kind != leaf.kind)
    if odd:
        requirement = "have the names and shapes of `like`"
        remedy = "Load a checkpoint of these sizes, or make params of its sizes"
        raise _checks.fail(ValueError, function, argument, requirement, "; ".join(odd), remedy)


def outline(function: str, argument: str, params: Params) -> dict[str, Leaf]:
    """What is known of the leaves of params that are at hand."""
    flat = tree.flatten(params)
    odd = [name for name, leaf in flat.items() if not isinstance(leaf, Tensor)]
    if odd:
        actual = "; ".join(f"{_checks.kind_of(flat[name])} at {name}" for name in odd)
        remedy = "Pass what an init function made"
        raise _checks.fail(TypeError, function, argument, "hold tensors", actual, remedy)
    return {name: Leaf(tuple(leaf.shape), _kind(leaf)) for name, leaf in flat.items()}


def _kind(leaf: Tensor) -> str:
    if leaf.is_floating_point():
        return "floating"
    return kind_of_name(str(leaf.dtype).removeprefix("torch."))


def kind_of_name(dtype: str) -> str:
    """What a dtype holds, by its name: torch's or that in a safetensors file."""
    first = dtype.lower()[:2]
    return {"bo": "bool", "co": "complex", "c6": "complex"}.get(
        first, "integer" if first[0] in "iu" else "floating"
    )

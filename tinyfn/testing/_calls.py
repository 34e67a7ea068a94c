"""A call of any function as a function of its tensors: what every law and transform works on.

Transforms see tensors only, so a call is flattened once: pytrees of arguments (params, masks,
tuples) become a flat list of tensors with names for messages, and everything else stays as it was.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# torch has no public pytree yet, and only its own one knows the masks.
from torch.utils import _pytree

from tinyfn import _checks, random

Tensors = Sequence[Tensor]


class Call(NamedTuple):
    """`f(*tensors)`, the tensors it was called with, and what each is called in a message."""

    f: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    owners: tuple[int, ...]
    """The position of the argument that holds each tensor."""

    def of(self, argument: int) -> list[int]:
        """Which tensors stand in one argument."""
        return [i for i, owner in enumerate(self.owners) if owner == argument]

    def restricted(self, indices: Sequence[int]) -> "Call":
        """The call as a function of some of its tensors, the others fixed."""

        def f(*some: Tensor) -> tuple[Tensor, ...]:
            tensors = list(self.tensors)
            for index, tensor in zip(indices, some, strict=True):
                tensors[index] = tensor
            return self.f(*tensors)

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[index] for index in indices)

        return Call(f, pick(self.tensors), pick(self.names), pick(self.owners))


def call(f: Callable[..., Any], args: Sequence[Any]) -> Call:
    """Flatten the arguments of a call, and its results with them."""
    paths, spec = _pytree.tree_flatten_with_path(tuple(args))
    leaves = [leaf for _, leaf in paths]
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return tensors_of(f(*_pytree.tree_unflatten(filled, spec)))

    names = tuple("args" + _pytree.keystr(paths[place][0]) for place in places)
    owners = tuple(paths[place][0][0].idx for place in places)  # pyright: ignore[reportAttributeAccessIssue] # the first key is the tuple's
    return Call(flat, tuple(leaves[place] for place in places), names, owners)


def tensors_of(tree: Any) -> tuple[Tensor, ...]:
    """The tensors in a tree, in order."""
    return tuple(leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def named_tensors_of(tree: Any, root: str) -> dict[str, Tensor]:
    """The tensors in a tree under the expressions that reach them."""
    paths, _ = _pytree.tree_flatten_with_path(tree)
    return {root + _pytree.keystr(path): x for path, x in paths if isinstance(x, Tensor)}


def structure_of(tree: Any) -> Any:
    """What a tree is besides its tensors: comparable with `==`."""
    leaves, spec = _pytree.tree_flatten(tree)
    return spec, [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def noise(seed: int) -> Callable[[Tensor], Tensor]:
    """Normal numbers like a tensor, from a generator of their own: the global one stays still."""
    generator = torch.Generator().manual_seed(seed)

    def like(x: Tensor) -> Tensor:
        dtype = x.dtype if x.dtype.is_floating_point else torch.float64
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device, dtype)

    return like


def contract(outputs: Tensors) -> Tensor:
    """One number of all floating outputs, each element with a weight of its own."""
    # not random numbers: those raise under vmap
    parts = [(weights(1, y)[0] * y.flatten()).sum() for y in outputs if y.is_floating_point()]
    if not parts:
        raise AssertionError("there is no floating output to differentiate")
    return torch.stack([part.to(torch.float64) for part in parts]).sum()


def weights(rows: int, y: Tensor) -> Tensor:
    """Numbers in [-1, 1] without a pattern, a row of them for each time that `y` is summed."""
    steps = torch.arange(1, rows * y.numel() + 1, dtype=y.dtype, device=y.device)
    return torch.sin(steps * steps * 0.7 + steps).reshape(rows, y.numel())


def spread(x: Tensor) -> Tensor:
    """The size of a typical element, 1 where there is none to go by."""
    finite = torch.where(x.isfinite(), x, torch.zeros_like(x))
    rms = finite.square().mean().sqrt() if x.numel() else x.new_ones(())
    return torch.where((rms > 0) & rms.isfinite(), rms, torch.ones_like(rms))


def batch(tensors: Tensors, size: int) -> tuple[Tensor, ...]:
    """Each tensor and its variations along a new first axis, every one a valid argument."""
    like = noise(7)

    def vary(x: Tensor, index: int) -> Tensor:
        if index == 0:
            return x
        if x.is_floating_point():
            return x + 0.5 * spread(x) * like(x)
        return x.flatten().roll(index).reshape(x.shape)  # ids and lengths stay in their range

    def stack(x: Tensor) -> Tensor:
        # No length or token id is that large: such a number is a key.
        if x.dtype == torch.int64 and x.ndim == 0 and abs(int(x)) >= 2**32:
            return torch.cat([x.unsqueeze(0), random.split(x, max(size - 1, 1))])[:size]
        return torch.stack([vary(x, index) for index in range(size)])

    return tuple(stack(x.detach()) for x in tensors)


def differentiable(law: str, made: Call, argnums: int | Sequence[int] | None) -> list[int]:
    """The floating tensors in the arguments at `argnums`, which must be float64."""
    if isinstance(argnums, int):
        argnums = (argnums,)
    indices = [
        index
        for index, x in enumerate(made.tensors)
        if x.is_floating_point() and (argnums is None or made.owners[index] in argnums)
    ]
    if not indices:
        where = "some argument" if argnums is None else f"args at argnums={tuple(argnums)}"
        raise _checks.fail(
            ValueError,
            law,
            "args",
            f"hold a floating tensor in {where}",
            [str(x.dtype) for x in made.tensors],
            "Pass what is to be differentiated by position",
        )
    for index in indices:
        if made.tensors[index].dtype != torch.float64:
            raise _checks.fail(
                TypeError,
                law,
                made.names[index],
                "be float64",
                _checks.kind_of(made.tensors[index]),
                "Finite differences say nothing in less: use tree.cast(params, torch.float64)",
            )
    return indices

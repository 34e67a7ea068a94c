"""Params as trees: map over leaves, stack models, name leaves, count and cast them.

A tree is a nested dict, list or tuple; its leaves are tensors. Dicts keep their order.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tinyfn import _checks

Tree = Any


def map(f: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """The tree of `f` of each leaf, and of the leaves at the same place in `rest`.

    Args:
        f: Takes one leaf of each tree.
        tree: Gives the result its structure.
        rest: Trees of the same structure.

    Raises:
        ValueError: `rest` has other keys or lengths than `tree`.

    Example:
        >>> map(lambda a, b: a + b, {"w": torch.ones(2)}, {"w": torch.ones(2)})
        {'w': tensor([2., 2.])}
    """
    if isinstance(tree, dict):
        _same(dict, tree, rest)
        return {name: map(f, tree[name], *(r[name] for r in rest)) for name in tree}
    if isinstance(tree, list | tuple):
        _same(type(tree), tree, rest)
        mapped = [map(f, *branch) for branch in zip(tree, *rest, strict=True)]
        if hasattr(tree, "_fields"):  # a NamedTuple takes its fields one by one
            return type(tree)(*mapped)
        return type(tree)(mapped)
    return f(tree, *rest)


def _same(kind: type, tree: Tree, rest: tuple[Tree, ...]) -> None:
    for other in rest:
        same = isinstance(other, kind) and (
            other.keys() == tree.keys() if kind is dict else len(other) == len(tree)
        )
        if not same:
            raise _checks.fail(
                ValueError,
                "tree.map",
                "rest",
                f"have the structure of the first tree, {_outline(tree)}",
                _outline(other),
                "Map over trees made by the same init function",
            )


def _outline(tree: Tree) -> str:
    if isinstance(tree, dict):
        return f"a dict of {list(tree)}"
    if isinstance(tree, list | tuple):
        return f"a {type(tree).__name__} of {len(tree)}"
    return _checks.shape(tree)


def leaves(tree: Tree) -> list[Any]:
    """The leaves, in the order in which they stand.

    Example:
        >>> leaves({"a": [1, 2], "b": {"c": 3}})
        [1, 2, 3]
    """
    return [leaf for _, leaf in _walk(tree, ())]


def _walk(tree: Tree, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, dict):
        for name, branch in tree.items():
            yield from _walk(branch, (*path, str(name)))
    elif isinstance(tree, list | tuple):
        for index, branch in enumerate(tree):
            yield from _walk(branch, (*path, str(index)))
    else:
        yield path, tree


def stack(trees: list[Tree]) -> Tree:
    """One tree with a leading axis on every leaf: an ensemble that `vmap` maps over.

    Raises:
        ValueError: There is no tree to stack, or their structures or shapes differ.

    Example:
        >>> stack([{"w": torch.zeros(3)}, {"w": torch.ones(3)}])["w"].shape
        torch.Size([2, 3])
    """
    if not isinstance(trees, list | tuple):
        kind = _checks.kind_of(trees)
        raise _checks.fail(
            TypeError, "tree.stack", "trees", "be a list of trees", kind, "Pass [params, ...]"
        )
    if not trees:
        raise _checks.fail(
            ValueError, "tree.stack", "trees", "hold a tree", "none", "Pass [params, ...]"
        )

    def stack_leaves(*parts: Tensor) -> Tensor:
        if any(part.shape != parts[0].shape for part in parts):
            raise _checks.fail(
                ValueError,
                "tree.stack",
                "trees",
                "have leaves of one shape",
                [tuple(part.shape) for part in parts],
                "Stack params made with the same sizes",
            )
        return torch.stack(parts)

    return map(stack_leaves, *trees)


def unstack(tree: Tree) -> list[Tree]:
    """The trees that `stack` joined: one for each index of the leaves' first axis.

    Raises:
        ValueError: The leaves have no first axis, or it differs in length.

    Example:
        >>> [t["w"].item() for t in unstack({"w": torch.tensor([1.0, 2.0])})]
        [1.0, 2.0]
    """
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves(tree)}
    length = next(iter(lengths), None)
    if len(lengths) != 1 or length is None:
        raise _checks.fail(
            ValueError,
            "tree.unstack",
            "tree",
            "have leaves with one first axis of one length",
            f"lengths {sorted(lengths, key=str)}",
            "Pass what tree.stack made",
        )
    return [map(lambda leaf, i=i: leaf[i], tree) for i in range(length)]


def flatten(tree: Tree) -> dict[str, Any]:
    """A flat dict of leaves under dotted names, as a `state_dict` has them.

    Raises:
        ValueError: A name holds a dot, so the flat name would have two readings.

    Example:
        >>> list(flatten({"layers": [{"w": 1}, {"w": 2}]}))
        ['layers.0.w', 'layers.1.w']
    """
    flat = {}
    for path, leaf in _walk(tree, ()):
        dotted = next((name for name in path if "." in name), None)
        if dotted is not None:
            raise _checks.fail(
                ValueError,
                "tree.flatten",
                "tree",
                "have names without dots",
                repr(dotted),
                "Rename it",
            )
        flat[".".join(path)] = leaf
    return flat


def unflatten(flat: dict[str, Any]) -> Tree:
    """The nested tree of dotted names; names 0, 1, 2, ... become a list.

    Raises:
        ValueError: A name is a leaf and the beginning of another name.

    Example:
        >>> unflatten({"layers.0.w": 1, "layers.1.w": 2})
        {'layers': [{'w': 1}, {'w': 2}]}
    """
    root: dict[str, Any] = {}
    for name, leaf in flat.items():
        *branches, last = name.split(".")
        node: Any = root
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise _checks.fail(
                ValueError,
                "tree.unflatten",
                "flat",
                "have no name that is both a leaf and a branch",
                repr(name),
                "Rename one of them",
            )
        node[last] = leaf
    return _listed(root)


def _listed(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    children = {name: _listed(child) for name, child in node.items()}
    if children and children.keys() == {str(i) for i in range(len(children))}:
        return [children[str(i)] for i in range(len(children))]
    return children


def size(tree: Tree) -> int:
    """How many numbers the leaves hold together.

    Example:
        >>> size({"weight": torch.ones(3, 4), "bias": torch.ones(3)})
        15
    """
    return sum(leaf.numel() for leaf in leaves(tree))


def cast(
    tree: Tree, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tree:
    """The same params in another precision, or on another device; differentiable, as `.to` is.

    Example:
        >>> cast({"w": torch.ones(2)}, torch.bfloat16)["w"].dtype
        torch.bfloat16
    """
    return map(lambda leaf: leaf.to(dtype=dtype or leaf.dtype, device=device or leaf.device), tree)

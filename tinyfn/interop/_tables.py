"""Tables of names: which leaf of ours is which weight of theirs, read in both directions.

A table is a list of lines. Each has our dotted name, theirs, and an einops pattern from theirs to
ours, for weights whose axes differ. `{layer}` in a name is each index below a count.

    several of ours, one of theirs   the pattern has their axis `parts` first: c_attn of GPT-2
    one of ours, several of theirs   the same numbers at each name: tied weights
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from einops import EinopsError, rearrange
from torch import Tensor

from tinyfn import _checks, tree
from tinyfn.types import Params

Names = str | tuple[str, ...]


class Line(NamedTuple):
    """One or several leaves of ours, one or several weights of theirs, and theirs -> ours."""

    ours: Names
    theirs: Names
    pattern: str | None = None


class Counterpart(NamedTuple):
    """What a model of theirs is here."""

    function: Callable[..., Any]
    options: dict[str, Any]
    """Keyword arguments that make the function agree."""

    table: Collection[Line]
    counts: Mapping[str, int]
    """How many layers stand for `{layer}`, or whatever the names have in braces."""

    sizes: Mapping[str, int]
    """Lengths of the patterns' axes, such as heads."""

    buffers: Collection[str] = ()
    """Names of theirs that hold nothing to convert: masks, tables of positions."""


_SPLIT = (
    "(heads head_dim) features -> heads head_dim features",
    "(heads head_dim) -> heads head_dim",
)
_AXES = {
    "q_proj": _SPLIT,
    "k_proj": _SPLIT,
    "v_proj": _SPLIT,
    "out_proj": ("features (heads head_dim) -> features heads head_dim", None),
}


def parts(names: Mapping[str, str], *, bias: bool = True, heads: str = "heads") -> tuple[Line, ...]:
    """Lines for linear maps and norms: a weight each, and a bias; heads where our name has them.

    Args:
        names: Ours to theirs.
        bias: Whether they have biases.
        heads: What the patterns call the heads.

    Example:
        >>> parts({"attention.q_proj": "attn.q"}, bias=False)[0].pattern
        '(heads head_dim) features -> heads head_dim features'
    """
    lines = []
    for ours, theirs in names.items():
        axes = _AXES.get(ours.rpartition(".")[-1], (None, None))
        weight, shift = (pattern and pattern.replace("heads", heads) for pattern in axes)
        lines.append(Line(f"{ours}.weight", f"{theirs}.weight", weight))
        lines += [Line(f"{ours}.bias", f"{theirs}.bias", shift)] if bias else []
    return tuple(lines)


def bare(table: Collection[Line], ours: str, theirs: str) -> tuple[Line, ...]:
    """The part of a table beneath a prefix on each side, without the prefixes.

    Example:
        >>> bare([Line("decoder.a", "model.b"), Line("linear", "head")], "decoder.", "model.")
        (Line(ours='a', theirs='b', pattern=None),)
    """

    def cut(names: Names, prefix: str) -> Names:
        if isinstance(names, str):
            return names.removeprefix(prefix)
        return tuple(name.removeprefix(prefix) for name in names)

    within = (line for line in table if str(line.ours).lstrip("('").startswith(ours))
    return tuple(Line(cut(x.ours, ours), cut(x.theirs, theirs), x.pattern) for x in within)


def read(function: str, match: Counterpart, state: Mapping[str, Tensor]) -> Params:
    """Params from their weights: copies, each of which found its place.

    Example:
        >>> table = [Line("linear.weight", "head.weight", "i o -> o i")]
        >>> match = Counterpart(print, {}, table, {}, {})
        >>> read("f", match, {"head.weight": torch.ones(2, 3)})["linear"]["weight"].shape
        torch.Size([3, 2])
    """
    flat: dict[str, Tensor] = {}
    missing, known = [], set()
    for line in _lines(match):
        known.update(line.theirs)
        found = [name for name in line.theirs if name in state]
        if not found:
            missing.append(line.theirs[0])
            continue
        weight = state[found[0]].detach()
        for other in found[1:]:
            _check_tied(function, found[0], other, weight, state[other])
        for name, leaf in zip(line.ours, _to_ours(function, line, weight, match), strict=True):
            flat[name] = leaf.clone(memory_format=torch.contiguous_format)
    known |= {name for buffer in match.buffers for (name,) in _named(buffer, match.counts)}
    _check_places(function, "the weights", missing, [name for name in state if name not in known])
    return tree.unflatten(flat)


def write(function: str, match: Counterpart, params: Params) -> dict[str, Tensor]:
    """Their weights from params: copies, each of which found its place.

    Example:
        >>> table = [Line("linear.weight", "head.weight", "i o -> o i")]
        >>> match = Counterpart(print, {}, table, {}, {})
        >>> write("f", match, {"linear": {"weight": torch.ones(3, 2)}})["head.weight"].shape
        torch.Size([2, 3])
    """
    flat = tree.flatten(params)
    state: dict[str, Tensor] = {}
    missing, known = [], set()
    for line in _lines(match):
        known.update(line.ours)
        absent = [name for name in line.ours if name not in flat]
        missing += absent
        if not absent:
            leaves = [flat[name].detach() for name in line.ours]
            weight = _to_theirs(function, line, leaves, match)
            state |= dict.fromkeys(line.theirs, weight.clone(memory_format=torch.contiguous_format))
    _check_places(function, "the params", missing, [name for name in flat if name not in known])
    return state


class _Line(NamedTuple):
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    pattern: str | None


def _lines(match: Counterpart) -> Iterator[_Line]:
    """The lines with an index in place of every `{layer}`."""
    for line in match.table:
        named = (_named(names, match.counts) for names in (line.ours, line.theirs))
        for ours, theirs in zip(*named, strict=True):
            yield _Line(ours, theirs, line.pattern)


def _named(names: Names, counts: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    names = (names,) if isinstance(names, str) else names
    field = next((field for field in counts if f"{{{field}}}" in names[0]), None)
    if field is None:
        yield names
        return
    for index in range(counts[field]):
        yield tuple(name.replace(f"{{{field}}}", str(index)) for name in names)


def _to_ours(function: str, line: _Line, weight: Tensor, match: Counterpart) -> list[Tensor]:
    leaf = weight if line.pattern is None else _moved(function, line, weight, line.pattern, match)
    parts = [leaf] if len(line.ours) == 1 else list(leaf)
    if len(parts) != len(line.ours):
        requirement = f"have {len(line.ours)} parts at {line.theirs[0]}"
        raise _refuse(function, "the weights", requirement, len(parts))
    return parts


def _to_theirs(function: str, line: _Line, leaves: list[Tensor], match: Counterpart) -> Tensor:
    if len({leaf.shape for leaf in leaves}) != 1:
        requirement = f"have one shape at {', '.join(line.ours)}"
        raise _refuse(function, "the params", requirement, [tuple(x.shape) for x in leaves])
    leaf = leaves[0] if len(leaves) == 1 else torch.stack(leaves)
    if line.pattern is None:
        return leaf
    theirs, ours = line.pattern.split("->")
    return _moved(function, line, leaf, f"{ours} -> {theirs}", match)


def _moved(function: str, line: _Line, x: Tensor, pattern: str, match: Counterpart) -> Tensor:
    words = pattern.replace("(", " ").replace(")", " ").split()
    sizes = {name: size for name, size in match.sizes.items() if name in words}
    sizes |= {"parts": len(line.ours)} if "parts" in words else {}
    try:
        return rearrange(x, pattern, **sizes)
    except EinopsError:
        requirement = f"fit {pattern.strip()!r} with {sizes} at {line.theirs[0]}"
        raise _refuse(function, "its shape", requirement, tuple(x.shape)) from None


def _check_tied(function: str, name: str, other: str, one: Tensor, two: Tensor) -> None:
    if one is not two and not torch.equal(one, two):
        requirement = f"have one matrix at {name} and {other}, which config.json says are tied"
        remedy = "Set tie_word_embeddings=False in the config, where the model has it"
        raise _refuse(function, "the weights", requirement, "two", remedy)


def _check_places(function: str, what: str, missing: list[str], left: list[str]) -> None:
    wrong = [f"no {', '.join(missing)}"] if missing else []
    wrong += [f"no place for {', '.join(left)}"] if left else []
    if wrong:
        remedy = "Pass the config of these weights; from_hugging_face lists what models there are"
        raise _refuse(function, what, "be those of the config", " and ".join(wrong), remedy)


def _refuse(
    function: str,
    argument: str,
    requirement: str,
    actual: object,
    remedy: str = "Pass the config that the weights were made with",
) -> Exception:
    return _checks.fail(ValueError, function, argument, requirement, actual, remedy)

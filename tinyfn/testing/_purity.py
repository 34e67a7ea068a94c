"""Purity: arguments, generators, flags and remembered state are left as they were."""

import functools
import os
import pickle
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tinyfn.testing import _calls, _verdicts


def check_pure(f: Callable[..., Any], *args: Any) -> None:
    """`f(*args)` changes nothing, and says the same twice.

    Watched are the arguments (values, in-place versions, structure), the global generators of
    torch, Python and NumPy, torch's global flags, and what the function and those that it calls by
    name keep in globals, closures and caches. Generators and flags are put back afterwards.

    Args:
        f: Any function.
        args: What it is called with.

    Raises:
        AssertionError: Something was changed, or a second call says something else.

    Example:
        >>> check_pure(torch.sin, torch.ones(3))
        >>> check_pure(torch.Tensor.sin_, torch.ones(3))
        Traceback (most recent call last):
        AssertionError: check_pure: 2 not right...
        >>> check_pure(lambda x: torch.nn.functional.dropout(x, 0.5), torch.ones(9))
        Traceback (most recent call last):
        AssertionError: check_pure: 2 not right...
    """
    _verdicts.demand("check_pure", purity_checks(f, args))


def purity_checks(f: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[_verdicts.Check]:
    """What two calls of a function must leave alone."""
    arguments, remembered = _outline(args), _remembered(f)
    generators, flags = _generators(), dict(_FLAGS)
    if _types_are_checked():
        del generators["random"]
    moved: set[str] = set()
    changed: dict[str, str] = {}
    results: list[tuple[Tensor, ...]] = []

    def call() -> None:
        states = {name: read() for name, (read, _) in generators.items()}
        settings = {name: read() for name, (read, _) in flags.items()}
        try:
            results.append(_calls.tensors_of(f(*args)))
        finally:
            for name, (read, write) in generators.items():
                if read() != states[name]:
                    moved.add(name)
                    write(states[name])
            for name, (read, write) in flags.items():
                if (after := read()) != settings[name]:
                    changed[name] = f"{name} from {settings[name]} to {after}"
                    write(settings[name])

    def says_the_same() -> None:
        call()
        first = [y.detach().clone() for y in results[0]]
        with torch.random.fork_rng():
            torch.rand(())  # somebody else draws in between
            call()
        _verdicts.identical("a second call says something else", results[1], first)
        _verdicts.identical("a second call changed the first one's result", results[0], first)

    def keeps_arguments() -> None:
        _check_arguments(arguments, _outline(args))

    def keeps_generators() -> None:
        if moved:
            raise AssertionError(f"moved the global generator of {', '.join(sorted(moved))}")

    def keeps_flags() -> None:
        if changed:
            raise AssertionError(f"changed {'; '.join(changed.values())}")

    def keeps_nothing() -> None:
        now = _remembered(f)
        differ = [name for name in now if now[name] != remembered.get(name)]
        if differ:
            raise AssertionError(f"remembers something in {', '.join(differ)}")

    yield "the same result twice", says_the_same
    yield "arguments", keeps_arguments
    yield "global generators", keeps_generators
    yield "global flags", keeps_flags
    yield "globals, closures and caches", keeps_nothing


class _Same:
    """Equal to the same object only, and keeps it: the number of a freed one is given again."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _types_are_checked() -> bool:
    # checking a list, beartype draws from Python's generator which element to look at
    return "beartype" in sys.modules


def _outline(args: tuple[Any, ...]) -> tuple[Any, dict[str, tuple[Any, ...]]]:
    """The arguments' structure, and of each tensor what a change in place would show."""
    tensors = _calls.named_tensors_of(args, "args")
    return _calls.structure_of(args), {
        name: (
            _Same(x),
            x._version,
            (x.shape, x.stride(), x.dtype, x.requires_grad, x.grad is None),
            x.detach().clone(),
        )
        for name, x in tensors.items()
    }


def _check_arguments(before: tuple[Any, dict[str, Any]], after: tuple[Any, dict[str, Any]]) -> None:
    if before[0] != after[0] or before[1].keys() != after[1].keys():
        raise AssertionError("the structure of the arguments changed")
    for name, (identity, version, kind, values) in before[1].items():
        new_identity, new_version, new_kind, new_values = after[1][name]
        if identity != new_identity:
            raise AssertionError(f"{name} was replaced by another tensor")
        if kind != new_kind:
            raise AssertionError(f"{name} changed from {kind} to {new_kind}")
        _verdicts.identical(f"{name} was changed", [new_values], [values])
        if version != new_version:
            raise AssertionError(f"{name} was written to in place")


def _generators() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """The states of the global generators as comparable values, and how to put them back."""
    states: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "torch": (
            lambda: torch.get_rng_state().tolist(),
            lambda state: torch.set_rng_state(torch.tensor(state, dtype=torch.uint8)),
        ),
        "random": (random.getstate, random.setstate),
    }
    if torch.cuda.is_initialized():
        states["torch.cuda"] = (
            lambda: [state.tolist() for state in torch.cuda.get_rng_state_all()],
            lambda all_: torch.cuda.set_rng_state_all(
                [torch.tensor(state, dtype=torch.uint8) for state in all_]
            ),
        )
    if numpy := sys.modules.get("numpy"):
        states["numpy"] = (
            lambda: pickle.dumps(numpy.random.get_state()),
            lambda state: numpy.random.set_state(pickle.loads(state)),
        )
    return states


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_deterministic(state: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return functools.partial(getattr, owner, name), functools.partial(setattr, owner, name)


_FLAGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_default_device),
    "deterministic algorithms": (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    "float32 matmul precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "autocast": (
        functools.partial(torch.is_autocast_enabled, "cpu"),
        functools.partial(torch.set_autocast_enabled, "cpu"),
    ),
    "flash sdp": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "memory-efficient sdp": (
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    "math sdp": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "cudnn sdp": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    "cudnn.enabled": _attribute(torch.backends.cudnn, "enabled"),
    "cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "mkldnn.enabled": (lambda: torch.backends.mkldnn.enabled, torch.backends.mkldnn.set_flags),
    "warning filters": (
        lambda: list(warnings.filters),
        lambda filters: warnings.filters.__setitem__(slice(None), filters),  # pyright: ignore[reportAttributeAccessIssue] # a list, at run time
    ),
    "environment variables": (lambda: dict(os.environ), _set_environment),
}


def _remembered(f: Callable[..., Any]) -> dict[str, Any]:
    """What the functions reachable by name from `f` hold in globals, closures and caches."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(name: str, value: Any) -> None:
        if id(value) in seen:
            return
        if isinstance(value, functools.partial):
            visit(name, value.func)
            found[f"{name}'s bound arguments"] = _state([*value.args, *value.keywords.values()], 2)
        elif hasattr(value, "cache_info") and not isinstance(value, type):
            found[name] = value.cache_info()
        elif isinstance(value, types.MethodType):
            visit(name, value.__func__)
            found[f"{name}'s object"] = _state(vars(value.__self__), 2)
        elif isinstance(value, types.FunctionType):
            seen.add(id(value))
            if not _is_library(value.__module__ or ""):
                for inner_name, inner in _references(value):
                    visit(inner_name, inner)
        elif not callable(value) and not isinstance(value, types.ModuleType):
            found[name] = _state(value, 2)

    visit(getattr(f, "__name__", "f"), f)
    return found


_NOT_FOLLOWED = (
    "torch",
    "einops",
    "jaxtyping",
    "beartype",
    "hypothesis",
    "_pytest",
    "tinyfn.testing",
)


def _is_library(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _NOT_FOLLOWED)


def _references(f: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function's code reaches by name: closure, globals, and members of modules."""
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    names = f.__code__.co_names
    for name in names:
        value = f.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                members = vars(value)
                yield from ((f"{name}.{n}", members[n]) for n in names if n in members)
        elif value is not None:
            yield name, value
    yield from vars(f).items()
    defaults = {**dict(enumerate(f.__defaults__ or ())), **(f.__kwdefaults__ or {})}
    yield from ((f"{f.__name__}'s default {name}", value) for name, value in defaults.items())


def _state(value: Any, depth: int) -> Any:
    """A comparable picture of a value, two containers deep."""
    if isinstance(value, Tensor):
        return _Same(value), value._version
    if isinstance(value, int | float | str | bool | bytes | None):
        return value
    if isinstance(value, dict) and depth:
        return {_Same(k): _state(v, depth - 1) for k, v in list(value.items())}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return [_state(v, depth - 1) for v in value]
    return _Same(value)

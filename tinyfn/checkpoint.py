"""Params in a file and back: safetensors with dotted names, written whole or not at all.

It needs the package `safetensors`.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from tinyfn import _checks, tree
from tinyfn.types import Params

_REMEDY = "Pass a file that checkpoint.save wrote"
_ORDER = "tinyfn.order"  # safetensors sorts; optimisers know leaves by their place


def save(path: str | Path, params: Params, metadata: Mapping[str, str] | None = None) -> None:
    """Writes params, and words about them, to a file.

    The file is written beside its place and then moved there, so that a reader, and whoever comes
    after a crash, finds the old file or the new one and never a part of it.

    Args:
        path: Where; what is there is replaced.
        params: Nested dicts and lists of tensors, one at least, which come back in their order.
            Empty dicts and lists are not kept.
        metadata: Strings by name.

    Raises:
        ValueError: A name has a dot, or there is no tensor.
        TypeError: A leaf is not a tensor, or the metadata are not strings.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/one.safetensors", {"w": torch.ones(2)}, {"made": "today"})
        ...     load(f"{folder}/one.safetensors")
        ({'w': tensor([1., 1.])}, {'made': 'today'})
    """
    from safetensors.torch import save as to_bytes

    flat = tree.flatten(params)
    if not isinstance(params, dict | list) or not flat:
        remedy = "Put tensors under names"
        kind = "no tensor" if not flat else _checks.kind_of(params)
        raise _checks.fail(ValueError, "checkpoint.save", "params", "hold tensors", kind, remedy)
    for name, leaf in flat.items():
        if not isinstance(leaf, torch.Tensor):
            kind = f"{_checks.kind_of(leaf)} at {name}"
            remedy = "Put what is not a tensor into metadata, as a string"
            raise _checks.fail(TypeError, "checkpoint.save", "params", "hold tensors", kind, remedy)
    for name, text in (metadata or {}).items():
        if not isinstance(text, str):
            kind = f"{_checks.kind_of(text)} at {name}"
            remedy = "Convert it with json.dumps"
            raise _checks.fail(
                TypeError, "checkpoint.save", "metadata", "hold strings", kind, remedy
            )
    # A copy of each leaf by itself: safetensors refuses leaves that share memory.
    alone = {name: leaf.detach().cpu().contiguous().clone() for name, leaf in flat.items()}
    write(path, to_bytes(alone, metadata={**(metadata or {}), _ORDER: json.dumps(list(flat))}))


def write(path: str | Path, content: bytes) -> None:
    """Replaces a file's content in one step.

    Args:
        path: Where.
        content: All of it.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a.txt", b"text")
        ...     Path(f"{folder}/a.txt").read_text()
        'text'
    """
    path = Path(path)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)  # mkstemp's own is for the user alone
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def load(
    path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Params, dict[str, str]]:
    """Params, and the words about them, of a file.

    Args:
        path: A safetensors file, of `save` or of others.
        device: Where the params shall be; the CPU if None.
        dtype: Of the floating leaves; as in the file if None.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a safetensors file, or not all of one.

    Example:
        >>> load("none.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: checkpoint.load: path must be a file, got 'none.safetensors'. ...
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise _checks.fail(
            FileNotFoundError, "checkpoint.load", "path", "be a file", repr(str(path)), _REMEDY
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            names = json.loads(metadata.pop(_ORDER, "[]")) or file.keys()
            flat = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise _checks.fail(
            ValueError,
            "checkpoint.load",
            "path",
            "be a whole safetensors file",
            f"{str(path)!r} ({error})",
            _REMEDY,
        ) from None
    params = tree.unflatten(flat)

    def place(leaf: torch.Tensor) -> torch.Tensor:
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return tree.map(place, params), metadata


def check_shapes(params: Params, like: Params) -> None:
    """That params have the names and shapes of others.

    Args:
        params: From `load`.
        like: What they should be like, such as fresh params from an init function.

    Raises:
        ValueError: With all names that are missing, or too many, or of another shape.

    Example:
        >>> check_shapes({"w": torch.ones(2)}, {"w": torch.zeros(2)})
        >>> check_shapes({"w": torch.ones(2), "b": torch.ones(1)}, {"w": torch.zeros(3)})
        Traceback (most recent call last):
        ValueError: checkpoint.check_shapes: params must have the names and shapes of `like`, got
        b extra; w (2,), not (3,). Load a checkpoint of these sizes, or make params of its sizes.
    """
    found, wanted = tree.flatten(params), tree.flatten(like)
    odd = [f"{name} missing" for name in wanted if name not in found]
    odd += [f"{name} extra" for name in found if name not in wanted]
    odd += [
        f"{name} {tuple(found[name].shape)}, not {tuple(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in found and found[name].shape != leaf.shape
    ]
    if odd:
        raise _checks.fail(
            ValueError,
            "checkpoint.check_shapes",
            "params",
            "have the names and shapes of `like`",
            "; ".join(odd),
            "Load a checkpoint of these sizes, or make params of its sizes",
        )

"""Writing: beside its place, and moved there once it is whole."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tinyfn import _checks, tree
from tinyfn.checkpoint import _metadata
from tinyfn.types import Params


def save(path: str | Path, params: Params, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes params, and metadata beside them, to a file.

    The file is written beside its place and then moved there, so that a reader, and whoever comes
    after a crash, finds the old file or the new one and never a part of it. (A process that is
    killed outright leaves that part, hidden by a dot.)

    Args:
        path: Where; what is there is replaced.
        params: Nested dicts and lists of tensors, one at least, which come back in their order.
            Empty dicts and lists are not kept.
        metadata: Strings, numbers and bools by name, which come back as they are: the keyword
            arguments of the function that eats the params, or what you want to know later.

    Raises:
        ValueError: A name has a dot, there is no tensor, or a name of the metadata is taken.
        TypeError: A leaf is not a tensor that can be written, or the metadata are something else.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from tinyfn.checkpoint import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/one.safetensors", {"w": torch.ones(2)}, {"norm_first": True})
        ...     load(f"{folder}/one.safetensors")
        ({'w': tensor([1., 1.])}, {'norm_first': True})
    """
    from safetensors.torch import save_file

    flat = tree.flatten(params)
    if not isinstance(params, dict | list) or not flat:
        remedy = "Put tensors under names"
        kind = "no tensor" if not flat else _checks.kind_of(params)
        raise _checks.fail(ValueError, "checkpoint.save", "params", "hold tensors", kind, remedy)
    for name, leaf in flat.items():
        _check_leaf(name, leaf)
    if "__metadata__" in flat:
        requirement, remedy = "have names that the format leaves free", "Rename it"
        taken = "'__metadata__'"
        raise _checks.fail(ValueError, "checkpoint.save", "params", requirement, taken, remedy)
    words = _metadata.pack(metadata or {}, flat)
    with _replacing(path) as beside:
        save_file(_apart(flat), beside, metadata=words)


def _check_leaf(name: str, leaf: Any) -> None:
    remedy = "Put what is not a tensor into metadata"
    kind = _checks.kind_of(leaf)
    if isinstance(leaf, torch.Tensor):
        written = not leaf.is_meta and leaf.layout == torch.strided and not leaf.is_quantized
        written = written and not hasattr(leaf, "full_tensor")  # a DTensor has no memory to write
        if written and leaf.dtype != torch.complex128:
            return
        remedy = "Make it dense, real and of this machine"
        if hasattr(leaf, "full_tensor"):
            remedy = "Gather it first, with sharding.gather"
        kind = f"{kind}, {leaf.layout}, on {leaf.device}"
    kind = f"{kind} at {name}"
    raise _checks.fail(TypeError, "checkpoint.save", "params", "hold tensors", kind, remedy)


def _apart(flat: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The leaves on the CPU, copied where two share memory, which safetensors refuses."""
    leaves, taken = {}, set()
    for name, leaf in flat.items():
        leaf = leaf.detach().cpu().contiguous()
        memory = leaf.untyped_storage().data_ptr()
        leaves[name] = leaf.clone() if memory in taken else leaf
        taken.add(memory)
    return leaves


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
    with _replacing(path) as beside:
        Path(beside).write_bytes(content)


@contextmanager
def _replacing(path: str | Path) -> Iterator[str]:
    """A path to write to; what is written there replaces the file once it is on the disk."""
    path = Path(path)
    if not path.parent.is_dir():
        requirement, remedy = "lie in a folder", "Make the folder first"
        raise _checks.fail(
            FileNotFoundError, "checkpoint.save", "path", requirement, repr(str(path)), remedy
        )
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield beside
        with Path(beside).open("r+b") as file:
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)  # mkstemp's own is for the user alone
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise

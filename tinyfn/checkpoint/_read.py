"""Reading: all of a file, or what is asked for, from memory that is mapped to it."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyfn import _checks, tree
from tinyfn.checkpoint import _metadata
from tinyfn.checkpoint._compare import Leaf, compare, kind_of_name
from tinyfn.checkpoint._shards import read_index
from tinyfn.types import Params

_REMEDY = "Pass a file that checkpoint.save wrote"
_MAPPED = 2**23  # numbers; what was read of a mapping counts as used until it is gone
_DEPTH = 100


def load(
    path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    like: Params | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Params of a file, and the metadata beside them.

    Leaves go to the device and dtype one after the other, so that there is no second copy of all.
    On the CPU and in the file's own dtype they are the file, mapped into memory: reading happens
    where a number is first used, and a change of theirs never reaches the file.

    Args:
        path: A safetensors file, of `save` or of others, or the index (`*.json`) of one in shards.
        device: Where the params shall be; the CPU if None.
        dtype: Of the floating leaves; as in the file if None.
        like: What they should be like, such as fresh params from an init function; on the device
            "meta" these cost nothing. It is compared before any tensor is read.

    Raises:
        FileNotFoundError: There is no such file, or a shard is missing.
        ValueError: The file is not a safetensors file, or not all of one, or of a later format, or
            its params are not like `like`: all that differs is listed.

    Example:
        >>> load("none.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: checkpoint.load: path must be a file, got 'none.safetensors'. ...
    """
    file = File(path, device, dtype, _function="checkpoint.load")
    if like is not None:
        compare("checkpoint.load", "path", file._leaves, like)
    return file.read(), file.metadata


def open(
    path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> "File":
    """A file of which parts are read as they are asked for: a model larger than memory, by layer.

    Args:
        path: As for `load`.
        device: Where what is read shall be; the CPU if None.
        dtype: Of the floating leaves; as in the file if None.

    Raises:
        FileNotFoundError: There is no such file, or a shard is missing.
        ValueError: As `load`.

    Example:
        >>> import tempfile
        >>> from tinyfn import checkpoint, encoder_layer, init_encoder, random
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint.save(f"{folder}/a", init_encoder(random.key(0), 8, 2, 16, 3))
        ...     file, x = checkpoint.open(f"{folder}/a"), torch.ones(5, 8)
        ...     for layer in file.names("layers"):
        ...         x = encoder_layer(file[layer], x)
        >>> file.names("layers")
        ['layers.0', 'layers.1', 'layers.2']
    """
    return File(path, device, dtype)


class File:
    """What `open` gives: the names and sizes in a file, and its metadata; tensors when asked for.

    Nothing stays open. A file that was replaced since is refused.

    Args:
        path: A safetensors file, or an index.
        device: Where what is read shall be.
        dtype: Of the floating leaves.

    Example:
        >>> import tempfile
        >>> from tinyfn import checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint.save(f"{folder}/a", {"layers": [{"w": torch.ones(2)}]}, {"eps": 1e-6})
        ...     file = checkpoint.open(f"{folder}/a")
        ...     file.shapes, file.metadata, file["layers.0"], file["layers.0.w"]
        ({'layers.0.w': (2,)}, {'eps': 1e-06}, {'w': tensor([1., 1.])}, tensor([1., 1.]))
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        _function: str = "checkpoint.open",
    ) -> None:
        function = _function
        self._function, self._device, self._dtype = function, device, dtype
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            remedy = "Pass one such as torch.bfloat16; other leaves keep theirs"
            raise _checks.fail(TypeError, function, "dtype", "be a floating dtype", dtype, remedy)
        path, self._seen = Path(path), {}
        if not path.is_file():
            actual = repr(str(path))
            raise _checks.fail(FileNotFoundError, function, "path", "be a file", actual, _REMEDY)
        if path.suffix == ".json":
            self._shards, self.metadata = read_index(function, path)
            headers = {shard: self._header(shard)[0] for shard in set(self._shards.values())}
            lacking = [n for n, shard in self._shards.items() if n not in headers[shard]]
            if lacking:
                actual = f"{str(path)!r}, whose shards lack {', '.join(lacking)}"
                remedy = "Fetch index and shards again: they are not of one checkpoint"
                requirement = "name what its shards hold"
                raise _checks.fail(ValueError, function, "path", requirement, actual, remedy)
            self._leaves = {name: headers[shard][name] for name, shard in self._shards.items()}
        else:
            leaves, words = self._header(path)
            self.metadata, order = _metadata.unpack(function, str(path), words, leaves)
            self._leaves = {name: leaves[name] for name in order}
            self._shards = dict.fromkeys(order, path)
        _check_tree(function, path, self._leaves)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every leaf, under its dotted name, in the order of the file."""
        return {name: leaf.shape for name, leaf in self._leaves.items()}

    def names(self, under: str = "") -> list[str]:
        """The dotted names one step below another, the layers of a stack in their order.

        Args:
            under: A dotted name; nothing for the top of the tree.
        """
        below = [name for name in self._leaves if not under or name.startswith(f"{under}.")]
        skip = len(under) + 1 if under else 0
        steps = list(dict.fromkeys(name[skip:].partition(".")[0] for name in below))
        if all(step.isdecimal() for step in steps):
            steps.sort(key=int)  # where nobody kept the order, layers.10 comes before layers.2
        return [f"{under}.{step}" if under else step for step in steps]

    def __getitem__(self, name: str) -> Any:
        if name in self._leaves:
            return self._read([name])[name]
        below = [leaf for leaf in self._leaves if leaf.startswith(f"{name}.")]
        if not below:
            requirement, remedy = "be in the file", f"Choose one below {self.names()}"
            raise _checks.fail(ValueError, self._function, "name", requirement, repr(name), remedy)
        flat = self._read(below)
        return tree.unflatten({leaf[len(name) + 1 :]: flat[leaf] for leaf in below})

    def read(self) -> Params:
        """All of it."""
        return tree.unflatten(self._read(list(self._leaves)))

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        flat: dict[str, Tensor] = {}
        for shard, batch in self._batches(names):
            with self._mapped(shard) as file:
                for name in batch:
                    leaf = file.get_tensor(name)
                    dtype = self._dtype if leaf.is_floating_point() else None
                    flat[name] = leaf.to(device=self._device, dtype=dtype)
        return flat

    def _batches(self, names: list[str]) -> Iterator[tuple[Path, list[str]]]:
        """The names by shard, so few at once that what is mapped for them stays small."""
        for shard, group in groupby(names, self._shards.__getitem__):
            batch, mapped = [], 0
            for name in group:
                batch.append(name)
                mapped += math.prod(self._leaves[name].shape)
                if mapped >= _MAPPED:
                    yield shard, batch
                    batch, mapped = [], 0
            if batch:
                yield shard, batch

    def _header(self, shard: Path) -> tuple[dict[str, Leaf], dict[str, str]]:
        """What a file says of itself, whose identity is kept."""
        self._seen[shard] = _identity(shard)
        with self._mapped(shard) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            leaves = {
                name: Leaf(tuple(part.get_shape()), kind_of_name(part.get_dtype()))
                for name, part in slices.items()
            }
            return leaves, file.metadata() or {}

    @contextmanager
    def _mapped(self, shard: Path) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(shard, framework="pt", device="cpu") as file:
                if _identity(shard) != self._seen[shard]:
                    requirement, remedy = "stay as it was", "Open it again"
                    actual = f"{str(shard)!r}, replaced since"
                    raise _checks.fail(
                        ValueError, self._function, "path", requirement, actual, remedy
                    )
                yield file
        except FileNotFoundError:
            actual = f"{str(shard)!r}, gone since"
            raise _checks.fail(
                FileNotFoundError, self._function, "path", "be a file", actual, _REMEDY
            ) from None
        except SafetensorError as error:
            requirement, actual = "be a whole safetensors file", f"{str(shard)!r} ({error})"
            raise _checks.fail(
                ValueError, self._function, "path", requirement, actual, _REMEDY
            ) from None


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when another file takes a file's place."""
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check_tree(function: str, path: Path, names: Iterable[str]) -> None:
    """That the names are those of a tree: none is both a leaf and the beginning of another."""
    leaves, branches = set(names), set()
    if deep := [name for name in leaves if name.count(".") >= _DEPTH]:
        requirement = f"have names of at most {_DEPTH} steps"
        actual, remedy = f"{str(path)!r} with {deep[0][:40]}...", "It is no model: do not trust it"
        raise _checks.fail(ValueError, function, "path", requirement, actual, remedy)
    for name in leaves:
        *steps, _ = name.split(".")
        branches |= {".".join(steps[: end + 1]) for end in range(len(steps))}
    if both := sorted(leaves & branches):
        requirement = "have no name that is both a leaf and a branch"
        actual = f"{str(path)!r} with {', '.join(both)}"
        remedy = "Rename one of them where it was written"
        raise _checks.fail(ValueError, function, "path", requirement, actual, remedy)

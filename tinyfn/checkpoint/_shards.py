"""The index of a checkpoint in shards: a JSON file that names the file of each tensor."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tinyfn import _checks

_REMEDY = "Pass a model.safetensors.index.json as Hugging Face writes it, with its shards beside it"


def read_index(function: str, path: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The shard of each name, and the metadata, as strings.

    Args:
        function: Whose error it is.
        path: Of the index; its shards lie beside it.

    Raises:
        FileNotFoundError: Shards are missing; all are listed.
        ValueError: It is no index, or names a file that would not lie beside it.
    """
    try:
        index = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_double)
        weight_map, words = index["weight_map"], index.get("metadata", {})
        sound = all(isinstance(shard, str) for shard in weight_map.values())
        metadata = {n: w if isinstance(w, str) else json.dumps(w) for n, w in words.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _no_index(function, path, f"{type(error).__name__}: {error}") from None
    if not sound or not weight_map:
        raise _no_index(function, path, "its weight_map has no file for each name")
    shards = sorted(set(weight_map.values()))
    if outside := [s for s in shards if Path(s).name != s or s in ("", "..") or "\\" in s]:
        requirement = "name files beside itself"
        raise _checks.fail(ValueError, function, "path", requirement, outside, _REMEDY)
    if missing := [shard for shard in shards if not (path.parent / shard).is_file()]:
        requirement = "have its shards beside it"
        actual = f"{str(path)!r} without {', '.join(missing)}"
        raise _checks.fail(FileNotFoundError, function, "path", requirement, actual, _REMEDY)
    return {name: path.parent / shard for name, shard in weight_map.items()}, metadata


def _without_double(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    double = sorted(name for name, count in Counter(names).items() if count > 1)
    if double:
        raise ValueError(f"twice {', '.join(double)}")
    return dict(pairs)


def _no_index(function: str, path: Path, why: str) -> ValueError:
    actual = f"{str(path)!r} ({why})"
    return _checks.fail(ValueError, function, "path", "be an index of shards", actual, _REMEDY)

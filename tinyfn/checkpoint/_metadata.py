"""Metadata as strings, which is all that a safetensors file holds beside tensors.

Strings stand as they are, for others to read. Numbers and bools stand as JSON, and their names
under `tinyfn.json`; `tinyfn.order` keeps the leaves' order, since safetensors sorts and optimisers
know leaves by their place; `tinyfn.format` is the version of all this.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tinyfn import _checks

VERSION = 1
_FORMAT, _ORDER, _JSON = "tinyfn.format", "tinyfn.order", "tinyfn.json"


def pack(metadata: Mapping[str, Any], order: Iterable[str]) -> dict[str, str]:
    """The strings of a file: of metadata, of the order of its names, and of the version."""
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            kind = f"{_checks.kind_of(value)} at {name}"
            requirement = "hold strings, numbers and bools under strings"
            remedy = "Convert it with json.dumps; leave out what is a function"
            raise _checks.fail(TypeError, "checkpoint.save", "metadata", requirement, kind, remedy)
        if name.startswith("tinyfn."):
            requirement = "have names that do not begin with 'tinyfn.'"
            raise _checks.fail(
                ValueError, "checkpoint.save", "metadata", requirement, repr(name), "Rename it"
            )
    own = {
        _FORMAT: str(VERSION),
        _ORDER: json.dumps(list(order)),
        _JSON: json.dumps([name for name, value in metadata.items() if not isinstance(value, str)]),
    }
    given = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
    }
    return given | own


def unpack(
    function: str, path: str, words: Mapping[str, str], names: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """The metadata that were packed, and the order of the names; of others' files, what is there.

    Args:
        function: Whose error it is.
        path: What was read.
        words: The file's strings.
        names: Of its tensors.

    Raises:
        ValueError: The file is of a later version, or its own strings make no sense.
    """
    version = words.get(_FORMAT, "0")
    if version not in map(str, range(VERSION + 1)):
        requirement = f"be of format {VERSION} or an earlier one"
        actual = f"{path!r} of format {version[:20]!r}"
        remedy = "Install the tinyfn that wrote it, or a later one"
        raise _checks.fail(ValueError, function, "path", requirement, actual, remedy)
    names = list(names)
    metadata: dict[str, Any] = {n: w for n, w in words.items() if n not in (_FORMAT, _ORDER, _JSON)}
    try:
        order = json.loads(words.get(_ORDER, "[]")) or names
        coded = {name: json.loads(words[name]) for name in json.loads(words.get(_JSON, "[]"))}
        sound = sorted(order) == sorted(names) and coded.keys() <= metadata.keys()
    except (ValueError, KeyError, TypeError, RecursionError):
        sound, order, coded = False, names, {}
    if not sound:
        requirement = f"have metadata under {_ORDER} and {_JSON} as checkpoint.save writes them"
        remedy = "Save it again, or without them"
        raise _checks.fail(ValueError, function, "path", requirement, repr(path), remedy)
    return metadata | coded, order

"""How often, and by how much, pronunciations are wrong."""

from collections.abc import Sequence
from typing import NamedTuple

from tinyfn.pronunciation import data, model
from tinyfn.types import Params


class Errors(NamedTuple):
    """Shares in [0, 1], and of how many words."""

    word_error: float
    phoneme_error: float
    words: int


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """How many items must be put in, taken out or replaced to make one sequence of the other.

    Example:
        >>> edit_distance("kitten", "sitting")
        3

    Reference: Wagner and Fischer, "The string-to-string correction problem", 1974.
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            replaced = corner + (x != y)
            corner = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def errors(found: list[data.Pronunciation], listed: list[list[data.Pronunciation]]) -> Errors:
    """Word error and phoneme error of pronunciations.

    A word is wrong if it equals none of its listed pronunciations. Phonemes count against the
    nearest of them: the sum of edit distances over the sum of its lengths.

    Args:
        found: A pronunciation of each word.
        listed: All that the dictionary has of each word.

    Example:
        >>> errors([("AH",), ("B", "IY")], [[("AH",), ("EY",)], [("B",)]])
        Errors(word_error=0.5, phoneme_error=0.5, words=2)
    """
    if not found:
        return Errors(0.0, 0.0, 0)
    wrong = sum(phonemes not in every for phonemes, every in zip(found, listed, strict=True))
    nearest = [
        min((edit_distance(phonemes, one), len(one)) for one in every)
        for phonemes, every in zip(found, listed, strict=True)
    ]
    distances, lengths = (sum(column) for column in zip(*nearest, strict=True))
    return Errors(wrong / len(found), distances / lengths, len(found))


def evaluate(params: Params, dictionary: data.Dictionary) -> Errors:
    """The errors of a model on words.

    Args:
        params: From `model.init`, or from a checkpoint.
        dictionary: Words with their listed pronunciations.

    Example:
        >>> from tinyfn import random
        >>> evaluate(model.init(random.key(0), model.SIZES), {"a": [("AH",)]}).words
        1
    """
    return errors(model.pronounce(params, list(dictionary)), list(dictionary.values()))

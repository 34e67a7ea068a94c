"""How often, and by how much, pronunciations are wrong, and what is taken for what."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from tinyfn import random
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
    return _distances(a, b)[0][0]


def _distances(a: Sequence[object], b: Sequence[object]) -> list[list[int]]:
    """Between what is left of both from i and j on."""
    rest = [list(range(len(b), -1, -1))]
    for x in reversed(a):
        below, row = rest[0], [rest[0][-1] + 1]
        for j in range(len(b) - 1, -1, -1):
            row.insert(0, min(below[j + 1] + (x != b[j]), below[j] + 1, row[0] + 1))
        rest.insert(0, row)
    return rest


class Wrong(NamedTuple):
    """What is wrong with a word: whether it is, its edits, and the length they are counted over."""

    word: bool
    edits: int
    length: int


def wrong(found: data.Pronunciation, listed: list[data.Pronunciation]) -> Wrong:
    """A pronunciation beside the nearest that is listed.

    Example:
        >>> wrong(("B", "IY"), [("B",), ("B", "AA", "T")])
        Wrong(word=True, edits=1, length=1)
    """
    edits, length = min((edit_distance(found, one), len(one)) for one in listed)
    return Wrong(found not in listed, edits, length)


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
    rows = [wrong(*pair) for pair in zip(found, listed, strict=True)]
    words, edits, lengths = map(sum, zip(*rows, strict=True))
    return Errors(words / len(found), edits / lengths, len(found))


def interval(
    found: list[data.Pronunciation],
    listed: list[list[data.Pronunciation]],
    *,
    share: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where word error and phoneme error lie if the words are drawn anew, with replacement.

    Args:
        found: A pronunciation of each word.
        listed: All that the dictionary has of each word.
        share: Of the draws that lie within.
        draws: How many.
        seed: Where their randomness starts.

    Example:
        >>> interval([("AH",), ("B", "IY")], [[("AH",)], [("B",)]])
        ((0.0, 1.0), (0.0, 1.0))

    Reference: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    pairs = zip(found, listed, strict=True)
    rows = torch.tensor([wrong(*pair) for pair in pairs], dtype=torch.float64)
    keys = random.split(random.key(seed), draws)
    sums = [rows[(random.uniform(key, (len(rows),)) * len(rows)).long()].sum(0) for key in keys]
    words, edits, lengths = torch.stack(sums).unbind(-1)
    tails = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
    low_high = [rate.quantile(tails).tolist() for rate in (words / len(rows), edits / lengths)]
    return tuple(low_high[0]), tuple(low_high[1])


def confusions(
    found: list[data.Pronunciation], listed: list[list[data.Pronunciation]]
) -> list[tuple[str, str, int]]:
    """What stood where something else was listed, most frequent first; "-" stands for nothing.

    Args:
        found: A pronunciation of each word.
        listed: All that the dictionary has of each word.

    Example:
        >>> confusions([("B", "IY"), ("B",)], [[("B", "IH")], [("B", "IH")]])
        [('IH', 'IY', 1), ('IH', '-', 1)]
    """
    counts: Counter[tuple[str, str]] = Counter()
    for phonemes, every in zip(found, listed, strict=True):
        edits = [edit_distance(phonemes, one) for one in every]
        nearest = every[edits.index(min(edits))]
        counts.update(pair for pair in _aligned(nearest, phonemes) if pair[0] != pair[1])
    return [(*pair, count) for pair, count in counts.most_common()]


def _aligned(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    """The two, item beside item, by the fewest edits."""
    rest, pairs, i, j = _distances(a, b), [], 0, 0
    while i < len(a) or j < len(b):
        if i < len(a) and j < len(b) and rest[i][j] == rest[i + 1][j + 1] + (a[i] != b[j]):
            pairs.append((a[i], b[j]))
            i, j = i + 1, j + 1
        elif i < len(a) and rest[i][j] == rest[i + 1][j] + 1:
            pairs.append((a[i], "-"))
            i += 1
        else:
            pairs.append(("-", b[j]))
            j += 1
    return pairs


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

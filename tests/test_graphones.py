"""The judge of beams: which letter says what, and how likely rows of that are."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinyfn import checkpoint
from tinyfn.pronunciation import data, evaluate, graphones, model, weights

WORDS = {
    "ox": [("AA", "K", "S")],
    "fox": [("F", "AA", "K", "S")],
    "off": [("AO", "F")],
    "so": [("S", "OW")],
    "soft": [("S", "AA", "F", "T"), ("S", "AO", "F", "T")],
}
spellings = st.text("of", min_size=1, max_size=4)
sounds = st.lists(st.sampled_from(data.PHONEMES[:2]), max_size=4).map(tuple)


def codes_of(word, phonemes):
    """Every way in which the letters of a word can say phonemes, as codes."""
    ids = [1 + data.PHONEMES.index(phoneme) for phoneme in phonemes]
    for shares in itertools.product(range(3), repeat=len(word)):
        if sum(shares) == len(ids):
            rest, way = list(ids), []
            for letter, share in zip(word, shares, strict=True):
                said, rest = [*rest[:share], 0, 0][:2], rest[share:]
                way.append((data.LETTERS.index(letter) * 40 + said[0]) * 40 + said[1])
            yield way


def pairs(*both):
    words, said = zip(*both, strict=True)
    return data.Batch(data.encode_words(list(words)), data.encode_pronunciations(list(said)))


def random_scores(seed):
    drawn = torch.rand(26 * 40**2, generator=torch.Generator().manual_seed(seed))
    return drawn.double().log()


@given(st.lists(st.tuples(spellings, sounds), min_size=1, max_size=3), st.integers(0, 99))
def test_uses_are_those_of_all_ways(both, seed):
    scores = random_scores(seed)
    spoken = graphones.of_pairs(pairs(*both))
    codes, expected, totals = graphones._uses(scores, spoken, graphones._log_sum)
    for row, (word, phonemes) in enumerate(both):
        ways = list(codes_of(word, phonemes))
        if not ways:
            assert totals[row] < -1e8
            continue
        chances = [math.exp(float(scores[way].sum())) for way in ways]
        assert float(totals[row]) == pytest.approx(math.log(sum(chances)))
        uses = Counter()
        for way, chance in zip(ways, chances, strict=True):
            uses.update({code: way.count(code) * chance / sum(chances) for code in {*way}})
        found = torch.zeros_like(scores).index_add(0, codes[row].flatten(), expected[row].flatten())
        assert {int(c): float(found[c]) for c in found.nonzero()[:, 0]} == pytest.approx(uses)


def how_silent(way):
    return [-sum(said > 0 for said in (code // 40 % 40, code % 40)) for code in reversed(way)]


@given(st.lists(st.tuples(spellings, sounds), min_size=1, max_size=3), st.integers(0, 99))
def test_what_is_said_is_the_best_way_with_last_letters_silent_where_ways_tie(both, seed):
    scores = random_scores(seed).round()  # whole, and few, so that many tie
    said, possible = graphones._said(scores, graphones.of_pairs(pairs(*both)))
    for row, (word, phonemes) in enumerate(both):
        ways = list(codes_of(word, phonemes))
        assert bool(possible[row]) == bool(ways)
        if ways:
            best = max(ways, key=lambda way: (float(scores[way].sum()), how_silent(way)))
            assert said[row].tolist() == best + [-1] * (said.shape[1] - len(word))


def test_a_round_makes_the_words_no_less_likely():
    likely = []
    for rounds in (1, 2, 3, 5, 8):
        counts = graphones.count(WORDS, rounds=rounds)
        scores = graphones.laid_out(counts).scores / 1024
        spoken = graphones.of_pairs(data.pairs(WORDS))
        likely.append(float(graphones._uses(scores, spoken, graphones._log_sum)[2].sum()))
    assert likely == sorted(likely)
    assert likely[-1] > likely[0] + 1


def test_letters_say_what_they_say_in_most_words():
    counts = graphones.count({"of": [("AA", "F")], "ox": [("AA", "K", "S")], "fox": WORDS["fox"]})
    known = {(code // 1600, code // 40 % 40, code % 40) for code in counts.codes.tolist()}
    o, f, x = ("ofx".index(letter) for letter in "ofx")
    numbers = {phoneme: 1 + place for place, phoneme in enumerate(data.PHONEMES)}
    letters = [data.LETTERS.index(letter) for letter in "ofx"]
    assert known == {
        (letters[o], numbers["AA"], 0),
        (letters[f], numbers["F"], 0),
        (letters[x], numbers["K"], numbers["S"]),
    }
    shares = sorted(math.log(share / 7) for share in (3, 2, 2))
    assert (counts.scores / 1024).sort().values.tolist() == pytest.approx(shares, abs=0.5001 / 1024)


def slow_chance(rows, row):
    """Interpolated Kneser-Ney by its definition, of rows that are tuples with counts."""
    if not row:
        return 0.5**9
    ones, twos = (sum(count == n for count in rows.values()) for n in (1, 2))
    discount = (ones + 1) / (ones + 2 * twos + 2)
    shorter = Counter(one[1:] for one in rows)
    low = slow_chance(shorter, row[1:])
    after = {one: count for one, count in rows.items() if one[:-1] == row[:-1]}
    if not after:
        return low
    total = sum(after.values())
    return (max(after.get(row, 0) - discount, 0) + discount * len(after) * low) / total


def unpacked(row):
    return tuple(row >> 9 * place & 511 for place in reversed(range(graphones.ORDER)))


def test_chances_are_those_of_the_definition_and_sum_to_one():
    counts = graphones.count(WORDS)
    rows = {
        unpacked(row): n
        for row, n in zip(counts.rows.tolist(), counts.counts.tolist(), strict=True)
    }
    judge = graphones.laid_out(counts)
    for begin in (int(counts.rows[0]), int(counts.rows[-1]), 5 << 40 | 3 << 9):
        every = (begin >> 9 << 9) + torch.arange(512)
        found = graphones._chances(judge.orders, every)
        assert float(found.sum()) == pytest.approx(1)
        expected = [slow_chance(rows, unpacked(row)) for row in every[:20].tolist()]
        assert found[:20].tolist() == pytest.approx(expected)


def test_every_letter_and_end_is_counted():
    counts = graphones.count({**WORDS, "x": [("EH", "K", "S")]})  # which no letter can say
    assert int(counts.counts.sum()) == sum(len(w) + 1 for w, every in WORDS.items() for _ in every)


def test_a_word_is_judged_the_same_alone_and_together():
    judge = graphones.laid_out(graphones.count(WORDS))
    both = [("soft", ("S", "AO", "F", "T")), ("o", ("OW",)), ("fox", ()), ("o", ("K",) * 3)]
    together = graphones.log_chances(judge, graphones.of_pairs(pairs(*both)))
    alone = [graphones.log_chances(judge, graphones.of_pairs(pairs(one))) for one in both]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-12)
    assert together.tolist()[3] == -math.inf


class Written(TorchDispatchMode):
    """Counts the numbers that operations give."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numbers += sum(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        return out


def test_a_long_word_costs_little_more_than_its_letters():
    judge = graphones.laid_out(graphones.count(WORDS))
    long = graphones.of_pairs(pairs(("so" * 50, ("S", "OW") * 50)))
    with Written() as written:
        graphones.log_chances(judge, long)
    assert written.numbers <= 60 * (100 * 101 * 3)  # letters, places, ways


def test_nothing_said_at_all_is_judged_too():
    judge, letters = graphones.laid_out(graphones.count(WORDS)), torch.tensor([[24, 0], [15, 24]])
    ended = graphones.of_tokens(letters, torch.full((2, 1), data.END))
    found = graphones.log_chances(judge, graphones.of_tokens(letters, ended.phonemes[:, :0]))
    assert torch.equal(found, graphones.log_chances(judge, ended))
    assert found.isfinite().all()


def test_no_word_to_count_is_said():
    with pytest.raises(ValueError, match="count: dictionary must have words of at most two phonem"):
        graphones.count({"x": [("EH", "K", "S")]})


def test_a_file_judges_as_what_was_written(tmp_path):
    counts = graphones.count(WORDS)
    graphones.save(tmp_path / "counts", counts, {"words": 5})
    read = graphones.load(tmp_path / "counts")
    spoken = graphones.of_pairs(data.pairs(WORDS))
    known = graphones.log_chances(graphones.laid_out(counts), spoken)
    assert torch.equal(graphones.log_chances(read, spoken), known)
    assert checkpoint.load(tmp_path / "counts")[1] == {"words": 5}


def test_another_file_is_refused(tmp_path):
    counts = graphones.count(WORDS)._asdict()
    changes = [
        {"codes": counts["codes"].flip(0)},
        {"rows": counts["rows"].flip(0)},
        {"codes": counts["codes"] + 26 * 40**2},
        {"codes": counts["codes"] - 26 * 40**2},
        {"scores": counts["scores"][1:]},
        {"counts": counts["counts"][1:]},
        {"counts": counts["counts"].double()},
        {"counts": counts["counts"][:, None]},
        {"counts": [counts["counts"]]},
        {"more": counts["counts"]},
        {"counts": counts["counts"] - 1},
        {"codes": torch.arange(510), "scores": torch.arange(510)},
        {name: kept[:0] for name, kept in counts.items()},
    ]
    for number, change in enumerate(changes):
        checkpoint.save(tmp_path / str(number), {**counts, **change})
    for file in (*sorted(tmp_path.iterdir()), weights.SHIPPED):
        with pytest.raises(ValueError, match=r"graphones\.load: path must hold counts, got"):
            graphones.load(file)


def test_shipped_counts_are_of_the_train_words():
    train = data.split(data.load())["train"]
    found, metadata = checkpoint.load(graphones.SHIPPED)
    assert metadata["words"] == len(train)
    letters = [len(w) + 1 for w, every in train.items() for one in every if len(one) <= 2 * len(w)]
    assert int(found["counts"].sum()) == sum(letters)


def test_judged_beams_are_better_than_their_first():
    words = dict(list(data.split(data.load())["test"].items())[::20])
    params, judge = weights.load(), graphones.load()
    listed = list(words.values())
    first, judged = (
        evaluate.errors(model.pronounce(params, list(words), num_beams=4, judge=j), listed)
        for j in (None, judge)
    )
    assert judged.word_error < first.word_error - 0.01
    assert judged.phoneme_error < first.phoneme_error

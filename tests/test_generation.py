"""Generation against slow loops that run the whole model for every token."""

import itertools
import math
from functools import partial

import pytest
import torch

import tinyfn
from cases import LLAMA
from tinyfn import generation, masks, positions, random, tree

VOCAB, END = 5, 0


def model(seed=0, **options):
    params = tinyfn.init_language_model(
        random.key(seed), 8, 2, 12, 2, vocab_size=VOCAB, dtype=torch.float64, **options
    )
    return tree.map(lambda leaf: 3 * leaf, params)


def pair(seed=1):
    """An encoder-decoder, a batch of sources with padding, and their mask."""
    params = tinyfn.init_transformer(
        random.key(seed), 8, 2, 12, 1, 1, src_vocab_size=6, tgt_vocab_size=VOCAB,
        dtype=torch.float64,
    )  # fmt: skip
    source = torch.tensor([[1, 2, 3, 4], [5, 4, 0, 0]])
    return tree.map(lambda leaf: 3 * leaf, params), source, torch.tensor([4, 2])


PROMPTS = torch.tensor([[1, 2, 3], [4, 1, 0], [2, 0, 0]])
LENGTHS = torch.tensor([3, 2, 1])


def slow_greedy(logits_of, prompt, max_len, end=None):
    """One row, by running everything again for each token."""
    text = prompt.tolist()
    for _ in range(max_len):
        text.append(int(logits_of(torch.tensor(text))[-1].argmax()))
        if text[-1] == end:
            break
    made = text[len(prompt) :]
    return made + [end] * (max_len - len(made))


@pytest.mark.parametrize("end", [None, END])
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, {}),
        ({"position": None, "attend": positions.alibi(tinyfn.dot_product_attention)}, {}),
        (
            LLAMA,
            {
                "num_kv_heads": 1,
                "bias": False,
                "init_norm": tinyfn.init_rms_norm,
                "init_feed_forward": tinyfn.init_gated_feed_forward,
            },
        ),
    ],
)
def test_greedy_is_the_likeliest_each_time(options, sizes, end):
    params = model(**sizes)
    made = generation.greedy(params, PROMPTS, LENGTHS, max_len=7, end=end, **options)
    for row in range(3):
        prompt = PROMPTS[row, : LENGTHS[row]]
        expected = slow_greedy(
            lambda text: tinyfn.language_model(params, text, **options), prompt, 7, end
        )
        assert made.tokens[row].tolist() == expected
        assert made.lengths[row] == (expected.index(END) if end in expected else 7)
        alone = generation.greedy(params, prompt, max_len=7, end=end, **options)
        assert alone.tokens.tolist() == expected


def test_a_window_makes_a_ring():
    params, mask = model(), masks.causal() & masks.window(2, None)
    made = generation.greedy(params, PROMPTS, LENGTHS, max_len=9, self_mask=mask)
    for row in range(3):
        expected = slow_greedy(
            lambda text: tinyfn.language_model(params, text, mask), PROMPTS[row, : LENGTHS[row]], 9
        )
        assert made.tokens[row].tolist() == expected


def test_a_source_is_read_as_the_transformer_reads_it():
    params, source, lengths = pair()
    mask = masks.padding(lengths)
    prompt = torch.tensor([[1], [1]])
    made = generation.greedy(params, prompt, None, source, mask, max_len=6)
    for row in range(2):
        own = source[row, : lengths[row]]
        expected = slow_greedy(lambda tgt: tinyfn.transformer(params, own, tgt), prompt[row], 6)  # noqa: B023  the loop's own row is meant
        assert made.tokens[row].tolist() == expected


def test_the_same_key_draws_the_same_alone_and_in_a_batch():
    params, keys = model(), random.split(random.key(3), 3)
    adjust = generation.chain(generation.temperature(2.0), generation.top_p(0.95))
    options = {"max_len": 8, "end": END, "adjust": adjust}
    together = generation.sample(params, PROMPTS, keys, LENGTHS, **options)
    split = generation.sample(params, PROMPTS, random.key(3), LENGTHS, **options)
    assert torch.equal(together.tokens, split.tokens)
    for row in range(3):
        prompt = PROMPTS[row, : LENGTHS[row]]
        alone = generation.sample(params, prompt, keys[row], **options)
        assert torch.equal(together.tokens[row], alone.tokens)
    other = generation.sample(params, PROMPTS, random.key(4), LENGTHS, **options)
    assert not torch.equal(together.tokens, other.tokens)
    mapped = torch.vmap(
        lambda prompt, key: generation.sample(params, prompt, key, **options).tokens
    )(PROMPTS[:1], keys[:1])
    alone = generation.sample(params, PROMPTS[0], keys[0], **options)
    assert torch.equal(mapped[0], alone.tokens)


def test_samples_have_the_models_chances():
    params, prompt = model(), torch.tensor([1, 2])
    chances = tinyfn.language_model(params, prompt)[-1].softmax(-1)
    num = 4000
    made = generation.sample(params, prompt.expand(num, 2), random.key(0), max_len=1).tokens
    counts = torch.bincount(made.flatten(), minlength=VOCAB) / num
    assert (counts - chances).abs().max() < 4 * 0.5 / math.sqrt(num)


def test_a_stream_gives_the_tokens_as_they_come():
    params = model()
    made = generation.sample(params, PROMPTS, random.key(1), LENGTHS, max_len=6, end=END)
    streamed = list(generation.stream(params, PROMPTS, random.key(1), LENGTHS, max_len=6, end=END))
    assert torch.equal(torch.stack(streamed, -1), made.tokens[:, : len(streamed)])
    assert (made.tokens[:, len(streamed) :] == END).all()
    greedy = generation.greedy(params, PROMPTS, LENGTHS, max_len=4)
    first = next(generation.stream(params, PROMPTS, None, LENGTHS, max_len=4))
    assert torch.equal(first, greedy.tokens[:, 0])
    assert torch.is_grad_enabled()


def test_a_stream_leaves_gradients_on_between_tokens():
    tokens = generation.stream(model(), PROMPTS, max_len=2)
    next(tokens)
    assert torch.is_grad_enabled()


def test_generation_ends_when_every_row_has():
    params = model()
    calls = []

    def end_at_once(logits, history):
        calls.append(history)
        ended = torch.full_like(logits, -torch.inf)
        ended[..., END] = 0.0
        return ended

    made = generation.greedy(params, PROMPTS, LENGTHS, max_len=9, end=END, adjust=end_at_once)
    assert len(calls) == 1
    assert made.tokens.tolist() == [[END] * 9] * 3
    assert made.lengths.tolist() == [0, 0, 0]


def test_an_adjustment_sees_the_text_so_far():
    seen = []

    def note(logits, history):
        seen.append(history.clone())
        return logits

    made = generation.greedy(model(), PROMPTS, LENGTHS, max_len=3, adjust=note).tokens
    for turn, history in enumerate(seen):
        for row, length in enumerate(LENGTHS.tolist()):
            text = [*PROMPTS[row, :length].tolist(), *made[row, :turn].tolist()]
            assert history[row].tolist() == text + [-1] * (6 - len(text))


def test_a_constraint_is_a_function_of_logits():
    def no_repeats(logits, history):
        return generation.repetition_penalty(1e9)(logits + 100, history)

    made = generation.greedy(model(), torch.tensor([1]), max_len=4, adjust=no_repeats).tokens
    assert sorted([1, *made.tolist()]) == [0, 1, 2, 3, 4]


def texts(num, end):
    """Every text of a length: those that end stay so."""
    for text in itertools.product(range(VOCAB), repeat=num):
        if end in text[:-1] and set(text[text.index(end) :]) != {end}:
            continue
        yield text


@pytest.mark.parametrize("end", [None, END])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 0.6])
def test_beams_wide_enough_are_exact(end, penalty):
    params, prompt, num = model(seed=4), torch.tensor([1, 2]), 3
    scores = {}
    for text in texts(num, end):
        tokens = torch.tensor(text)
        chances = generation.log_probs(params, prompt, tokens)
        length = text.index(end) + 1 if end in text else num
        scores[text] = float(chances[:length].sum() / length**penalty)
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:4]
    beams = generation.beam_search(
        params, prompt, max_len=num, num_beams=60, n_best=4, end=end, length_penalty=penalty
    )
    assert [tuple(text) for text in beams.tokens.tolist()] == best
    expected = torch.tensor([scores[text] for text in best], dtype=torch.float64)
    torch.testing.assert_close(beams.scores, expected)
    for text, length in zip(best, beams.lengths.tolist(), strict=True):
        assert length == (text.index(end) if end in text else num)


def test_one_beam_is_greedy():
    params = model()
    beams = generation.beam_search(params, PROMPTS, LENGTHS, max_len=6, num_beams=1)
    made = generation.greedy(params, PROMPTS, LENGTHS, max_len=6)
    assert torch.equal(beams.tokens[:, 0], made.tokens)


def test_beams_of_a_batch_are_those_of_each_row():
    params, source, lengths = pair()
    options = {"max_len": 6, "num_beams": 3, "n_best": 2, "end": END}
    prompt = torch.tensor([[1], [2]])
    together = generation.beam_search(
        params, prompt, None, source, masks.padding(lengths), **options
    )
    for row in range(2):
        own = source[row, : lengths[row]]
        alone = generation.beam_search(params, prompt[row], None, own, **options)
        assert torch.equal(together.tokens[row], alone.tokens)
        torch.testing.assert_close(together.scores[row], alone.scores)


def slow_beams(params, prompt, num, width, penalty, adjust=None):
    """One row's texts with their scores, by running everything again; nothing ends early."""
    live, done = [(0.0, [])], []
    for turn in range(num):
        found = []
        for score, text in live:
            history = torch.tensor([*prompt.tolist(), *text])
            logits = tinyfn.language_model(params, history)[-1]
            logits = logits if adjust is None else adjust(logits, history)
            if logits.amax() == -torch.inf:
                continue
            chances = logits.log_softmax(-1).tolist()
            found += [(score + c, [*text, t]) for t, c in enumerate(chances) if c > -torch.inf]
        found = sorted(found, reverse=True)[: 2 * width]
        done += [(s / (turn + 1) ** penalty, t) for s, t in found if t[-1] == END]
        done = sorted(done, reverse=True)[:width]
        live = [(s, t) for s, t in found if t[-1] != END][:width]
    done += [(s / num**penalty, t) for s, t in live]
    return sorted(done, reverse=True)[:width]


def only_after_three(logits, history):
    """3 or 4 first, 2 after 3, and nothing after 4."""
    ids = torch.arange(VOCAB)
    known = history.where(history >= 0, -1)
    last = known.gather(-1, (known >= 0).sum(-1, keepdim=True) - 1)
    allowed = torch.where(last == 3, ids == 2, torch.where(last == 4, ids < 0, ids >= 3))
    return torch.where(allowed, logits, -torch.inf)


@pytest.mark.parametrize("adjust", [None, only_after_three])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_few_beams_are_those_of_a_slow_search(seed, penalty, adjust):
    params, prompt, width = model(seed=seed), torch.tensor([1, 2]), 3
    beams = generation.beam_search(
        params,
        prompt,
        max_len=5,
        num_beams=width,
        n_best=width,
        end=END,
        length_penalty=penalty,
        adjust=adjust,
    )
    expected = slow_beams(params, prompt, 5, width, penalty, adjust)
    for row, (score, text) in enumerate(expected):
        assert beams.tokens[row].tolist() == text + [END] * (5 - len(text))
        torch.testing.assert_close(float(beams.scores[row]), score)
    assert (beams.tokens[len(expected) :] == -1).all()
    assert beams.scores[len(expected) :].tolist() == [-torch.inf] * (width - len(expected))


def test_half_precision_sums_in_single():
    params = tree.cast(model(), torch.bfloat16)
    beams = generation.beam_search(params, PROMPTS, LENGTHS, max_len=4, length_penalty=0.0)
    assert beams.scores.dtype == torch.float32
    chances = generation.log_probs(params, PROMPTS, beams.tokens[:, 0], LENGTHS)
    torch.testing.assert_close(beams.scores[:, 0], chances.float().sum(-1), atol=0.3, rtol=0.03)
    assert generation.top_p(1.0)(torch.linspace(-20, 0, 5000), NONE).isfinite().all()


def test_what_has_no_token_says_so():
    params = model(init_position=partial(positions.init_learned, max_len=4, num_features=8))
    options = {"position": positions.add_learned, "max_len": 9}
    made = generation.greedy(params, torch.tensor([1, 2]), **options).tokens
    assert (made[:3] >= 0).all()
    assert (made[3:] == -1).all()
    made = generation.sample(params, torch.tensor([1, 2]), random.key(0), **options).tokens
    assert (made[3:] == -1).all()
    none = generation.greedy(
        model(), torch.tensor([1]), max_len=2, adjust=lambda x, _: torch.full_like(x, -torch.inf)
    )
    assert none.tokens.tolist() == [-1, -1]
    assert none.lengths == 0
    empty = generation.greedy(model(), PROMPTS[:2], torch.tensor([0, 1]), max_len=2).tokens
    assert empty[0].tolist() == [-1, -1]
    assert (empty[1] >= 0).all()


def test_a_row_without_a_token_stays_so_and_is_over():
    params = model()

    def nothing_after_two(logits, history):
        return logits.where((history >= 0).sum(-1, keepdim=True) != 5, -torch.inf)

    made = generation.greedy(params, PROMPTS, LENGTHS, max_len=4, adjust=nothing_after_two)
    assert (made.tokens == -1).sum(-1).tolist() == [2, 1, 0]
    assert made.lengths.tolist() == [2, 3, 4]
    chances = generation.log_probs(params, PROMPTS, made.tokens, LENGTHS)
    assert torch.equal(chances.isnan(), made.tokens == -1)
    gone = generation.greedy(params, PROMPTS, torch.tensor([0, -1, 9]), max_len=4, end=END)
    assert (gone.tokens == -1).all()
    some = generation.greedy(params, PROMPTS, torch.tensor([0, 2, 3]), max_len=4, end=END)
    assert (some.tokens[0] == -1).all()
    assert (some.tokens[1:] >= 0).all()
    assert some.lengths[0] == 0
    beams = generation.beam_search(
        params, PROMPTS, torch.tensor([0, 9, 1]), max_len=2, num_beams=2, n_best=2
    )
    assert (beams.tokens[:2] == -1).all()
    assert (beams.tokens[2] >= 0).all()
    assert beams.lengths.tolist() == [[0, 0], [0, 0], [2, 2]]


def test_a_table_of_positions_holds_what_greedy_feeds():
    params = model(init_position=partial(positions.init_learned, max_len=4, num_features=8))
    made = generation.greedy(
        params, torch.tensor([1, 2]), max_len=3, position=positions.add_learned
    ).tokens
    chances = generation.log_probs(
        params, torch.tensor([1, 2]), made, position=positions.add_learned
    )
    assert chances.isfinite().all()


def test_log_probs_are_those_of_each_row_and_have_gradients():
    params = model()
    tokens = torch.tensor([[1, 2], [3, 4], [0, 1]])
    actual = generation.log_probs(params, PROMPTS, tokens, LENGTHS)
    for row in range(3):
        text = torch.cat([PROMPTS[row, : LENGTHS[row]], tokens[row]])
        chances = tinyfn.language_model(params, text).log_softmax(-1)[LENGTHS[row] - 1 : -1]
        expected = chances.gather(-1, tokens[row][:, None])[:, 0]
        torch.testing.assert_close(actual[row], expected)
    gradient = torch.func.grad(lambda p: generation.log_probs(p, PROMPTS, tokens, LENGTHS).sum())(
        params
    )
    assert gradient["linear"]["weight"].abs().sum() > 0
    params, source, lengths = pair()
    actual = generation.log_probs(
        params, tokens[:2, :1], tokens[:2], None, source, masks.padding(lengths)
    )
    mask = masks.padding(lengths)
    full = torch.cat([tokens[:2, :1], tokens[:2]], -1)
    logits = tinyfn.transformer(params, source, full, mask, memory_mask=mask)[:, :-1]
    expected = logits.log_softmax(-1).gather(-1, tokens[:2, :, None])[..., 0]
    torch.testing.assert_close(actual, expected)


def test_nothing_is_changed():
    params = tree.map(lambda leaf: leaf.clone(), model())
    before = tree.map(lambda leaf: leaf.clone(), params)
    generation.sample(params, PROMPTS, random.key(0), LENGTHS, max_len=4)
    generation.beam_search(params, PROMPTS, LENGTHS, max_len=4)
    for a, b in zip(tree.leaves(params), tree.leaves(before), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("axes", [(), (2,), (2, 3)])
def test_any_leading_axes(axes):
    params = model()
    prompt = (random.uniform(random.key(0), (*axes, 2)) * VOCAB).long()
    made = generation.greedy(params, prompt, max_len=3).tokens
    beams = generation.beam_search(params, prompt, max_len=3, num_beams=3, n_best=2, end=END)
    drawn = generation.sample(params, prompt, random.key(1), max_len=3).tokens
    assert made.shape == drawn.shape == (*axes, 3)
    assert beams.tokens.shape == (*axes, 2, 3)
    for index in itertools.product(*map(range, axes)):
        alone = generation.greedy(params, prompt[index], max_len=3).tokens
        assert torch.equal(made[index], alone)
        own = generation.beam_search(
            params, prompt[index], max_len=3, num_beams=3, n_best=2, end=END
        )
        assert torch.equal(beams.tokens[index], own.tokens)


NONE = torch.tensor([-1])


def test_adjustments_compose():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = generation.chain(generation.top_k(3), generation.top_p(0.7))(logits, NONE)
    assert kept.isfinite().tolist() == [True, True, False, False]
    assert generation.top_p(1.0)(logits, NONE).isfinite().all()
    assert generation.top_p(1e-9)(logits, NONE).isfinite().tolist() == [True] + [False] * 3
    assert generation.top_k(9)(logits, NONE).isfinite().all()
    assert generation.min_p(0.5)(logits, NONE).isfinite().tolist() == [True, True, False, False]
    assert generation.chain()(logits, NONE) is logits
    batch = torch.stack([logits, logits.flip(-1)])
    assert generation.top_p(0.7)(batch, NONE)[1].isfinite().tolist() == [False, False, True, True]
    penalised = generation.repetition_penalty(2.0)(batch, torch.tensor([[0, 0], [-1, 3]]))
    torch.testing.assert_close(penalised[:, 1:3], batch[:, 1:3])
    torch.testing.assert_close(penalised[0, 0], 2 * batch[0, 0])
    torch.testing.assert_close(penalised[1, 3], 2 * batch[1, 3])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda p: generation.greedy(p, PROMPTS[:, :0], max_len=1),
            ValueError,
            r"generation\.greedy: prompt must have a token, got shape \(3, 0\)\. Begin with",
        ),
        (
            lambda p: generation.greedy(p, PROMPTS, max_len=0),
            ValueError,
            r"generation\.greedy: max_len must be at least 1, got 0\. ",
        ),
        (
            lambda p: generation.greedy(p, PROMPTS, None, PROMPTS, max_len=1),
            ValueError,
            r"generation\.greedy: source must be given where .*, got a source for params without",
        ),
        (
            lambda p: generation.greedy(pair()[0], PROMPTS, max_len=1),
            ValueError,
            r"generation\.greedy: source must be given where .*, got no source for params with",
        ),
        (
            lambda p: generation.sample(p, PROMPTS, 3, max_len=1),
            TypeError,
            r"generation\.sample: key must be an int64 tensor, got int 3\. Make it with",
        ),
        (
            lambda p: generation.sample(p, PROMPTS, random.split(random.key(0), 2), max_len=1),
            ValueError,
            r"generation\.sample: key must be one, or one for each prompt, \(3,\), got shape \(2,",
        ),
        (
            lambda p: generation.beam_search(p, PROMPTS, max_len=1, num_beams=2, n_best=3),
            ValueError,
            r"generation\.beam_search: n_best must be at most num_beams=2, got 3\. ",
        ),
        (
            lambda p: generation.log_probs(p, PROMPTS, PROMPTS[:1]),
            ValueError,
            r"generation\.log_probs: tokens must have the leading axes of the prompt, \(3,\), got",
        ),
        (
            lambda p: generation.temperature(0.0),
            ValueError,
            r"generation\.temperature: value must be above 0 and finite, got 0\.0\. ",
        ),
        (
            lambda p: generation.beam_search(p, PROMPTS, max_len=1, length_penalty=-1.0),
            ValueError,
            r"generation\.beam_search: length_penalty must be at least 0, got -1\.0\. ",
        ),
        (
            lambda p: generation.greedy(p, PROMPTS, max_len=1, self_mask=None),
            TypeError,
            r"generation\.greedy: self_mask must be a mask of tinyfn\.masks, .*, got NoneType\. ",
        ),
        (
            lambda p: generation.log_probs(p, PROMPTS, PROMPTS, self_mask=masks.full()),
            ValueError,
            r"generation\.log_probs: self_mask must hide what comes later, .*, got full\(\)\. ",
        ),
        (
            lambda p: generation.sample(p, [1, 2], random.key(0), max_len=1),
            TypeError,
            r"generation\.sample: prompt must be an integer tensor, got list\. ",
        ),
        (
            lambda p: generation.stream(p, PROMPTS, max_len=0),
            ValueError,
            r"generation\.stream: max_len must be at least 1, got 0\. ",
        ),
        (
            lambda p: generation.greedy(pair()[0], PROMPTS, None, PROMPTS[0], max_len=1),
            ValueError,
            r"generation\.greedy: source must have the leading axes of the prompt, \(3,\), got \(",
        ),
        (
            lambda p: generation.greedy(p, PROMPTS, None, None, masks.padding(2), max_len=1),
            ValueError,
            r"generation\.greedy: source_mask must come with a source, got none\. Prompts of diff",
        ),
        (
            lambda p: generation.log_probs({}, PROMPTS, PROMPTS),
            ValueError,
            r"generation\.log_probs: params must have 'decoder', got \[\]\. Make params with init_",
        ),
        (
            lambda p: generation.top_k(0),
            ValueError,
            r"generation\.top_k: k must be at least 1, got 0\. ",
        ),
        (
            lambda p: generation.top_p(0.0),
            ValueError,
            r"generation\.top_p: p must be in \(0, 1\], got 0\.0\. ",
        ),
        (
            lambda p: generation.min_p(1.5),
            ValueError,
            r"generation\.min_p: p must be in \(0, 1\], got 1\.5\. ",
        ),
        (
            lambda p: generation.repetition_penalty(-1.0),
            ValueError,
            r"generation\.repetition_penalty: penalty must be above 0, got -1\.0\. ",
        ),
    ],
)
def test_errors(unchecked, call, error, match):
    with pytest.raises(error, match=match):
        call(model())

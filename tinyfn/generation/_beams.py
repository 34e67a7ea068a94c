"""Beam search: the best beginnings at each length, and the best texts among those that ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tinyfn import _checks, masks
from tinyfn._cache import Cache
from tinyfn.generation import _begin
from tinyfn.generation._adjust import Adjust
from tinyfn.generation._prepare import Prepared
from tinyfn.types import Params

Mask = masks.Mask


class Beams(NamedTuple):
    """The best texts of each row, best first.

    Example:
        >>> Beams(torch.tensor([[3, 0]]), torch.tensor([1]), torch.tensor([-0.5])).scores
        tensor([-0.5000])
    """

    tokens: Integer[Tensor, "... n_best max_len"]
    lengths: Integer[Tensor, "... n_best"]
    """How many tokens come before the end."""

    scores: Float[Tensor, "... n_best"]
    """The sum of the tokens' log chances over its length^length_penalty."""


def beam_search(
    params: Params | Prepared,
    prompt: Integer[Tensor, "... prompt_seq"],
    lengths: Integer[Tensor, "..."] | None = None,
    source: Tensor | None = None,
    source_mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    max_len: int,
    num_beams: int = 4,
    n_best: int = 1,
    end: int | None = None,
    length_penalty: float = 1.0,
    adjust: Adjust | None = None,
    self_mask: Mask = masks.causal(),
    **options: Any,
) -> Beams:
    """The likeliest texts, as far as keeping the best beginnings at each length finds them.

    With one beam and no `end` it is `greedy`; with as many beams as there are beginnings it is
    exact.

    Args:
        params: Of `language_model` or `transformer`, or `prepare` of them.
        prompt: What the text begins with, one token at least; padding goes behind it.
        lengths: How many tokens of each prompt are real; all, if None.
        source: What the encoder of a `transformer` reads.
        source_mask: True where a source position is to be read.
        max_len: How many tokens to add.
        num_beams: How many beginnings are kept.
        n_best: How many texts come back for each row.
        end: The token after which a text is over. Its chance is part of the score.
        length_penalty: A text's log chance is divided by its length (with the end) to this power:
            0 compares sums, 1 means; more favours long texts.
        adjust: Changes the logits first.
        self_mask: As the model was trained with.
        options: As the model is called with.

    Raises:
        ValueError: A size does not fit, n_best is above num_beams, or params and source do not fit.

    Returns:
        The texts. Where a row has fewer than n_best, tokens of -1 with scores of -inf are behind
        them, and where its logits were NaN, its scores are.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> beams = beam_search(params, torch.tensor([[1, 2]]), max_len=5, num_beams=3, n_best=2)
        >>> beams.tokens.shape, beams.scores.shape
        (torch.Size([1, 2, 5]), torch.Size([1, 2]))

    Reference: Wu et al., "Google's Neural Machine Translation System", 2016, arXiv 1609.08144,
    section 7, with the power of the length itself.
    """
    name = "generation.beam_search"
    _checks.sizes(name, num_beams=num_beams, n_best=n_best)
    if n_best > num_beams:
        remedy = "Keep more beams, or ask for fewer texts"
        requirement = f"be at most num_beams={num_beams}"
        raise _checks.fail(ValueError, name, "n_best", requirement, n_best, remedy)
    if length_penalty < 0:
        remedy = "0 compares sums, 1 means"
        requirement = "be at least 0"
        actual = length_penalty
        raise _checks.fail(ValueError, name, "length_penalty", requirement, actual, remedy)
    _begin.check_prompt(name, prompt, max_len, end)
    request = _begin.Request(name, params, self_mask, max_len, end, adjust, options)
    with torch.no_grad():
        found = _search(request, prompt, lengths, source, source_mask, num_beams, length_penalty)
    tokens, lengths, scores = found.tokens[..., :n_best, :], found.lengths, found.scores
    lengths, scores = lengths[..., :n_best], scores[..., :n_best]
    there = scores > -torch.inf  # of NaN too there is no text
    tokens = torch.where(there.unsqueeze(-1), tokens, -1)
    return Beams(tokens, torch.where(there, lengths, 0), scores)


def _search(
    request: _begin.Request,
    prompt: Tensor,
    lengths: Tensor | None,
    source: Tensor | None,
    source_mask: Mask | Tensor | None,
    num_beams: int,
    length_penalty: float,
) -> Beams:
    logits, cache, step = _begin.begin(request, prompt, lengths, source, source_mask)
    # Beams are the first axis there, so that masks of the batch broadcast over them.
    logits = logits.expand(num_beams, *logits.shape)
    cache = _mapped(lambda x: x.expand(num_beams, *x.shape), cache)
    text, first = _begin.History.of(prompt, lengths, request.max_len)
    history = _begin.History(text.expand(num_beams, *text.shape), first)
    fill = request.end if request.end is not None else 0
    tokens = torch.full_like(prompt[..., None, :1], fill)  # (... beams max_len)
    tokens = tokens.expand(*prompt.shape[:-1], num_beams, request.max_len)
    exact = torch.promote_types(logits.dtype, torch.float32)  # sums of many
    scores = torch.full_like(logits[..., 0].movedim(0, -1), -torch.inf, dtype=exact)
    live = torch.where(torch.arange(num_beams, device=scores.device) == 0, 0.0, scores)
    done = Beams(tokens, torch.zeros_like(tokens[..., 0]), scores)
    for turn in range(request.max_len):
        if request.adjust is not None:
            made = tokens[..., :turn].movedim(-2, 0)
            logits = request.adjust(logits, history.with_tokens(0, made).tokens)
        chances = logits.to(exact).log_softmax(-1)
        dead = logits.amax(-1, keepdim=True) == -torch.inf  # where nothing may follow
        chances = torch.where(dead, -torch.inf, chances).movedim(0, -2)
        over_before = live.unsqueeze(-1) == -torch.inf
        chances = torch.where(over_before, -torch.inf, live.unsqueeze(-1) + chances)
        vocab = chances.shape[-1]
        best, index = chances.flatten(-2).topk(min(2 * num_beams, num_beams * vocab))
        beam, token = index // vocab, index % vocab
        texts = _chosen(tokens, beam)
        texts = torch.cat([texts[..., :turn], token.unsqueeze(-1), texts[..., turn + 1 :]], -1)
        if request.end is not None:
            over = token == request.end
            ended = torch.where(over, best / (turn + 1) ** length_penalty, -torch.inf)
            done = _better(done, Beams(texts, torch.full_like(token, turn), ended))
            best = torch.where(over, -torch.inf, best)
        live, order = best.topk(num_beams)
        beam, token = beam.gather(-1, order), token.gather(-1, order)
        tokens = _chosen(texts, order)
        if turn + 1 == request.max_len:
            break
        if request.end is not None and _begin.readable():
            best_left = live[..., 0] / request.max_len**length_penalty
            if bool((done.scores[..., -1] >= best_left).all()):
                break
        rows = beam.movedim(-1, 0)
        cache = cache._replace(
            **{name: _reordered(getattr(cache, name), rows) for name in ("k", "v")},
            position=cache.position.gather(0, rows),
        )
        logits, cache = step(cache, token.movedim(-1, 0), turn + 1)
    unfinished = torch.full_like(tokens[..., 0], request.max_len)
    return _better(done, Beams(tokens, unfinished, live / request.max_len**length_penalty))


def _mapped(f: Callable[[Tensor], Tensor], cache: Cache) -> Cache:
    keys, values, memory_keys, memory_values = (
        [f(x) for x in kept] for kept in (cache.k, cache.v, cache.memory_k, cache.memory_v)
    )
    return Cache(keys, values, f(cache.position), memory_keys, memory_values)


def _reordered(kept: list[Tensor], rows: Tensor) -> list[Tensor]:
    """What the beams (beams ...) were, each as another was."""
    # Whole rows are copied; to gather goes by single numbers, and takes nearly twice as long.
    others = torch.arange(rows[0].numel(), device=rows.device).reshape(rows.shape[1:])
    index = (rows * others.numel() + others).flatten()
    return [x.flatten(0, -4).index_select(0, index).reshape(x.shape) for x in kept]


def _chosen(texts: Tensor, index: Tensor) -> Tensor:
    return texts.gather(-2, index.unsqueeze(-1).expand(*index.shape, texts.shape[-1]))


def _better(a: Beams, b: Beams) -> Beams:
    """As many of both as of the first, best first."""
    scores, order = torch.cat([a.scores, b.scores], -1).topk(a.scores.shape[-1])
    lengths = torch.cat([a.lengths, b.lengths], -1).gather(-1, order)
    return Beams(_chosen(torch.cat([a.tokens, b.tokens], -2), order), lengths, scores)

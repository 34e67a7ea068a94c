"""A token at a time: the likeliest, or one drawn by key."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from tinyfn import _checks, masks, random
from tinyfn.generation import _begin
from tinyfn.generation._adjust import Adjust
from tinyfn.generation._prepare import Prepared
from tinyfn.types import Params

Mask = masks.Mask


class Generated(NamedTuple):
    """New tokens, and how many of them there are before a row's end.

    Example:
        >>> Generated(torch.tensor([3, 0]), torch.tensor(1)).tokens
        tensor([3, 0])
    """

    tokens: Integer[Tensor, "... max_len"]
    lengths: Integer[Tensor, "..."]


def greedy(
    params: Params | Prepared,
    prompt: Integer[Tensor, "... prompt_seq"],
    lengths: Integer[Tensor, "..."] | None = None,
    source: Tensor | None = None,
    source_mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    max_len: int,
    end: int | None = None,
    adjust: Adjust | None = None,
    self_mask: Mask = masks.causal(),
    **options: Any,
) -> Generated:
    """The likeliest token at each step.

    Args:
        params: Of `language_model` or `transformer`, or `prepare` of them.
        prompt: What the text begins with, one token at least; padding goes behind it.
        lengths: How many tokens of each prompt are real; all, if None.
        source: What the encoder of a `transformer` reads: tokens or features.
        source_mask: True where a source position is to be read, in the encoder and by the decoder.
        max_len: How many tokens to add.
        end: The token after which a row is over; it fills what follows.
        adjust: Changes the logits first.
        self_mask: As the model was trained with; a window makes the cache no larger than it.
        options: As the model is called with: position, norm, attend, ...

    Raises:
        ValueError: A size does not fit, or params and source do not.

    Returns:
        The new tokens, and how many come before the end. Where the logits were NaN or
        nothing was allowed the token is -1, and so are all that follow.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> greedy(params, torch.tensor([[1, 2], [3, 4]]), max_len=5).tokens.shape
        torch.Size([2, 5])
    """
    name = "generation.greedy"
    _begin.check_prompt(name, prompt, max_len, end)
    request = _begin.Request(name, params, self_mask, max_len, end, adjust, options)
    return _run(request, prompt, lengths, source, source_mask, None)


def sample(
    params: Params | Prepared,
    prompt: Integer[Tensor, "... prompt_seq"],
    key: Integer[Tensor, "..."],
    lengths: Integer[Tensor, "..."] | None = None,
    source: Tensor | None = None,
    source_mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    max_len: int,
    end: int | None = None,
    adjust: Adjust | None = None,
    self_mask: Mask = masks.causal(),
    **options: Any,
) -> Generated:
    """A token drawn at each step, with the chances that the model gives it.

    Args:
        params: Of `language_model` or `transformer`, or `prepare` of them.
        prompt: What the text begins with, one token at least; padding goes behind it.
        key: Randomness: one key for each prompt, with the prompts' leading axes, which draws the
            same text for a prompt alone; or one, which is split among them.
        lengths: How many tokens of each prompt are real; all, if None.
        source: What the encoder of a `transformer` reads.
        source_mask: True where a source position is to be read.
        max_len: How many tokens to add.
        end: The token after which a row is over.
        adjust: Changes the logits first, such as `chain(temperature(0.8), top_k(40))`.
        self_mask: As the model was trained with.
        options: As the model is called with.

    Raises:
        ValueError: A size does not fit, or params and source do not.
        TypeError: `key` is not an int64 tensor.

    Returns:
        The new tokens, and how many come before the end. Where the logits were NaN or
        nothing was allowed the token is -1, and so are all that follow.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> sample(params, torch.tensor([1, 2]), random.key(1), max_len=5).tokens.shape
        torch.Size([5])
    """
    name = "generation.sample"
    _begin.check_prompt(name, prompt, max_len, end)
    request = _begin.Request(name, params, self_mask, max_len, end, adjust, options)
    return _run(request, prompt, lengths, source, source_mask, _row_keys(name, key, prompt))


def stream(
    params: Params | Prepared,
    prompt: Integer[Tensor, "... prompt_seq"],
    key: Integer[Tensor, "..."] | None = None,
    lengths: Integer[Tensor, "..."] | None = None,
    source: Tensor | None = None,
    source_mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    max_len: int,
    end: int | None = None,
    adjust: Adjust | None = None,
    self_mask: Mask = masks.causal(),
    **options: Any,
) -> Iterator[Integer[Tensor, "..."]]:
    """The tokens of `sample`, or of `greedy` without a key, each as soon as it is there.

    It ends when every row is over.

    Args:
        params: Of `language_model` or `transformer`, or `prepare` of them.
        prompt: What the text begins with; padding goes behind it.
        key: As in `sample`; the likeliest tokens, if None.
        lengths: How many tokens of each prompt are real; all, if None.
        source: What the encoder of a `transformer` reads.
        source_mask: True where a source position is to be read.
        max_len: How many tokens at most.
        end: The token after which a row is over.
        adjust: Changes the logits first.
        self_mask: As the model was trained with.
        options: As the model is called with.

    Raises:
        ValueError: A size does not fit, or params and source do not.
        TypeError: `key` is not an int64 tensor.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> len(list(stream(params, torch.tensor([1, 2]), max_len=5)))
        5
    """
    name = "generation.stream"
    _begin.check_prompt(name, prompt, max_len, end)
    request = _begin.Request(name, params, self_mask, max_len, end, adjust, options)
    keys = None if key is None else _row_keys(name, key, prompt)
    return _steps(request, prompt, lengths, source, source_mask, keys)


def _row_keys(name: str, key: Tensor, prompt: Tensor) -> Tensor:
    """A key for each row: the caller's, or those that one is split into."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        remedy = "Make it with tinyfn.random.key"
        kind = _checks.kind_of(key)
        raise _checks.fail(TypeError, name, "key", "be an int64 tensor", kind, remedy)
    batch = prompt.shape[:-1]
    if key.ndim == 0 and batch:
        return random.split(key, batch.numel()).reshape(batch)
    if key.shape != batch:
        requirement = f"be one, or one for each prompt, {tuple(batch)}"
        remedy = "Make as many with tinyfn.random.split"
        raise _checks.fail(ValueError, name, "key", requirement, _checks.shape(key), remedy)
    return key


def _run(request: _begin.Request, prompt: Tensor, *given: Any) -> Generated:
    tokens, end = list(_steps(request, prompt, *given)), request.end
    # Fewer than were asked for only where every row is over.
    tokens += tokens[-1:] * (request.max_len - len(tokens))
    made = torch.stack(tokens, -1)
    over = (made == -1) if end is None else (made == -1) | (made == end)
    return Generated(made, (over.cumsum(-1) == 0).sum(-1))


def _steps(
    request: _begin.Request,
    prompt: Tensor,
    lengths: Tensor | None,
    source: Tensor | None,
    source_mask: Mask | Tensor | None,
    keys: Tensor | None,
) -> Iterator[Tensor]:
    end = request.end
    with torch.no_grad():
        logits, cache, step = _begin.begin(request, prompt, lengths, source, source_mask)
    history = _begin.History.of(prompt, lengths, request.max_len)
    ended = torch.zeros(prompt.shape[:-1], dtype=torch.bool, device=prompt.device)
    dead = ended  # the rows that have had no token once: those that ended stay at their end
    for turn in range(request.max_len):
        with torch.no_grad():
            if turn:
                logits, cache = step(cache, token, turn)
            if request.adjust is not None:
                logits = request.adjust(logits, history.tokens)
            token = logits.argmax(-1) if keys is None else _drawn(keys, turn, logits)
            dead = dead | ~(logits.amax(-1) > -torch.inf)  # of NaN too
            token = torch.where(dead, -1, token)
            if end is not None:
                token = torch.where(ended, end, token)
                ended = ended | (token == end)
            if request.adjust is not None:
                history = history.with_tokens(turn, token.unsqueeze(-1))
        yield token
        if end is not None and _begin.readable() and bool((ended | dead).all()):
            return


def _drawn(keys: Tensor, turn: int, logits: Tensor) -> Tensor:
    def draw(key: Tensor, row: Tensor) -> Tensor:
        return random.categorical(random.fold_in(key, turn), row)

    for _ in keys.shape:
        draw = torch.vmap(draw)
    return draw(keys.to(logits.device), logits)

"""A token at a time is all at once: the law of caches."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import tinyfn
from tinyfn import masks
from tinyfn._primitives import linear
from tinyfn._transformer import decode, to_logits
from tinyfn.testing import _verdicts
from tinyfn.types import Output, Params


def check_decoding(
    params: Params,
    tokens: Tensor,
    memory: Tensor | None = None,
    self_mask: masks.Mask = masks.causal(),
    cross_mask: masks.Mask | Tensor | None = None,
    *,
    capacity: int | None = None,
    output: Output = linear,
    **options: Any,
) -> None:
    """Every step with a cache gives the logits of one pass over the whole.

    The cache begins empty, and with prompts of every length; a prompt comes whole or in two parts,
    and in a batch of prompts of different lengths.

    Args:
        params: Of `language_model` or `transformer`.
        tokens: Of one text, (seq).
        memory: What the encoder gave for it.
        self_mask: True where a token may look at a token.
        cross_mask: True where a token may look at a memory position.
        capacity: Of the cache; as long as the text if None.
        output: Makes logits of features.
        options: As the model is called with: position, norm, attend, your own functions.

    Raises:
        AssertionError: Some step's logits are others.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> check_decoding(params, torch.tensor([1, 2, 3]))
    """
    seq = tokens.shape[-1]
    capacity = seq if capacity is None else capacity
    shared = {"self_mask": self_mask, "cross_mask": cross_mask, "output": output, **options}
    across = {name: options[name] for name in ("cross_attend",) if name in options}
    x = decode(params, tokens, memory, self_mask, cross_mask, **options)
    expected = to_logits(params, x, output)

    def steps(cache: tinyfn.Cache, first: int, what: str) -> None:
        for at in range(first, seq):
            logits, cache = tinyfn.decode_step(params, cache, tokens[at], **shared)
            _verdicts.same(f"{what}, then token {at}", [logits], [expected[at]])

    def checks() -> Iterator[_verdicts.Check]:
        empty = tinyfn.init_cache(params, memory, cross_mask, capacity=capacity, **across)
        yield "a token at a time", lambda: steps(empty, 0, "nothing")
        for prompt in range(1, seq + 1):
            for middle in range(prompt):

                def whole(prompt: int = prompt, middle: int = middle) -> None:
                    cache, what = empty, f"a prompt of {prompt}, in parts at {middle}"
                    for part in (tokens[:middle], tokens[middle:prompt]):
                        if len(part):
                            logits, cache = tinyfn.prefill(params, cache, part, **shared)
                    _verdicts.same(what, [logits], [expected[prompt - 1]])
                    if middle in (0, prompt // 2):
                        steps(cache, prompt, what)

                yield f"prompt {prompt}, parts at {middle}", whole
        yield "prompts of different lengths", different_lengths

    def different_lengths() -> None:
        lengths = torch.arange(1, seq + 1, device=tokens.device)
        many = None if memory is None else memory.expand(seq, *memory.shape)
        cache = tinyfn.init_cache(
            params, many, cross_mask, capacity=capacity, batch=(seq,), **across
        )
        prompts = tokens.expand(seq, seq)
        logits, cache = tinyfn.prefill(params, cache, prompts, lengths, **shared)
        _verdicts.same("prompts of different lengths", [logits], [expected])
        following = tokens[lengths % seq]
        logits, cache = tinyfn.decode_step(params, cache, following, **shared)
        _verdicts.same("their next tokens", [logits[:-1]], [expected[1:]])

    _verdicts.demand("check_decoding", checks())

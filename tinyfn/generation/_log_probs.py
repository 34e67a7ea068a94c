"""What a text scores: one pass over all of it, which has derivatives."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tinyfn import _checks, masks
from tinyfn._cache import check_self_mask
from tinyfn._primitives import linear
from tinyfn._transformer import decode, to_logits
from tinyfn.generation import _begin
from tinyfn.types import Output, Params

Mask = masks.Mask


def log_probs(
    params: Params,
    prompt: Integer[Tensor, "... prompt_seq"],
    tokens: Integer[Tensor, "... seq"],
    lengths: Integer[Tensor, "..."] | None = None,
    source: Tensor | None = None,
    source_mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    self_mask: Mask = masks.causal(),
    output: Output = linear,
    **options: Any,
) -> Float[Tensor, "... seq"]:
    """The log chance of each token of a text after its prompt, by one pass; differentiable.

    Args:
        params: Of `language_model` or `transformer`.
        prompt: What the text begins with, one token at least; padding goes behind it.
        tokens: The text, such as a `sample`; what follows its end is scored too, and a token
            of -1 gives NaN.
        lengths: How many tokens of each prompt are real; all, if None.
        source: What the encoder of a `transformer` reads.
        source_mask: True where a source position is to be read.
        self_mask: As the model was trained with.
        output: Makes logits of features.
        options: As the model is called with.

    Raises:
        ValueError: The leading axes differ, or params and source do not fit.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> log_probs(params, torch.tensor([1]), torch.tensor([2, 3])).shape
        torch.Size([2])
    """
    name = "generation.log_probs"
    _begin.check_prompt(name, prompt, 1)
    _checks.integers(name, "tokens", tokens)
    _checks.axes(name, "tokens", tokens, "seq")
    if tokens.shape[:-1] != prompt.shape[:-1]:
        requirement = f"have the leading axes of the prompt, {tuple(prompt.shape[:-1])}"
        remedy, actual = "Expand the prompt", _checks.shape(tokens)
        raise _checks.fail(ValueError, name, "tokens", requirement, actual, remedy)
    check_self_mask(name, self_mask, None)
    memory = _begin.memory_of(name, params, source, source_mask, options)
    prompt_seq, seq = prompt.shape[-1], tokens.shape[-1]
    _checks.part(name, params, "decoder", "init_language_model or init_transformer")
    known, tokens = tokens >= 0, tokens.clamp(min=0)
    joined, first = torch.cat([prompt, tokens], -1), prompt_seq
    at = torch.arange(prompt_seq - 1, prompt_seq + seq - 1, device=tokens.device)
    at = at.expand(*tokens.shape)
    if lengths is not None:
        _checks.integers(name, "lengths", lengths)
        first = lengths.clamp(1, prompt_seq).unsqueeze(-1)
        place = torch.arange(joined.shape[-1], device=tokens.device)
        # A row's text follows what is real of its prompt, and padding comes last.
        moved = torch.where(place < first, place, place - first + prompt_seq)
        joined = joined.gather(-1, moved.clamp(max=joined.shape[-1] - 1))
        at = at - prompt_seq + first
    joined = joined[..., :-1]  # nothing follows the last
    x = decode(params, joined, memory, self_mask, source_mask, **options)
    x = x.gather(-2, at.unsqueeze(-1).expand(*at.shape, x.shape[-1]))
    chances = to_logits(params, x, output).log_softmax(-1)
    chances = chances.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if lengths is not None:
        known = known & ((lengths >= 1) & (lengths <= prompt_seq)).unsqueeze(-1)
    return torch.where(known, chances, torch.nan)

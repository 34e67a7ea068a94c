"""What every way to generate begins with: the prompt in a cache, and how a step more is taken."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tinyfn import _checks, _levels, masks
from tinyfn._cache import Cache, Known, check_self_mask, extend, init_cache, model_part, put
from tinyfn._transformer import encode
from tinyfn.generation._adjust import Adjust
from tinyfn.generation._prepare import Prepared, room, with_room
from tinyfn.types import Params

Mask = masks.Mask

Step: TypeAlias = Callable[[Cache, Tensor, int], tuple[Tensor, Cache]]
"""`step(cache, token, turn)`: the logits after one more token, which is the turn-th."""


class Request(NamedTuple):
    """What is asked for, but for the prompt."""

    name: str
    params: Params | Prepared
    self_mask: Mask
    max_len: int
    end: int | None
    adjust: Adjust | None
    options: dict[str, Any]


def begin(
    request: Request,
    prompt: Tensor,
    lengths: Tensor | None,
    source: Tensor | None,
    source_mask: Mask | Tensor | None,
) -> tuple[Tensor, Cache, Step]:
    """The prompt's logits, the cache, and how to take a step more."""
    name, self_mask, options = request.name, request.self_mask, request.options
    owned = readable() and not _levels.forward_mode()  # the cache is nobody else's
    params, prepared = request.params, None
    if isinstance(params, Prepared):
        prepared = params.checked(name) if owned else None
        params = params.params
    check_self_mask(name, self_mask, None)
    _check_source(name, prompt, source, source_mask)
    memory = memory_of(name, params, source, source_mask, options)
    if lengths is not None:
        _checks.integers(name, "lengths", lengths)
    capacity = prompt.shape[-1] + request.max_len - 1
    back, _ = masks.reach(self_mask)
    if back is not None:
        capacity = min(capacity, back + 1)
    across = {"cross_attend": options["cross_attend"]} if "cross_attend" in options else {}
    batch = tuple(prompt.shape[:-1])
    at_first = room(prompt.shape[-1], capacity) if prepared else capacity
    cache = init_cache(params, memory, source_mask, capacity=at_first, batch=batch, **across)
    own = partial(extend, name, params)
    known = Known(fresh=prompt.shape[-1] > 1 or lengths is not None)
    logits, cache = own(cache, prompt, lengths, self_mask, source_mask, known, **options)
    write = partial(put, write=Tensor.index_put_) if owned else put
    even = lengths is None and capacity == prompt.shape[-1] + request.max_len - 1

    def step(cache: Cache, token: Tensor, turn: int) -> tuple[Tensor, Cache]:
        known = Known(write, filled=prompt.shape[-1] + turn if even else None)
        tokens = token.clamp(min=0).unsqueeze(-1)  # a row of NaN has no token
        if prepared is not None:
            cache = with_room(cache, prompt.shape[-1] + turn, capacity)
            return prepared.step(cache, tokens, self_mask, source_mask, options)
        return own(cache, tokens, None, self_mask, source_mask, known, **options)

    return logits, cache, step


def memory_of(
    name: str,
    params: Params,
    source: Tensor | None,
    source_mask: Mask | Tensor | None,
    options: dict[str, Any],
) -> Tensor | None:
    """What the encoder makes of the source."""
    model_part(name, params, "decoder")
    if ("encoder" in params) != (source is not None):
        there = "with" if "encoder" in params else "without"
        requirement = "be given where the params have an encoder, and only there"
        actual = f"{'no source' if source is None else 'a source'} for params {there} one"
        remedy = "Pass what the encoder is to read, or params of the other model"
        raise _checks.fail(ValueError, name, "source", requirement, actual, remedy)
    if source is None:
        return None
    own = {
        name: option for name, option in options.items() if name not in ("cross_attend", "output")
    }
    return encode(params, source, source_mask, **own)


def _check_source(
    name: str, prompt: Tensor, source: Tensor | None, source_mask: Mask | Tensor | None
) -> None:
    if source is None:
        if source_mask is not None:
            remedy = "Prompts of different lengths come with lengths"
            requirement, actual = "come with a source", "none"
            raise _checks.fail(ValueError, name, "source_mask", requirement, actual, remedy)
        return
    batch = source.shape[:-2] if source.is_floating_point() else source.shape[:-1]
    if batch != prompt.shape[:-1]:
        requirement = f"have the leading axes of the prompt, {tuple(prompt.shape[:-1])}"
        remedy = "Give every source a prompt, and every prompt a source"
        raise _checks.fail(ValueError, name, "source", requirement, tuple(batch), remedy)


def readable() -> bool:
    """Whether a branch may look at values: no transform is live, and nothing is traced."""
    return not torch.compiler.is_compiling() and not _levels.transformed()


def check_prompt(name: str, prompt: Tensor, max_len: int, end: int | None = None) -> None:
    """A prompt, a length and an end that make sense."""
    _checks.integers(name, "prompt", prompt)
    _checks.axes(name, "prompt", prompt, "prompt_seq")
    if not prompt.shape[-1]:
        remedy = "Begin with a token that says so"
        actual = _checks.shape(prompt)
        raise _checks.fail(ValueError, name, "prompt", "have a token", actual, remedy)
    _checks.at_least(name, "max_len", max_len)
    if end is not None:
        _checks.at_least(name, "end", end, least=0)


class History(NamedTuple):
    """The tokens so far, in a tensor that does not grow: -1 behind each row's last."""

    tokens: Tensor
    first: Tensor  # where each row's first new token stands

    @classmethod
    def of(cls, prompt: Tensor, lengths: Tensor | None, max_len: int) -> "History":
        """The prompts, and room for more."""
        seq = prompt.shape[-1]
        first = torch.full_like(prompt[..., 0], seq) if lengths is None else lengths.clamp(0, seq)
        real = torch.arange(seq, device=prompt.device) < first.unsqueeze(-1)
        room = torch.full_like(prompt[..., :1], -1).expand(*prompt.shape[:-1], max_len)
        return cls(torch.cat([torch.where(real, prompt, -1), room], -1), first)

    def with_tokens(self, turn: int, tokens: Tensor) -> "History":
        """With more, (... new), the first of them of this turn."""
        count = torch.arange(turn, turn + tokens.shape[-1], device=tokens.device)
        at = (self.first.unsqueeze(-1) + count).expand(tokens.shape)
        return self._replace(tokens=self.tokens.scatter(-1, at, tokens))

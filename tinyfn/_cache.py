"""A decoder run a token at a time: what its layers have seen, as a value.

    prefill       logits after a prompt, and the cache with its keys and values
    decode_step   the same for one token more, which looks at what was kept

Each function takes a cache and gives another. A cache holds a fixed number of positions, its
capacity; the token at position p lies in slot p modulo the capacity. So a mask that looks back less
far than the capacity (`masks.window`) lets it run on for ever, as a ring, and any other mask fills
it: logits of what no longer fits are NaN.

The params are those of `language_model` or of `transformer`, and the options those that it is
called with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tinyfn import _checks, masks, positions
from tinyfn._attend import dot_product_attention
from tinyfn._attention import contain_hidden, split_heads
from tinyfn._layers import decoder_layer
from tinyfn._primitives import layer_norm, linear, scaled_embedding
from tinyfn._transformer import enter, layers_of, to_logits
from tinyfn.types import Attend, Embed, Norm, Output, Params, Position

Mask = masks.Mask


class Cache(NamedTuple):
    """Keys and values of each layer, and how many positions each example has taken.

    Made by `init_cache`. Every leading axis is the batch's, so `torch.vmap` maps a cache, and
    `torch.compile` sees the same shapes at every step.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=2, vocab_size=10)
        >>> cache = init_cache(params, capacity=5)
        >>> len(cache.k), cache.k[0].shape, cache.position
        (2, torch.Size([2, 5, 4]), tensor(0))
    """

    k: list[Float[Tensor, "... kv_heads capacity head_dim"]]
    """A layer's keys, as its attend keeps them (rotary ones have turned)."""

    v: list[Float[Tensor, "... kv_heads capacity v_dim"]]
    """A layer's values."""

    position: Integer[Tensor, "..."]
    """How many positions were taken: that of the next token."""

    memory_k: list[Float[Tensor, "... kv_heads memory_seq head_dim"]]
    """A layer's keys of the memory; none for a model without."""

    memory_v: list[Float[Tensor, "... kv_heads memory_seq v_dim"]]
    """A layer's values of the memory."""


def init_cache(
    params: Params,
    memory: Float[Tensor, "... memory_seq memory_features"] | None = None,
    cross_mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    capacity: int,
    batch: tuple[int, ...] = (),
    cross_attend: Attend = dot_product_attention,
) -> Cache:
    """A cache that holds nothing yet, but for the keys and values of a memory.

    Args:
        params: Of `language_model` or `transformer`.
        memory: What the encoder gave; its leading axes are the cache's.
        cross_mask: True where a target position may look at a memory position; each step has to
            be given it too.
        capacity: How many positions it can hold. One more than a sliding window looks back is
            enough for any length.
        batch: The leading axes, where there is no memory that says them.
        cross_attend: What the heads of the cross-attentions do.

    Raises:
        ValueError: `capacity` is below 1, or `memory` does not have the features of the params.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> init_cache(params, capacity=100, batch=(3,)).k[0].shape
        torch.Size([3, 2, 100, 4])
    """
    name = "init_cache"
    _checks.at_least(name, "capacity", capacity)
    if not isinstance(batch, tuple):
        kind, remedy = _checks.kind_of(batch), "Write (3,) for one axis"
        raise _checks.fail(TypeError, name, "batch", "be a tuple of sizes", kind, remedy)
    if memory is not None:
        _checks.floating(name, "memory", memory)
        _checks.axes(name, "memory", memory, "seq", "features")
        batch = tuple(memory.shape[:-2])
    cache = Cache([], [], torch.zeros(()), [], [])
    device = None
    for layer in _layers(name, params):
        own = model_part(name, layer, "self_attention")
        for kept, proj in ((cache.k, "k_proj"), (cache.v, "v_proj")):
            weight = model_part(name, model_part(name, own, proj), "weight")
            device = weight.device
            heads, width, _ = weight.shape
            kept.append(weight.new_zeros(*batch, heads, capacity, width))
        if memory is not None:
            across = model_part(name, layer, "cross_attention")
            # Of the queries only their number matters: enough of them that a rule's last is there.
            heads, rows = across["q_proj"]["weight"].shape[0], capacity + memory.shape[-2]
            queries = memory.new_zeros(()).expand(*batch, heads, rows, 1)
            k, v = contain_hidden(cross_mask, queries, memory, memory)
            k = positions.kept(cross_attend, split_heads(across, "k_proj", k), 0)
            cache.memory_k.append(k)
            cache.memory_v.append(split_heads(across, "v_proj", v))
    return cache._replace(position=torch.zeros(batch, dtype=torch.int64, device=device))


def _layers(function: str, params: Params) -> list[Params]:
    return layers_of(function, model_part(function, params, "decoder"), _MAKERS)


def model_part(function: str, params: Params, name: str) -> Any:
    """A part of a model's params, or an error that names what makes them.

    Example:
        >>> list(model_part("decode_step", {"decoder": {"layers": []}}, "decoder"))
        ['layers']
    """
    return _checks.part(function, params, name, _MAKERS)


_MAKERS = "init_language_model or init_transformer"


def prefill(
    params: Params,
    cache: Cache,
    tokens: Integer[Tensor, "... seq"] | Float[Tensor, "... seq in_features"],
    lengths: Integer[Tensor, "..."] | None = None,
    self_mask: Mask = masks.causal(),
    cross_mask: Mask | Bool[Tensor, "..."] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "... vocab"], Cache]:
    """Logits of what follows the last token, and the cache with all of them taken.

    It may be called again and again: each call goes on where the last one ended.

    Args:
        params: Of `language_model` or `transformer`.
        cache: From `init_cache`, or as an earlier call left it.
        tokens: Token ids, or features; padding goes behind them.
        lengths: How many are real, for each example; all, if None.
        self_mask: True where a token may look at a token, by rules over positions; none ahead.
        cross_mask: True where a token may look at a memory position.
        options: As `language_model` or `transformer` was called with.

    Raises:
        ValueError: `tokens` without `lengths` are longer than the capacity and `self_mask` has no
            limit back, their leading axes are not the cache's, or a mask does not fit.
        TypeError: `self_mask` is not of `tinyfn.masks`, or holds a tensor of a size.

    Returns:
        The logits (NaN where the cache is too full, and where `lengths` are not in [1, seq]) and
        the cache.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> cache = init_cache(params, capacity=5)
        >>> logits, cache = prefill(params, cache, torch.tensor([1, 2, 3]))
        >>> logits.shape, cache.position
        (torch.Size([10]), tensor(3))
    """
    return extend("prefill", params, cache, tokens, lengths, self_mask, cross_mask, **options)


def decode_step(
    params: Params,
    cache: Cache,
    token: Integer[Tensor, "..."] | Float[Tensor, "... in_features"],
    self_mask: Mask = masks.causal(),
    cross_mask: Mask | Bool[Tensor, "..."] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "... vocab"], Cache]:
    """Logits of what follows one token more, and the cache with it taken.

    Args:
        params: Of `language_model` or `transformer`.
        cache: What came before.
        token: One for each example.
        self_mask: True where a token may look at a token, by rules over positions; none ahead.
        cross_mask: True where a token may look at a memory position.
        options: As `language_model` or `transformer` was called with.

    Raises:
        ValueError: The leading axes are not the cache's, or a mask does not fit.
        TypeError: `self_mask` is not of `tinyfn.masks`.

    Returns:
        The logits, NaN where the cache is full and `self_mask` has no limit back, and the cache.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> logits, cache = decode_step(params, init_cache(params, capacity=5), torch.tensor(1))
        >>> logits.shape, cache.position
        (torch.Size([10]), tensor(1))
    """
    if not isinstance(token, Tensor):
        remedy = "Make one with torch.tensor"
        kind = _checks.kind_of(token)
        raise _checks.fail(TypeError, "decode_step", "token", "be a tensor", kind, remedy)
    if token.is_floating_point():
        _checks.axes("decode_step", "token", token, "features")
    tokens = token.unsqueeze(-2 if token.is_floating_point() else -1)
    return extend("decode_step", params, cache, tokens, None, self_mask, cross_mask, **options)


def put(
    kept: Tensor,
    index: tuple[Tensor, ...],
    new: Tensor,
    write: Callable[..., Tensor] = Tensor.index_put,
) -> Tensor:
    """What is kept with one position more: another tensor, or itself by `Tensor.index_put_`.

    A compiler writes into what is there by `index_put_`, and copies all of it for a scatter.

    Example:
        >>> put(torch.zeros(1, 3, 1), (torch.tensor([1]),), torch.ones(1, 1, 1)).flatten()
        tensor([0., 1., 0.])
    """
    heads = torch.arange(kept.shape[-3], device=kept.device)
    return write(kept, (*index[:-1], heads, index[-1]), new.squeeze(-2).to(kept.dtype))


_NOWHERE = 2**40  # the position of a row whose lengths made no sense: from there on all is NaN


class Known(NamedTuple):
    """What a caller may know of the cache that it extends."""

    write: Callable[[Tensor, tuple[Tensor, ...], Tensor], Tensor] = put
    """How a position is written."""

    fresh: bool = False
    """Whether it holds nothing yet."""

    filled: int | None = None
    """How many slots every row fills with the one token that comes."""


_UNKNOWN = Known()


def extend(
    name: str,
    params: Params,
    cache: Cache,
    tokens: Tensor,
    lengths: Tensor | None,
    self_mask: Mask,
    cross_mask: Mask | Tensor | None,
    known: Known = _UNKNOWN,
    /,
    *,
    position: Position | None = positions.add_sinusoidal,
    embed: Embed = scaled_embedding,
    output: Output = linear,
    attend: Attend = dot_product_attention,
    cross_attend: Attend = dot_product_attention,
    norm: Norm = layer_norm,
    remat: bool = False,
    **layer: Any,
) -> tuple[Tensor, Cache]:
    """`prefill` and `decode_step`, for a caller who may know more of the cache.

    `remat`, an option of the models, has nothing to do here.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> tokens, cache = torch.tensor([1, 2]), init_cache(params, capacity=5)
        >>> extend("prefill", params, cache, tokens, None, masks.causal(), None)[0].shape
        torch.Size([10])
    """
    layers, stack = _layers(name, params), params["decoder"]
    seq = _check_tokens(name, cache, tokens)
    if len(cache.k) != len(layers):
        actual, remedy = len(cache.k), "Make it with init_cache of the same params"
        requirement = f"have keys for each of {len(layers)} layers"
        raise _checks.fail(ValueError, name, "cache", requirement, actual, remedy)
    for layer_params, k in zip(layers, cache.k, strict=True):
        heads, width, _ = model_part(name, layer_params, "self_attention")["k_proj"]["weight"].shape
        if (k.shape[-3], k.shape[-1]) != (heads, width):
            remedy = "Make it with init_cache of the same params"
            requirement = f"have (kv_heads, head_dim) = {(heads, width)}"
            actual = (k.shape[-3], k.shape[-1])
            raise _checks.fail(ValueError, name, "cache", requirement, actual, remedy)
    capacity = cache.k[0].shape[-2] if cache.k else None
    endless = check_self_mask(name, self_mask, capacity)
    if lengths is not None:
        _check_lengths(name, cache, lengths)
    elif capacity is not None and seq > capacity and not endless:
        remedy = "Give init_cache a larger capacity, or a window to the mask"
        requirement = f"be within the capacity, {capacity}"
        raise _checks.fail(ValueError, name, "tokens", requirement, seq, remedy)
    x = tokens
    if "embedding" in params and not x.is_floating_point():
        x = embed(params["embedding"], x)
    before = cache.position
    join = None if position is None else partial(position, offset=before)
    x = enter(name, stack, x, join, embed)
    place = _Place.of(cache, capacity, seq, lengths, self_mask, known)
    look_back = positions.over_kept(attend, before, place.kv_at)
    if cache.memory_k:
        memory_at = torch.arange(cache.memory_k[0].shape[-2], device=before.device)
        cross_mask = _cross_mask(name, cross_mask, place.at, memory_at)
        look_across = positions.over_kept(cross_attend, before, memory_at)
    keys, values = [], []
    for index, layer_params in enumerate(layers):
        kept = (cache.k[index], cache.v[index])

        def look(*args: Any, kept: Any = kept, **heads: Any) -> Tensor:
            *own, q, k, v, _, key, bias = args
            k = positions.kept(attend, k, before)
            (k, v), new_kept = place.keep(known.write, kept, (k, v))
            keys.append(new_kept[0])
            values.append(new_kept[1])
            return look_back(*own, q, k, v, place.mask, key, bias, **heads)

        memory, read = None, cross_attend
        if cache.memory_k:
            width = model_part(name, layer_params, "cross_attention")["k_proj"]["weight"].shape[-1]
            memory = x.new_zeros(*x.shape[:-2], 0, width)  # which costs nothing to project
            read = _reading(look_across, cache.memory_k[index], cache.memory_v[index], cross_mask)
        options = {"attend": look, "cross_attend": read, "norm": norm}
        x = decoder_layer(layer_params, x, memory, None, None, **options, **layer)
    after = before + seq
    if lengths is not None:
        sensible = (lengths >= 0) & (lengths <= seq)
        after = torch.where(sensible, before + lengths, _NOWHERE)
    if seq > 1:
        last = (after - before - 1).clamp(0, seq - 1)[..., None, None]
        x = x.gather(-2, last.expand(*x.shape[:-2], 1, x.shape[-1]))
    x = norm(stack["final_norm"], x) if "final_norm" in stack else x
    logits = to_logits(params, x, output).squeeze(-2)
    wrong = after > (_NOWHERE - 1 if endless or capacity is None else capacity)
    if lengths is not None:
        wrong = wrong | (lengths < 1)
    logits = torch.where(wrong.unsqueeze(-1), torch.nan, logits)
    return logits, Cache(keys, values, after, cache.memory_k, cache.memory_v)


def _check_tokens(name: str, cache: Cache, tokens: Tensor) -> int:
    """How many positions the tokens have."""
    if not isinstance(tokens, Tensor):
        remedy = "Make one with torch.tensor"
        kind = _checks.kind_of(tokens)
        raise _checks.fail(TypeError, name, "tokens", "be a tensor", kind, remedy)
    features = tokens.is_floating_point()
    _checks.axes(name, "tokens", tokens, *(("seq", "features") if features else ("seq",)))
    batch = tokens.shape[:-2] if features else tokens.shape[:-1]
    seq = tokens.shape[-2] if features else tokens.shape[-1]
    if batch != cache.position.shape:
        raise _checks.fail(
            ValueError,
            name,
            "token" if name == "decode_step" else "tokens",
            f"have the leading axes of the cache, {tuple(cache.position.shape)}",
            tuple(batch),
            "Give them to init_cache as batch",
        )
    _checks.at_least(name, "the length of tokens", seq)
    return seq


def _check_lengths(name: str, cache: Cache, lengths: Tensor) -> None:
    _checks.integers(name, "lengths", lengths)
    if lengths.shape != cache.position.shape:
        requirement = f"have one number for each example, {tuple(cache.position.shape)}"
        remedy = "Give the cache and the lengths the same leading axes"
        actual = _checks.shape(lengths)
        raise _checks.fail(ValueError, name, "lengths", requirement, actual, remedy)


def check_self_mask(name: str, mask: Mask, capacity: int | None) -> bool:
    """Whether what the mask shows always fits, in a ring; an error if a cache cannot follow it."""
    if not isinstance(mask, Mask) or not masks.by_rule(mask):
        raise _checks.fail(
            TypeError,
            name,
            "self_mask",
            "be a mask of tinyfn.masks, whose rule says who sees whom at any position",
            mask if isinstance(mask, Mask) else _checks.kind_of(mask),
            "Use masks.causal(), with & masks.window(...) or others, but no tensor of a size",
        )
    back, ahead = masks.reach(mask)
    if ahead is None or ahead > 0:
        requirement = "hide what comes later, which is not there yet"
        remedy = "Combine it with & masks.causal()"
        raise _checks.fail(ValueError, name, "self_mask", requirement, mask, remedy)
    return back is not None and capacity is not None and back < capacity


class _Place(NamedTuple):
    """Where new tokens stand, where they are kept, and what they see: the same for every layer."""

    at: Tensor  # (... seq)
    kv_at: Tensor  # (... kv_seq), of what is looked at
    mask: Mask | None
    to: tuple[Tensor, ...] | Tensor  # one token's index, or what fills each slot (... capacity)

    @classmethod
    def of(
        cls,
        cache: Cache,
        capacity: int | None,
        seq: int,
        lengths: Tensor | None,
        self_mask: Mask,
        known: Known,
    ) -> "_Place":
        before = cache.position.unsqueeze(-1)
        slots = torch.arange(capacity or 1, device=before.device)
        at = before + torch.arange(seq, device=before.device)
        if seq == 1 and lengths is None:
            index = _index(cache.position % slots.shape[0])
            if known.filled is not None and masks.split_causal(self_mask) == (True, None):
                slots = slots[: known.filled]
                return cls(at, slots.expand(*cache.position.shape, known.filled), None, index)
            kv_at = _held(at, slots)
            visible = masks.between(self_mask, at, kv_at) & (kv_at >= 0).unsqueeze(-2)
            seen = masks.sees_itself(self_mask)  # so no key was hidden from every query
            mask = masks.shown(visible) if seen else masks.dense(visible)
            return cls(at, kv_at, mask, index)
        real = seq if lengths is None else lengths.clamp(0, seq).unsqueeze(-1)
        new_at = _held(before + real - 1, slots)
        source = torch.where(new_at >= before, slots.shape[0] + new_at - before, slots)
        if known.fresh:  # the rule's own positions, which a kernel may know
            mask = self_mask if lengths is None else self_mask & masks.padding(lengths)
            return cls(at, at, mask, source)
        old_at = _held(before - 1, slots)
        kv_at = torch.cat([old_at, at], -1)
        there = torch.cat([old_at >= 0, (at - before < real).expand_as(at)], -1)
        visible = masks.between(self_mask, at, kv_at) & there.unsqueeze(-2)
        return cls(at, kv_at, masks.dense(visible), source)

    def keep(
        self,
        write: Callable[[Tensor, tuple[Tensor, ...], Tensor], Tensor],
        kept: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values to look at, and those to keep."""
        if isinstance(self.to, tuple):
            written = tuple(write(x, self.to, y) for x, y in zip(kept, new, strict=True))
            filled = self.kv_at.shape[-1]
            return _read(written, new, filled), written
        joined = tuple(torch.cat([x, y.to(x.dtype)], -2) for x, y in zip(kept, new, strict=True))
        source = self.to[..., None, :, None]
        shapes = ((*x.shape[:-2], source.shape[-2], x.shape[-1]) for x in joined)
        moved = (x.gather(-2, source.expand(s)) for x, s in zip(joined, shapes, strict=True))
        fresh = self.kv_at.shape[-1] == new[0].shape[-2]
        return (new if fresh else _read(joined, new, None)), tuple(moved)


def _index(slot: Tensor) -> tuple[Tensor, ...]:
    """Of a slot of each example, (batch 1), as numbers along each axis but the heads'."""
    rows = (torch.arange(size, device=slot.device) for size in slot.shape)
    shaped = (x.reshape(-1, *(1,) * (slot.ndim - axis)) for axis, x in enumerate(rows))
    return (*shaped, slot.unsqueeze(-1))


def _read(kept: tuple[Tensor, ...], new: tuple[Tensor, ...], filled: int | None) -> tuple:
    """What is looked at: the slots that hold something, in the dtype that autocast gives."""
    return tuple(x[..., :filled, :].to(y.dtype) for x, y in zip(kept, new, strict=True))


def _held(last: Tensor, slots: Tensor) -> Tensor:
    """The position that each slot holds where (... 1) is the newest; below 0 where none."""
    # Divided here and not for each slot: a compiler would divide for each head again.
    newest = last % slots.shape[0]
    return last - newest + torch.where(slots > newest, slots - slots.shape[0], slots)


def _cross_mask(
    name: str, mask: Mask | Tensor | None, at: Tensor, memory_at: Tensor
) -> Mask | Tensor | None:
    if not isinstance(mask, Mask):
        if isinstance(mask, Tensor) and mask.ndim > 1 and mask.shape[-2] != 1:
            requirement = "say the same for every query, as (..., 1, kv_seq)"
            remedy = "Use a mask of tinyfn.masks, whose rule knows any position"
            actual = _checks.shape(mask)
            raise _checks.fail(ValueError, name, "cross_mask", requirement, actual, remedy)
        return mask
    return masks.dense(masks.between(mask, at, memory_at))


def _reading(attend: Attend, k: Tensor, v: Tensor, mask: Mask | Tensor | None) -> Attend:
    """An attend that reads what was kept, whatever keys and values it is given."""

    def read(*args: Any, **heads: Any) -> Tensor:
        *own, q, _, _, _, key, bias = args
        return attend(*own, q, k, v, mask, key, bias, **heads)

    return read

"""Models of the next token, and the cache with which they are run a token at a time.

    language_model   logits = linear(decoder(tokens)), what comes next at every position
    prefill          the same for a prompt, keeping each layer's keys and values in a cache
    decode_step      the same for one token more, which looks at what was kept

A cache is a value: each function takes one and gives another. It holds a fixed number of positions,
its capacity; the token at position p lies in slot p modulo the capacity. So a mask that looks back
less far than the capacity (`masks.window`) lets it run on for ever, as a ring, and any other mask
fills it: logits of what no longer fits are NaN.

`prefill` and `decode_step` take params of `language_model` and of `transformer`, and the options
that those are called with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tinyfn import _checks, masks, positions, random
from tinyfn._attend import dot_product_attention
from tinyfn._attention import contain_hidden, split_heads
from tinyfn._layers import decoder_layer
from tinyfn._primitives import init_linear, layer_norm, scaled_embedding
from tinyfn._transformer import decoder, enter, init_decoder, to_logits
from tinyfn.types import Attend, Embed, Key, Norm, Params, Position

Mask = masks.Mask


def init_language_model(
    key: Key,
    num_features: int,
    num_heads: int,
    dim_feedforward: int,
    num_layers: int,
    vocab_size: int,
    *,
    tie_embeddings: bool = False,
    embedding_features: int | None = None,
    init_position: Callable[..., Params] | None = None,
    final_norm: bool = False,
    **layer: Any,
) -> Params:
    """Params of `language_model`: `decoder`, and `linear` unless the output is tied.

    They are those of a `transformer` that has no encoder.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis within the stack.
        num_heads: How many heads look.
        dim_feedforward: Size of the hidden layers.
        num_layers: How many layers.
        vocab_size: How many tokens there are, in and out.
        tie_embeddings: Whether the embedding is the output matrix.
        embedding_features: Width of an embedding; num_features if None.
        init_position: For learned positions: a function of a key.
        final_norm: Whether a norm follows the last layer, as pre-norm needs.
        layer: For `init_decoder_layer`: num_kv_heads, init_norm, init_feed_forward, bias, ...

    Raises:
        ValueError: A size is below 1, heads do not divide, or a tied embedding has another width.

    Example:
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> list(params), list(params["decoder"])
        (['decoder', 'linear'], ['embedding', 'layers'])
    """
    name = "init_language_model"
    _checks.sizes(name, vocab_size=vocab_size, num_features=num_features)
    if tie_embeddings and embedding_features not in (None, num_features):
        raise _checks.fail(
            ValueError,
            name,
            "embedding_features",
            f"be num_features={num_features} where the output is tied",
            embedding_features,
            "Leave embedding_features or tie_embeddings out",
        )
    decoder_key, linear_key = random.split(key)
    params = {
        "decoder": init_decoder(
            decoder_key,
            num_features,
            num_heads,
            dim_feedforward,
            num_layers,
            vocab_size=vocab_size,
            embedding_features=embedding_features,
            init_position=init_position,
            final_norm=final_norm,
            cross_attention=False,
            **layer,
        )
    }
    if not tie_embeddings:
        options = ("dtype", "device", "bias", "weight_init", "bias_init")
        made = {option: layer[option] for option in options if option in layer}
        params["linear"] = init_linear(linear_key, num_features, vocab_size, **made)
    return params


def language_model(
    params: Params,
    tokens: Integer[Tensor, "... seq"],
    mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
    key: Key | None = None,
    *,
    position: Position | None = positions.add_sinusoidal,
    **options: Any,
) -> Float[Tensor, "... seq vocab"]:
    """Logits of what follows each token, given those before it.

    GPT's parts and Llama's are passed to it: norm, norm_first, activation, feed_forward, position,
    and attend, such as `positions.rotary(dot_product_attention)`.

    Args:
        params: From `init_language_model`. Without a `linear` the embedding is the output matrix.
        tokens: Token ids; padding goes behind them, where a causal mask hides it.
        mask: True where a token may look at a token.
        key: Randomness for dropout; without it nothing is dropped.
        position: Joins positions to the features; None leaves them out.
        options: As in `decoder`: embed, norm, activation, norm_first, dropout_p, attend, remat, ...

    Raises:
        ValueError: `mask` does not fit, or the params are of another function.
        TypeError: `mask` is not bool.

    Example:
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> language_model(params, torch.tensor([1, 2, 3])).shape
        torch.Size([3, 10])

    Reference: Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018.
    """
    stack = _checks.part("language_model", params, "decoder")
    x = decoder(stack, tokens, None, mask, None, key, position=position, **options)
    return to_logits(params, x)


class Cache(NamedTuple):
    """Keys and values of each layer, and how many positions each example has taken.

    Made by `init_cache`. Every leading axis is the batch's, so `torch.vmap` maps a cache, and
    `torch.compile` sees the same shapes at every step.

    Example:
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
        cross_mask: True where a target position may look at a memory position.
        capacity: How many positions it can hold. One more than a sliding window looks back is
            enough for any length.
        batch: The leading axes, where there is no memory that says them.
        cross_attend: What the heads of the cross-attentions do.

    Raises:
        ValueError: `capacity` is below 1, or `memory` does not have the features of the params.

    Example:
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> init_cache(params, capacity=100, batch=(3,)).k[0].shape
        torch.Size([3, 2, 100, 4])
    """
    name = "init_cache"
    _checks.at_least(name, "capacity", capacity)
    if memory is not None:
        _checks.floating(name, "memory", memory)
        _checks.axes(name, "memory", memory, "seq", "features")
        batch = tuple(memory.shape[:-2])
    cache = Cache([], [], torch.zeros(()), [], [])
    device = None
    for layer in _layers(name, params):
        own = _checks.part(name, layer, "self_attention")
        for kept, proj in ((cache.k, "k_proj"), (cache.v, "v_proj")):
            weight = own[proj]["weight"]
            device = weight.device
            heads, width, _ = weight.shape
            kept.append(weight.new_zeros(*batch, heads, capacity, width))
        if memory is not None:
            across = _checks.part(name, layer, "cross_attention")
            # Of the queries only their number matters: enough of them that a rule's last is there.
            heads, rows = across["q_proj"]["weight"].shape[0], capacity + memory.shape[-2]
            queries = memory.new_zeros(()).expand(*batch, heads, rows, 1)
            k, v = contain_hidden(cross_mask, queries, memory, memory)
            k = positions.kept(cross_attend, split_heads(across, "k_proj", k), 0)
            cache.memory_k.append(k)
            cache.memory_v.append(split_heads(across, "v_proj", v))
    return cache._replace(position=torch.zeros(batch, dtype=torch.int64, device=device))


def _layers(function: str, params: Params) -> list[Params]:
    return _checks.part(function, _checks.part(function, params, "decoder"), "layers")


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
        ValueError: `tokens` are longer than the capacity and `self_mask` has no limit back, their
            leading axes are not the cache's, or a mask does not fit.
        TypeError: `self_mask` is not of `tinyfn.masks`.

    Returns:
        The logits (NaN where the cache is too full, or `lengths` 0) and the cache.

    Example:
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
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> logits, cache = decode_step(params, init_cache(params, capacity=5), torch.tensor(1))
        >>> logits.shape, cache.position
        (torch.Size([10]), tensor(1))
    """
    if not isinstance(token, Tensor):
        remedy = "Make one with torch.tensor"
        kind = _checks.kind_of(token)
        raise _checks.fail(TypeError, "decode_step", "token", "be a tensor", kind, remedy)
    tokens = token.unsqueeze(-2 if token.is_floating_point() else -1)
    return extend("decode_step", params, cache, tokens, None, self_mask, cross_mask, **options)


def put(kept: Tensor, slot: Tensor, new: Tensor) -> Tensor:
    """What is kept with one position more, as another tensor.

    Example:
        >>> put(torch.zeros(1, 3, 1), torch.tensor(1), torch.ones(1, 1, 1)).flatten()
        tensor([0., 1., 0.])
    """
    index = slot.reshape(*slot.shape, 1, 1, 1).expand(new.shape)
    return kept.scatter(-2, index, new.to(kept.dtype))


def extend(
    name: str,
    params: Params,
    cache: Cache,
    tokens: Tensor,
    lengths: Tensor | None,
    self_mask: Mask | None,
    cross_mask: Mask | Tensor | None,
    *,
    position: Position | None = positions.add_sinusoidal,
    embed: Embed = scaled_embedding,
    attend: Attend = dot_product_attention,
    cross_attend: Attend = dot_product_attention,
    norm: Norm = layer_norm,
    write: Callable[[Tensor, Tensor, Tensor], Tensor] = put,
    fresh: bool = False,
    filled: int | None = None,
    **layer: Any,
) -> tuple[Tensor, Cache]:
    """`prefill` and `decode_step`, for a caller who knows more of the cache.

    That is another way to write, that it is `fresh` and holds nothing, or, of a single token, that
    every row then fills as many slots as `filled`.

    Example:
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> tokens, cache = torch.tensor([1, 2]), init_cache(params, capacity=5)
        >>> extend("prefill", params, cache, tokens, None, masks.causal(), None)[0].shape
        torch.Size([10])
    """
    layers, stack = _layers(name, params), params["decoder"]
    seq = _check_tokens(name, cache, tokens)
    capacity = cache.k[0].shape[-2] if cache.k else None
    self_mask, endless = _check_self_mask(name, self_mask, capacity)
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
    x = enter(name, stack, x, None, join, embed, 0.0)
    place = _Place.of(cache, capacity, seq, lengths, self_mask, fresh, filled)
    across = None
    if cache.memory_k:
        memory_seq = cache.memory_k[0].shape[-2]
        across = cross_attend, _cross_mask(name, cross_mask, place.at, memory_seq)
    keys, values = [], []
    for index, layer_params in enumerate(layers):
        kept = (cache.k[index], cache.v[index])

        def look(*args: Any, kept: Any = kept, **heads: Any) -> Tensor:
            *own, q, k, v, _, key, bias = args
            k = positions.kept(attend, k, before)
            (k, v), new_kept = place.keep(write, kept, (k, v))
            keys.append(new_kept[0])
            values.append(new_kept[1])
            moved = positions.over_kept(attend, before, place.kv_at)
            return moved(*own, q, k, v, place.mask, key, bias, **heads)

        memory, read = None, cross_attend
        if across is not None:
            memory, read = _reading(layer_params, x, cache, index, across, before)
        options = {"attend": look, "cross_attend": read, "norm": norm}
        x = decoder_layer(layer_params, x, memory, None, None, **options, **layer)
    after = before + (seq if lengths is None else lengths)
    if seq > 1:
        last = (after - before - 1).clamp(min=0)[..., None, None]
        x = x.gather(-2, last.expand(*x.shape[:-2], 1, x.shape[-1]))
    x = norm(stack["final_norm"], x) if "final_norm" in stack else x
    logits = to_logits(params, x).squeeze(-2)
    wrong = None if lengths is None else lengths < 1
    if not endless and capacity is not None:
        full = after > capacity
        wrong = full if wrong is None else wrong | full
    if wrong is not None:
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
            "tokens",
            f"have the leading axes of the cache, {tuple(cache.position.shape)}",
            _checks.shape(tokens),
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


def _check_self_mask(name: str, mask: Mask | None, capacity: int | None) -> tuple[Mask, bool]:
    """The mask, and whether what it shows always fits: a ring."""
    if not isinstance(mask, Mask):
        raise _checks.fail(
            TypeError,
            name,
            "self_mask",
            "be a mask of tinyfn.masks, whose rule says who sees whom at any position",
            _checks.kind_of(mask),
            "Use masks.causal(), with & masks.window(...) or others",
        )
    back, ahead = masks.reach(mask)
    if ahead is None or ahead > 0:
        requirement = "hide what comes later, which is not there yet"
        remedy = "Combine it with & masks.causal()"
        raise _checks.fail(ValueError, name, "self_mask", requirement, mask, remedy)
    return mask, back is not None and capacity is not None and back < capacity


class _Place(NamedTuple):
    """Where new tokens stand, where they are kept, and what they see: the same for every layer."""

    at: Tensor  # (... seq)
    kv_at: Tensor  # (... kv_seq), of what is looked at
    mask: Mask | None
    slot: Tensor  # of one token (...), or the source of each slot (... capacity)

    @classmethod
    def of(
        cls,
        cache: Cache,
        capacity: int | None,
        seq: int,
        lengths: Tensor | None,
        self_mask: Mask,
        fresh: bool,
        filled: int | None,
    ) -> "_Place":
        before = cache.position.unsqueeze(-1)
        slots = torch.arange(capacity or 1, device=before.device)
        at = before + torch.arange(seq, device=before.device)
        if seq == 1 and lengths is None:
            slot = cache.position % slots.shape[0]
            if filled is not None and masks.split_causal(self_mask) == (True, None):
                return cls(at, slots[:filled].expand(*cache.position.shape, filled), None, slot)
            kv_at = _held(at, slots)
            visible = masks.between(self_mask, at, kv_at) & (kv_at >= 0).unsqueeze(-2)
            return cls(at, kv_at, masks.shown(visible), slot)
        real = seq if lengths is None else lengths.unsqueeze(-1)
        new_at = _held(before + real - 1, slots)
        source = torch.where(new_at >= before, slots.shape[0] + new_at - before, slots)
        if fresh:  # the rule's own positions, which a kernel may know
            mask = self_mask if lengths is None else self_mask & masks.padding(lengths)
            return cls(at, at, mask, source)
        old_at = _held(before - 1, slots)
        kv_at = torch.cat([old_at, at], -1)
        there = torch.cat([old_at >= 0, (at - before < real).expand_as(at)], -1)
        visible = masks.between(self_mask, at, kv_at) & there.unsqueeze(-2)
        return cls(at, kv_at, masks.dense(visible), source)

    def keep(
        self,
        write: Callable[[Tensor, Tensor, Tensor], Tensor],
        kept: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values to look at, and those to keep."""
        if self.slot.ndim < self.at.ndim:
            written = tuple(write(x, self.slot, y) for x, y in zip(kept, new, strict=True))
            filled = self.kv_at.shape[-1]
            return tuple(x[..., :filled, :] for x in written), written
        joined = tuple(torch.cat([x, y.to(x.dtype)], -2) for x, y in zip(kept, new, strict=True))
        source = self.slot[..., None, :, None]
        shapes = ((*x.shape[:-2], source.shape[-2], x.shape[-1]) for x in joined)
        moved = (x.gather(-2, source.expand(s)) for x, s in zip(joined, shapes, strict=True))
        fresh = self.kv_at.shape[-1] == new[0].shape[-2]
        return (new if fresh else joined), tuple(moved)


def _held(last: Tensor, slots: Tensor) -> Tensor:
    """The position that each slot holds where (... 1) is the newest; below 0 where none."""
    return last - (last - slots) % slots.shape[0]


def _cross_mask(
    name: str, mask: Mask | Tensor | None, at: Tensor, memory_seq: int
) -> Mask | Tensor | None:
    if not isinstance(mask, Mask):
        if isinstance(mask, Tensor) and mask.ndim > 1 and mask.shape[-2] != 1:
            requirement = "say the same for every query, as (..., 1, kv_seq)"
            remedy = "Use a mask of tinyfn.masks, whose rule knows any position"
            actual = _checks.shape(mask)
            raise _checks.fail(ValueError, name, "cross_mask", requirement, actual, remedy)
        return mask
    kv_at = torch.arange(memory_seq, device=at.device)
    return masks.dense(masks.between(mask, at, kv_at))


def _reading(
    layer: Params,
    x: Tensor,
    cache: Cache,
    index: int,
    across: tuple[Attend, Mask | Tensor | None],
    before: Tensor,
) -> tuple[Tensor, Attend]:
    """A memory of no positions, which costs nothing to project, and an attend of what was kept."""
    attend, mask = across
    k, v = cache.memory_k[index], cache.memory_v[index]
    moved = positions.over_kept(attend, before, torch.arange(k.shape[-2], device=k.device))

    def read(*args: Any, **heads: Any) -> Tensor:
        *own, q, _, _, _, key, bias = args
        return moved(*own, q, k, v, mask, key, bias, **heads)

    width = _checks.part("decode_step", layer, "cross_attention")["k_proj"]["weight"].shape[-1]
    return x.new_zeros(*x.shape[:-2], 0, width), read

"""One layer of a stack: attention and feed-forward, each with a residual and a norm.

    post-norm (the paper)         norm(x + sublayer(x))
    pre-norm (norm_first=True)    x + sublayer(norm(x))

A sublayer's result passes through dropout before it is added.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tinyfn import _checks, masks, random
from tinyfn._attend import dot_product_attention
from tinyfn._attention import attention, init_attention
from tinyfn._dropout import Drawn, Drop, Part, dropouts, keys_or_drawn
from tinyfn._primitives import (
    feed_forward,
    gated_feed_forward,
    init_feed_forward,
    init_layer_norm,
    layer_norm,
)
from tinyfn.types import Activation, Attend, FeedForward, Key, Norm, Params

Mask = masks.Mask


def init_encoder_layer(
    key: Key,
    num_features: int,
    num_heads: int,
    dim_feedforward: int,
    *,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    init_norm: Callable[..., Params] = init_layer_norm,
    init_feed_forward: Callable[..., Params] = init_feed_forward,
    bias: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **weights: Any,
) -> Params:
    """Params of `encoder_layer`: `self_attention`, `feed_forward`, and a norm for each.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis, in and out.
        num_heads: How many heads look.
        dim_feedforward: Size of the hidden layer.
        num_kv_heads: How many heads are looked at; as many as look, if None.
        head_dim: Width of a head; num_features / num_heads if None.
        init_norm: Params of the norm that the layer is called with.
        init_feed_forward: Params of the feed-forward that the layer is called with.
        bias: Whether projections, feed-forward and norms have biases.
        dtype: Of the params.
        device: Of the params.
        weights: weight_init and bias_init, for the linear parts.

    Raises:
        ValueError: A size is below 1, or heads do not divide.

    Example:
        >>> list(init_encoder_layer(random.key(0), 8, 2, 16))
        ['self_attention', 'self_attention_norm', 'feed_forward', 'feed_forward_norm']
    """
    attention_key, feed_forward_key, *norm_keys = random.split(key, 4)
    made = {"bias": bias, "dtype": dtype, "device": device}
    heads = {"num_kv_heads": num_kv_heads, "head_dim": head_dim}
    return {
        "self_attention": init_attention(
            attention_key, num_features, num_heads, **heads, **made, **weights
        ),
        "self_attention_norm": init_norm(norm_keys[0], num_features, **made),
        "feed_forward": init_feed_forward(
            feed_forward_key, num_features, dim_feedforward, **made, **weights
        ),
        "feed_forward_norm": init_norm(norm_keys[1], num_features, **made),
    }


def encoder_layer(
    params: Params,
    x: Float[Tensor, "... seq features"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | Drawn | None = None,
    *,
    norm: Norm = layer_norm,
    activation: Activation = torch.relu,
    norm_first: bool = False,
    dropout_p: float = 0.0,
    attend: Attend = dot_product_attention,
    feed_forward: FeedForward = feed_forward,
) -> Float[Tensor, "... seq features"]:
    """Self-attention, then feed-forward.

    Args:
        params: From `init_encoder_layer`.
        x: Any leading axes.
        mask: True where a position may look.
        key: Randomness for dropout; without it nothing is dropped.
        norm: Such as `layer_norm` or `rms_norm`.
        activation: Of the feed-forward.
        norm_first: Norms before the sublayers in place of after the residuals.
        dropout_p: Chance of a drop, of attention weights, hidden numbers and sublayer outputs.
        attend: What the heads do.
        feed_forward: Such as `gated_feed_forward`.

    Raises:
        ValueError: `x` does not have the features of the params, or `mask` does not fit.
        TypeError: `mask` is not bool.

    Example:
        >>> params = init_encoder_layer(random.key(0), 8, 2, 16)
        >>> encoder_layer(params, torch.ones(5, 8)).shape
        torch.Size([5, 8])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762.
    """
    draws = partial(encoder_draws, params, x, attend=attend, feed_forward=feed_forward)
    keys = keys_or_drawn(key, 3, draws, x, dropout_p=dropout_p)
    drops = dropouts(keys[2], 2, x, dropout_p=dropout_p)
    options = {"norm": norm, "norm_first": norm_first}

    def look(params: Params, y: Tensor) -> Tensor:
        return attention(params, y, y, y, mask, keys[0], dropout_p=dropout_p, attend=attend)

    def think(params: Params, y: Tensor) -> Tensor:
        return feed_forward(params, y, keys[1], activation=activation, dropout_p=dropout_p)

    x = _residual("encoder_layer", params, "self_attention", look, x, drops[0], **options)
    return _residual("encoder_layer", params, "feed_forward", think, x, drops[1], **options)


def encoder_draws(
    params: Params,
    x: Tensor,
    *,
    attend: Attend = dot_product_attention,
    feed_forward: FeedForward = feed_forward,
    **_: Any,
) -> list[Part]:
    """What the keys are for that an encoder layer splits from its own.

    Example:
        >>> params = init_encoder_layer(random.key(0), 8, 2, 16)
        >>> encoder_draws(params, torch.ones(5, 8))
        [(1, (2, 5, 5)), (1, (5, 16)), (2, torch.Size([5, 8]))]
    """
    looks = _looks(params, "self_attention", x, x, attend)
    return [looks, _thinks(params, x, feed_forward), (2, x.shape)]


def _looks(params: Params, name: str, x: Tensor, y: Tensor, attend: Attend) -> Part:
    if attend is not dot_product_attention or "attend" in params[name]:
        return None
    heads = params[name]["q_proj"]["weight"].shape[0]
    return 1, (*x.shape[:-2], heads, x.shape[-2], y.shape[-2])


def _thinks(params: Params, x: Tensor, function: FeedForward) -> Part:
    if function not in (feed_forward, gated_feed_forward):
        return None
    return 1, (*x.shape[:-1], params["feed_forward"]["up_proj"]["weight"].shape[0])


def _residual(
    function: str,
    params: Params,
    name: str,
    sublayer: Callable[[Params, Tensor], Tensor],
    x: Tensor,
    drop: Drop,
    *,
    norm: Norm,
    norm_first: bool,
) -> Tensor:
    own = _checks.part(function, params, name)
    norm_params = _checks.part(function, params, name + "_norm")
    if norm_first:
        return x + drop(sublayer(own, norm(norm_params, x)))
    return norm(norm_params, x + drop(sublayer(own, x)))


def init_decoder_layer(
    key: Key,
    num_features: int,
    num_heads: int,
    dim_feedforward: int,
    *,
    cross_attention: bool = True,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    memory_features: int | None = None,
    init_norm: Callable[..., Params] = init_layer_norm,
    init_feed_forward: Callable[..., Params] = init_feed_forward,
    bias: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **weights: Any,
) -> Params:
    """Params of `decoder_layer`: those of an encoder layer, and `cross_attention` with its norm.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis, in and out.
        num_heads: How many heads look.
        dim_feedforward: Size of the hidden layer.
        cross_attention: Whether the layer can read a memory.
        num_kv_heads: How many heads are looked at; as many as look, if None.
        head_dim: Width of a head; num_features / num_heads if None.
        memory_features: Size of the memory's last axis; num_features if None.
        init_norm: Params of the norm that the layer is called with.
        init_feed_forward: Params of the feed-forward that the layer is called with.
        bias: Whether projections, feed-forward and norms have biases.
        dtype: Of the params.
        device: Of the params.
        weights: weight_init and bias_init, for the linear parts.

    Raises:
        ValueError: A size is below 1, or heads do not divide.

    Example:
        >>> params = init_decoder_layer(random.key(0), 8, 2, 16)
        >>> [name for name in params if "cross" in name]
        ['cross_attention', 'cross_attention_norm']
    """
    self_key, cross_key, norm_key = random.split(key, 3)
    made = {"bias": bias, "dtype": dtype, "device": device}
    heads = {"num_kv_heads": num_kv_heads, "head_dim": head_dim}
    inits = {"init_norm": init_norm, "init_feed_forward": init_feed_forward}
    params = init_encoder_layer(
        self_key, num_features, num_heads, dim_feedforward, **heads, **inits, **made, **weights
    )
    if cross_attention:
        params["cross_attention"] = init_attention(
            cross_key,
            num_features,
            num_heads,
            kv_features=memory_features,
            **heads,
            **made,
            **weights,
        )
        params["cross_attention_norm"] = init_norm(norm_key, num_features, **made)
    return params


def decoder_layer(
    params: Params,
    x: Float[Tensor, "... seq features"],
    memory: Float[Tensor, "... memory_seq memory_features"] | None = None,
    self_mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
    cross_mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | Drawn | None = None,
    *,
    norm: Norm = layer_norm,
    activation: Activation = torch.relu,
    norm_first: bool = False,
    dropout_p: float = 0.0,
    attend: Attend = dot_product_attention,
    cross_attend: Attend = dot_product_attention,
    feed_forward: FeedForward = feed_forward,
) -> Float[Tensor, "... seq features"]:
    """Self-attention, then attention from x to the memory, then feed-forward.

    Args:
        params: From `init_decoder_layer`.
        x: The target; its positions are the queries.
        memory: What the encoder gave; its positions are the keys and values. None skips the
            cross-attention: a decoder-only layer.
        self_mask: True where a target position may look at a target position.
        cross_mask: True where a target position may look at a memory position.
        key: Randomness for dropout; without it nothing is dropped.
        norm: Such as `layer_norm` or `rms_norm`.
        activation: Of the feed-forward.
        norm_first: Norms before the sublayers in place of after the residuals.
        dropout_p: Chance of a drop, of attention weights, hidden numbers and sublayer outputs.
        attend: What the heads of the self-attention do.
        cross_attend: What the heads of the cross-attention do.
        feed_forward: Such as `gated_feed_forward`.

    Raises:
        ValueError: `x` or `memory` does not have the features of the params, a mask does not fit,
            or there is a memory and no `cross_attention` in the params.
        TypeError: A mask is not bool.

    Example:
        >>> params = init_decoder_layer(random.key(0), 8, 2, 16)
        >>> decoder_layer(params, torch.ones(5, 8), torch.ones(3, 8)).shape
        torch.Size([5, 8])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762.
    """
    parts = {"attend": attend, "cross_attend": cross_attend, "feed_forward": feed_forward}
    draws = partial(decoder_draws, params, x, memory, **parts)
    keys = keys_or_drawn(key, 4, draws, x, dropout_p=dropout_p)
    drops = dropouts(keys[3], 2 if memory is None else 3, x, dropout_p=dropout_p)
    options = {"norm": norm, "norm_first": norm_first}

    def look(params: Params, y: Tensor) -> Tensor:
        return attention(params, y, y, y, self_mask, keys[0], dropout_p=dropout_p, attend=attend)

    def think(params: Params, y: Tensor) -> Tensor:
        return feed_forward(params, y, keys[2], activation=activation, dropout_p=dropout_p)

    x = _residual("decoder_layer", params, "self_attention", look, x, drops[0], **options)
    if memory is not None:

        def read(params: Params, y: Tensor) -> Tensor:
            heads = {"dropout_p": dropout_p, "attend": cross_attend}
            return attention(params, y, memory, memory, cross_mask, keys[1], **heads)

        x = _residual("decoder_layer", params, "cross_attention", read, x, drops[1], **options)
    return _residual("decoder_layer", params, "feed_forward", think, x, drops[-1], **options)


def decoder_draws(
    params: Params,
    x: Tensor,
    memory: Tensor | None,
    *,
    attend: Attend = dot_product_attention,
    cross_attend: Attend = dot_product_attention,
    feed_forward: FeedForward = feed_forward,
    **_: Any,
) -> list[Part]:
    """What the keys are for that a decoder layer splits from its own.

    Example:
        >>> params = init_decoder_layer(random.key(0), 8, 2, 16)
        >>> decoder_draws(params, torch.ones(5, 8), torch.ones(3, 8))
        [(1, (2, 5, 5)), (1, (2, 5, 3)), (1, (5, 16)), (3, torch.Size([5, 8]))]
    """
    looks, reads, num = _looks(params, "self_attention", x, x, attend), (0, ()), 2
    if memory is not None:
        reads, num = _looks(params, "cross_attention", x, memory, cross_attend), 3
    return [looks, reads, _thinks(params, x, feed_forward), (num, x.shape)]

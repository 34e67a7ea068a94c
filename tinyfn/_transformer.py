"""Stacks of layers: encoder, decoder, and the two joined.

    encoder       positions, then layers, then a final norm if there is one
    decoder       the same, each layer reading the encoder's memory
    transformer   logits = linear(decoder(tgt, encoder(src)))

Every option of a layer (norm, activation, norm_first, dropout_p, attend, feed_forward) may be
passed to a stack, which hands it to each layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tinyfn import _checks, masks, positions, random, transforms
from tinyfn._attend import attend_weights, dot_product_attention
from tinyfn._dropout import Part, dropout, keys_or_drawn
from tinyfn._layers import (
    decoder_draws,
    decoder_layer,
    encoder_draws,
    encoder_layer,
    init_decoder_layer,
    init_encoder_layer,
)
from tinyfn._primitives import (
    init_embedding,
    init_layer_norm,
    init_linear,
    layer_norm,
    linear,
    scaled_embedding,
)
from tinyfn.types import Attend, Embed, Key, Norm, Output, Params, Position

Mask = masks.Mask


def init_encoder(
    key: Key,
    num_features: int,
    num_heads: int,
    dim_feedforward: int,
    num_layers: int,
    *,
    vocab_size: int | None = None,
    embedding_features: int | None = None,
    init_position: Callable[..., Params] | None = None,
    final_norm: bool = False,
    **layer: Any,
) -> Params:
    """Params of `encoder`: `layers`, and `embedding`, `position`, `final_norm` if asked for.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis within the stack.
        num_heads: How many heads look.
        dim_feedforward: Size of the hidden layers.
        num_layers: How many layers; 0 is allowed.
        vocab_size: For token ids in: how many there are.
        embedding_features: Width of an embedding; num_features if None. Less where positions are
            concatenated.
        init_position: For learned positions: a function of a key, such as
            `partial(positions.init_learned, max_len=100, num_features=512)`.
        final_norm: Whether a norm follows the last layer, as pre-norm needs.
        layer: For `init_encoder_layer`: num_kv_heads, init_norm, bias, dtype, device, ...

    Raises:
        ValueError: A size is below 1, or heads do not divide.

    Example:
        >>> params = init_encoder(random.key(0), 8, 2, 16, num_layers=3, final_norm=True)
        >>> list(params), len(params["layers"])
        (['layers', 'final_norm'], 3)
    """
    make = partial(init_encoder_layer, **layer)
    sizes = (num_features, num_heads, dim_feedforward, num_layers)
    edges = (vocab_size, embedding_features, init_position, final_norm)
    return _init_stack("init_encoder", make, key, sizes, edges, layer)


def init_decoder(
    key: Key,
    num_features: int,
    num_heads: int,
    dim_feedforward: int,
    num_layers: int,
    *,
    vocab_size: int | None = None,
    embedding_features: int | None = None,
    init_position: Callable[..., Params] | None = None,
    final_norm: bool = False,
    **layer: Any,
) -> Params:
    """Params of `decoder`: `layers`, and `embedding`, `position`, `final_norm` if asked for.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis within the stack.
        num_heads: How many heads look.
        dim_feedforward: Size of the hidden layers.
        num_layers: How many layers; 0 is allowed.
        vocab_size: For token ids in: how many there are.
        embedding_features: Width of an embedding; num_features if None.
        init_position: For learned positions: a function of a key.
        final_norm: Whether a norm follows the last layer, as pre-norm needs.
        layer: For `init_decoder_layer`: cross_attention, num_kv_heads, init_norm, bias, ...

    Raises:
        ValueError: A size is below 1, or heads do not divide.

    Example:
        >>> params = init_decoder(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> list(params)
        ['embedding', 'layers']
    """
    make = partial(init_decoder_layer, **layer)
    sizes = (num_features, num_heads, dim_feedforward, num_layers)
    edges = (vocab_size, embedding_features, init_position, final_norm)
    return _init_stack("init_decoder", make, key, sizes, edges, layer)


def _init_stack(
    function: str,
    make: Callable[..., Params],
    key: Key,
    sizes: tuple[int, int, int, int],
    edges: tuple[int | None, int | None, Callable[..., Params] | None, bool],
    layer: dict[str, Any],
) -> Params:
    num_features, num_heads, dim_feedforward, num_layers = sizes
    vocab_size, embedding_features, init_position, final_norm = edges
    _checks.at_least(function, "num_layers", num_layers, least=0)
    made = {name: layer[name] for name in ("dtype", "device") if name in layer}
    layers_key, embedding_key, position_key, norm_key = random.split(key, 4)
    params: Params = {}
    if vocab_size is not None:
        width = num_features if embedding_features is None else embedding_features
        params["embedding"] = init_embedding(embedding_key, vocab_size, width, **made)
    if init_position is not None:
        params["position"] = init_position(position_key, **made)
    keys = random.split(layers_key, max(num_layers, 1))[:num_layers]
    params["layers"] = [make(key, num_features, num_heads, dim_feedforward) for key in keys]
    if final_norm:
        init_norm = layer.get("init_norm", init_layer_norm)
        params["final_norm"] = init_norm(
            norm_key, num_features, bias=layer.get("bias", True), **made
        )
    return params


def encoder(
    params: Params,
    x: Float[Tensor, "... seq in_features"] | Integer[Tensor, "... seq"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    *,
    position: Position | None = None,
    embed: Embed = scaled_embedding,
    norm: Norm = layer_norm,
    dropout_p: float = 0.0,
    remat: bool = False,
    **layer: Any,
) -> Float[Tensor, "... seq features"]:
    """A stack of encoder layers.

    Args:
        params: From `init_encoder`; `attend` too, for an attend with params that all layers share.
        x: Features, or token ids if the params have an `embedding`.
        mask: True where a position may look.
        key: Randomness for dropout; without it nothing is dropped.
        position: Joins positions to the features, such as `positions.add_sinusoidal`; dropout
            follows it.
        embed: Makes features of token ids.
        norm: Of the layers, and of `final_norm` if the params have one.
        dropout_p: Chance of a drop.
        remat: Whether each layer is `transforms.remat` of itself: less memory, more time.
        layer: For `encoder_layer`: activation, norm_first, attend, feed_forward.

    Raises:
        ValueError: `x` does not have the features of the params, or `mask` does not fit.
        TypeError: `mask` is not bool.

    Example:
        >>> params = init_encoder(random.key(0), 8, 2, 16, num_layers=2, vocab_size=10)
        >>> encoder(params, torch.tensor([1, 2, 3]), position=positions.add_sinusoidal).shape
        torch.Size([3, 8])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762.
    """
    layers = layers_of("encoder", params)
    x = enter("encoder", params, x, position, embed)
    mask = _built(mask, x, x)
    draws = None if remat else partial(encoder_draws, x=x, **layer)
    position_key, *keys = _keys(key, layers, draws, x, position, dropout_p)
    x = x if position is None else dropout(x, position_key, dropout_p=dropout_p)
    run = partial(encoder_layer, norm=norm, dropout_p=dropout_p, **layer)
    run = transforms.remat(run) if remat else run
    for layer_params, layer_key in zip(layers, keys, strict=True):
        x = run(layer_params, x, mask, layer_key)
    return norm(params["final_norm"], x) if "final_norm" in params else x


def decoder(
    params: Params,
    x: Float[Tensor, "... seq in_features"] | Integer[Tensor, "... seq"],
    memory: Float[Tensor, "... memory_seq memory_features"] | None = None,
    self_mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
    cross_mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    *,
    position: Position | None = None,
    embed: Embed = scaled_embedding,
    norm: Norm = layer_norm,
    dropout_p: float = 0.0,
    remat: bool = False,
    **layer: Any,
) -> Float[Tensor, "... seq features"]:
    """A stack of decoder layers.

    Args:
        params: From `init_decoder`; `attend` too, for an attend with params that all layers share.
        x: Target features, or token ids if the params have an `embedding`.
        memory: What the encoder gave; None skips the cross-attentions.
        self_mask: True where a target position may look at a target position.
        cross_mask: True where a target position may look at a memory position.
        key: Randomness for dropout; without it nothing is dropped.
        position: Joins positions to the features; dropout follows it.
        embed: Makes features of token ids.
        norm: Of the layers, and of `final_norm` if the params have one.
        dropout_p: Chance of a drop.
        remat: Whether each layer is `transforms.remat` of itself: less memory, more time.
        layer: For `decoder_layer`: activation, norm_first, attend, cross_attend, feed_forward.

    Raises:
        ValueError: `x` or `memory` does not have the features of the params, or a mask does not
            fit.
        TypeError: A mask is not bool.

    Example:
        >>> params = init_decoder(random.key(0), 8, 2, 16, num_layers=2)
        >>> decoder(params, torch.ones(5, 8), torch.ones(3, 8)).shape
        torch.Size([5, 8])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762.
    """
    layers = layers_of("decoder", params)
    x = enter("decoder", params, x, position, embed)
    self_mask, cross_mask = _built(self_mask, x, x), _built(cross_mask, x, memory)
    draws = None if remat else partial(decoder_draws, x=x, memory=memory, **layer)
    position_key, *keys = _keys(key, layers, draws, x, position, dropout_p)
    x = x if position is None else dropout(x, position_key, dropout_p=dropout_p)
    run = partial(decoder_layer, norm=norm, dropout_p=dropout_p, **layer)
    run = transforms.remat(run) if remat else run
    for layer_params, layer_key in zip(layers, keys, strict=True):
        x = run(layer_params, x, memory, self_mask, cross_mask, layer_key)
    return norm(params["final_norm"], x) if "final_norm" in params else x


def _keys(
    key: Key | None,
    layers: list[Params],
    draws: Callable[[Params], list[Part]] | None,
    x: Tensor,
    position: Position | None,
    dropout_p: float,
) -> tuple[Any, ...]:
    """For the dropout that follows the positions, and for each layer: keys, or what those draw.

    Without `draws` they are keys, as for layers that draw a second time.
    """
    num = len(layers) + 1
    if draws is None:
        return random.split_or_none(key, num)

    def parts() -> list[Part]:
        return [(0 if position is None else 1, x.shape), *map(draws, layers)]

    return keys_or_drawn(key, num, parts, x, dropout_p=dropout_p)


def layers_of(function: str, params: Params, maker: str | None = None) -> list[Params]:
    """A stack's layers, each with the params of an attend that is the stack's: one leaf for all.

    Example:
        >>> layers_of("encoder", {"attend": {}, "layers": [{"self_attention": {}}]})
        [{'self_attention': {'attend': {}}}]
    """
    layers = _checks.part(function, params, "layers", maker)
    if "attend" not in params:
        return layers
    shared = {"attend": params["attend"]}
    own = (_checks.part(function, layer, "self_attention", maker) for layer in layers)
    return [
        {**layer, "self_attention": {**attention, **shared}}
        for layer, attention in zip(layers, own, strict=True)
    ]


def enter(
    function: str,
    params: Params,
    x: Tensor,
    position: Position | None,
    embed: Embed,
) -> Tensor:
    """Features of token ids, and their positions: what goes into a stack's first layer.

    Example:
        >>> enter("encoder", {}, torch.ones(2, 3), None, scaled_embedding).shape
        torch.Size([2, 3])
    """
    if not isinstance(x, Tensor):
        remedy = "Make one with torch.tensor"
        requirement = "be a tensor of features or of token ids"
        raise _checks.fail(TypeError, function, "x", requirement, _checks.kind_of(x), remedy)
    if not x.is_floating_point():
        x = embed(_checks.part(function, params, "embedding"), x)
    return x if position is None else position(params.get("position", {}), x)


def _built(mask: Mask | Tensor | None, x: Tensor, read: Tensor | None) -> Mask | Tensor | None:
    """The mask, made once for all layers; those say what is wrong where it cannot be made."""
    if not isinstance(mask, Mask) or not isinstance(read, Tensor) or min(x.ndim, read.ndim) < 2:
        return mask
    try:
        return masks.built(mask, x.shape[-2], read.shape[-2], x.device)
    except (TypeError, ValueError):
        return mask


def init_transformer(
    key: Key,
    num_features: int,
    num_heads: int,
    dim_feedforward: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    *,
    src_vocab_size: int | None = None,
    tgt_vocab_size: int | None = None,
    out_features: int | None = None,
    tie_embeddings: bool = False,
    share_embeddings: bool = False,
    embedding_features: int | None = None,
    init_position: Callable[..., Params] | None = None,
    final_norm: bool = False,
    **layer: Any,
) -> Params:
    """Params of `transformer`: `encoder`, `decoder`, and `linear` unless the output is tied.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis within the stacks.
        num_heads: How many heads look.
        dim_feedforward: Size of the hidden layers.
        num_encoder_layers: How many layers the encoder has.
        num_decoder_layers: How many layers the decoder has.
        src_vocab_size: How many source tokens there are; None for features in.
        tgt_vocab_size: How many target tokens there are; None for features in.
        out_features: How many logits; tgt_vocab_size if None, and num_features without tokens.
        tie_embeddings: Whether the target embedding is the output matrix too.
        share_embeddings: Whether source and target have one embedding.
        embedding_features: Width of an embedding; num_features if None.
        init_position: For learned positions: a function of a key.
        final_norm: Whether a norm follows the last layers, as pre-norm needs.
        layer: For the layers: num_kv_heads, init_norm, bias, dtype, device, ...

    Raises:
        ValueError: A size is below 1, heads do not divide, or an embedding is to be tied or
            shared and cannot be.

    Example:
        >>> params = init_transformer(random.key(0), 8, 2, 16, 1, 1, tgt_vocab_size=10)
        >>> list(params), params["linear"]["weight"].shape
        (['encoder', 'decoder', 'linear'], torch.Size([10, 8]))
    """
    width = num_features if embedding_features is None else embedding_features
    if out_features is None:
        out_features = num_features if tgt_vocab_size is None else tgt_vocab_size
    if share_embeddings and (src_vocab_size is None or src_vocab_size != tgt_vocab_size):
        raise _checks.fail(
            ValueError,
            "init_transformer",
            "share_embeddings",
            "have src_vocab_size equal to tgt_vocab_size",
            f"{src_vocab_size} and {tgt_vocab_size}",
            "Give both the one vocabulary, or leave share_embeddings out",
        )
    if tie_embeddings and tgt_vocab_size is None:
        raise _checks.fail(
            ValueError,
            "init_transformer",
            "tie_embeddings",
            "have a target embedding",
            "tgt_vocab_size=None",
            "Give tgt_vocab_size, or leave tie_embeddings out",
        )
    if tie_embeddings and (out_features, width) != (tgt_vocab_size, num_features):
        raise _checks.fail(
            ValueError,
            "init_transformer",
            "tie_embeddings",
            "have an output matrix (tgt_vocab_size, num_features)",
            f"({out_features}, {num_features}) and embedding ({tgt_vocab_size}, {width})",
            "Leave out_features, embedding_features or tie_embeddings out",
        )
    encoder_key, decoder_key, embedding_key, linear_key = random.split(key, 4)
    sizes = (num_features, num_heads, dim_feedforward)
    edges = {"init_position": init_position, "final_norm": final_norm, **layer}
    made = {name: layer[name] for name in ("dtype", "device") if name in layer}
    params: Params = {}
    if share_embeddings:
        params["embedding"] = init_embedding(embedding_key, src_vocab_size or 0, width, **made)
        src_vocab_size, own_tgt_vocab_size = None, None
    else:
        own_tgt_vocab_size = tgt_vocab_size
    for name, init, init_key, num_layers, vocab_size in (
        ("encoder", init_encoder, encoder_key, num_encoder_layers, src_vocab_size),
        ("decoder", init_decoder, decoder_key, num_decoder_layers, own_tgt_vocab_size),
    ):
        words = {"vocab_size": vocab_size, "embedding_features": embedding_features}
        params[name] = init(init_key, *sizes, num_layers, **words, **edges)
    if not tie_embeddings:
        params["linear"] = init_linear(
            linear_key, num_features, out_features, **linear_options(layer)
        )
    return params


def linear_options(layer: dict[str, Any]) -> dict[str, Any]:
    """Of the options of a layer, those that `init_linear` has too.

    Example:
        >>> linear_options({"bias": False, "num_kv_heads": 1})
        {'bias': False}
    """
    names = ("bias", "weight_init", "bias_init", "dtype", "device")
    return {name: layer[name] for name in names if name in layer}


def transformer(
    params: Params,
    src: Float[Tensor, "... src_seq src_features"] | Integer[Tensor, "... src_seq"],
    tgt: Float[Tensor, "... tgt_seq tgt_features"] | Integer[Tensor, "... tgt_seq"],
    src_mask: Mask | Bool[Tensor, "..."] | None = None,
    tgt_mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
    memory_mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    *,
    position: Position | None = positions.add_sinusoidal,
    embed: Embed = scaled_embedding,
    output: Output = linear,
    cross_attend: Attend = dot_product_attention,
    **layer: Any,
) -> Float[Tensor, "... tgt_seq out_features"]:
    """The whole: logits of each target position, given the source.

    Args:
        params: From `init_transformer`. Without a `linear`, or with one of a bias only, the target
            embedding is the output matrix; with neither, features come out as they are.
        src: Source features, or token ids if there is an embedding for them.
        tgt: Target features, or token ids; its length is independent of the source's.
        src_mask: True where a source position may look at a source position.
        tgt_mask: True where a target position may look at a target position.
        memory_mask: True where a target position may look at a source position. Padding of the
            source belongs here as well as in `src_mask`.
        key: Randomness for dropout; without it nothing is dropped.
        position: Joins positions to source and target; None leaves them out.
        embed: Makes features of token ids.
        output: Makes logits of features, with `linear` or with the tied matrix.
        cross_attend: What the heads of the cross-attentions do.
        layer: For the stacks and their layers: norm, activation, norm_first, dropout_p, attend,
            feed_forward, remat.

    Raises:
        ValueError: An input does not have the features of the params, or a mask does not fit.
        TypeError: A mask is not bool.

    Example:
        >>> params = init_transformer(random.key(0), 8, 2, 16, 1, 1, tgt_vocab_size=10)
        >>> transformer(params, torch.ones(5, 8), torch.tensor([1, 2, 3])).shape
        torch.Size([3, 10])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762.
    """
    for name in ("encoder", "decoder"):
        _checks.part("transformer", params, name)
    encoder_key, decoder_key = random.split_or_none(key, 2)
    options = {"position": position, "embed": embed, **layer}
    memory = encode(params, src, src_mask, encoder_key, **options)
    options["cross_attend"] = cross_attend
    x = decode(params, tgt, memory, tgt_mask, memory_mask, decoder_key, **options)
    return to_logits(params, x, output)


def encode(
    params: Params,
    src: Tensor,
    src_mask: Mask | Tensor | None = None,
    key: Key | None = None,
    *,
    position: Position | None = positions.add_sinusoidal,
    embed: Embed = scaled_embedding,
    **options: Any,
) -> Tensor:
    """What the encoder of a transformer makes of the source, its embedding shared or not.

    Example:
        >>> params = init_transformer(random.key(0), 8, 2, 16, 1, 1)
        >>> encode(params, torch.ones(5, 8)).shape
        torch.Size([5, 8])
    """
    stack = _checks.part("transformer", params, "encoder")
    if "embedding" in params:
        src = embed(params["embedding"], src)
    return encoder(stack, src, src_mask, key, position=position, embed=embed, **options)


def decode(
    params: Params,
    tgt: Tensor,
    memory: Tensor | None = None,
    self_mask: Mask | Tensor | None = masks.causal(),
    cross_mask: Mask | Tensor | None = None,
    key: Key | None = None,
    *,
    position: Position | None = positions.add_sinusoidal,
    embed: Embed = scaled_embedding,
    **options: Any,
) -> Tensor:
    """What the decoder of a transformer makes of the target, its embedding shared or not.

    Example:
        >>> params = init_transformer(random.key(0), 8, 2, 16, 1, 1)
        >>> decode(params, torch.ones(5, 8), torch.ones(3, 8)).shape
        torch.Size([5, 8])
    """
    if "embedding" in params:
        tgt = embed(params["embedding"], tgt)
    options |= {"position": position, "embed": embed}
    return decoder(params["decoder"], tgt, memory, self_mask, cross_mask, key, **options)


def to_logits(params: Params, x: Tensor, output: Output = linear) -> Tensor:
    """What the decoder gave, through `linear` or, where it has no matrix, the target embedding.

    Example:
        >>> to_logits({"decoder": {"embedding": {"weight": torch.ones(5, 2)}}}, torch.ones(2)).shape
        torch.Size([5])
    """
    tied = params.get("embedding", params["decoder"].get("embedding", {}))
    own = {**tied, **params.get("linear", {})}
    return output(own, x) if own else x


def encoder_attention_weights(
    params: Params,
    x: Float[Tensor, "... seq in_features"] | Integer[Tensor, "... seq"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    attend: Attend = dot_product_attention,
    **options: Any,
) -> list[Float[Tensor, "... heads seq seq"]]:
    """Where every head of every layer of `encoder` looks, called with the same arguments.

    Args:
        params: From `init_encoder`.
        x: Features or token ids.
        mask: True where a position may look.
        attend: As in `encoder`.
        options: As in `encoder`.

    Example:
        >>> params = init_encoder(random.key(0), 8, 2, 16, num_layers=3)
        >>> [tuple(w.shape) for w in encoder_attention_weights(params, torch.ones(5, 8))]
        [(2, 5, 5), (2, 5, 5), (2, 5, 5)]
    """
    seen: list[Tensor] = []
    encoder(params, x, mask, attend=_recording(attend, seen), **options)
    return seen


def decoder_attention_weights(
    params: Params,
    x: Float[Tensor, "... seq in_features"] | Integer[Tensor, "... seq"],
    memory: Float[Tensor, "... memory_seq memory_features"] | None = None,
    self_mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
    cross_mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    attend: Attend = dot_product_attention,
    cross_attend: Attend = dot_product_attention,
    **options: Any,
) -> list[dict[str, Float[Tensor, "... heads seq kv_seq"]]]:
    """Where every head of every layer of `decoder` looks, called with the same arguments.

    Args:
        params: From `init_decoder`.
        x: Target features or token ids.
        memory: What the encoder gave, if anything.
        self_mask: True where a target position may look at a target position.
        cross_mask: True where a target position may look at a memory position.
        attend: As in `decoder`.
        cross_attend: As in `decoder`.
        options: As in `decoder`.

    Example:
        >>> params = init_decoder(random.key(0), 8, 2, 16, num_layers=1)
        >>> weights = decoder_attention_weights(params, torch.ones(5, 8), torch.ones(3, 8))
        >>> {name: tuple(w.shape) for name, w in weights[0].items()}
        {'self_attention': (2, 5, 5), 'cross_attention': (2, 5, 3)}
    """
    own: list[Tensor] = []
    cross: list[Tensor] = []
    recording = {
        "attend": _recording(attend, own),
        "cross_attend": _recording(cross_attend, cross),
    }
    decoder(params, x, memory, self_mask, cross_mask, **recording, **options)
    if memory is None:
        return [{"self_attention": weights} for weights in own]
    pairs = zip(own, cross, strict=True)
    return [{"self_attention": s, "cross_attention": c} for s, c in pairs]


def transformer_attention_weights(
    params: Params,
    src: Float[Tensor, "... src_seq src_features"] | Integer[Tensor, "... src_seq"],
    tgt: Float[Tensor, "... tgt_seq tgt_features"] | Integer[Tensor, "... tgt_seq"],
    src_mask: Mask | Bool[Tensor, "..."] | None = None,
    tgt_mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
    memory_mask: Mask | Bool[Tensor, "..."] | None = None,
    *,
    position: Position | None = positions.add_sinusoidal,
    embed: Embed = scaled_embedding,
    output: Output = linear,
    cross_attend: Attend = dot_product_attention,
    **layer: Any,
) -> dict[str, list[Any]]:
    """Where every head of every layer of `transformer` looks, called with the same arguments.

    Args:
        params: From `init_transformer`.
        src: Source features or token ids.
        tgt: Target features or token ids.
        src_mask: True where a source position may look at a source position.
        tgt_mask: True where a target position may look at a target position.
        memory_mask: True where a target position may look at a source position.
        position: As in `transformer`.
        embed: As in `transformer`.
        output: Not called.
        cross_attend: As in `transformer`.
        layer: As in `transformer`.

    Example:
        >>> params = init_transformer(random.key(0), 8, 2, 16, 1, 1)
        >>> weights = transformer_attention_weights(params, torch.ones(5, 8), torch.ones(3, 8))
        >>> weights["encoder"][0].shape, weights["decoder"][0]["cross_attention"].shape
        (torch.Size([2, 5, 5]), torch.Size([2, 3, 5]))
    """
    name = "transformer_attention_weights"
    stacks = [_checks.part(name, params, stack) for stack in ("encoder", "decoder")]
    if "embedding" in params:
        src, tgt = embed(params["embedding"], src), embed(params["embedding"], tgt)
    options = {"position": position, "embed": embed, **layer}
    memory = encoder(stacks[0], src, src_mask, **options)
    seen = encoder_attention_weights(stacks[0], src, src_mask, **options)
    options["cross_attend"] = cross_attend
    decoded = decoder_attention_weights(stacks[1], tgt, memory, tgt_mask, memory_mask, **options)
    return {"encoder": seen, "decoder": decoded}


def _recording(attend: Attend, seen: list[Tensor]) -> Attend:
    """An attend that notes its weights in `seen`, a list of the caller's."""

    def recording(*args: Any, **options: Any) -> Tensor:
        *params, q, k, v, mask, key, bias = args
        seen.append(attend_weights(partial(attend, *params), q, k, mask, bias))
        return attend(*params, q, k, v, mask, key, bias, **options)

    return recording

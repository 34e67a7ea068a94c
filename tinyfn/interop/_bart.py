"""BART and Marian: post-norm encoders with decoders, whose positions are tables.

BART's positions begin in the table's third row, and a norm follows them. Marian's table is
sinusoidal and does not learn there; here it is a weight like the others.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

from torch import Tensor

from tinyfn import positions
from tinyfn._primitives import embedding, feed_forward, layer_norm, scaled_embedding
from tinyfn._transformer import transformer
from tinyfn.interop import _options
from tinyfn.interop._tables import Counterpart, Line, bare, parts
from tinyfn.types import Key, Params, Position

_ATTENTIONS = {"self_attention": "self_attn", "cross_attention": "encoder_attn"}
_HIDDEN = {
    "feed_forward.up_proj": "fc1",
    "feed_forward.down_proj": "fc2",
    "feed_forward_norm": "final_layer_norm",
}


def _stack(stack: str) -> tuple[Line, ...]:
    ours, theirs = f"{stack}.layers.{{{stack}}}", f"model.{stack}.layers.{{{stack}}}"
    names = {f"{ours}.{x}": f"{theirs}.{y}" for x, y in _HIDDEN.items()}
    for x, y in _ATTENTIONS.items():
        if stack == "decoder" or x == "self_attention":
            names |= {f"{ours}.{x}_norm": f"{theirs}.{y}_layer_norm"}
            names |= {
                f"{ours}.{x}.{w}_proj": f"{theirs}.{y}.{w}_proj" for w in ("q", "k", "v", "out")
            }
    table = Line(f"{stack}.position.weight", f"model.{stack}.embed_positions.weight")
    return (table, *parts(names, heads=f"{stack}_heads"))


_TABLE = (*_stack("encoder"), *_stack("decoder"))
_NORMS = parts(
    {
        f"{stack}.position.norm": f"model.{stack}.layernorm_embedding"
        for stack in ("encoder", "decoder")
    }
)
_BIAS = Line("linear.bias", "final_logits_bias", "1 vocab -> vocab")
_SHARED = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
)

_READ = frozenset(
    "activation_dropout activation_function attention_dropout d_model decoder_attention_heads "
    "decoder_ffn_dim decoder_layers dropout encoder_attention_heads encoder_ffn_dim encoder_layers "
    "max_position_embeddings scale_embedding".split()
)
_UNREAD = frozenset(
    "classif_dropout classifier_dropout decoder_vocab_size extra_pos_embeddings init_std "
    "num_hidden_layers".split()
)
"""Of a head that has no function here, of training, and sizes that other options or weights say."""


def bart(config: Any, names: Collection[str]) -> Counterpart:
    """The counterpart of a BART with its head, or without.

    Args:
        config: A BartConfig.
        names: Of the weights, theirs or ours.
    """
    _check(config, normalize_embedding=True, static_position_embeddings=False)
    embeddings = (Line("embedding.weight", _SHARED),)
    return _counterpart(config, names, (*embeddings, *_NORMS), _add_normed)


def marian(config: Any, names: Collection[str]) -> Counterpart:
    """The counterpart of a Marian with its head, or without.

    Args:
        config: A MarianConfig.
        names: Of the weights, theirs or ours.
    """
    _check(config, normalize_embedding=False, static_position_embeddings=True)
    embeddings = (Line("embedding.weight", _SHARED),)
    if not config.share_encoder_decoder_embeddings:
        embeddings = tuple(
            Line(f"{stack}.embedding.weight", (f"model.{stack}.embed_tokens.weight",))
            for stack in ("encoder", "decoder")
        )
    return _counterpart(config, names, embeddings, positions.add_learned)


def _check(config: Any, **wanted: Any) -> None:
    plain = {"add_bias_logits": False, "add_final_layer_norm": False, "normalize_before": False}
    shared = {"share_encoder_decoder_embeddings"} if config.model_type == "marian" else set()
    _options.check(config, _READ | _UNREAD | shared | _options.only(config, **plain, **wanted))


def _counterpart(
    config: Any, names: Collection[str], edges: tuple[Line, ...], position: Position
) -> Counterpart:
    options = {
        "position": position,
        "embed": scaled_embedding if config.scale_embedding else embedding,
        "activation": _options.activation(config, "activation_function"),
        "feed_forward": partial(_dropping_hidden, float(config.activation_dropout)),
        "attend": _options.dropping(float(config.attention_dropout), float(config.dropout)),
        "cross_attend": _options.dropping(float(config.attention_dropout), float(config.dropout)),
        "dropout_p": float(config.dropout),
    }
    counts = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    sizes = {f"{stack}_heads": getattr(config, f"{stack}_attention_heads") for stack in counts}
    if {"final_logits_bias", "linear.bias"}.isdisjoint(names):
        options["output"] = _features
        table = bare((*edges, *_TABLE), "", "model.")
    else:
        table = (*map(_with_output, edges), *_TABLE, _BIAS)
    return Counterpart(transformer, options, table, counts, sizes)


def _with_output(line: Line) -> Line:
    """The target's embedding is the output matrix too."""
    if line.ours not in ("embedding.weight", "decoder.embedding.weight"):
        return line
    return line._replace(theirs=(*line.theirs, "lm_head.weight"))


def _add_normed(params: Params, x: Tensor, *, offset: Any = 0) -> Tensor:
    return layer_norm(params["norm"], positions.add_learned(params, x, offset=offset + 2))


def _dropping_hidden(
    p: float, params: Params, x: Tensor, key: Key | None = None, **options: Any
) -> Tensor:
    """A feed-forward that drops of its hidden layer with a chance of its own."""
    return feed_forward(params, x, key, **{**options, "dropout_p": p})


def _features(params: Params, x: Tensor) -> Tensor:
    return x

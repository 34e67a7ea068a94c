"""What BERT and its kin compute: sums of learned embeddings, normed, then an encoder, then a head.

    encode_text       features = encoder(norm(token + position + type))
    classify_text     linear(tanh(pooler(features of the first position)))
    classify_tokens   linear(features)
    predict_masked    linear(norm(activation(transform(features)))), tied to the token embedding

Token types are an input, so the functions are of their own.
"""

from typing import Any

import torch
from torch import Tensor

from tinyfn import _checks, positions, random
from tinyfn._dropout import dropout
from tinyfn._encoder_model import first_pool
from tinyfn._primitives import embedding, layer_norm, linear
from tinyfn._transformer import encoder
from tinyfn.types import Activation, Key, Norm, Params

_MAKER = "interop.from_hugging_face"


def encode_text(
    params: Params,
    tokens: Tensor,
    mask: Any = None,
    key: Key | None = None,
    token_types: Tensor | None = None,
    *,
    padding: int | None = None,
    norm: Norm = layer_norm,
    embedding_dropout_p: float = 0.0,
    **layer: Any,
) -> Tensor:
    """Features of each token.

    Args:
        params: `embedding` (`token`, `position`, `norm` and, where there are types, `token_type`)
            and `encoder`.
        tokens: Token ids.
        mask: True where a position may look, such as `masks.padding(lengths)`.
        key: Randomness for dropout; without it nothing is dropped.
        token_types: Which part of a text each token is of, in the shape of `tokens`; the first of
            them, if None.
        padding: The token that is not counted, where positions count from behind it (RoBERTa).
        norm: Of the embedding and the layers.
        embedding_dropout_p: Chance that a number of the normed embedding is dropped.
        layer: As in `encoder`.
    """
    tables = _checks.part("encode_text", params, "embedding", _MAKER)
    token, position, own_norm = (
        _checks.part("encode_text", tables, name, _MAKER) for name in ("token", "position", "norm")
    )
    embedding_key, encoder_key = random.split_or_none(key, 2)
    x = embedding(token, tokens)
    _check_types(tables, tokens, token_types)
    if "token_type" in tables:
        first = tables["token_type"]["weight"][0]
        x = x + (first if token_types is None else embedding(tables["token_type"], token_types))
    x = norm(own_norm, x + _numbered(position, tokens, padding))
    x = dropout(x, embedding_key, dropout_p=embedding_dropout_p)
    stack = _checks.part("encode_text", params, "encoder", _MAKER)
    return encoder(stack, x, mask, encoder_key, norm=norm, **layer)


def _check_types(tables: Params, tokens: Tensor, token_types: Tensor | None) -> None:
    if token_types is None or ("token_type" in tables and token_types.shape == tokens.shape):
        return
    requirement, remedy = "be None for params without token types", "Leave them out"
    if "token_type" in tables:
        requirement = f"have the shape of tokens, {tuple(tokens.shape)}"
        remedy = "Say of each token which part it is of, with expand where texts are alike"
    actual = _checks.shape(token_types)
    raise _checks.fail(ValueError, "encode_text", "token_types", requirement, actual, remedy)


def _numbered(table: Params, tokens: Tensor, padding: int | None) -> Tensor:
    """A row for each position; padding has the row of its own id, what is real those behind it."""
    first = 0 if padding is None else padding + 1
    rows = positions.learned(table, tokens.shape[-1], offset=first)
    if padding is None:
        return rows
    real = tokens != padding
    return embedding(table, real.cumsum(-1) * real + padding)


def classify_text(
    params: Params,
    tokens: Tensor,
    mask: Any = None,
    key: Key | None = None,
    token_types: Tensor | None = None,
    *,
    pool_activation: Activation = torch.tanh,
    first_dropout_p: float = 0.0,
    head_dropout_p: float = 0.0,
    **options: Any,
) -> Tensor:
    """Logits of a whole text's classes.

    Args:
        params: As of `encode_text`, and `pooler`, `linear`.
        tokens: Token ids.
        mask: True where a position may look.
        key: Randomness for dropout; without it nothing is dropped.
        token_types: As in `encode_text`.
        pool_activation: Behind the pooler.
        first_dropout_p: Chance of a drop before the pooler.
        head_dropout_p: Chance of a drop behind it.
        options: As in `encode_text`.
    """
    pooler, head = (_checks.part("classify_text", params, x, _MAKER) for x in ("pooler", "linear"))
    key, first_key, head_key = random.split_or_none(key, 3)
    x = first_pool(encode_text(params, tokens, mask, key, token_types, **options))
    x = linear(pooler, dropout(x, first_key, dropout_p=first_dropout_p))
    x = dropout(pool_activation(x), head_key, dropout_p=head_dropout_p)
    return linear(head, x)


def classify_tokens(
    params: Params,
    tokens: Tensor,
    mask: Any = None,
    key: Key | None = None,
    token_types: Tensor | None = None,
    *,
    head_dropout_p: float = 0.0,
    **options: Any,
) -> Tensor:
    """Logits of each token's classes.

    Args:
        params: As of `encode_text`, and `linear`.
        tokens: Token ids.
        mask: True where a position may look.
        key: Randomness for dropout; without it nothing is dropped.
        token_types: As in `encode_text`.
        head_dropout_p: Chance that a feature is dropped before the linear map.
        options: As in `encode_text`.
    """
    head = _checks.part("classify_tokens", params, "linear", _MAKER)
    key, head_key = random.split_or_none(key, 2)
    x = encode_text(params, tokens, mask, key, token_types, **options)
    return linear(head, dropout(x, head_key, dropout_p=head_dropout_p))


def predict_masked(
    params: Params,
    tokens: Tensor,
    mask: Any = None,
    key: Key | None = None,
    token_types: Tensor | None = None,
    *,
    norm: Norm = layer_norm,
    head_activation: Activation = torch.relu,
    **options: Any,
) -> Tensor:
    """Logits of the token that stands, or stood, at each position.

    Args:
        params: As of `encode_text`, and `transform`, `transform_norm` and the bias of `linear`,
            whose matrix is the token embedding.
        tokens: Token ids.
        mask: True where a position may look.
        key: Randomness for dropout; without it nothing is dropped.
        token_types: As in `encode_text`.
        norm: Of all norms.
        head_activation: Of the transform.
        options: As in `encode_text`.
    """
    transform, own_norm, head = (
        _checks.part("predict_masked", params, name, _MAKER)
        for name in ("transform", "transform_norm", "linear")
    )
    x = encode_text(params, tokens, mask, key, token_types, norm=norm, **options)
    x = norm(own_norm, head_activation(linear(transform, x)))
    return linear({**params["embedding"]["token"], **head}, x)

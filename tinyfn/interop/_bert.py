"""BERT, RoBERTa and DistilBERT: sums of learned embeddings, normed, then a post-norm encoder.

    encode_text       features = encoder(norm(token + position + type))
    classify_text     linear(tanh(pooler(features of the first position)))
    classify_tokens   linear(features)
    predict_masked    linear(norm(activation(transform(features)))), tied to the token embedding

Token types are an input, so the functions are of their own. Theirs keep gradients from the row of
the padding token; here it has none where a mask hides it.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinyfn import _checks, positions, random
from tinyfn._encoder_model import first_pool
from tinyfn._primitives import dropout, embedding, layer_norm, linear
from tinyfn._transformer import encoder
from tinyfn.interop import _options
from tinyfn.interop._tables import Counterpart, Line, bare, parts
from tinyfn.types import Activation, Key, Norm, Params


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
        token_types: Which part of a text each token is of; the first of them, if None.
        padding: The token that is not counted, where positions count from behind it (RoBERTa).
        norm: Of the embedding and the layers.
        embedding_dropout_p: Chance that a number of the normed embedding is dropped.
        layer: As in `encoder`.
    """
    tables = _checks.part("encode_text", params, "embedding", "interop.from_hugging_face")
    embedding_key, encoder_key = random.split_or_none(key, 2)
    x = embedding(tables["token"], tokens)
    if "token_type" in tables:
        first = tables["token_type"]["weight"][0]
        x = x + (first if token_types is None else embedding(tables["token_type"], token_types))
    elif token_types is not None:
        remedy = "Leave them out"
        requirement, actual = "be None for params without token types", _checks.shape(token_types)
        raise _checks.fail(ValueError, "encode_text", "token_types", requirement, actual, remedy)
    x = norm(tables["norm"], x + _numbered(tables["position"], tokens, padding))
    x = dropout(x, embedding_key, dropout_p=embedding_dropout_p)
    return encoder(params["encoder"], x, mask, encoder_key, norm=norm, **layer)


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
    key, first_key, head_key = random.split_or_none(key, 3)
    x = first_pool(encode_text(params, tokens, mask, key, token_types, **options))
    x = linear(params["pooler"], dropout(x, first_key, dropout_p=first_dropout_p))
    x = dropout(pool_activation(x), head_key, dropout_p=head_dropout_p)
    return linear(params["linear"], x)


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
    key, head_key = random.split_or_none(key, 2)
    x = encode_text(params, tokens, mask, key, token_types, **options)
    return linear(params["linear"], dropout(x, head_key, dropout_p=head_dropout_p))


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
    x = encode_text(params, tokens, mask, key, token_types, norm=norm, **options)
    x = norm(params["transform_norm"], head_activation(linear(params["transform"], x)))
    return linear({**params["embedding"]["token"], **params["linear"]}, x)


_OURS = "encoder.layers.{layer}"
_BERT_LAYER = {
    f"{_OURS}.self_attention.q_proj": "attention.self.query",
    f"{_OURS}.self_attention.k_proj": "attention.self.key",
    f"{_OURS}.self_attention.v_proj": "attention.self.value",
    f"{_OURS}.self_attention.out_proj": "attention.output.dense",
    f"{_OURS}.self_attention_norm": "attention.output.LayerNorm",
    f"{_OURS}.feed_forward.up_proj": "intermediate.dense",
    f"{_OURS}.feed_forward.down_proj": "output.dense",
    f"{_OURS}.feed_forward_norm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    f"{_OURS}.self_attention.q_proj": "attention.q_lin",
    f"{_OURS}.self_attention.k_proj": "attention.k_lin",
    f"{_OURS}.self_attention.v_proj": "attention.v_lin",
    f"{_OURS}.self_attention.out_proj": "attention.out_lin",
    f"{_OURS}.self_attention_norm": "sa_layer_norm",
    f"{_OURS}.feed_forward.up_proj": "ffn.lin1",
    f"{_OURS}.feed_forward.down_proj": "ffn.lin2",
    f"{_OURS}.feed_forward_norm": "output_layer_norm",
}


def _table(model: str, stack: str, layer: dict[str, str], *, types: bool = True) -> tuple:
    """The lines of a model without its head."""
    tables = {"token": "word", "position": "position"} | (
        {"token_type": "token_type"} if types else {}
    )
    embeddings = f"{model}.embeddings"
    return (
        *(
            Line(f"embedding.{ours}.weight", f"{embeddings}.{theirs}_embeddings.weight")
            for ours, theirs in tables.items()
        ),
        *parts({"embedding.norm": f"{embeddings}.LayerNorm"}),
        *parts({ours: f"{model}.{stack}.layer.{{layer}}.{x}" for ours, x in layer.items()}),
    )


_TABLES = {
    "bert": _table("bert", "encoder", _BERT_LAYER),
    "roberta": _table("roberta", "encoder", _BERT_LAYER),
    "distilbert": _table("distilbert", "transformer", _DISTILBERT_LAYER, types=False),
}
_CLASSIFIER = {
    "bert": {"pooler": "bert.pooler.dense", "linear": "classifier"},
    "roberta": {"pooler": "classifier.dense", "linear": "classifier.out_proj"},
    "distilbert": {"pooler": "pre_classifier", "linear": "classifier"},
}
_MASKED = {
    "bert": {
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
    },
    "roberta": {"transform": "lm_head.dense", "transform_norm": "lm_head.layer_norm"},
    "distilbert": {"transform": "vocab_transform", "transform_norm": "vocab_layer_norm"},
}
_DECODER = {
    "bert": ("cls.predictions.decoder", "cls.predictions.bias"),
    "roberta": ("lm_head.decoder", "lm_head.bias"),
    "distilbert": ("vocab_projector", None),
}

_READ = frozenset(
    "attention_probs_dropout_prob classifier_dropout hidden_act hidden_dropout_prob hidden_size "
    "intermediate_size layer_norm_eps max_position_embeddings num_attention_heads "
    "num_hidden_layers tie_word_embeddings type_vocab_size "
    "activation attention_dropout dim dropout hidden_dim n_heads n_layers "
    "seq_classif_dropout".split()
)
_UNREAD = frozenset("gradient_checkpointing qa_dropout sinusoidal_pos_embds tie_weights_".split())
"""How a model is trained, how its table of positions began, a head that has no function here."""


def bert(config: Any, names: Collection[str]) -> Counterpart:
    """The counterpart of a BERT, RoBERTa or DistilBERT: alone, or with one of three heads.

    Args:
        config: A BertConfig, RobertaConfig or DistilBertConfig.
        names: Of the weights, theirs or ours.
    """
    kind = config.model_type
    options = _options_of(config)
    table = _TABLES[kind]
    counts = {"layer": config.num_hidden_layers}
    heads = config.num_attention_heads
    sizes = {"heads": heads, "head_dim": config.hidden_size // heads}

    def has(**places: str) -> bool:
        return all({f"{x}.weight", f"{y}.weight"} & set(names) for x, y in places.items())

    if has(transform=_MASKED[kind]["transform"]):
        function, head = predict_masked, _masked_head(config)
        options["head_activation"] = _masked_activation(config)
        table = tuple(line for line in table if line.ours != head[0].ours)
    elif has(**_CLASSIFIER[kind]):
        function, head = classify_text, parts(_CLASSIFIER[kind])
        options |= _classifier_options(config)
    elif has(linear="classifier"):
        function, head = classify_tokens, parts({"linear": "classifier"})
        options["head_dropout_p"] = _head_dropout(config)
    else:
        function, table = encode_text, bare(table, "", f"{kind}.")
        head = parts({"pooler": "pooler.dense"}) if has(pooler="pooler.dense") else ()
    buffers = ("embeddings.position_ids", f"{kind}.embeddings.position_ids")
    return Counterpart(function, options, (*table, *head), counts, sizes, buffers)


def _options_of(config: Any) -> dict[str, Any]:
    older = _options.only(config, position_embedding_type="absolute")
    _options.check(config, _READ | _UNREAD | older)
    if config.model_type == "distilbert":
        return {
            "norm": partial(layer_norm, eps=1e-12),
            "activation": _options.activation(config, "activation"),
            "attend": _options.dropping(float(config.attention_dropout), 0.0),
            "feed_forward": partial(_dropping_result, float(config.dropout)),
            "embedding_dropout_p": float(config.dropout),
        }
    p = float(config.hidden_dropout_prob)
    options = {
        "norm": partial(layer_norm, eps=config.layer_norm_eps),
        "activation": _options.activation(config, "hidden_act"),
        "attend": _options.dropping(float(config.attention_probs_dropout_prob), p),
        "feed_forward": _options.keeps_hidden,
        "dropout_p": p,
        "embedding_dropout_p": p,
    }
    return options | ({"padding": config.pad_token_id} if config.model_type == "roberta" else {})


def _dropping_result(
    p: float, params: Params, x: Tensor, key: Key | None = None, **options: Any
) -> Tensor:
    """A feed-forward that drops of its result, in layers that drop nothing of attention's."""
    result = _options.keeps_hidden(params, x, activation=options["activation"])
    return dropout(result, key, dropout_p=p)


def _masked_head(config: Any) -> tuple[Line, ...]:
    kind = config.model_type
    if not config.tie_word_embeddings:
        raise _options.refuse("tie_word_embeddings", "be True with a head for masked tokens", False)
    decoder, bias = _DECODER[kind]
    token = f"{kind}.embeddings.word_embeddings.weight"
    biases = (f"{decoder}.bias",) if bias is None else (bias, f"{decoder}.bias")
    return (
        Line("embedding.token.weight", (token, f"{decoder}.weight")),
        *parts(_MASKED[kind]),
        Line("linear.bias", biases),
    )


def _masked_activation(config: Any) -> Activation:
    if config.model_type == "roberta":
        return F.gelu
    option = "activation" if config.model_type == "distilbert" else "hidden_act"
    return _options.activation(config, option)


def _head_dropout(config: Any) -> float:
    if config.model_type == "distilbert":
        return float(config.dropout)
    given = config.classifier_dropout
    return float(config.hidden_dropout_prob if given is None else given)


def _classifier_options(config: Any) -> dict[str, Any]:
    if config.model_type == "distilbert":
        p = float(config.seq_classif_dropout)
        return {"pool_activation": torch.relu, "head_dropout_p": p}
    p = _head_dropout(config)
    return {"head_dropout_p": p} | (
        {"first_dropout_p": p} if config.model_type == "roberta" else {}
    )

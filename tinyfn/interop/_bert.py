"""BERT, RoBERTa and DistilBERT: post-norm encoders of texts, alone or with one of three heads.

Theirs keep gradients from the row of the padding token; here it has none where a mask hides it.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinyfn._dropout import dropout
from tinyfn._primitives import layer_norm
from tinyfn.interop import _options
from tinyfn.interop._tables import Counterpart, Line, bare, parts
from tinyfn.interop._texts import classify_text, classify_tokens, encode_text, predict_masked
from tinyfn.types import Activation, Key, Params

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
_UNREAD = frozenset(
    "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type qa_dropout sinusoidal_pos_embds tie_weights_".split()
)
"""What no model reads, how a table of positions began, a head that has no function here."""


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

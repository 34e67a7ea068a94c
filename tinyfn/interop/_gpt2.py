"""GPT-2: learned positions, layer norms before the sublayers, the embedding as output matrix."""

from collections.abc import Collection
from functools import partial
from typing import Any

from tinyfn import positions
from tinyfn._language_model import language_model
from tinyfn._primitives import embedding, layer_norm
from tinyfn.interop import _options
from tinyfn.interop._output import with_output
from tinyfn.interop._tables import Counterpart, Line, parts

_OURS, _THEIRS = "decoder.layers.{layer}", "transformer.h.{layer}"
_PACKED = tuple(f"{_OURS}.self_attention.{name}_proj" for name in "qkv")

TABLE = (
    Line("decoder.embedding.weight", "transformer.wte.weight"),
    Line("decoder.position.weight", "transformer.wpe.weight"),
    Line(
        tuple(f"{name}.weight" for name in _PACKED),
        f"{_THEIRS}.attn.c_attn.weight",
        "features (parts heads head_dim) -> parts heads head_dim features",
    ),
    Line(
        tuple(f"{name}.bias" for name in _PACKED),
        f"{_THEIRS}.attn.c_attn.bias",
        "(parts heads head_dim) -> parts heads head_dim",
    ),
    Line(
        f"{_OURS}.self_attention.out_proj.weight",
        f"{_THEIRS}.attn.c_proj.weight",
        "(heads head_dim) features -> features heads head_dim",
    ),
    Line(f"{_OURS}.self_attention.out_proj.bias", f"{_THEIRS}.attn.c_proj.bias"),
    Line(f"{_OURS}.feed_forward.up_proj.weight", f"{_THEIRS}.mlp.c_fc.weight", "i o -> o i"),
    Line(f"{_OURS}.feed_forward.up_proj.bias", f"{_THEIRS}.mlp.c_fc.bias"),
    Line(f"{_OURS}.feed_forward.down_proj.weight", f"{_THEIRS}.mlp.c_proj.weight", "i o -> o i"),
    Line(f"{_OURS}.feed_forward.down_proj.bias", f"{_THEIRS}.mlp.c_proj.bias"),
    *parts(
        {
            f"{_OURS}.self_attention_norm": f"{_THEIRS}.ln_1",
            f"{_OURS}.feed_forward_norm": f"{_THEIRS}.ln_2",
            "decoder.final_norm": "transformer.ln_f",
        }
    ),
)

BUFFERS = ("transformer.h.{layer}.attn.bias", "transformer.h.{layer}.attn.masked_bias")
"""Causal masks, which older versions saved."""

READ = frozenset(
    "activation_function attn_pdrop embd_pdrop layer_norm_epsilon n_embd n_head n_inner n_layer "
    "n_positions resid_pdrop tie_word_embeddings".split()
)
HEADS = frozenset(
    "n_ctx summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj".split()
)
"""Options of heads that have no function here, whose weights are refused, and a repeated size."""


def gpt2(config: Any, names: Collection[str]) -> Counterpart:
    """The counterpart of a GPT-2 with its head, or without.

    Args:
        config: A GPT2Config.
        names: Of the weights, theirs or ours.
    """
    _options.check(config, READ | HEADS)
    dropout_p = _options.one_dropout(config, "resid_pdrop", "embd_pdrop")
    options = {
        "position": positions.add_learned,
        "embed": embedding,
        "norm": partial(layer_norm, eps=config.layer_norm_epsilon),
        "norm_first": True,
        "activation": _options.activation(config, "activation_function"),
        "feed_forward": _options.keeps_hidden,
        "attend": _options.dropping(float(config.attn_pdrop), dropout_p),
        "dropout_p": dropout_p,
    }
    sizes = {"heads": config.n_head, "head_dim": config.n_embd // config.n_head}
    counts = {"layer": config.n_layer}
    match = Counterpart(language_model, options, TABLE, counts, sizes, BUFFERS)
    return with_output(match, names, tie=config.tie_word_embeddings)

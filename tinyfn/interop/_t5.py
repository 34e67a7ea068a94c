"""T5: a transformer without positions; attention has a bias by distance that all layers share.

Its norms are RMS norms before the sublayers, its scores are not scaled, and its logits are, where
they come from the embedding. Theirs drops behind the final norms too, which nothing here does.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinyfn import positions
from tinyfn._attend import dot_product_attention
from tinyfn._primitives import embedding, feed_forward, gated_feed_forward, linear, rms_norm
from tinyfn._transformer import encode, transformer
from tinyfn.interop import _options
from tinyfn.interop._tables import Counterpart, Line, parts
from tinyfn.types import Params

_ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
_PLAIN = {"up_proj": "wi", "down_proj": "wo"}
_GATED = {"gate_proj": "wi_0", "up_proj": "wi_1", "down_proj": "wo"}


def _stack(stack: str, *, gated: bool) -> tuple[Line, ...]:
    ours, theirs = f"{stack}.layers.{{{stack}}}", f"{stack}.block.{{{stack}}}.layer"
    sublayers = {"self_attention": "SelfAttention"}
    sublayers |= {"cross_attention": "EncDecAttention"} if stack == "decoder" else {}
    sublayers |= {"feed_forward": "DenseReluDense"}
    names = {f"{stack}.final_norm": f"{stack}.final_layer_norm"}
    for index, (sublayer, part) in enumerate(sublayers.items()):
        hidden = _GATED if gated else _PLAIN
        for x, y in (hidden if sublayer == "feed_forward" else _ATTENTION).items():
            names[f"{ours}.{sublayer}.{x}"] = f"{theirs}.{index}.{part}.{y}"
        names[f"{ours}.{sublayer}_norm"] = f"{theirs}.{index}.layer_norm"
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    if stack == "decoder":
        return (*parts(names, bias=False), Line("decoder.attend.before", bias))
    both = ("encoder.attend.before", "encoder.attend.after")
    line = Line(both, bias, "(parts buckets) heads -> parts buckets heads")
    return (*parts(names, bias=False), line)


_READ = frozenset(
    "d_ff d_kv d_model dense_act_fn dropout_rate feed_forward_proj is_gated_act layer_norm_epsilon "
    "num_decoder_layers num_heads num_layers relative_attention_max_distance "
    "relative_attention_num_buckets scale_decoder_outputs tie_word_embeddings".split()
)
_UNREAD = frozenset("classifier_dropout initializer_factor n_positions".split())
"""Of a head that has no function here, of how weights begin, and of older versions."""


def t5(config: Any, names: Collection[str]) -> Counterpart:
    """The counterpart of a T5 with its head, or of its encoder alone.

    Args:
        config: A T5Config.
        names: Of the weights, theirs or ours.
    """
    _options.check(config, _READ | _UNREAD)
    unscaled = partial(dot_product_attention, scale=1.0)
    distance = config.relative_attention_max_distance
    options = {
        "position": _unmarked,
        "embed": embedding,
        "norm": partial(rms_norm, eps=config.layer_norm_epsilon),
        "norm_first": True,
        "activation": _options.activation(config, "dense_act_fn"),
        "feed_forward": gated_feed_forward if config.is_gated_act else feed_forward,
        "attend": positions.relative(unscaled, max_distance=distance),
        "dropout_p": float(config.dropout_rate),
    }
    counts = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    sizes = {"heads": config.num_heads, "head_dim": config.d_kv}
    words, table = ["shared", "encoder.embed_tokens"], _stack("encoder", gated=config.is_gated_act)
    function: Any = encode
    if any(name.startswith("decoder.") for name in names):
        function, options["cross_attend"] = transformer, unscaled
        table += _stack("decoder", gated=config.is_gated_act)
        words.append("decoder.embed_tokens")
        if _has_own_output(names):
            table += parts({"linear": "lm_head"}, bias=False)
        else:
            words.append("lm_head")
        if config.scale_decoder_outputs:
            options["output"] = _scaled
    line = Line("embedding.weight", tuple(f"{name}.weight" for name in words))
    return Counterpart(function, options, (line, *table), counts, sizes)


def _has_own_output(names: Collection[str]) -> bool:
    """Whether the output matrix is not the embedding, as in T5 1.1: its config does not say."""
    shared, head = "shared.weight", "lm_head.weight"
    if not isinstance(names, Mapping) or shared not in names or head not in names:
        return "linear.weight" in names
    return not torch.equal(names[shared], names[head])


def _unmarked(params: Params, x: Tensor, *, offset: Any = 0) -> Tensor:
    """No positions, but the dropout that follows them."""
    return x


def _scaled(params: Params, x: Tensor) -> Tensor:
    return linear(params, x * x.shape[-1] ** -0.5)

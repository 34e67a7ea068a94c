"""Llama and its kin, Mistral, Qwen2 and Qwen3: rotary grouped heads, gated feed-forward.

They differ in biases, in a window for the attention, and in norms of queries and keys.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch

from tinyfn import masks, positions
from tinyfn._language_model import language_model
from tinyfn._primitives import embedding, gated_feed_forward, rms_norm
from tinyfn.interop import _options
from tinyfn.interop._output import with_output
from tinyfn.interop._tables import Counterpart, Line, parts

_OURS, _THEIRS = "decoder.layers.{layer}", "model.layers.{layer}"
BUFFERS = ("model.layers.{layer}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
"""Frequencies, which older versions saved."""

READ = frozenset(
    "attention_dropout head_dim hidden_act hidden_size intermediate_size max_position_embeddings "
    "num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps rope_parameters "
    "tie_word_embeddings".split()
)


def table(
    *, qkv_bias: bool, out_bias: bool, hidden_bias: bool = False, qk_norms: bool = False
) -> tuple[Line, ...]:
    """The names of one of the kin.

    Args:
        qkv_bias: Whether the projections to queries, keys and values have biases.
        out_bias: Whether that of the heads back has one.
        hidden_bias: Whether the feed-forward has biases.
        qk_norms: Whether queries and keys have norms.

    Example:
        >>> len(table(qkv_bias=True, out_bias=False)) - len(table(qkv_bias=False, out_bias=False))
        3
    """
    own, theirs = f"{_OURS}.self_attention", f"{_THEIRS}.self_attn"
    norms = {
        f"{own}_norm": f"{_THEIRS}.input_layernorm",
        f"{_OURS}.feed_forward_norm": f"{_THEIRS}.post_attention_layernorm",
        "decoder.final_norm": "model.norm",
    }
    if qk_norms:
        norms |= {f"{own}.{name}_norm": f"{theirs}.{name}_norm" for name in "qk"}
    hidden = {
        f"{_OURS}.feed_forward.{name}_proj": f"{_THEIRS}.mlp.{name}_proj"
        for name in ("gate", "up", "down")
    }
    kv = {f"{own}.{name}_proj": f"{theirs}.{name}_proj" for name in "kv"}
    return (
        Line("decoder.embedding.weight", "model.embed_tokens.weight"),
        *parts({f"{own}.q_proj": f"{theirs}.q_proj"}, bias=qkv_bias),
        *parts(kv, bias=qkv_bias, heads="kv_heads"),
        *parts({f"{own}.out_proj": f"{theirs}.o_proj"}, bias=out_bias),
        *parts(hidden, bias=hidden_bias),
        *parts(norms, bias=False),
    )


def llama(config: Any, names: Collection[str]) -> Counterpart:
    """The counterpart of a Llama with its head, or without; `mistral`, `qwen2` alike.

    Args:
        config: A LlamaConfig.
        names: Of the weights, theirs or ours.
    """
    _options.check(config, READ | {"attention_bias", "mlp_bias"})
    bias = config.attention_bias
    lines = table(qkv_bias=bias, out_bias=bias, hidden_bias=config.mlp_bias)
    return _counterpart(config, names, lines, None)


def mistral(config: Any, names: Collection[str]) -> Counterpart:
    """As `llama`, of a MistralConfig."""
    _options.check(config, READ | {"sliding_window"})
    lines = table(qkv_bias=False, out_bias=False)
    return _counterpart(config, names, lines, config.sliding_window)


def qwen2(config: Any, names: Collection[str]) -> Counterpart:
    """As `llama`, of a Qwen2Config."""
    lines = table(qkv_bias=True, out_bias=False)
    return _counterpart(config, names, lines, _window(config, READ))


def qwen3(config: Any, names: Collection[str]) -> Counterpart:
    """As `llama`, of a Qwen3Config."""
    window = _window(config, READ | {"attention_bias"})
    if config.rms_norm_eps != 1e-6:
        raise _options.refuse(
            "rms_norm_eps", "be 1e-6, as in norms of q and k", config.rms_norm_eps
        )
    bias = config.attention_bias
    lines = table(qkv_bias=bias, out_bias=bias, qk_norms=True)
    return _counterpart(config, names, lines, window)


def _window(config: Any, read: frozenset[str]) -> int | None:
    windows = {"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"}
    windows |= set() if getattr(config, "use_mrope", False) else {"use_mrope"}
    _options.check(config, read | windows)
    kinds = set(config.layer_types)
    if kinds == {"sliding_attention"} and config.sliding_window is not None:
        return config.sliding_window
    if kinds <= {"full_attention"}:
        return None
    requirement = "be full_attention for every layer, or sliding_attention with a sliding_window"
    raise _options.refuse("layer_types", requirement, config.layer_types)


def _counterpart(
    config: Any, names: Collection[str], lines: tuple[Line, ...], window: int | None
) -> Counterpart:
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    look = _options.dropping(float(config.attention_dropout or 0.0), 0.0)
    options: dict[str, Any] = {
        "position": None,
        "embed": embedding,
        "norm": partial(rms_norm, eps=config.rms_norm_eps),
        "norm_first": True,
        "activation": _options.activation(config, "hidden_act"),
        "feed_forward": gated_feed_forward,
        "attend": positions.rotary(look, **_rotary(config, head_dim)),
    }
    counts = {"layer": config.num_hidden_layers}
    sizes = {"heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads}
    sizes["head_dim"] = head_dim
    seen = None if window is None else masks.causal() & masks.window(window - 1, None)
    options |= {} if seen is None else {"self_mask": seen}
    match = Counterpart(language_model, options, lines, counts, sizes, BUFFERS)
    return with_output(match, names, tie=config.tie_word_embeddings)


ROPE = {
    "default": "",
    "linear": "factor",
    "dynamic": "factor",
    "llama3": "factor high_freq_factor low_freq_factor original_max_position_embeddings",
    "longrope": "attention_factor factor long_factor original_max_position_embeddings short_factor",
    "yarn": "attention_factor beta_fast beta_slow factor mscale mscale_all_dim "
    "original_max_position_embeddings truncate",
}
"""What each kind of rotary positions reads, beside `rope_theta`."""


def _rotary(config: Any, head_dim: int) -> dict[str, Any]:
    """Keyword arguments of `positions.rotary`."""
    rope = dict(config.rope_parameters)
    kind, theta = rope.pop("rope_type", None), rope.pop("rope_theta", None)
    if kind not in ROPE:
        requirement = f"be one of {', '.join(ROPE)}"
        raise _options.refuse("rope_parameters['rope_type']", requirement, repr(kind))
    rope.pop("type", None)  # an older name
    if rope.get("partial_rotary_factor") in (None, 1.0):
        rope.pop("partial_rotary_factor", None)
    for name in set(rope) - set(ROPE[kind].split()):
        raise _options.refuse(f"rope_parameters['{name}']", "be absent", repr(rope[name]))
    made: dict[str, Callable[..., dict[str, Any]]] = {
        "default": lambda *_: {},
        "linear": _linear,
        "dynamic": _dynamic,
        "llama3": _llama3,
        "longrope": _longrope,
        "yarn": _yarn,
    }
    theta = float(theta)
    return {"theta": theta, **made[kind](rope, head_dim, theta, config.max_position_embeddings)}


Rope = Mapping[str, Any]


def _linear(rope: Rope, head_dim: int, theta: float, max_len: int) -> dict[str, Any]:
    return {"frequencies": positions.frequencies(head_dim, theta=theta) / rope["factor"]}


def _dynamic(rope: Rope, head_dim: int, theta: float, max_len: int) -> dict[str, Any]:
    sizes = {"head_dim": head_dim, "max_len": max_len, "theta": theta}
    return {"frequencies": partial(positions.ntk_scaled, factor=float(rope["factor"]), **sizes)}


def _llama3(rope: Rope, head_dim: int, theta: float, max_len: int) -> dict[str, Any]:
    frequencies = positions.llama3(
        head_dim,
        factor=float(rope["factor"]),
        max_len=rope["original_max_position_embeddings"],
        theta=theta,
        low=float(rope["low_freq_factor"]),
        high=float(rope["high_freq_factor"]),
    )
    return {"frequencies": frequencies}


def _yarn(rope: Rope, head_dim: int, theta: float, max_len: int) -> dict[str, Any]:
    trained = rope["original_max_position_embeddings"]
    factor = float(rope["factor"] or max_len / trained)
    frequencies = positions.yarn(
        head_dim,
        factor=factor,
        max_len=trained,
        theta=theta,
        fast=float(rope.get("beta_fast") or 32),
        slow=float(rope.get("beta_slow") or 1),
        whole=rope.get("truncate", True),
    )

    def size(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    scale, one, all_dim = (rope.get(k) for k in ("attention_factor", "mscale", "mscale_all_dim"))
    if scale is None:
        scale = size(one) / size(all_dim) if one and all_dim else size()
    return {"frequencies": frequencies, "scale": float(scale)}


def _longrope(rope: Rope, head_dim: int, theta: float, max_len: int) -> dict[str, Any]:
    trained = rope["original_max_position_embeddings"]
    factor, scale = rope.get("factor") or max_len / trained, rope.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    usual = positions.frequencies(head_dim, theta=theta)
    for name in ("short_factor", "long_factor"):
        if len(rope[name]) != len(usual):
            option, actual = f"rope_parameters['{name}']", f"{len(rope[name])} of them"
            requirement = f"have one number for each pair of features, {len(usual)}"
            remedy = "Pass the config that the weights were made with"
            raise _options.refuse(option, requirement, actual, remedy)
    short, long = (
        usual / torch.tensor(rope[f"{name}_factor"], dtype=usual.dtype)
        for name in ("short", "long")
    )
    frequencies = partial(positions.by_length, short=short, long=long, max_len=trained)
    return {"frequencies": frequencies, "scale": float(scale)}

"""What the configs of transformers say: what a family reads, what says nothing, what is refused.

A family names every option that it reads. Of the others, those of `NEUTRAL` say nothing of the
numbers that a model computes; the rest must be what the config's class has by itself.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinyfn._attend import dot_product_attention
from tinyfn._primitives import feed_forward
from tinyfn.types import Activation, Attend, Key, Params

NEUTRAL = frozenset(
    "_name_or_path architectures bos_token_id chunk_size_feed_forward decoder_start_token_id dtype "
    "eos_token_id forced_eos_token_id id2label initializer_range is_encoder_decoder label2id "
    "model_type output_attentions output_hidden_states pad_token_id problem_type return_dict "
    "task_specific_params torch_dtype transformers_version use_cache vocab_size "
    "_num_labels finetuning_task force_bos_token_to_be_generated gradient_checkpointing "
    "output_past prefix save_step".split()
)
"""Options that say how a model is made, saved, called or trained; sizes, which the weights have."""


class Refused(ValueError):
    """A refusal, as argument, requirement, actual and remedy; whoever was called says its name."""


def check(config: Any, read: Collection[str]) -> None:
    """Every option is read, neutral, or what its class has: else it is refused by name.

    Args:
        config: Of transformers.
        read: The options that the family reads.
    """
    usual = type(config)().to_dict()
    for name, value in config.to_dict().items():
        if name in NEUTRAL or name in read or (name in usual and usual[name] == value):
            continue
        if name in usual:
            raise refuse(name, f"be {usual[name]!r}", repr(value))
        remedy = "No function here reads it: delete it from the config if it changes no number"
        raise refuse(name, "be absent", repr(value), remedy)


def only(config: Any, **wanted: Any) -> frozenset[str]:
    """The names of options of other versions, where they have the values that are reproduced.

    Args:
        config: Of transformers.
        wanted: The one value of each that is; absent is as good.
    """
    for name, value in wanted.items():
        actual = getattr(config, name, value)
        if actual != value:
            raise refuse(name, f"be {value!r}", repr(actual))
    return frozenset(wanted)


def refuse(
    option: str,
    requirement: str,
    actual: object,
    remedy: str = "No function here reproduces it",
) -> Refused:
    """The error for an option of a config."""
    return Refused(f"config.{option}", requirement, actual, remedy)


def activation(config: Any, option: str) -> Activation:
    """The activation that an option names.

    Args:
        config: Of transformers.
        option: Such as "hidden_act".
    """
    activations: dict[str, Activation] = {
        "gelu": F.gelu,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "leaky_relu": F.leaky_relu,
        "mish": F.mish,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "swish": F.silu,
        "tanh": torch.tanh,
    }
    name = getattr(config, option)
    if name not in activations:
        raise refuse(option, f"be one of {', '.join(activations)}", repr(name))
    return activations[name]


def one_dropout(config: Any, *options: str) -> float:
    """The dropout that several options agree on."""
    values = {option: float(getattr(config, option)) for option in options}
    if len(set(values.values())) != 1:
        requirement = f"be that of {', '.join(options[1:])}"
        remedy = "Set them to one value: a model that is evaluated drops nothing"
        raise refuse(options[0], requirement, values, remedy)
    return values[options[0]]


def dropping(attend_dropout: float, layer_dropout: float) -> Attend:
    """Attention that drops weights with a chance of its own, where the layer has another."""
    if attend_dropout == layer_dropout:
        return dot_product_attention
    return partial(_dropping, attend_dropout)


def _dropping(
    p: float,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Any = None,
    key: Key | None = None,
    bias: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    return dot_product_attention(q, k, v, mask, key, bias, dropout_p=p)


def keeps_hidden(
    params: Params,
    x: Tensor,
    key: Key | None = None,
    *,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    dropout_p: float = 0.0,
) -> Tensor:
    """A feed-forward that drops nothing of its hidden layer.

    Args:
        params: As of `feed_forward`.
        x: Any leading axes.
        key: Not read.
        activation: Any elementwise function.
        dropout_p: Not read.
    """
    return feed_forward(params, x, activation=activation)

"""ViT: an image as a sequence of patches behind a class token, through a pre-norm encoder.

    encode_image     encoder(class_token, in_proj(patches))
    classify_image   linear(the class token's features)

There are positions for one size of image.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tinyfn import _checks, positions
from tinyfn._encoder_model import first_pool
from tinyfn._primitives import layer_norm, linear
from tinyfn._transformer import encoder
from tinyfn.interop import _options
from tinyfn.interop._tables import Counterpart, Line, bare, parts
from tinyfn.types import Key, Params

Sizes = tuple[int, int]


def encode_image(
    params: Params,
    image: Tensor,
    mask: Any = None,
    key: Key | None = None,
    *,
    image_size: Sizes,
    patch_size: Sizes,
    **options: Any,
) -> Tensor:
    """Features of the class token, and of each patch behind it.

    Args:
        params: `in_proj`, `class_token` and `encoder`.
        image: (... channels height width), any leading axes.
        mask: True where a position may look; the class token is the first.
        key: Randomness for dropout; without it nothing is dropped.
        image_size: The one height and width that there are positions for.
        patch_size: Height and width of a patch.
        options: As in `encoder`.
    """
    _check_image(image, image_size)
    patches = rearrange(
        image,
        "... channels (rows height) (columns width) -> ... (rows columns) (channels height width)",
        height=patch_size[0],
        width=patch_size[1],
    )
    in_proj, first, stack = (
        _checks.part("encode_image", params, name, "interop.from_hugging_face")
        for name in ("in_proj", "class_token", "encoder")
    )
    x = linear(in_proj, patches)
    token = _checks.part("encode_image", first, "weight", "interop.from_hugging_face")
    token = token.expand(*x.shape[:-2], 1, x.shape[-1])
    return encoder(stack, torch.cat([token, x], dim=-2), mask, key, **options)


def _check_image(image: Tensor, size: Sizes) -> None:
    _checks.floating("encode_image", "image", image)
    if image.ndim < 3 or tuple(image.shape[-2:]) != size:
        requirement = f"have shape (..., channels, {size[0]}, {size[1]})"
        actual, remedy = _checks.shape(image), "Resize it: there are positions for this size only"
        raise _checks.fail(ValueError, "encode_image", "image", requirement, actual, remedy)


def classify_image(
    params: Params, image: Tensor, mask: Any = None, key: Key | None = None, **options: Any
) -> Tensor:
    """Logits of an image's classes.

    Args:
        params: As of `encode_image`, and `linear`.
        image: As in `encode_image`.
        mask: As in `encode_image`.
        key: Randomness for dropout; without it nothing is dropped.
        options: As in `encode_image`.
    """
    head = _checks.part("classify_image", params, "linear", "interop.from_hugging_face")
    return linear(head, first_pool(encode_image(params, image, mask, key, **options)))


_LAYER = {
    "self_attention.q_proj": "attention.q_proj",
    "self_attention.k_proj": "attention.k_proj",
    "self_attention.v_proj": "attention.v_proj",
    "self_attention.out_proj": "attention.o_proj",
    "self_attention_norm": "layernorm_before",
    "feed_forward.up_proj": "mlp.fc1",
    "feed_forward.down_proj": "mlp.fc2",
    "feed_forward_norm": "layernorm_after",
}
_PUBLISHED = _LAYER | {
    "self_attention.q_proj": "attention.attention.query",
    "self_attention.k_proj": "attention.attention.key",
    "self_attention.v_proj": "attention.attention.value",
    "self_attention.out_proj": "attention.output.dense",
    "feed_forward.up_proj": "intermediate.dense",
    "feed_forward.down_proj": "output.dense",
}
"""The names of older versions, which the files still have."""

_EDGES = (
    Line("class_token.weight", "vit.embeddings.cls_token", "1 1 features -> features"),
    Line(
        "encoder.position.weight",
        "vit.embeddings.position_embeddings",
        "1 seq features -> seq features",
    ),
    Line(
        "in_proj.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
        "features channels height width -> features (channels height width)",
    ),
    Line("in_proj.bias", "vit.embeddings.patch_embeddings.projection.bias"),
    *parts({"encoder.final_norm": "vit.layernorm"}),
)


def _table(names: Collection[str], *, qkv_bias: bool) -> tuple[Line, ...]:
    """The lines of a model without its head, by the names that its weights have."""
    layer, stack = _LAYER, "vit.layers"
    if any("encoder.layer." in name for name in names):
        layer, stack = _PUBLISHED, "vit.encoder.layer"
    lines = _EDGES
    for ours, theirs in layer.items():
        bias = qkv_bias or not ours.endswith(("q_proj", "k_proj", "v_proj"))
        line = {f"encoder.layers.{{layer}}.{ours}": f"{stack}.{{layer}}.{theirs}"}
        lines += parts(line, bias=bias)
    return lines


_READ = frozenset(
    "attention_probs_dropout_prob hidden_act hidden_dropout_prob hidden_size image_size "
    "intermediate_size layer_norm_eps num_attention_heads num_channels num_hidden_layers "
    "patch_size qkv_bias".split()
)
_UNREAD = frozenset("encoder_stride pooler_act pooler_output_size".split())
"""Of heads that have no function here; the pooler's params are kept, and no function reads them."""


def vit(config: Any, names: Collection[str]) -> Counterpart:
    """The counterpart of a ViT with a classifier, or alone.

    Args:
        config: A ViTConfig.
        names: Of the weights, theirs or ours.
    """
    _options.check(config, _READ | _UNREAD)
    image, patch = (_pair(getattr(config, f"{what}_size")) for what in ("image", "patch"))
    if image[0] % patch[0] or image[1] % patch[1]:
        requirement = f"be a multiple of patch_size, {patch}"
        raise _options.refuse("image_size", requirement, image)
    p, heads = float(config.hidden_dropout_prob), config.num_attention_heads
    options = {
        "image_size": image,
        "patch_size": patch,
        "position": positions.add_learned,
        "norm": partial(layer_norm, eps=config.layer_norm_eps),
        "norm_first": True,
        "activation": _options.activation(config, "hidden_act"),
        "attend": _options.dropping(float(config.attention_probs_dropout_prob), p),
        "feed_forward": _options.keeps_hidden,
        "dropout_p": p,
    }
    counts = {"layer": config.num_hidden_layers}
    sizes = {"heads": heads, "head_dim": config.hidden_size // heads}
    sizes |= {"height": patch[0], "width": patch[1]}
    table = _table(names, qkv_bias=config.qkv_bias)
    if {"classifier.weight", "linear.weight"}.isdisjoint(names):
        pooled = not {"pooler.dense.weight", "pooler.weight"}.isdisjoint(names)
        table = bare(table, "", "vit.")
        table += parts({"pooler": "pooler.dense"}) if pooled else ()
        return Counterpart(encode_image, options, table, counts, sizes)
    head = parts({"linear": "classifier"})
    return Counterpart(classify_image, options, (*table, *head), counts, sizes)


def _pair(size: Any) -> Sizes:
    return (size, size) if isinstance(size, int) else (size[0], size[1])

"""A model of a whole sequence: an encoder, what its positions have in common, and a linear map.

    encoder_model   linear(tanh(pooler(pool(encoder(x)))))

BERT pools the first position and has a pooler; a mean over positions without one is as common.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tinyfn import _checks, masks, positions, random
from tinyfn._primitives import init_linear, linear
from tinyfn._transformer import encoder, init_encoder, linear_options
from tinyfn.types import Key, Params, Position

Mask = masks.Mask

Pool: TypeAlias = Callable[[Tensor, "Mask | Tensor | None"], Tensor]
"""`pool(x, mask)`: features (... seq features) and the encoder's mask to (... features)."""


def first_pool(
    x: Float[Tensor, "... seq features"], mask: Mask | Bool[Tensor, "..."] | None = None
) -> Float[Tensor, "... features"]:
    """The first position's features, where a token stands for the whole.

    Args:
        x: Features.
        mask: Not read.

    Raises:
        ValueError: There is no position.

    Example:
        >>> first_pool(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([1., 2.])

    Reference: Devlin et al., "BERT", 2018, arXiv 1810.04805.
    """
    _check_pooled("first_pool", x)
    return x[..., 0, :]


def mean_pool(
    x: Float[Tensor, "... seq features"], mask: Mask | Bool[Tensor, "..."] | None = None
) -> Float[Tensor, "... features"]:
    """The mean of the positions that some position may look at.

    Args:
        x: Features.
        mask: As the encoder has it: what it hides from all, padding, does not count. Where
            everything is hidden the mean is 0.

    Raises:
        ValueError: There is no position, or `mask` does not fit.

    Example:
        >>> mean_pool(torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), masks.padding(2))
        tensor([2., 3.])
    """
    _check_pooled("mean_pool", x)
    seq = x.shape[-2]
    visible = masks.over_heads("mean_pool", mask, seq, seq, x.device)
    if visible is None:
        return x.mean(-2)
    rows = (*x.shape[:-2], 1, seq, seq)[-max(visible.ndim, 2) :]
    if visible.shape[-2] not in (1, seq) or visible.shape[-1] not in (1, seq):
        _checks.broadcasts("mean_pool", "mask", visible, rows, "(..., heads, seq, seq)")
    seen = visible.any(-2)
    seen = seen.any(-2) if seen.ndim > 1 else seen  # by some head
    _checks.broadcasts("mean_pool", "mask", seen, x.shape[:-1], "(..., seq)")
    seen = seen.expand(x.shape[:-1]).unsqueeze(-1)
    return torch.where(seen, x, 0.0).sum(-2) / seen.sum(-2).clamp(min=1)


def _check_pooled(name: str, x: Tensor) -> None:
    _checks.floating(name, "x", x)
    _checks.axes(name, "x", x, "seq", "features")
    _checks.at_least(name, "the length of x", x.shape[-2])


def init_encoder_model(
    key: Key,
    num_features: int,
    num_heads: int,
    dim_feedforward: int,
    num_layers: int,
    out_features: int,
    *,
    in_features: int | None = None,
    pooler: bool = False,
    **stack: Any,
) -> Params:
    """Params of `encoder_model`: `encoder`, `linear`, and `in_proj` or `pooler` if asked for.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis within the stack.
        num_heads: How many heads look.
        dim_feedforward: Size of the hidden layers.
        num_layers: How many layers.
        out_features: How many classes, or numbers, come out.
        in_features: For features in that are not as wide as the stack, such as patches: theirs.
        pooler: Whether a linear map and tanh follow the pooling, as in BERT.
        stack: For `init_encoder`: vocab_size, init_position, final_norm, and options of a layer.

    Raises:
        ValueError: A size is below 1, or heads do not divide.

    Example:
        >>> params = init_encoder_model(random.key(0), 8, 2, 16, 1, out_features=3, in_features=4)
        >>> list(params)
        ['in_proj', 'encoder', 'linear']
    """
    name = "init_encoder_model"
    _checks.sizes(name, num_features=num_features, out_features=out_features)
    made = linear_options(stack)
    in_key, encoder_key, pooler_key, linear_key = random.split(key, 4)
    params: Params = {}
    if in_features is not None:
        params["in_proj"] = init_linear(in_key, in_features, num_features, **made)
    sizes = (num_features, num_heads, dim_feedforward, num_layers)
    params["encoder"] = init_encoder(encoder_key, *sizes, **stack)
    if pooler:
        params["pooler"] = init_linear(pooler_key, num_features, num_features, **made)
    params["linear"] = init_linear(linear_key, num_features, out_features, **made)
    return params


def encoder_model(
    params: Params,
    x: Float[Tensor, "... seq in_features"] | Integer[Tensor, "... seq"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    *,
    pool: Pool = first_pool,
    position: Position | None = positions.add_sinusoidal,
    **options: Any,
) -> Float[Tensor, "... out_features"]:
    """A few numbers for a whole sequence, such as the logits of its classes.

    Args:
        params: From `init_encoder_model`.
        x: Features, or token ids if the encoder has an `embedding`.
        mask: True where a position may look; `masks.padding(lengths)` for texts of many lengths.
        key: Randomness for dropout; without it nothing is dropped.
        pool: What the positions have in common, such as `first_pool` or `mean_pool`.
        position: Joins positions to the features; None leaves them out.
        options: As in `encoder`: embed, norm, activation, norm_first, dropout_p, attend, remat, ...

    Raises:
        ValueError: `x` does not have the features of the params, or `mask` does not fit.
        TypeError: `mask` is not bool.

    Example:
        >>> params = init_encoder_model(random.key(0), 8, 2, 16, 1, out_features=3, vocab_size=10)
        >>> encoder_model(params, torch.tensor([1, 2, 3]), pool=mean_pool).shape
        torch.Size([3])

    Reference: Devlin et al., "BERT", 2018, arXiv 1810.04805.
    """
    stack = _checks.part("encoder_model", params, "encoder")
    head = _checks.part("encoder_model", params, "linear")
    if "in_proj" in params:
        x = linear(params["in_proj"], x)
    pooled = pool(encoder(stack, x, mask, key, position=position, **options), mask)
    if "pooler" in params:
        pooled = torch.tanh(linear(params["pooler"], pooled))
    return linear(head, pooled)

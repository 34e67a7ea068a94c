"""The default attend, which is fused where that is right and pays, and what any attend looks at."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tinyfn import _checks, _fused, _levels, masks
from tinyfn._dropout import Drawn
from tinyfn._explicit import check_heads, explicit
from tinyfn._similarity import scaled_dot_product
from tinyfn.types import Attend, Key

Mask = masks.Mask


def dot_product_attention(
    q: Float[Tensor, "... heads q_seq head_dim"],
    k: Float[Tensor, "... kv_heads kv_seq head_dim"],
    v: Float[Tensor, "... kv_heads kv_seq v_dim"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | Drawn | None = None,
    bias: Float[Tensor, "..."] | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "... heads q_seq v_dim"]:
    """Scaled dot-product attention: softmax(q kᵀ · scale + bias) v.

    It runs as `fused_attention` where that is right and pays, and else as `explicit_attention`.

    Args:
        q: What looks.
        k: What is looked at; kv_heads divides heads.
        v: What is read.
        mask: True where a query may look. A query that may look nowhere reads zeros, and a key
            hidden from every query cannot matter, NaN included.
        key: Randomness for dropout; without it nothing is dropped.
        bias: Added to the scores. Let it stay well above torch.finfo.min: to hide, use `mask`.
        scale: 1 / √head_dim if None.
        dropout_p: Chance that an attention weight is dropped, in [0, 1).

    Raises:
        ValueError: q, k and v do not fit each other, or `mask` or `bias` does not broadcast to
            (..., heads, q_seq, kv_seq).
        TypeError: `mask` is not bool.

    Example:
        >>> q = torch.ones(2, 5, 4)
        >>> dot_product_attention(q, q, q, masks.causal()).shape
        torch.Size([2, 5, 4])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762.
    """
    name = "dot_product_attention"
    _checks.probability(name, "dropout_p", dropout_p)
    if key is None and bias is None and scale is None and _suits_torch(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, is_causal=mask is not None)
    check_heads(name, q, k, v)
    dropped = key is not None and dropout_p != 0.0
    if not dropped and _pays(q, k, v) and _fused.unfit(q, k, v, bias, scale) is None:
        return _fused.fused(name, q, k, v, mask, bias, scale)
    return explicit(
        name, partial(scaled_dot_product, scale=scale), q, k, v, mask, key, bias, dropout_p
    )


def _suits_torch(q: Tensor, k: Tensor, v: Tensor, mask: Mask | Tensor | None) -> bool:
    """Whether torch's own function is meant, and nobody follows it.

    All that is asked here is asked again on the longer way, which gives the same: one question for
    the usual case, as calls of Python are a twentieth of a small model's forward.
    """
    return (
        _levels.free(q, k, v)
        and q.ndim == k.ndim == 4
        and (shape := q.shape)[:2] == (kv_shape := k.shape)[:2]
        and shape[3] == kv_shape[3]
        and kv_shape == v.shape
        and 0 not in shape
        and kv_shape[2] > 0
        and q.dtype == k.dtype == v.dtype
        and q.is_floating_point()
        and (mask is None or (shape == kv_shape and masks.split_causal(mask) == (True, None)))
        and (device := q.device.type) in ("cpu", "cuda")
        and not torch.is_autocast_enabled(device)
    )


_LEAST_SCORES = 128 * 128  # Below, the explicit form has the faster derivative on a CPU.


def _pays(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the fused form, or what it is by chunks of queries, is right and pays."""
    if _levels.exporting():
        return False  # a program is for all sizes, and has none to choose by
    scores = q.shape[-2] * k.shape[-2]
    if torch.compiler.is_compiling():
        return scores >= _LEAST_SCORES and _levels.compiled_alone(q, k, v)
    live = _levels.live(q, k, v)
    if live is _levels.Derivatives.ANY:
        return scores > _fused.MOST_SCORES and _levels.forward_mode()
    if live is _levels.Derivatives.NONE and not _levels.transformed():
        return True
    return scores >= _LEAST_SCORES


def attend_weights(
    attend: Attend,
    q: Float[Tensor, "... heads q_seq head_dim"],
    k: Float[Tensor, "... kv_heads kv_seq head_dim"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "... heads q_seq kv_seq"]:
    """The weights of any attend: what it reads when the values are the identity.

    Args:
        attend: Takes no params (fix those with `functools.partial`).
        q: What looks.
        k: What is looked at.
        mask: True where a query may look.
        bias: Added to the scores.

    Example:
        >>> q = torch.zeros(1, 2, 4)
        >>> attend_weights(dot_product_attention, q, q)
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    identity = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
    return attend(q, k, identity.expand(*k.shape[:-1], k.shape[-2]), mask, None, bias)

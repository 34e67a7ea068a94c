"""Attends written out: softmax(similarity(q, k) + bias) v, every weight in memory at once.

An attend is a function (q, k, v, mask, key, bias, *, dropout_p) over (... heads seq head_dim);
whatever is another kind of attention is another attend. Keys and values may have fewer heads than
queries (kv_heads divides heads): each then serves a group of heads, which is grouped-query
attention, or multi-query with one.
"""

from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from tinyfn import _checks, masks
from tinyfn._dropout import Drawn, dropout
from tinyfn._similarity import additive, scaled_dot_product
from tinyfn.types import Key, Params, Similarity

Mask = masks.Mask


def similarity_attention(
    similarity: Similarity,
    q: Float[Tensor, "... heads q_seq head_dim"],
    k: Float[Tensor, "... kv_heads kv_seq head_dim"],
    v: Float[Tensor, "... kv_heads kv_seq v_dim"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    bias: Float[Tensor, "..."] | None = None,
    *,
    dropout_p: float = 0.0,
) -> Float[Tensor, "... heads q_seq v_dim"]:
    """Attention by any similarity: softmax(similarity(q, k) + bias) v.

    `functools.partial(similarity_attention, dot_product)` is an attend.

    Args:
        similarity: A function of (q, k) to scores, such as `dot_product`.
        q: What looks.
        k: What is looked at.
        v: What is read.
        mask: True where a query may look. A query that may look nowhere reads zeros, and a key
            hidden from every query cannot matter, NaN included.
        key: Randomness for dropout; without it nothing is dropped.
        bias: Added to the scores. Let it stay well above torch.finfo.min: to hide, use `mask`.
        dropout_p: Chance that an attention weight is dropped, in [0, 1).

    Raises:
        ValueError: q, k and v do not fit each other, or `mask` or `bias` does not broadcast to
            (..., heads, q_seq, kv_seq).
        TypeError: `mask` is not bool.

    Example:
        >>> from tinyfn import dot_product
        >>> q, k = torch.ones(1, 2, 4), torch.ones(1, 3, 4)
        >>> similarity_attention(dot_product, q, k, k, masks.causal()).shape
        torch.Size([1, 2, 4])
    """
    check_heads("similarity_attention", q, k, v)
    return explicit("similarity_attention", similarity, q, k, v, mask, key, bias, dropout_p)


def explicit_attention(
    q: Float[Tensor, "... heads q_seq head_dim"],
    k: Float[Tensor, "... kv_heads kv_seq head_dim"],
    v: Float[Tensor, "... kv_heads kv_seq v_dim"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    bias: Float[Tensor, "..."] | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "... heads q_seq v_dim"]:
    """`dot_product_attention`, always written out: two products and a softmax.

    Args:
        q: What looks.
        k: What is looked at; kv_heads divides heads.
        v: What is read.
        mask: True where a query may look.
        key: Randomness for dropout; without it nothing is dropped.
        bias: Added to the scores.
        scale: 1 / √head_dim if None.
        dropout_p: Chance that an attention weight is dropped, in [0, 1).

    Raises:
        ValueError: As `dot_product_attention`.
        TypeError: As `dot_product_attention`.

    Example:
        >>> q = torch.ones(2, 5, 4)
        >>> explicit_attention(q, q, q, masks.causal()).shape
        torch.Size([2, 5, 4])
    """
    name, similarity = "explicit_attention", partial(scaled_dot_product, scale=scale)
    check_heads(name, q, k, v)
    return explicit(name, similarity, q, k, v, mask, key, bias, dropout_p)


def additive_attention(
    params: Params,
    q: Float[Tensor, "... heads q_seq head_dim"],
    k: Float[Tensor, "... kv_heads kv_seq head_dim"],
    v: Float[Tensor, "... kv_heads kv_seq v_dim"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    bias: Float[Tensor, "..."] | None = None,
    *,
    dropout_p: float = 0.0,
) -> Float[Tensor, "... heads q_seq v_dim"]:
    """Attention by the `additive` similarity: an attend with params of its own.

    `attention` calls it with the params under `"attend"` of its own.

    Args:
        params: From `init_additive`.
        q: What looks.
        k: What is looked at.
        v: What is read.
        mask: As in `dot_product_attention`.
        key: Randomness for dropout; without it nothing is dropped.
        bias: Added to the scores.
        dropout_p: Chance that an attention weight is dropped, in [0, 1).

    Example:
        >>> from tinyfn import attention, init_additive, init_attention, random
        >>> params = init_attention(random.key(0), num_features=8, num_heads=2)
        >>> params["attend"] = init_additive(random.key(1), head_dim=4, hidden=6)
        >>> x = torch.ones(5, 8)
        >>> attention(params, x, x, x, attend=additive_attention).shape
        torch.Size([5, 8])

    Reference: Bahdanau, Cho and Bengio, 2014, arXiv 1409.0473.
    """
    similarity = partial(additive, params)
    return similarity_attention(similarity, q, k, v, mask, key, bias, dropout_p=dropout_p)


def explicit(
    name: str,
    similarity: Similarity,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Tensor | None,
    key: Key | Drawn | None,
    bias: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """`similarity_attention` of what has been checked, for errors in any function's name."""
    visible = visible_to(name, mask, bias, q, k.shape[-2])
    if visible is not None and masks.may_hide_keys(mask, q.shape[-2], k.shape[-2]):
        k, v = without_hidden(visible, q, k, v)
    heads, kv_heads = q.shape[-3], k.shape[-3]
    scores = _ungroup(similarity(_group(q, heads, kv_heads), k), heads, kv_heads)
    weights = masked_softmax(scores if bias is None else scores + bias, visible)
    weights = dropout(weights, key, dropout_p=dropout_p)
    return _ungroup(_group(weights, heads, kv_heads) @ v, heads, kv_heads)


def without_hidden(visible: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros for keys and values that no query sees, where a NaN would reach a gradient."""
    seen = _seen_by_kv_head(visible, q.shape[-3], k.shape[-3]).unsqueeze(-1)
    return torch.where(seen, k, 0.0), torch.where(seen, v, 0.0)


def check_heads(name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """That queries, keys and values have heads, and fit each other."""
    for argument, x in (("q", q), ("k", k), ("v", v)):
        _checks.floating(name, argument, x)
        _checks.axes(name, argument, x, "heads", "seq", "head_dim")
        _checks.product_dtype(name, argument, x, q)
    fits = (
        q.shape[:-3] == k.shape[:-3]
        and k.shape[:-1] == v.shape[:-1]
        and q.shape[-1] == k.shape[-1]
        and q.shape[-3] % max(k.shape[-3], 1) == 0
    )
    if not fits:
        raise _checks.fail(
            ValueError,
            name,
            "q, k and v",
            "be (..., heads, q_seq, head_dim), (..., kv_heads, kv_seq, head_dim) and "
            "(..., kv_heads, kv_seq, v_dim), where kv_heads divides heads",
            f"shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}",
            "Expand leading axes to the same sizes",
        )


def visible_to(
    function: str, mask: Mask | Tensor | None, bias: Tensor | None, q: Tensor, kv_seq: int
) -> Tensor | None:
    """Where the queries may look, as attends read it, and a check of `mask` and `bias`."""
    visible = masks.over_heads(function, mask, q.shape[-2], kv_seq, q.device)
    target, axes = (*q.shape[:-1], kv_seq), "(..., heads, q_seq, kv_seq)"
    if visible is not None:
        _checks.broadcasts(function, "mask", visible, target, axes)
    if bias is not None:
        _checks.floating(function, "bias", bias)
        _checks.broadcasts(function, "bias", bias, target, axes)
        _checks.product_dtype(function, "bias", bias, q)
    return visible


def _seen_by_kv_head(visible: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Which key some query sees, (... kv_heads kv_seq), a head axis of size 1 left so."""
    seen = visible.any(-2)
    if seen.ndim < 2 or seen.shape[-2] in (1, kv_heads) or kv_heads == heads:
        return seen
    return rearrange(
        seen, "... (kv_heads group) kv -> ... kv_heads group kv", kv_heads=kv_heads
    ).any(-2)


def _group(x: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Heads that share a key, laid behind each other as if they were one long sequence."""
    if heads == kv_heads:
        return x
    return rearrange(
        x, "... (kv_heads group) q_seq d -> ... kv_heads (group q_seq) d", kv_heads=kv_heads
    )


def _ungroup(x: Tensor, heads: int, kv_heads: int) -> Tensor:
    if heads == kv_heads:
        return x
    group = heads // kv_heads
    return rearrange(x, "... kv_heads (group q_seq) d -> ... (kv_heads group) q_seq d", group=group)


def masked_softmax(scores: Tensor, visible: Tensor | None) -> Tensor:
    """Weights that sum to 1 over what is visible, or to 0 where nothing is."""
    if visible is None:
        return scores.softmax(-1)
    # A finite fill keeps derivatives finite in rows where nothing is visible; the second fill
    # zeroes those rows and closes every leak, whatever the scores.
    weights = torch.where(visible, scores, torch.finfo(scores.dtype).min).softmax(-1)
    return torch.where(visible, weights, 0.0)

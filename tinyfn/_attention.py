"""Attention: softmax(similarity(q, k)) v, and the multi-head layer around it.

An attend is a function (q, k, v, mask, key, bias, *, dropout_p) over (... heads seq head_dim).
`attention` projects, calls an attend, and projects back; whatever is another kind of attention is
another attend. Keys and values may have fewer heads than queries (kv_heads divides heads): each
then serves a group of heads, which is grouped-query attention, or multi-query with one.
"""

from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tinyfn import _checks, initializers, masks, random
from tinyfn._primitives import dropout, init_linear, linear
from tinyfn.types import Attend, Initializer, Key, Params, Similarity

Mask = masks.Mask


def dot_product(
    q: Float[Tensor, "... q_seq head_dim"], k: Float[Tensor, "... kv_seq head_dim"]
) -> Float[Tensor, "... q_seq kv_seq"]:
    """How alike query and key are: q · k.

    Example:
        >>> dot_product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.]])

    Reference: Luong, Pham and Manning, 2015, arXiv 1508.04025.
    """
    return q @ k.transpose(-1, -2)


def scaled_dot_product(
    q: Float[Tensor, "... q_seq head_dim"],
    k: Float[Tensor, "... kv_seq head_dim"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "... q_seq kv_seq"]:
    """How alike query and key are, whatever their width: q · k / √head_dim.

    Args:
        q: What looks.
        k: What is looked at.
        scale: In place of 1 / √head_dim.

    Example:
        >>> scaled_dot_product(torch.ones(1, 4), torch.ones(1, 4))
        tensor([[2.]])

    Reference: Vaswani et al., 2017, arXiv 1706.03762.
    """
    factor: float = max(q.shape[-1], 1) ** -0.5 if scale is None else scale
    return dot_product(q * factor, k)


def init_additive(key: Key, head_dim: int, hidden: int, **options: Any) -> Params:
    """Params of `additive`: `q_proj`, `k_proj` (hidden, head_dim) and `out_proj` (1, hidden).

    Args:
        key: Randomness of the weights.
        head_dim: Width of a query and a key.
        hidden: Width of the layer between.
        options: For `init_linear`: weight_init, bias_init, dtype, device.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> list(init_additive(random.key(0), head_dim=4, hidden=8))
        ['q_proj', 'k_proj', 'out_proj']
    """
    q_key, k_key, out_key = random.split(key, 3)
    return {
        "q_proj": init_linear(q_key, head_dim, hidden, **options),
        "k_proj": init_linear(k_key, head_dim, hidden, bias=False, **options),
        "out_proj": init_linear(out_key, hidden, 1, bias=False, **options),
    }


def additive(
    params: Params,
    q: Float[Tensor, "... q_seq head_dim"],
    k: Float[Tensor, "... kv_seq head_dim"],
) -> Float[Tensor, "... q_seq kv_seq"]:
    """How alike query and key are, as a small network says: w · tanh(W q + U k + b).

    It needs q_seq · kv_seq · hidden numbers for each head at once.

    Args:
        params: From `init_additive`: `q_proj`, `k_proj`, `out_proj`.
        q: What looks.
        k: What is looked at.

    Example:
        >>> params = init_additive(random.key(0), head_dim=4, hidden=8)
        >>> additive(params, torch.ones(2, 4), torch.ones(3, 4)).shape
        torch.Size([2, 3])

    Reference: Bahdanau, Cho and Bengio, 2014, arXiv 1409.0473.
    """
    q = linear(_checks.part("additive", params, "q_proj"), q)
    k = linear(_checks.part("additive", params, "k_proj"), k)
    hidden = torch.tanh(q.unsqueeze(-2) + k.unsqueeze(-3))
    return linear(_checks.part("additive", params, "out_proj"), hidden).squeeze(-1)


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
        >>> q, k = torch.ones(1, 2, 4), torch.ones(1, 3, 4)
        >>> similarity_attention(dot_product, q, k, k, masks.causal()).shape
        torch.Size([1, 2, 4])
    """
    _check_heads(q, k, v)
    visible = _visible("dot_product_attention", mask, bias, q, k.shape[-2])
    if visible is not None and masks.may_hide_keys(mask, q.shape[-2], k.shape[-2]):
        seen = _seen_by_kv_head(visible, q.shape[-3], k.shape[-3]).unsqueeze(-1)
        k, v = torch.where(seen, k, 0.0), torch.where(seen, v, 0.0)
    heads, kv_heads = q.shape[-3], k.shape[-3]
    scores = _ungroup(similarity(_group(q, heads, kv_heads), k), heads, kv_heads)
    weights = _masked_softmax(scores if bias is None else scores + bias, visible)
    weights = dropout(weights, key, dropout_p=dropout_p)
    return _ungroup(_group(weights, heads, kv_heads) @ v, heads, kv_heads)


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    name = "dot_product_attention"
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


def _visible(
    function: str, mask: Mask | Tensor | None, bias: Tensor | None, q: Tensor, kv_seq: int
) -> Tensor | None:
    visible = masks.over_heads(function, mask, q.shape[-2], kv_seq, q.device)
    target, axes = (*q.shape[:-1], kv_seq), "(..., heads, q_seq, kv_seq)"
    if visible is not None:
        _checks.broadcasts(function, "mask", visible, target, axes)
    if bias is not None:
        _checks.floating(function, "bias", bias)
        _checks.broadcasts(function, "bias", bias, target, axes)
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


def _masked_softmax(scores: Tensor, visible: Tensor | None) -> Tensor:
    if visible is None:
        return scores.softmax(-1)
    # A finite fill keeps derivatives finite in rows where nothing is visible; the second fill
    # zeroes those rows and closes every leak, whatever the scores.
    weights = torch.where(visible, scores, torch.finfo(scores.dtype).min).softmax(-1)
    return torch.where(visible, weights, 0.0)


def dot_product_attention(
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
    """Scaled dot-product attention: softmax(q kᵀ · scale + bias) v.

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
    similarity = partial(scaled_dot_product, scale=scale)
    return similarity_attention(similarity, q, k, v, mask, key, bias, dropout_p=dropout_p)


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
        >>> params = init_attention(random.key(0), num_features=8, num_heads=2)
        >>> params["attend"] = init_additive(random.key(1), head_dim=4, hidden=6)
        >>> x = torch.ones(5, 8)
        >>> attention(params, x, x, x, attend=additive_attention).shape
        torch.Size([5, 8])

    Reference: Bahdanau, Cho and Bengio, 2014, arXiv 1409.0473.
    """
    similarity = partial(additive, params)
    return similarity_attention(similarity, q, k, v, mask, key, bias, dropout_p=dropout_p)


def init_attention(
    key: Key,
    num_features: int,
    num_heads: int,
    *,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    kv_features: int | None = None,
    bias: bool = True,
    weight_init: Initializer = initializers.xavier_uniform,
    bias_init: Initializer = initializers.zeros,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Params:
    """Params of `attention`: `q_proj`, `k_proj`, `v_proj` and `out_proj`, heads in the shapes.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis of queries and results.
        num_heads: How many heads look.
        num_kv_heads: How many are looked at; as many as look, if None.
        head_dim: Width of a head; num_features / num_heads if None.
        kv_features: Size of the last axis of keys and values; num_features if None.
        bias: Whether the projections have biases.
        weight_init: How the weights begin.
        bias_init: How the biases begin.
        dtype: Of the params.
        device: Of the params.

    Raises:
        ValueError: A size is below 1, num_heads does not divide num_features (with no head_dim),
            or num_kv_heads does not divide num_heads.

    Example:
        >>> params = init_attention(random.key(0), num_features=8, num_heads=4, num_kv_heads=2)
        >>> params["q_proj"]["weight"].shape, params["k_proj"]["weight"].shape
        (torch.Size([4, 2, 8]), torch.Size([2, 2, 8]))
    """
    _checks.sizes("init_attention", num_features=num_features, num_heads=num_heads)
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    kv_features = num_features if kv_features is None else kv_features
    if head_dim is None:
        _checks.divides("init_attention", "num_heads", num_heads, "num_features", num_features)
        head_dim = num_features // num_heads
    _checks.sizes(
        "init_attention", num_kv_heads=num_kv_heads, head_dim=head_dim, kv_features=kv_features
    )
    _checks.divides("init_attention", "num_kv_heads", num_kv_heads, "num_heads", num_heads)

    def projection(key: Key, shape: tuple[int, ...], out_axes: tuple[int, ...]) -> Params:
        weight_key, bias_key = random.split(key)
        in_axes = tuple(axis for axis in range(len(shape)) if axis not in out_axes)
        fans = {"in_axes": in_axes, "out_axes": out_axes}
        params = {"weight": weight_init(weight_key, shape, **fans, dtype=dtype, device=device)}
        if bias:
            out_shape = shape[: len(out_axes)]
            params["bias"] = bias_init(bias_key, out_shape, dtype=dtype, device=device)
        return params

    q_key, k_key, v_key, out_key = random.split(key, 4)
    return {
        "q_proj": projection(q_key, (num_heads, head_dim, num_features), (0, 1)),
        "k_proj": projection(k_key, (num_kv_heads, head_dim, kv_features), (0, 1)),
        "v_proj": projection(v_key, (num_kv_heads, head_dim, kv_features), (0, 1)),
        "out_proj": projection(out_key, (num_features, num_heads, head_dim), (0,)),
    }


def attention(
    params: Params,
    q: Float[Tensor, "... q_seq features"],
    k: Float[Tensor, "... kv_seq k_features"],
    v: Float[Tensor, "... kv_seq v_features"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    bias: Float[Tensor, "..."] | None = None,
    *,
    dropout_p: float = 0.0,
    attend: Attend = dot_product_attention,
) -> Float[Tensor, "... q_seq features"]:
    """Multi-head attention.

    Every head computes softmax(q kᵀ / √head_dim) v on its own projection; `out_proj` mixes the
    heads.

    Args:
        params: From `init_attention`: `q_proj`, `k_proj`, `v_proj`, `out_proj`; `attend` too, for
            an attend with params of its own.
        q: What looks.
        k: What is looked at.
        v: What is read; k and v are the same in self- and cross-attention.
        mask: True where a query may look. A query that may look nowhere reads zeros.
        key: Randomness for dropout; without it nothing is dropped.
        bias: Added to the scores, against (..., heads, q_seq, kv_seq). Let it stay well above
            torch.finfo.min: to hide, use `mask`.
        dropout_p: Chance that an attention weight is dropped, in [0, 1).
        attend: What the heads do, such as `dot_product_attention` or `positions.rotary` of it.

    Raises:
        ValueError: The inputs do not have the sizes of the params or of each other, or `mask`
            does not broadcast to (..., heads, q_seq, kv_seq).
        TypeError: `mask` is not bool.

    Example:
        >>> params = init_attention(random.key(0), num_features=8, num_heads=2)
        >>> x = torch.ones(5, 8)
        >>> attention(params, x, x, x, masks.causal()).shape
        torch.Size([5, 8])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762.
    """
    _check_sequences("attention", q=q, k=k, v=v)
    q_heads = _split_heads(params, "q_proj", q)
    k, v = _contain_hidden(mask, q_heads, k, v)
    k_heads, v_heads = _split_heads(params, "k_proj", k), _split_heads(params, "v_proj", v)
    if "attend" in params:
        attend = partial(attend, params["attend"])
    mixed = attend(q_heads, k_heads, v_heads, mask, key, bias, dropout_p=dropout_p)
    return _merge_heads(params, mixed)


def _check_sequences(function: str, **sequences: Tensor) -> None:
    q = next(iter(sequences.values()))
    for argument, x in sequences.items():
        _checks.floating(function, argument, x)
        _checks.axes(function, argument, x, "seq", "features")
        if x.shape[:-2] != q.shape[:-2]:
            lead = ", ".join(map(str, q.shape[:-2])) + ", " if q.ndim > 2 else ""
            raise _checks.fail(
                ValueError,
                function,
                argument,
                f"have shape ({lead}seq, features)",
                _checks.shape(x),
                "Expand leading axes to the same sizes",
            )
    if "v" in sequences and sequences["k"].shape[-2] != sequences["v"].shape[-2]:
        raise _checks.fail(
            ValueError,
            function,
            "v",
            f"have as many positions as k, {sequences['k'].shape[-2]}",
            sequences["v"].shape[-2],
            "A value is read where its key is looked at",
        )


def _contain_hidden(
    mask: Mask | Tensor | None, q_heads: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Zeros for what no query sees: a NaN there would reach the projections' gradients."""
    visible = None
    if masks.may_hide_keys(mask, q_heads.shape[-2], k.shape[-2]):
        visible = _visible("attention", mask, None, q_heads, k.shape[-2])
    if visible is None:
        return k, v
    seen = visible.any(-2)
    seen = (seen.any(-2) if seen.ndim > 1 else seen).unsqueeze(-1)
    contained = torch.where(seen, k, 0.0)
    return contained, contained if v is k else torch.where(seen, v, 0.0)


def _split_heads(params: Params, name: str, x: Tensor) -> Tensor:
    proj = _checks.part("attention", params, name)
    weight = _checks.part("attention", proj, "weight")
    _checks.features("attention", name.removesuffix("_proj"), x, weight.shape[-1], min_ndim=2)
    _checks.product_dtype("attention", name.removesuffix("_proj"), x, weight)
    bias = proj["bias"].flatten() if "bias" in proj else None
    projected = F.linear(x, weight.flatten(0, 1), bias)
    pattern = "... seq (heads head_dim) -> ... heads seq head_dim"
    return rearrange(projected, pattern, heads=weight.shape[0])


def _merge_heads(params: Params, x: Tensor) -> Tensor:
    proj = _checks.part("attention", params, "out_proj")
    merged = rearrange(x, "... heads seq head_dim -> ... seq (heads head_dim)")
    flat = {**proj, "weight": _checks.part("attention", proj, "weight").flatten(1)}
    return linear(flat, merged)


def attention_weights(
    params: Params,
    q: Float[Tensor, "... q_seq features"],
    k: Float[Tensor, "... kv_seq k_features"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    *,
    attend: Attend = dot_product_attention,
) -> Float[Tensor, "... heads q_seq kv_seq"]:
    """Where every head of `attention` looks: rows that sum to 1, or to 0 where all is hidden.

    Args:
        params: From `init_attention`; `v_proj` and `out_proj` are not read.
        q: What looks.
        k: What is looked at.
        mask: True where a query may look.
        bias: Added to the scores.
        attend: As in `attention`; its weights are what it reads from the identity.

    Raises:
        ValueError: As `attention`.
        TypeError: As `attention`.

    Example:
        >>> params = init_attention(random.key(0), num_features=8, num_heads=2)
        >>> x = torch.ones(5, 8)
        >>> attention_weights(params, x, x, masks.causal())[0, 1]
        tensor([0.5000, 0.5000, 0.0000, 0.0000, 0.0000])
    """
    _check_sequences("attention_weights", q=q, k=k)
    q_heads = _split_heads(params, "q_proj", q)
    k, _ = _contain_hidden(mask, q_heads, k, k)
    k_heads = _split_heads(params, "k_proj", k)
    if "attend" in params:
        attend = partial(attend, params["attend"])
    return attend_weights(attend, q_heads, k_heads, mask, bias)


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

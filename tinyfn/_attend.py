"""Attends: what the heads of attention do, softmax(similarity(q, k) + bias) v.

An attend is a function (q, k, v, mask, key, bias, *, dropout_p) over (... heads seq head_dim);
whatever is another kind of attention is another attend. Keys and values may have fewer heads than
queries (kv_heads divides heads): each then serves a group of heads, which is grouped-query
attention, or multi-query with one.
"""

from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from tinyfn import _checks, _kernels, _levels, masks, random
from tinyfn._primitives import dropout, init_linear, linear
from tinyfn.transforms import remat
from tinyfn.types import Attend, Key, Params, Similarity

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
    if isinstance(factor, Tensor):
        return dot_product(q * factor, k)
    return dot_product(_levels.push(lambda x: x * factor, [lambda x, _: x * factor], q), k)


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
    _check_heads("similarity_attention", q, k, v)
    return _explicit("similarity_attention", similarity, q, k, v, mask, key, bias, dropout_p)


def _explicit(
    name: str,
    similarity: Similarity,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Tensor | None,
    key: Key | None,
    bias: Tensor | None,
    dropout_p: float,
) -> Tensor:
    visible = visible_to(name, mask, bias, q, k.shape[-2])
    if visible is not None and masks.may_hide_keys(mask, q.shape[-2], k.shape[-2]):
        k, v = _without_hidden(visible, q, k, v)
    heads, kv_heads = q.shape[-3], k.shape[-3]
    scores = _ungroup(similarity(_group(q, heads, kv_heads), k), heads, kv_heads)
    weights = _masked_softmax(scores if bias is None else scores + bias, visible)
    weights = dropout(weights, key, dropout_p=dropout_p)
    return _ungroup(_group(weights, heads, kv_heads) @ v, heads, kv_heads)


def _without_hidden(visible: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros for keys and values that no query sees, where a NaN would reach a gradient."""
    seen = _seen_by_kv_head(visible, q.shape[-3], k.shape[-3]).unsqueeze(-1)
    return torch.where(seen, k, 0.0), torch.where(seen, v, 0.0)


def _check_heads(name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
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
    _check_heads(name, q, k, v)
    _checks.probability(name, "dropout_p", dropout_p)
    dropped = key is not None and dropout_p != 0.0
    if not dropped and _pays(q, k, v) and _unfit(q, k, v, bias, scale) is None:
        return _fused(name, q, k, v, mask, bias, scale)
    return _explicit(
        name, partial(scaled_dot_product, scale=scale), q, k, v, mask, key, bias, dropout_p
    )


_LEAST_SCORES = 128 * 128  # Below, the explicit form has the faster derivative on a CPU.
_MOST_SCORES = 512 * 512  # Of a head at once, where no kernel can run.


def _pays(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the fused form, or what it is by chunks of queries, is right and pays."""
    if torch.compiler.is_exporting():
        return False  # a program is for all sizes, and has none to choose by
    scores = q.shape[-2] * k.shape[-2]
    if torch.compiler.is_compiling():
        return scores >= _LEAST_SCORES and _levels.compiled_alone(q, k, v)
    live = _levels.live(q, k, v)
    if live is _levels.Derivatives.ANY:
        return scores > _MOST_SCORES and _levels.forward_mode()
    if live is _levels.Derivatives.NONE and not _levels.transformed():
        return True
    return scores >= _LEAST_SCORES


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
    _check_heads(name, q, k, v)
    return _explicit(name, similarity, q, k, v, mask, key, bias, dropout_p)


def fused_attention(
    q: Float[Tensor, "... heads q_seq head_dim"],
    k: Float[Tensor, "... kv_heads kv_seq head_dim"],
    v: Float[Tensor, "... kv_heads kv_seq head_dim"],
    mask: Mask | Bool[Tensor, "..."] | None = None,
    key: Key | None = None,
    bias: Float[Tensor, "..."] | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "... heads q_seq head_dim"]:
    """`dot_product_attention` by torch's fused kernel, which keeps no weights, at any length.

    It too is closed under every transform: in forward mode, for the derivative of its derivative
    and in a transform that is compiled it runs written out, long sequences by chunks of queries.

    Args:
        q: What looks.
        k: What is looked at; kv_heads divides heads.
        v: What is read, as wide as k.
        mask: True where a query may look.
        key: For the sake of the signature: no kernel drops weights by key.
        bias: Added to the scores; it may not require a gradient.
        scale: 1 / √head_dim if None.
        dropout_p: 0, unless there is no key.

    Raises:
        ValueError: Weights are to be dropped, `bias` requires a gradient, or v is not as wide as
            k; else as `dot_product_attention`.
        TypeError: `scale` is a tensor, or q, k and v differ in dtype; else as
            `dot_product_attention`.

    Example:
        >>> q = torch.ones(2, 5, 4)
        >>> fused_attention(q, q, q, masks.causal()).shape
        torch.Size([2, 5, 4])
    """
    name = "fused_attention"
    _check_heads(name, q, k, v)
    _checks.probability(name, "dropout_p", dropout_p)
    unfit = _unfit(q, k, v, bias, scale)
    if key is not None and dropout_p != 0.0:
        unfit = ValueError, "dropout_p", "be 0, since no kernel draws by key", dropout_p
    if unfit is not None:
        kind, argument, requirement, actual = unfit
        raise _checks.fail(kind, name, argument, requirement, actual, "Use dot_product_attention")
    return _fused(name, q, k, v, mask, bias, scale)


def _unfit(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
) -> tuple[type[Exception], str, str, object] | None:
    """What a kernel cannot take: the kind of error, the argument, what it must be, what it is."""
    if v.shape[-1] != q.shape[-1]:
        return ValueError, "v", f"be as wide as q and k, {q.shape[-1]}", v.shape[-1]
    if not q.dtype == k.dtype == v.dtype:
        return TypeError, "q, k and v", "have one dtype", f"{q.dtype}, {k.dtype} and {v.dtype}"
    if bias is not None and (
        _levels.live(bias) is _levels.Derivatives.REVERSE
        or (_levels.compiled_alone(bias) and bias.requires_grad and torch.is_grad_enabled())
    ):
        return ValueError, "bias", "require no gradient", "one that does"
    if isinstance(scale, Tensor):
        return TypeError, "scale", "be a number", _checks.kind_of(scale)
    return None


def _fused(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Tensor | None,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    if 0 in q.shape or 0 in k.shape:  # a kernel refuses to do nothing
        similarity = partial(scaled_dot_product, scale=scale)
        return _explicit(name, similarity, q, k, v, mask, None, bias, 0.0)
    # Beside a bias, a causal mask is needed for each row's largest.
    causal, rest = masks.split_causal(mask) if bias is None else (False, mask)
    visible = visible_to(name, rest, bias, q, k.shape[-2])
    if causal and visible is not None and not _by_key_alone(visible, q):
        # Only one kernel takes a mask beside causal, and a key may be hidden by both together.
        causal, rest, visible = False, mask, visible_to(name, mask, None, q, k.shape[-2])
    if visible is not None and masks.may_hide_keys(rest, q.shape[-2], k.shape[-2]):
        k, v = _without_hidden(visible, q, k, v)
    if causal and k.shape[-2] > q.shape[-2]:
        k, v = k[..., : q.shape[-2], :], v[..., : q.shape[-2], :]
        visible = visible if visible is None else visible[..., : q.shape[-2]]
    group = q.shape[-3] // k.shape[-3]
    if group > 1:
        pattern = "... kv_heads kv_seq head_dim -> ... (kv_heads group) kv_seq head_dim"
        k, v = (repeat(x, pattern, group=group) for x in (k, v))
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = q.dtype if q.dtype == torch.float64 else torch.get_autocast_dtype(device)
        q, k, v = (x.to(dtype) for x in (q, k, v))
    added = () if visible is None and bias is None else (_added(visible, bias, q, k.shape[-2]),)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if factor <= 0.0:
        q, factor = q * factor, 1.0  # torch's kernel hides the future by -inf before it scales
    formula = partial(_formula, causal, factor)
    return _kernels.attention(formula, q, k, v, *added, causal=causal, scale=factor)


def _by_key_alone(visible: Tensor, q: Tensor) -> bool:
    return visible.shape[-2] == 1 and _kernels.has_cpu_pair(q)


def _added(visible: Tensor | None, bias: Tensor | None, q: Tensor, kv_seq: int) -> Tensor:
    """What a kernel adds to the scores, with an axis for each of theirs and -inf for hidden."""
    added = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias
    if visible is not None:
        added = torch.where(visible, added, -torch.inf)
    added = added.reshape((1,) * (q.ndim - added.ndim) + added.shape)
    if bias is not None:
        # A kernel's derivative rounds the logarithm of the sum beside the largest score: so 0.
        largest = added.amax(-1, keepdim=True)
        added = added - torch.where(largest == -torch.inf, 0.0, largest)
    added = added.to(q.dtype)
    return added if added.shape[-1] == kv_seq else added.expand(*added.shape[:-1], kv_seq)


def _formula(causal: bool, scale: float, q: Tensor, k: Tensor, v: Tensor, *added: Tensor) -> Tensor:
    """What the kernel computes, written out for some queries after the other."""
    q_seq, rows = q.shape[-2], max(_MOST_SCORES // k.shape[-2], 1)
    if q_seq <= rows or torch.compiler.is_compiling():
        return _rows(causal, scale, 0, q, k, v, *added)
    chunks = []
    for start in range(0, q_seq, rows):
        chunk = partial(_rows, causal, scale, start)
        each = (x if x.shape[-2] == 1 else x[..., start : start + rows, :] for x in (q, *added))
        queries, *parts = each
        chunks.append(remat(chunk)(queries, k, v, *parts))
    return torch.cat(chunks, -2)


def _rows(
    causal: bool, scale: float, start: int, q: Tensor, k: Tensor, v: Tensor, *added: Tensor
) -> Tensor:
    """What the queries from `start` on read."""
    scores = scaled_dot_product(q, k, scale=scale)
    visible = masks.causal(start).dense(*scores.shape[-2:], device=q.device) if causal else None
    if added:
        shown = added[0] != -torch.inf
        scores = scores + torch.where(shown, added[0], 0.0)
        visible = shown if visible is None else shown & visible
    return _masked_softmax(scores, visible) @ v


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
        >>> from tinyfn import attention, init_attention
        >>> params = init_attention(random.key(0), num_features=8, num_heads=2)
        >>> params["attend"] = init_additive(random.key(1), head_dim=4, hidden=6)
        >>> x = torch.ones(5, 8)
        >>> attention(params, x, x, x, attend=additive_attention).shape
        torch.Size([5, 8])

    Reference: Bahdanau, Cho and Bengio, 2014, arXiv 1409.0473.
    """
    similarity = partial(additive, params)
    return similarity_attention(similarity, q, k, v, mask, key, bias, dropout_p=dropout_p)


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

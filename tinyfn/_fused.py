"""Attention by a fused kernel of torch, and the same written out for some queries after the other.

What a kernel cannot take (a mask beside causal, keys that nobody sees, fewer heads of keys) is
brought into a form that it can before it is called.
"""

from functools import partial

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from tinyfn import _checks, _kernels, _levels, masks
from tinyfn._explicit import check_heads, explicit, masked_softmax, visible_to, without_hidden
from tinyfn._similarity import scaled_dot_product
from tinyfn.transforms import remat
from tinyfn.types import Key

Mask = masks.Mask

MOST_SCORES = 512 * 512  # Of a head at once, where no kernel can run.


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
    check_heads(name, q, k, v)
    _checks.probability(name, "dropout_p", dropout_p)
    wrong = unfit(q, k, v, bias, scale)
    if key is not None and dropout_p != 0.0:
        wrong = ValueError, "dropout_p", "be 0, since no kernel draws by key", dropout_p
    if wrong is not None:
        kind, argument, requirement, actual = wrong
        raise _checks.fail(kind, name, argument, requirement, actual, "Use dot_product_attention")
    return fused(name, q, k, v, mask, bias, scale)


def unfit(
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


def fused(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Tensor | None,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """`fused_attention` of what is fit, for errors in any function's name."""
    if 0 in q.shape or 0 in k.shape:  # a kernel refuses to do nothing
        similarity = partial(scaled_dot_product, scale=scale)
        return explicit(name, similarity, q, k, v, mask, None, bias, 0.0)
    # Beside a bias, a causal mask is needed for each row's largest.
    causal, rest = masks.split_causal(mask) if bias is None else (False, mask)
    visible = visible_to(name, rest, bias, q, k.shape[-2])
    if causal and visible is not None and not _by_key_alone(visible, q):
        # Only one kernel takes a mask beside causal, and a key may be hidden by both together.
        causal, rest, visible = False, mask, visible_to(name, mask, None, q, k.shape[-2])
    if visible is not None and masks.may_hide_keys(rest, q.shape[-2], k.shape[-2]):
        k, v = without_hidden(visible, q, k, v)
    if causal and k.shape[-2] > q.shape[-2]:
        k, v = k[..., : q.shape[-2], :], v[..., : q.shape[-2], :]
        visible = visible if visible is None else visible[..., : q.shape[-2]]
    group = q.shape[-3] // k.shape[-3]
    if group > 1:
        pattern = "... kv_heads kv_seq head_dim -> ... (kv_heads group) kv_seq head_dim"
        k, v = (repeat(x, pattern, group=group) for x in (k, v))
    device = q.device.type
    cast = device == "cpu" or torch.amp.is_autocast_available(device)  # which is slow to say so
    if cast and torch.is_autocast_enabled(device):
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
    q_seq, rows = q.shape[-2], max(MOST_SCORES // k.shape[-2], 1)
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
    return masked_softmax(scores, visible) @ v

"""The multi-head layer: project, attend in every head, and project back.

attention   out_proj(attend(q_proj(q), k_proj(k), v_proj(v)))
"""

from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from tinyfn import _checks, initializers, masks, random
from tinyfn._attend import attend_weights, dot_product_attention
from tinyfn._dropout import Drawn
from tinyfn._explicit import visible_to
from tinyfn._primitives import affine, rms_norm
from tinyfn.types import Attend, Initializer, Key, Params

Mask = masks.Mask


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
    key: Key | Drawn | None = None,
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
            an attend with params of its own; `q_norm`, `k_norm`, where an `rms_norm` follows.
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
    if not (q is k is v and isinstance(q, Tensor) and q.ndim > 1):  # the rest is asked below
        _check_sequences("attention", q=q, k=k, v=v)
    q_heads = split_heads(params, "q_proj", q)
    k, v = contain_hidden(mask, q_heads, k, v)
    k_heads, v_heads = split_heads(params, "k_proj", k), split_heads(params, "v_proj", v)
    if "attend" in params:
        attend = partial(attend, params["attend"])
    mixed = attend(q_heads, k_heads, v_heads, mask, key, bias, dropout_p=dropout_p)
    return _merge_heads(params, mixed)


def _check_sequences(function: str, **sequences: Tensor) -> None:
    q, before = next(iter(sequences.values())), sequences  # which none of them is
    for argument, x in sequences.items():
        if x is before:
            continue
        before = x
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


def contain_hidden(
    mask: Mask | Tensor | None, q_heads: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Zeros for what no query sees: a NaN there would reach the projections' gradients."""
    visible = None
    if masks.may_hide_keys(mask, q_heads.shape[-2], k.shape[-2]):
        visible = visible_to("attention", mask, None, q_heads, k.shape[-2])
    if visible is None:
        return k, v
    seen = visible.any(-2)
    seen = (seen.any(-2) if seen.ndim > 1 else seen).unsqueeze(-1)
    contained = torch.where(seen, k, 0.0)
    return contained, contained if v is k else torch.where(seen, v, 0.0)


def split_heads(params: Params, name: str, x: Tensor) -> Tensor:
    """`x` through a projection of an attention's params, (... heads seq head_dim).

    Example:
        >>> params = init_attention(random.key(0), num_features=8, num_heads=2)
        >>> split_heads(params, "k_proj", torch.ones(5, 8)).shape
        torch.Size([2, 5, 4])
    """
    proj = _checks.part("attention", params, name)
    weight = _checks.part("attention", proj, "weight")
    argument = name[0]
    _checks.operand("attention", argument, x, weight, min_ndim=2)
    bias = proj["bias"].flatten() if "bias" in proj else None
    projected = affine(x, weight.flatten(0, 1), bias)
    pattern = "... seq (heads head_dim) -> ... heads seq head_dim"
    heads = rearrange(projected, pattern, heads=weight.shape[0])
    norm = f"{argument}_norm"
    return rms_norm(params[norm], heads) if norm in params else heads


def _merge_heads(params: Params, x: Tensor) -> Tensor:
    proj = _checks.part("attention", params, "out_proj")
    merged = rearrange(x, "... heads seq head_dim -> ... seq (heads head_dim)")
    weight = _checks.part("attention", proj, "weight").flatten(1)
    _checks.operand("linear", "x", merged, weight)
    return affine(merged, weight, proj.get("bias"))


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
    q_heads = split_heads(params, "q_proj", q)
    k, _ = contain_hidden(mask, q_heads, k, k)
    k_heads = split_heads(params, "k_proj", k)
    if "attend" in params:
        attend = partial(attend, params["attend"])
    return attend_weights(attend, q_heads, k_heads, mask, bias)

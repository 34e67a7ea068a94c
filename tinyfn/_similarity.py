"""How alike a query and a key are: what the heads of attention take the softmax of.

dot product           q · k
scaled dot product    q · k / √head_dim
additive              w · tanh(W q + U k + b)
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinyfn import _checks, _levels, random
from tinyfn._primitives import init_linear, linear
from tinyfn.types import Key, Params


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

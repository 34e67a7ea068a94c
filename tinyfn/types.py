"""The words that signatures share: what params, keys and passed functions are."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Int64
from torch import Tensor

Params: TypeAlias = dict[str, Any]
"""Nested dicts (and lists of dicts, for layers) whose leaves are floating tensors, nothing else."""

Key: TypeAlias = Int64[Tensor, ""]
"""Randomness: an int64 scalar tensor, made by `random.key` and derived by `random.split`."""

Activation: TypeAlias = Callable[[Tensor], Tensor]
"""An elementwise function."""

Norm: TypeAlias = Callable[[Params, Tensor], Tensor]
"""`norm(params, x)`, over the last axis."""

Attend: TypeAlias = Callable[..., Tensor]
"""`attend(q, k, v, mask, key, bias, *, dropout_p)` over (... heads seq head_dim).

One with parameters of its own takes them first; an attention keeps them under `"attend"`.
"""

Similarity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`similarity(q, k)`, (... heads q_seq head_dim) and (... heads kv_seq head_dim) to scores."""

FeedForward: TypeAlias = Callable[..., Tensor]
"""`feed_forward(params, x, key, *, activation, dropout_p)`."""

Position: TypeAlias = Callable[..., Tensor]
"""`position(params, x)`: features with their positions added or concatenated.

For a cache it takes `offset=` too, the position of the first, one for each example.
"""

Embed: TypeAlias = Callable[[Params, Tensor], Tensor]
"""`embed(params, tokens)`: integer tokens (... seq) to features (... seq features)."""

Output: TypeAlias = Callable[[Params, Tensor], Tensor]
"""`output(params, x)`: features to logits, such as `linear`."""

Initializer: TypeAlias = Callable[..., Tensor]
"""`initializer(key, shape, *, in_axes, out_axes, dtype, device)`."""

"""The same encoder and transformer in JAX, on tinyfn's own params: what a whole compiler reaches.

Post-norm, ReLU, a causal target, no positions, dropout by key. It needs the package `jax`.
"""

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from torch import Tensor

from tinyfn import tree

DROPOUT_P = 0.1


def arrays(params: Any) -> Any:
    """The same tree, of JAX's arrays."""
    return tree.map(lambda leaf: jnp.asarray(np.asarray(leaf.detach())), params)


def array(x: Tensor) -> jax.Array:
    return jnp.asarray(x.detach().numpy())


def norm(p: Any, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return centred * scale * p["weight"] + p["bias"]


def linear(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["weight"].T + p["bias"]


def dropout(key: jax.Array | None, number: int, x: jax.Array) -> jax.Array:
    if key is None:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - DROPOUT_P, x.shape)
    return jnp.where(kept, x / (1 - DROPOUT_P), 0)


def attention(p: Any, x: jax.Array, memory: jax.Array, causal: bool, key: Any) -> jax.Array:
    def project(name: str, x: jax.Array) -> jax.Array:
        heads = jnp.einsum("...sf,hdf->...hsd", x, p[name]["weight"])
        return heads + p[name]["bias"][:, None]

    q, k, v = project("q_proj", x), project("k_proj", memory), project("v_proj", memory)
    scores = jnp.einsum("...qd,...kd->...qk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    weights = dropout(key, 0, jax.nn.softmax(scores, -1))
    heads = jnp.einsum("...qk,...kd->...qd", weights, v)
    return jnp.einsum("...hsd,fhd->...sf", heads, p["out_proj"]["weight"]) + p["out_proj"]["bias"]


def feed_forward(p: Any, x: jax.Array, key: Any) -> jax.Array:
    return linear(p["down_proj"], dropout(key, 1, jax.nn.relu(linear(p["up_proj"], x))))


def encoder(params: Any, x: jax.Array, key: Any = None) -> jax.Array:
    return stack(params, x, None, key)


def stack(params: Any, x: jax.Array, memory: jax.Array | None, key: Any) -> jax.Array:
    """An encoder, or a decoder where there is a memory."""
    for i, p in enumerate(params["layers"]):
        keys = [None] * 6 if key is None else list(jax.random.split(jax.random.fold_in(key, i), 6))
        out = attention(p["self_attention"], x, x, memory is not None, keys[0])
        x = norm(p["self_attention_norm"], x + dropout(keys[1], 2, out))
        if memory is not None:
            out = attention(p["cross_attention"], x, memory, False, keys[2])
            x = norm(p["cross_attention_norm"], x + dropout(keys[3], 2, out))
        out = feed_forward(p["feed_forward"], x, keys[4])
        x = norm(p["feed_forward_norm"], x + dropout(keys[5], 2, out))
    return norm(params["final_norm"], x) if "final_norm" in params else x


def transformer(params: Any, src: jax.Array, tgt: jax.Array, key: Any = None) -> jax.Array:
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    memory = stack(params["encoder"], src, None, keys[0])
    return stack(params["decoder"], tgt, memory, keys[1])

"""What do a jvp and a Hessian-vector product cost, as multiples of a forward and of a gradient?

The model is an encoder of 4 layers, 256 features, 4 heads, 512 hidden. The jvp is by the input, the
Hessian-vector product by the params. nn.TransformerEncoder raises at both; its layers written out
(`F.linear`, softmax, layer norm by its formula) are the peer, and JAX where it is installed.

    python benchmarks/forward_mode.py [--rounds 9] [--threads 1] [--sizes 4x32] [--compiled]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import Calls, Questions, run
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import functional as F

import tinyfn
from tinyfn import random, tree


def written_out(params: Any, x: Tensor) -> Tensor:
    """The same encoder, as one would write it."""

    def norm(p: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * p["weight"]
            + p["bias"]
        )

    for layer in params["layers"]:
        own, mlp = layer["self_attention"], layer["feed_forward"]
        q, k, v = (
            F.linear(x, own[n]["weight"].flatten(0, 1), own[n]["bias"].flatten())
            .unflatten(-1, (4, 64))
            .transpose(-2, -3)
            for n in ("q_proj", "k_proj", "v_proj")
        )
        mixed = (q @ k.mT / 8).softmax(-1) @ v
        merged = mixed.transpose(-2, -3).flatten(-2)
        out = F.linear(merged, own["out_proj"]["weight"].flatten(1), own["out_proj"]["bias"])
        x = norm(layer["self_attention_norm"], x + out)
        up = F.linear(x, mlp["up_proj"]["weight"], mlp["up_proj"]["bias"]).relu()
        down = F.linear(up, mlp["down_proj"]["weight"], mlp["down_proj"]["bias"])
        x = norm(layer["feed_forward_norm"], x + down)
    return x


def candidates(batch: int, seq: int) -> Questions:
    """Calls for each candidate, of each question."""
    params = tinyfn.init_encoder(random.key(0), 256, 4, 512, 4)
    x, direction = (random.normal(random.key(i), (batch, seq, 256)) for i in (1, 2))
    step = tree.map(torch.ones_like, params)

    def push(f: Any) -> Any:
        return lambda: jvp(lambda x: f(params, x), (x,), (direction,))

    def gradient(f: Any) -> Any:
        return grad(lambda params: f(params, x).sin().sum())

    def product(f: Any) -> Any:
        return lambda: jvp(gradient(f), (params,), (step,))

    compiled = partial(torch.compile, fullgraph=True, dynamic=False)
    torch.testing.assert_close(push(tinyfn.encoder)(), push(written_out)(), atol=1e-3, rtol=1e-3)
    jax_pushes, jax_products = jax_peers(params, x, direction, step)
    pushes: Calls = {
        "tinyfn, forward": lambda: tinyfn.encoder(params, x),
        "written out, forward": lambda: written_out(params, x),
        "tinyfn, jvp": push(tinyfn.encoder),
        "written out, jvp": push(written_out),
        "tinyfn, forward, compiled": partial(compiled(tinyfn.encoder), params, x),
        "tinyfn, jvp, compiled": partial(
            compiled(lambda p, x, d: jvp(lambda x: tinyfn.encoder(p, x), (x,), (d,))),
            params,
            x,
            direction,
        ),
    }
    products: Calls = {
        "tinyfn, torch.func.grad": lambda: gradient(tinyfn.encoder)(params),
        "written out, torch.func.grad": lambda: gradient(written_out)(params),
        "tinyfn, jvp(grad)": product(tinyfn.encoder),
        "written out, jvp(grad)": product(written_out),
        "tinyfn, torch.func.grad, compiled": partial(compiled(gradient(tinyfn.encoder)), params),
        "tinyfn, jvp(grad), compiled": partial(
            compiled(lambda p, d: jvp(gradient(tinyfn.encoder), (p,), (d,))), params, step
        ),
    }
    return {"jvp": pushes | jax_pushes, "Hessian-vector product": products | jax_products}


def jax_peers(params: Any, x: Tensor, direction: Tensor, step: Any) -> tuple[Calls, Calls]:
    """The same numbers by JAX, under jax.jit."""
    try:
        import jax
        import jax_peer
    except ImportError:
        return {}, {}
    p, dp = jax_peer.arrays(params), jax_peer.arrays(step)
    x_, dx = jax_peer.array(x), jax_peer.array(direction)
    f = jax_peer.encoder
    gradient = jax.grad(lambda p, x: jax.numpy.sin(f(p, x)).sum())

    def call(f: Any, *args: Any) -> Callable[[], object]:
        compiled = jax.jit(f)
        return lambda: jax.block_until_ready(compiled(*args))

    return {
        "JAX, jit, forward": call(f, p, x_),
        "JAX, jit, jvp": call(lambda p, x, d: jax.jvp(lambda x: f(p, x), (x,), (d,)), p, x_, dx),
    }, {
        "JAX, jit, grad": call(gradient, p, x_),
        "JAX, jit, jvp(grad)": call(
            lambda p, d, x: jax.jvp(lambda p: gradient(p, x), (p,), (d,)), p, dp, x_
        ),
    }


if __name__ == "__main__":
    run(__doc__, candidates, rounds=9, sizes=["4x32"])

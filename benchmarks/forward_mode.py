"""What do a jvp and a Hessian-vector product cost, as multiples of a forward and of a gradient?

The model is an encoder of 4 layers, 256 features, 4 heads, 512 hidden. The jvp is by the input, the
Hessian-vector product by the params. nn.TransformerEncoder raises at both; its layers written out
(`F.linear`, softmax, layer norm by its formula) are the peer.

    python benchmarks/forward_mode.py [--rounds 9] [--threads 1] [--sizes 4x32]
"""

from typing import Any

import torch
from measuring import Calls, begin, measure, report
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import functional as F

import tinyfn
from tinyfn import random, tree

FORWARD, GRADIENT = "tinyfn, forward", "tinyfn, torch.func.grad"


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


def candidates(batch: int, seq: int) -> tuple[Calls, Calls]:
    """Calls for each candidate, of the first question and of the second."""
    params = tinyfn.init_encoder(random.key(0), 256, 4, 512, 4)
    x, direction = (random.normal(random.key(i), (batch, seq, 256)) for i in (1, 2))
    step = tree.map(torch.ones_like, params)

    def push(f: Any) -> Any:
        return lambda: jvp(lambda x: f(params, x), (x,), (direction,))

    def gradient(f: Any) -> Any:
        return grad(lambda params: f(params, x).sin().sum())

    def product(f: Any) -> Any:
        return lambda: jvp(gradient(f), (params,), (step,))

    torch.testing.assert_close(push(tinyfn.encoder)(), push(written_out)(), atol=1e-3, rtol=1e-3)
    return {
        FORWARD: lambda: tinyfn.encoder(params, x),
        "written out, forward": lambda: written_out(params, x),
        "tinyfn, jvp": push(tinyfn.encoder),
        "written out, jvp": push(written_out),
    }, {
        GRADIENT: lambda: gradient(tinyfn.encoder)(params),
        "written out, torch.func.grad": lambda: gradient(written_out)(params),
        "tinyfn, jvp(grad)": product(tinyfn.encoder),
        "written out, jvp(grad)": product(written_out),
    }


def main() -> None:
    """Print two tables for each size."""
    rounds, sizes = begin(__doc__, 9, ["4x32"])
    for size, (batch, seq) in sizes.items():
        for base, calls in zip((FORWARD, GRADIENT), candidates(batch, seq), strict=True):
            report(size, base, measure(calls, rounds))


if __name__ == "__main__":
    main()

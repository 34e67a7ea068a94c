"""From which width does vmap over eight models beat a Python loop over them?

An encoder of 2 layers, 4 heads and twice the features hidden, 4 samples of 16 positions. Both run
the same functions: on stacked params, and on each model's.

    python benchmarks/ensemble.py [--rounds 9] [--threads 1] [--sizes 16 128 256]
"""

from functools import partial
from typing import Any

import torch
from measuring import Questions, run
from torch import Tensor
from torch.func import grad, vmap

import tinyfn
from tinyfn import random, tree

MODELS, BATCH, SEQ = 8, 4, 16


def candidates(features: int) -> Questions:
    """Calls of a forward and of a gradient of all models."""
    make = partial(
        tinyfn.init_encoder,
        num_features=features,
        num_heads=4,
        dim_feedforward=2 * features,
        num_layers=2,
    )
    models = [make(key) for key in random.split(random.key(0), MODELS)]
    stacked = tree.stack(models)
    x = random.normal(random.key(1), (BATCH, SEQ, features))

    def loss(params: Any, x: Tensor) -> Tensor:
        return tinyfn.encoder(params, x).sin().mean()

    def forwards() -> object:
        with torch.no_grad():
            return [tinyfn.encoder(params, x) for params in models]

    def mapped_forward() -> object:
        with torch.no_grad():
            return vmap(tinyfn.encoder, (0, None))(stacked, x)

    return {
        "forward": {"loop": forwards, "tinyfn, vmap": mapped_forward},
        "gradient": {
            "loop": lambda: [grad(loss)(params, x) for params in models],
            "tinyfn, vmap(grad)": lambda: vmap(grad(loss), (0, None))(stacked, x),
        },
    }


if __name__ == "__main__":
    run(__doc__, candidates, rounds=9, sizes=["16", "128", "256"])

"""What does a call cost where the numbers are few: a tiny encoder layer against torch.nn's?

64 features, 4 heads, 128 hidden. torch.nn's layer has a fast path, one call of C++, for a forward
without gradients in eval mode, and none in train mode.

    python benchmarks/tiny_layer.py [--rounds 300] [--threads 1] [--sizes 1x8] [--compiled]
"""

from typing import Any

import torch
from measuring import Questions, run
from torch import Tensor, nn
from torch.func import functional_call, grad

import tinyfn
from tinyfn import interop, tree


def candidates(batch: int, seq: int) -> Questions:
    """Calls of a forward and of a gradient."""
    torch.manual_seed(0)
    train = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    fast = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True).eval()
    weights = {name: weight.detach() for name, weight in train.named_parameters()}
    params, options = interop.from_torch(train)
    params = tree.map(lambda leaf: leaf.requires_grad_(), params)
    leaves = tree.leaves(params)
    detached = tree.map(lambda leaf: leaf.detach(), params)
    x = torch.randn(batch, seq, 64)

    def loss(params: Any) -> Tensor:
        return tinyfn.encoder_layer(params, x, **options).sin().mean()

    def loss_of_peer(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(train, weights, (x,)).sin().mean()

    compiled = torch.compile(train, fullgraph=True, dynamic=False)
    compiled_grad = torch.compile(grad(loss), fullgraph=True, dynamic=False)

    def without_gradients(f: Any, *args: Any) -> Any:
        def timed() -> object:
            with torch.no_grad():
                return f(*args)

        return timed

    return {
        "forward": {
            "nn.TransformerEncoderLayer, train mode": without_gradients(train, x),
            "nn.TransformerEncoderLayer, eval mode": without_gradients(fast, x),
            "tinyfn.encoder_layer": without_gradients(tinyfn.encoder_layer, detached, x),
        },
        "gradient": {
            "nn.TransformerEncoderLayer": lambda: torch.autograd.grad(
                train(x).sin().mean(), list(train.parameters())
            ),
            "nn.TransformerEncoderLayer, torch.func.grad": lambda: grad(loss_of_peer)(weights),
            "tinyfn.encoder_layer": lambda: torch.autograd.grad(loss(params), leaves),
            "tinyfn.encoder_layer, torch.func.grad": lambda: grad(loss)(detached),
            "nn.TransformerEncoderLayer, compiled": lambda: torch.autograd.grad(
                compiled(x).sin().mean(), list(train.parameters())
            ),
            "tinyfn.encoder_layer, torch.func.grad, compiled": lambda: compiled_grad(detached),
        },
    }


if __name__ == "__main__":
    run(__doc__, candidates, rounds=300, sizes=["1x8"])

"""What do per-sample gradients and their norms cost, as a multiple of one gradient of the batch?

The model is an encoder of 4 layers, 256 features, 4 heads, 512 hidden, with the mean of its sine as
loss. nn.TransformerEncoder by vmap(functional_call) is the peer.

    python benchmarks/per_sample.py [--rounds 5] [--threads 1] [--sizes 32x16 32x64]
"""

from collections.abc import Callable
from typing import Any

import torch
from measuring import begin, measure, report
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tinyfn
from tinyfn import interop, transforms, tree

BASE = "tinyfn, one gradient of the batch"


def candidates(batch: int, seq: int) -> dict[str, Callable[[], object]]:
    """A call for each candidate, of the same numbers."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(256, 4, 512, dropout=0.0, batch_first=True)
    module = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    params, options = interop.from_torch(module)
    params = tree.map(lambda leaf: leaf.detach(), params)
    x = torch.randn(batch, seq, 256)

    def loss(params: Any, x: Tensor) -> Tensor:
        return tinyfn.encoder(params, x, **options).sin().mean()

    def loss_of_peer(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, weights, (x.unsqueeze(0),)).sin().mean()

    def norms_of_gradients() -> Tensor:
        gradients = tree.leaves(vmap(grad(loss), (None, 0))(params, x))
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()

    def norms() -> Tensor:
        return transforms.per_sample_grad_norms(loss)(params, x)

    error = ((norms() - norms_of_gradients()) / norms()).abs().max()
    assert error < 1e-5, error
    per_sample = vmap(grad(loss), (None, 0))
    per_sample_of_peer = vmap(grad(loss_of_peer), (None, 0))
    return {
        BASE: lambda: grad(loss)(params, x),
        "tinyfn, vmap(grad)": lambda: per_sample(params, x),
        "nn.TransformerEncoder, vmap(grad)": lambda: per_sample_of_peer(weights, x),
        "tinyfn, norms of vmap(grad)": norms_of_gradients,
        "tinyfn, per_sample_grad_norms": norms,
    }


def main() -> None:
    """Print a table for each size."""
    rounds, sizes = begin(__doc__, 5, ["32x16", "32x64"])
    for size, (batch, seq) in sizes.items():
        report(size, BASE, measure(candidates(batch, seq), rounds))


if __name__ == "__main__":
    main()

"""What does layer norm cost, right at every order, as a multiple of F.layer_norm?

Forward without gradients, and forward with backward by input, weight and bias, float32, eager. A
size is rows x features.

    python benchmarks/layer_norm.py [--rounds 51] [--threads 1] [--sizes 2048x512]
"""

from collections.abc import Callable
from functools import partial

import torch
from measuring import Questions, run
from torch import Tensor
from torch.nn import functional as F

import tinyfn


def candidates(rows: int, features: int) -> Questions:
    """Calls of both, and of the formula written out."""
    torch.manual_seed(0)
    x = torch.randn(rows, features, requires_grad=True)
    weight, bias = (torch.randn(features, requires_grad=True) for _ in range(2))
    leaves, weights = (x, weight, bias), torch.randn(rows, features)

    def written_out(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias

    norms: dict[str, Callable[..., Tensor]] = {
        "F.layer_norm": lambda x, weight, bias: F.layer_norm(x, (features,), weight, bias),
        "tinyfn.layer_norm": lambda x, weight, bias: tinyfn.layer_norm(
            {"weight": weight, "bias": bias}, x
        ),
        "written out": written_out,
    }

    expected = norms["F.layer_norm"](*leaves)
    for norm in norms.values():
        torch.testing.assert_close(norm(*leaves), expected, atol=1e-5, rtol=1e-5)

    def forward(norm: Callable[..., Tensor]) -> Tensor:
        with torch.no_grad():
            return norm(*leaves)

    def both(norm: Callable[..., Tensor]) -> object:
        return torch.autograd.grad(norm(*leaves), leaves, weights)

    return {
        question: {name: partial(way, norm) for name, norm in norms.items()}
        for question, way in (("forward", forward), ("forward and backward", both))
    }


if __name__ == "__main__":
    run(__doc__, candidates, rounds=51, sizes=["2048x512"])

"""What do per-sample gradients and their norms cost, as a multiple of one gradient of the batch?

The model is an encoder of 4 layers, 256 features, 4 heads, 512 hidden, with the mean of its sine as
loss. nn.TransformerEncoder by vmap(functional_call) and, where they are installed, Opacus and JAX
are the peers; each is a multiple of tinyfn's gradient of the batch.

    python benchmarks/per_sample.py [--rounds 5] [--threads 1] [--sizes 32x16 32x64]
"""

import copy
import warnings
from typing import Any

import torch
from measuring import Calls, Questions, run
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tinyfn
from tinyfn import interop, transforms, tree


def candidates(batch: int, seq: int) -> Questions:
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
        gradients = tree.leaves(per_sample(params, x))
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()

    norms, per_sample = transforms.per_sample_grad_norms(loss), vmap(grad(loss), (None, 0))
    error = ((norms(params, x) - norms_of_gradients()) / norms(params, x)).abs().max()
    assert error < 1e-5, error
    per_sample_of_peer = vmap(grad(loss_of_peer), (None, 0))
    calls: Calls = {
        "tinyfn, one gradient of the batch": lambda: grad(loss)(params, x),
        "tinyfn, vmap(grad)": lambda: per_sample(params, x),
        "tinyfn, a loop": lambda: [grad(loss)(params, each) for each in x],
        "nn.TransformerEncoder, vmap(grad)": lambda: per_sample_of_peer(weights, x),
        "tinyfn, norms of vmap(grad)": norms_of_gradients,
        "tinyfn, per_sample_grad_norms": lambda: norms(params, x),
    }
    return {"": calls | opacus_calls(module, x) | jax_calls(params, x)}


def opacus_calls(module: nn.Module, x: Tensor) -> Calls:
    """Opacus' own hooks, on its own attention; torch's packed one it refuses."""
    try:
        from opacus import GradSampleModule
        from opacus.validators import ModuleValidator
    except ImportError:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooked = GradSampleModule(ModuleValidator.fix(copy.deepcopy(module).train()))

    def timed() -> None:
        hooked.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hooked(x).sin().mean().backward()

    timed()
    samples = [getattr(p, "grad_sample", None) for p in hooked.parameters()]
    assert all(s is not None and s.shape[0] == len(x) for s in samples)
    return {"Opacus, hooks": timed}


def jax_calls(params: Any, x: Tensor) -> Calls:
    """The same numbers by JAX."""
    try:
        import jax
        import jax_peer
    except ImportError:
        return {}
    numpy = jax.numpy
    gradient = jax.grad(lambda params, x: numpy.sin(jax_peer.encoder(params, x)).mean())
    batched, per_sample = jax.jit(gradient), jax.jit(jax.vmap(gradient, (None, 0)))
    given = jax_peer.arrays(params), jax_peer.array(x)
    return {
        "JAX, jit, one gradient of the batch": lambda: jax.block_until_ready(batched(*given)),
        "JAX, jit, vmap(grad)": lambda: jax.block_until_ready(per_sample(*given)),
    }


if __name__ == "__main__":
    run(__doc__, candidates, rounds=5, sizes=["32x16", "32x64"])

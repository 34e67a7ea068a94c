"""What do a forward and a gradient step cost, as a multiple of nn.Transformer's?

The model is 3 + 3 layers, 512 features, 2 heads, 1024 hidden, with a causal target mask and
dropout 0.1 in the gradient step. Rounds are interleaved, so that a busy machine slows everyone
alike; the ratio is the median of the ratios within a round.

    python benchmarks/seed_model.py [--rounds 15] [--threads 1] [--sizes 1x22 16x128]
"""

from collections.abc import Callable
from typing import Any

import torch
from measuring import begin, measure, report
from torch import Tensor, nn

import tinyfn
from tinyfn import interop, masks, random, tree

PEER = "nn.Transformer"


def candidates(batch: int, seq: int) -> dict[str, dict[str, Callable[[], object]]]:
    """For each question, a call for each candidate; all compute the same function."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "nhead": 2,
        "num_encoder_layers": 3,
        "num_decoder_layers": 3,
        "dim_feedforward": 1024,
    }
    module = nn.Transformer(512, **sizes, dropout=0.1, batch_first=True)
    params, options = interop.from_torch(module)
    options["tgt_mask"] = masks.causal()
    params = tree.map(lambda leaf: leaf.requires_grad_(), params)
    detached = tree.map(lambda leaf: leaf.detach(), params)
    adapter = tinyfn.TinyTransformer(3, 3, 512, 2, 1024, 0.1)
    src, tgt = torch.randn(batch, seq, 512), torch.randn(batch, seq, 512)
    causal = nn.Transformer.generate_square_subsequent_mask(seq)
    options_of_peer: dict[str, Any] = {"tgt_mask": causal, "tgt_is_causal": True}
    key = random.key(0)

    def peer() -> Tensor:
        return module(src, tgt, **options_of_peer)

    def forward(train: bool, call: Callable[[], Tensor]) -> Callable[[], object]:
        def timed() -> object:
            module.train(train)
            adapter.train(train)
            with torch.no_grad():
                return call()

        return timed

    def step(leaves: list[Tensor], call: Callable[[], Tensor]) -> Callable[[], object]:
        def timed() -> object:
            module.train()
            adapter.train()
            return torch.autograd.grad(call().square().mean(), leaves)

        return timed

    def pure(params: dict, key: Tensor | None = None) -> Tensor:
        return tinyfn.transformer(params, src, tgt, key=key, **options)

    by_grad = torch.func.grad(lambda params: pure(params, key).square().mean())
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def peer_of(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, weights, (src, tgt), options_of_peer)

    peer_by_grad = torch.func.grad(lambda weights: peer_of(weights).square().mean())
    agree = (pure(detached) - module.eval()(src, tgt, tgt_mask=causal)).abs().max()
    assert agree < 1e-4, agree
    return {
        "forward": {
            PEER: forward(False, peer),
            "tinyfn.transformer": forward(False, lambda: pure(detached)),
            "TinyTransformer": forward(False, lambda: adapter(src, tgt)),
        },
        "gradient step": {
            PEER: step(list(module.parameters()), peer),
            "tinyfn, torch.autograd.grad": step(tree.leaves(params), lambda: pure(params, key)),
            "nn.Transformer, torch.func.grad": lambda: peer_by_grad(weights),
            "tinyfn, torch.func.grad": lambda: by_grad(detached),
            "TinyTransformer": step(list(adapter.parameters()), lambda: adapter(src, tgt)),
        },
    }


def main() -> None:
    """Print a table for each size and question."""
    rounds, sizes = begin(__doc__, 15, ["1x22", "16x128"])
    for size, (batch, seq) in sizes.items():
        for question, calls in candidates(batch, seq).items():
            report(f"{size}, {question}", PEER, measure(calls, rounds))


if __name__ == "__main__":
    main()

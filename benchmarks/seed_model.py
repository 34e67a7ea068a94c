"""What do a forward and a gradient step cost, as a multiple of nn.Transformer's?

Encoder and decoder of 512 features with a causal target mask, and dropout 0.1 in the gradient step.
TinyTransformer adds positions, a linear layer and a softmax: a candidate adds them to torch's too.
A size is batch x positions, then layers, heads and hidden features (3x2x1024 if left out). Peers
that are not installed are left out.

    python benchmarks/seed_model.py [--rounds 9] [--threads 1]
        [--sizes 1x22 16x128 8x256x6x8x2048] [--compiled]
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from measuring import Calls, Questions, run
from torch import Tensor, nn

import tinyfn
from tinyfn import interop, masks, positions, random, transforms, tree

FEATURES, DROPOUT_P = 512, 0.1


def candidates(
    batch: int, seq: int, layers: int = 3, heads: int = 2, hidden: int = 1024
) -> Questions:
    """For each question, a call for each candidate; those on the same params compute the same."""
    torch.manual_seed(0)
    sizes = (FEATURES, heads, layers, layers, hidden)
    src, tgt = torch.randn(batch, seq, FEATURES), torch.randn(batch, seq, FEATURES)
    modules, calls = torch_peers(*sizes, src, tgt)
    module = modules["nn.Transformer"]
    params, options = interop.from_torch(module)
    options["tgt_mask"] = masks.causal()
    detached = tree.map(lambda leaf: leaf.detach(), params)
    params = tree.map(lambda leaf: leaf.requires_grad_(), params)
    leaves = tree.leaves(params)
    modules["TinyTransformer"] = tinyfn.TinyTransformer(
        layers, layers, FEATURES, heads, hidden, DROPOUT_P
    )
    whole = "nn.Transformer with positions, linear and softmax"
    modules[whole] = WholeModel(copy.deepcopy(module), src.shape[1], tgt.shape[1])
    calls[whole] = calls["TinyTransformer"] = lambda module: module(src, tgt)
    key = random.key(0)

    def pure(params: Any, key: Tensor | None = None) -> Tensor:
        return tinyfn.transformer(params, src, tgt, key=key, **options)

    def peer_of(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, weights, (src, tgt), _causal(seq))

    def forward(name: str) -> Callable[[], object]:
        module = copy.deepcopy(modules[name]).eval()

        def timed() -> object:
            with torch.no_grad():
                return calls[name](module)

        return timed

    def step(name: str) -> Callable[[], object]:
        module = modules[name].train()
        leaves = list(module.parameters())

        def timed() -> object:
            loss = calls[name](module).square().mean()
            return torch.autograd.grad(loss, leaves, allow_unused=True)

        return timed

    def pure_forward() -> Tensor:
        with torch.no_grad():
            return pure(detached)

    def compiled_peer_step() -> object:
        loss = compiled_module(src, tgt, **_causal(seq)).square().mean()
        return torch.autograd.grad(loss, list(module.parameters()))

    def loss(params: Any) -> Tensor:
        return pure(params, key).square().mean()

    by_grad, own_grad = torch.func.grad(loss), transforms.value_and_grad(loss)
    peer_by_grad = torch.func.grad(lambda weights: peer_of(weights).square().mean())
    compiled_module = torch.compile(module, dynamic=False)
    compiled_grad = torch.compile(by_grad, fullgraph=True, dynamic=False)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    torch.testing.assert_close(pure_forward(), forward("nn.Transformer")(), atol=1e-4, rtol=1e-4)
    jax_forward, jax_step = jax_peers(detached, src, tgt, pure_forward())
    return {
        "forward": {name: forward(name) for name in modules}
        | {"tinyfn.transformer": pure_forward}
        | jax_forward,
        "gradient step": {name: step(name) for name in modules}
        | {
            "nn.Transformer, torch.func.grad": lambda: peer_by_grad(weights),
            "tinyfn.transformer, torch.autograd.grad": lambda: torch.autograd.grad(
                loss(params), leaves
            ),
            "tinyfn.transformer, torch.func.grad": lambda: by_grad(detached),
            "tinyfn.transformer, transforms.value_and_grad": lambda: own_grad(detached),
            "nn.Transformer, compiled": compiled_peer_step,
            "tinyfn.transformer, torch.func.grad, compiled": lambda: compiled_grad(detached),
        }
        | jax_step,
    }


def _causal(seq: int) -> dict[str, Any]:
    mask = nn.Transformer.generate_square_subsequent_mask(seq)
    return {"tgt_mask": mask, "tgt_is_causal": True}


class WholeModel(nn.Module):
    """What TinyTransformer computes, around an nn.Transformer."""

    def __init__(self, transformer: nn.Module, *lengths: int) -> None:
        super().__init__()
        self.transformer, self.dropout = transformer, nn.Dropout(DROPOUT_P)
        self.linear = nn.Linear(FEATURES, FEATURES)
        self.table = nn.Buffer(positions.sinusoidal(max(lengths), FEATURES))

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """As of TinyTransformer."""
        src, tgt = (self.dropout(x + self.table[: x.shape[1]]) for x in (src, tgt))
        return self.linear(self.transformer(src, tgt, **_causal(tgt.shape[1]))).softmax(-1)


def torch_peers(
    features: int, heads: int, enc: int, dec: int, hidden: int, src: Tensor, tgt: Tensor
) -> tuple[dict[str, nn.Module], dict[str, Callable[[Any], Tensor]]]:
    """Modules of the same sizes, and how each is called; the first is the base."""
    base = nn.Transformer(features, heads, enc, dec, hidden, dropout=DROPOUT_P, batch_first=True)
    causal = _causal(tgt.shape[1])
    modules: dict[str, nn.Module] = {"nn.Transformer": base}
    calls: dict[str, Callable[[Any], Tensor]] = {
        "nn.Transformer": lambda module: module(src, tgt, **causal)
    }
    try:
        from transformers import BartConfig, BartModel
    except ImportError:
        pass
    else:
        config = BartConfig(
            vocab_size=5,
            d_model=features,
            encoder_layers=enc,
            decoder_layers=dec,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=hidden,
            decoder_ffn_dim=hidden,
            activation_function="relu",
            dropout=DROPOUT_P,
            attention_dropout=DROPOUT_P,
            activation_dropout=DROPOUT_P,
        )
        modules["Hugging Face BART"] = BartModel(config)
        calls["Hugging Face BART"] = lambda bart: (
            bart(inputs_embeds=src, decoder_inputs_embeds=tgt, use_cache=False).last_hidden_state
        )
    try:
        from x_transformers import Decoder, Encoder
    except ImportError:
        pass
    else:
        options: dict[str, Any] = {
            "dim": features,
            "heads": heads,
            "attn_dim_head": features // heads,
            "ff_mult": hidden / features,
            "attn_dropout": DROPOUT_P,
            "ff_dropout": DROPOUT_P,
        }
        encoder = Encoder(depth=enc, **options)
        decoder = Decoder(depth=dec, cross_attend=True, **options)
        modules["x-transformers"] = nn.ModuleList([encoder, decoder])
        calls["x-transformers"] = lambda both: both[1](tgt, context=both[0](src))
    return modules, calls


def jax_peers(params: Any, src: Tensor, tgt: Tensor, expected: Tensor) -> tuple[Calls, Calls]:
    """A forward and a gradient step of the same function under jax.jit."""
    try:
        import jax
        import jax_peer
    except ImportError:
        return {}, {}
    given = (jax_peer.arrays(params), jax_peer.array(src), jax_peer.array(tgt))
    forward = jax.jit(jax_peer.transformer)
    torch.testing.assert_close(
        torch.tensor(forward(*given).tolist()), expected, atol=1e-3, rtol=1e-3
    )
    step = jax.jit(jax.grad(lambda *args: (jax_peer.transformer(*args) ** 2).mean()))
    key = jax.random.key(0)
    return (
        {"JAX, jit": lambda: jax.block_until_ready(forward(*given))},
        {"JAX, jit": lambda: jax.block_until_ready(step(*given, key))},
    )


if __name__ == "__main__":
    run(__doc__, candidates, rounds=9, sizes=["1x22", "16x128"])

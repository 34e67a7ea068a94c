"""What the transform table asks about: tinyfn's functions and its peers', each as f(params, x).

All are small, in float64, smooth (GELU) and without dropout; every attention has a mask. A subject
is made in the process that tries it, so that a library is imported only where it is asked about.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import tinyfn
from tinyfn import random, transforms, tree

BATCH, SEQ, FEATURES, HEADS, HIDDEN = 2, 4, 8, 2, 12
SIZES = (FEATURES, HEADS, HIDDEN)
VOCAB = 5
F64: dict[str, Any] = {"dtype": torch.float64}
GELU: dict[str, Any] = {"activation": F.gelu}
TRANSFORMS = ("grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "vmap")


class Subject(NamedTuple):
    """A function of params and x (batch, seq, features), and where it is tried."""

    f: Callable[[Any, Any], Any]
    params: Any
    framework: SimpleNamespace


Maker: TypeAlias = Callable[[str], Subject]


def visible() -> Tensor:
    """A padding mask that hides the last key (1, seq), made anew: remat takes no captured one."""
    return (torch.arange(SEQ) < SEQ - 1).unsqueeze(0)


def normal(seed: int, *shape: int) -> Tensor:
    return random.normal(random.key(seed), shape, **F64)


def _torch(remat: Callable[..., Any], backend: str) -> SimpleNamespace:
    def export(f: Callable[..., Any]) -> Callable[..., Any]:
        class Module(nn.Module):
            def forward(self, *tensors: Tensor) -> Any:
                return f(*tensors)

        return lambda *tensors: torch.export.export(Module(), tensors).module()(*tensors)

    return SimpleNamespace(
        **{name: getattr(torch.func, name) for name in TRANSFORMS},
        map=tree.map,
        tensordot=torch.tensordot,
        array=lambda tensor: tensor,
        remat=remat,
        compile=partial(torch.compile, fullgraph=True, backend=backend),
        export=export,
    )


def _checkpointed(f: Callable[..., Any]) -> Callable[..., Any]:
    return partial(checkpoint, f, use_reentrant=False)


def _pure(
    f: Callable[..., Any], make: Callable[[], Any], remat: Callable[..., Any] = transforms.remat
) -> Maker:
    return lambda backend: Subject(f, make(), _torch(remat, backend))


def _own(init: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: tree.map(lambda leaf: leaf + 0.1, init(random.key(0), *SIZES, **F64))


def _language_model(params: dict, x: Tensor) -> Tensor:
    """Logits of tokens that repeat, each with features of its own beside its embedding."""

    def embed(params: dict, tokens: Tensor) -> Tensor:
        return x + tinyfn.embedding(params, tokens)

    tokens = (torch.arange(BATCH * SEQ) % VOCAB).reshape(BATCH, SEQ)
    return tinyfn.language_model(params, tokens, embed=embed, **GELU)


def _attend(attend: Callable[..., Tensor], **options: Any) -> Maker:
    def f(params: dict, x: Tensor) -> Tensor:
        return attend(*(torch.einsum("...sf,hdf->...hsd", x, params[n]) for n in "qkv"), visible())

    shape = (HEADS, FEATURES // HEADS, FEATURES)
    return _pure(f, lambda: {n: normal(i, *shape) for i, n in enumerate("qkv")}, **options)


def _module(make: Callable[[], nn.Module], call: Callable[[nn.Module, Tensor], Any]) -> Maker:
    """A module by `torch.func.functional_call`, in train mode with every dropout at zero."""

    def subject(backend: str) -> Subject:
        torch.manual_seed(0)
        module = make().double().train()

        class Call(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.module = module

            def forward(self, x: Tensor) -> Any:
                return call(self.module, x)

        called = Call()
        params = {name: weight.detach() + 0.1 for name, weight in called.named_parameters()}
        return Subject(
            lambda params, x: torch.func.functional_call(called, params, (x,)),
            params,
            _torch(_checkpointed, backend),
        )

    return subject


def _x_transformers() -> nn.Module:
    import x_transformers

    encoder = x_transformers.Encoder(dim=FEATURES, depth=1, heads=HEADS, attn_dim_head=4)
    part: Any
    for part in encoder.modules():
        if hasattr(part, "attn_fn"):  # in single by default, which differences cannot see through
            part.attn_fn = partial(F.softmax, dim=-1)
    return encoder


def _bert() -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        hidden_size=FEATURES,
        num_attention_heads=HEADS,
        num_hidden_layers=1,
        intermediate_size=HIDDEN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        vocab_size=5,
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def _gpt2() -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        n_embd=FEATURES,
        n_head=HEADS,
        n_layer=1,
        n_inner=HIDDEN,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        vocab_size=5,
        use_cache=False,
    )
    return transformers.GPT2Model(config)


def _embedded(module: nn.Module, x: Tensor) -> Tensor:
    mask = visible().expand(x.shape[:-1]).long()
    return module(inputs_embeds=x, attention_mask=mask).last_hidden_state


def _flax(backend: str) -> Subject:
    import jax

    jax.config.update("jax_enable_x64", True)
    from flax import linen
    from jax import export, numpy

    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            mask = numpy.asarray(visible().tolist())
            double: dict[str, Any] = {"param_dtype": numpy.float64}
            attention = linen.MultiHeadDotProductAttention(HEADS, **double)
            x = linen.LayerNorm(**double)(x + attention(x, x, mask=mask))
            hidden = linen.gelu(linen.Dense(HIDDEN, **double)(x))
            return linen.LayerNorm(**double)(x + linen.Dense(FEATURES, **double)(hidden))

    layer = Layer()
    params = layer.init(jax.random.key(0), numpy.zeros((BATCH, SEQ, FEATURES)))
    framework = SimpleNamespace(
        **{name: getattr(jax, name) for name in TRANSFORMS},
        map=jax.tree.map,
        tensordot=numpy.tensordot,
        array=lambda tensor: numpy.asarray(tensor.tolist()),
        remat=jax.checkpoint,
        compile=jax.jit,
        export=lambda f: lambda *arrays: export.export(jax.jit(f))(*arrays).call(*arrays),
    )
    return Subject(layer.apply, jax.tree.map(lambda leaf: leaf + 0.1, params), framework)


_LAYER: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
_CAUSAL = nn.Transformer.generate_square_subsequent_mask(SEQ, dtype=torch.float64)
_HIDDEN_KEYS = {"src_key_padding_mask": ~visible().expand(BATCH, SEQ)}

SUBJECTS: dict[str, Maker] = {
    "tinyfn.layer_norm": _pure(
        tinyfn.layer_norm, lambda: tinyfn.init_layer_norm(None, FEATURES, **F64)
    ),
    "tinyfn.fused_attention": _attend(tinyfn.fused_attention),
    "tinyfn.dot_product_attention": _attend(tinyfn.dot_product_attention),
    "tinyfn.encoder_layer": _pure(
        lambda params, x: tinyfn.encoder_layer(params, x, visible(), **GELU),
        _own(tinyfn.init_encoder_layer),
    ),
    "tinyfn.decoder_layer": _pure(
        lambda params, x: tinyfn.decoder_layer(params, x, x.tanh(), cross_mask=visible(), **GELU),
        _own(tinyfn.init_decoder_layer),
    ),
    "tinyfn.transformer": _pure(
        lambda params, x: tinyfn.transformer(params, x, x.tanh(), visible(), **GELU),
        _own(partial(tinyfn.init_transformer, num_encoder_layers=1, num_decoder_layers=1)),
    ),
    "tinyfn.language_model": _pure(
        _language_model,
        _own(
            partial(tinyfn.init_language_model, num_layers=1, vocab_size=VOCAB, tie_embeddings=True)
        ),
    ),
    "nn.LayerNorm": _module(lambda: nn.LayerNorm(FEATURES), lambda norm, x: norm(x)),
    "F.scaled_dot_product_attention": _attend(
        lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask), remat=_checkpointed
    ),
    "nn.TransformerEncoderLayer": _module(
        lambda: nn.TransformerEncoderLayer(*SIZES, **_LAYER),
        lambda layer, x: layer(x, **_HIDDEN_KEYS),
    ),
    "nn.TransformerDecoderLayer": _module(
        lambda: nn.TransformerDecoderLayer(*SIZES, **_LAYER),
        lambda layer, x: layer(x, x.tanh(), tgt_mask=_CAUSAL, tgt_is_causal=True),
    ),
    "nn.Transformer": _module(
        lambda: nn.Transformer(FEATURES, HEADS, 1, 1, HIDDEN, **_LAYER),
        lambda module, x: module(x, x.tanh(), tgt_mask=_CAUSAL, tgt_is_causal=True),
    ),
    "x-transformers": _module(
        _x_transformers, lambda layer, x: layer(x, mask=visible().expand(x.shape[:-1]))
    ),
    "Hugging Face BERT": _module(_bert, _embedded),
    "Hugging Face GPT-2": _module(_gpt2, _embedded),
    "Flax": _flax,
}

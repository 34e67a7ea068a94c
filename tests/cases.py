"""The table of cases: every public function with small float64 arguments to call it with.

A function that joins this table meets every transform (`tests/transforms`), every dtype and the
law of leading axes. Statics are bound in `f`; `args` is one example, whose floating tensors are
differentiated by. `covers` names the public functions that the case stands for.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import tinyfn
from tinyfn import generation, masks, positions, random, transforms, tree

F64 = {"dtype": torch.float64}


class Case(NamedTuple):
    """A function, and how to call it."""

    name: str
    covers: tuple[str, ...]
    f: Callable[..., Any]
    args: Callable[[], tuple[Any, ...]]
    batched: tuple[int, ...]
    """The positions of the arguments that may have leading axes; () where the law is not meant."""


def _x(*shape: int, seed: int = 0) -> Tensor:
    return random.normal(random.key(seed + 100), shape, **F64)


def _jitter(params: Any, seed: int = 5) -> Any:
    """Biases off zero and norms off one, where a wrong derivative would hide."""
    keys = iter(random.split(random.key(seed), 1000))
    return tree.map(lambda leaf: leaf + 0.3 * random.normal(next(keys), leaf.shape, **F64), params)


def _init(init: Callable[..., Any], *sizes: int, **options: Any) -> Any:
    return _jitter(init(random.key(3), *sizes, **F64, **options))


CASES: list[Case] = []


def _case(
    names: str,
    f: Callable[..., Any],
    args: Callable[[], tuple[Any, ...]],
    batched: tuple[int, ...] = (),
    detail: str = "",
) -> None:
    covers = tuple(names.split())
    CASES.append(Case(f"{covers[0]}{detail}", covers, f, args, batched))


_case("linear", tinyfn.linear, lambda: (_init(tinyfn.init_linear, 3, 2), _x(2, 3)), (1,))
_case("layer_norm", tinyfn.layer_norm, lambda: (_init(tinyfn.init_layer_norm, 4), _x(2, 4)), (1,))
_case("rms_norm", tinyfn.rms_norm, lambda: (_init(tinyfn.init_rms_norm, 4), _x(2, 4)), (1,))
_case(
    "embedding scaled_embedding",
    lambda params, tokens: (
        tinyfn.embedding(params, tokens) * tinyfn.scaled_embedding(params, tokens)
    ),
    lambda: (_init(tinyfn.init_embedding, 5, 2), torch.tensor([1, 4, 1])),
    (1,),
)
_case(
    "feed_forward",
    partial(tinyfn.feed_forward, activation=F.gelu),
    lambda: (_init(tinyfn.init_feed_forward, 2, 3), _x(2, 2)),
    (1,),
)
_case(
    "feed_forward",
    partial(tinyfn.feed_forward, activation=torch.tanh, dropout_p=0.4),
    lambda: (_init(tinyfn.init_feed_forward, 2, 3), _x(2, 2), random.key(1)),
    detail="_with_dropout",
)
_case(
    "gated_feed_forward",
    tinyfn.gated_feed_forward,
    lambda: (_init(tinyfn.init_gated_feed_forward, 2, 3), _x(2, 2)),
    (1,),
)
_case(
    "dropout",
    lambda x, key: tinyfn.dropout(x.exp(), key, dropout_p=0.4),
    lambda: (_x(2, 3), random.key(2)),
)

_case("positions.rotate", positions.rotate, lambda: (_x(3, 4),), (0,))
_case(
    "positions.add_sinusoidal positions.sinusoidal positions.add",
    lambda x: positions.add_sinusoidal({}, x.sin()),
    lambda: (_x(2, 3),),
    (0,),
)
_case(
    "positions.concatenate_sinusoidal positions.concatenate",
    lambda x: positions.concatenate_sinusoidal({}, x.sin(), num_features=3),
    lambda: (_x(2, 3),),
    (0,),
)
_case(
    "positions.add_learned positions.learned",
    lambda params, x: positions.add_learned(params, x.sin(), offset=1),
    lambda: (_init(positions.init_learned, 4, 3), _x(2, 3)),
    (1,),
)
_case(
    "positions.concatenate_learned",
    lambda params, x: positions.concatenate_learned(params, x.sin()),
    lambda: (_init(positions.init_learned, 4, 3), _x(2, 3)),
    (1,),
)

_case("dot_product", tinyfn.dot_product, lambda: (_x(2, 3), _x(4, 3, seed=1)), (0, 1))
_case("scaled_dot_product", tinyfn.scaled_dot_product, lambda: (_x(2, 3), _x(4, 3, seed=1)), (0, 1))
_case(
    "additive",
    tinyfn.additive,
    lambda: (_init(tinyfn.init_additive, 3, 2), _x(2, 3), _x(4, 3, seed=1)),
    (1, 2),
)


def _heads(heads: int = 2, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return _x(heads, 3, 2), _x(kv_heads, 4, 2, seed=1), _x(kv_heads, 4, 2, seed=2)


NOTHING = torch.tensor([[True, True, False, False], [False] * 4, [True, False, True, False]])
"""A mask with a query that sees nothing, and a key that nothing sees."""

_case("dot_product_attention", tinyfn.dot_product_attention, _heads, (0, 1, 2))
_case(
    "dot_product_attention",
    tinyfn.dot_product_attention,
    lambda: (*_heads(), NOTHING),
    (0, 1, 2),
    detail="_with_rows_that_see_nothing",
)
_case(
    "dot_product_attention",
    lambda q, k, v, bias, mask: tinyfn.dot_product_attention(q, k, v, mask, bias=bias),
    lambda: (*_heads(4, 2), _x(4, 3, 4, seed=3), masks.causal() & masks.padding(torch.tensor(3))),
    detail="_grouped_with_bias_and_mask",
)
_case(
    "dot_product_attention",
    partial(tinyfn.dot_product_attention, dropout_p=0.3, scale=0.7),
    lambda: (*_heads(2, 1), masks.dense(NOTHING), random.key(4)),
    detail="_with_dropout",
)
_case("explicit_attention", tinyfn.explicit_attention, lambda: (*_heads(4, 2), NOTHING), (0, 1, 2))
_case("fused_attention", tinyfn.fused_attention, lambda: (*_heads(4, 2), NOTHING), (0, 1, 2))
_case(
    "fused_attention",
    lambda q, k, v, mask: tinyfn.fused_attention(
        q, k, v, mask, bias=_x(4, seed=3).to(q.dtype), scale=0.7
    ),
    lambda: (*_heads(), masks.causal() & masks.padding(torch.tensor(2))),
    detail="_causal_with_padding_and_bias",
)
_case(
    "similarity_attention attend_weights",
    lambda q, k, v: (
        tinyfn.similarity_attention(tinyfn.dot_product, q, k, v)
        + tinyfn.attend_weights(tinyfn.dot_product_attention, q, k) @ v
    ),
    _heads,
    (0, 1, 2),
)
_case(
    "additive_attention",
    tinyfn.additive_attention,
    lambda: (_init(tinyfn.init_additive, 2, 2), *_heads(2, 1), NOTHING),
)
_case(
    "positions.rotary",
    positions.rotary(tinyfn.dot_product_attention, offset=2),
    _heads,
    (0, 1, 2),
)
_case(
    "positions.rotary positions.rotate positions.ntk_scaled",
    positions.rotary(
        tinyfn.dot_product_attention,
        frequencies=partial(positions.ntk_scaled, head_dim=4, factor=2.0, max_len=3),
        scale=1.2,
    ),
    lambda: (_x(2, 4, 4), _x(2, 4, 4, seed=1), _x(2, 4, 2, seed=2)),
    (0, 1, 2),
    detail="_with_frequencies_by_length",
)
_case(
    "positions.alibi positions.alibi_bias positions.alibi_slopes",
    positions.alibi(tinyfn.dot_product_attention),
    _heads,
    (0, 1, 2),
)
_case(
    "positions.relative positions.relative_bias",
    positions.relative(tinyfn.dot_product_attention, max_distance=3),
    lambda: (_init(positions.init_relative, 2, 2), *_heads()),
    (1, 2, 3),
)


def _norm(features: int, seed: int = 0) -> dict[str, Tensor]:
    return {"weight": 1 + 0.3 * _x(features, seed=seed)}


_case(
    "attention",
    tinyfn.attention,
    lambda: (
        _init(tinyfn.init_attention, 4, 2, num_kv_heads=1, kv_features=3),
        _x(2, 4),
        _x(3, 3, seed=1),
        _x(3, 3, seed=2),
        torch.tensor([[True, False, True], [False] * 3]),
    ),
    (1, 2, 3),
)
_case(
    "attention",
    tinyfn.attention,
    lambda: (
        {**_init(tinyfn.init_attention, 4, 2), "q_norm": _norm(2), "k_norm": _norm(2, seed=1)},
        *[_x(2, 4)] * 3,
    ),
    detail="_with_norms_of_queries_and_keys",
)
_case(
    "attention_weights",
    tinyfn.attention_weights,
    lambda: (_init(tinyfn.init_attention, 4, 2), _x(2, 4), _x(3, 4, seed=1), masks.causal(1)),
    (1, 2),
)

GELU = {"activation": F.gelu}
_case(
    "encoder_layer",
    partial(tinyfn.encoder_layer, **GELU),
    lambda: (_init(tinyfn.init_encoder_layer, 4, 2, 3), _x(3, 4), masks.padding(torch.tensor(2))),
    (1,),
)
_case(
    "encoder_layer",
    partial(
        tinyfn.encoder_layer,
        norm=tinyfn.rms_norm,
        norm_first=True,
        activation=F.silu,
        dropout_p=0.3,
        attend=positions.rotary(tinyfn.dot_product_attention),
        feed_forward=tinyfn.gated_feed_forward,
    ),
    lambda: (
        _init(
            tinyfn.init_encoder_layer,
            4,
            2,
            3,
            init_norm=tinyfn.init_rms_norm,
            init_feed_forward=tinyfn.init_gated_feed_forward,
            bias=False,
        ),
        _x(2, 4),
        masks.full(),
        random.key(6),
    ),
    detail="_of_other_parts",
)
_case(
    "decoder_layer",
    partial(tinyfn.decoder_layer, **GELU),
    lambda: (
        _init(tinyfn.init_decoder_layer, 4, 2, 3, memory_features=3),
        _x(2, 4),
        _x(3, 3, seed=1),
        masks.causal(),
        masks.padding(torch.tensor(2)),
    ),
    (1, 2),
)
_case(
    "decoder_layer",
    partial(tinyfn.decoder_layer, **GELU),
    lambda: (_init(tinyfn.init_decoder_layer, 4, 2, 3, cross_attention=False), _x(2, 4)),
    (1,),
    detail="_without_memory",
)
_case(
    "encoder encoder_attention_weights",
    lambda params, x: (
        tinyfn.encoder(params, x, position=positions.add_learned, **GELU),
        tinyfn.encoder_attention_weights(params, x, position=positions.add_learned),
    ),
    lambda: (
        _init(
            tinyfn.init_encoder,
            4,
            2,
            3,
            1,
            final_norm=True,
            init_position=partial(positions.init_learned, max_len=3, num_features=4),
        ),
        _x(2, 4),
    ),
    (1,),
)
_case(
    "decoder decoder_attention_weights",
    lambda params, x, memory: (
        tinyfn.decoder(params, x, memory, **GELU),
        tinyfn.decoder_attention_weights(params, x, memory, **GELU),
    ),
    lambda: (_init(tinyfn.init_decoder, 4, 2, 3, 1), _x(2, 4), _x(3, 4, seed=1)),
    (1, 2),
)
_case(
    "transformer transformer_attention_weights",
    lambda params, src, tgt: (
        tinyfn.transformer(params, src, tgt, **GELU),
        tinyfn.transformer_attention_weights(params, src, tgt, **GELU)["decoder"],
    ),
    lambda: (_init(tinyfn.init_transformer, 4, 2, 3, 1, 1), _x(3, 4), _x(2, 4, seed=1)),
    (1, 2),
)
_case(
    "transformer",
    partial(tinyfn.transformer, dropout_p=0.2, **GELU),
    lambda: (
        _init(
            tinyfn.init_transformer,
            4,
            2,
            3,
            1,
            1,
            src_vocab_size=5,
            tgt_vocab_size=5,
            tie_embeddings=True,
            share_embeddings=True,
        ),
        torch.tensor([1, 2, 0]),
        torch.tensor([3, 1]),
        masks.padding(torch.tensor(2)),
        masks.causal(),
        masks.padding(torch.tensor(2)),
        random.key(8),
    ),
    detail="_of_tokens",
)
_case(
    "tree.stack tree.unstack tree.cast tree.map",
    lambda a, b: tree.map(
        lambda x: x.sin(), tree.cast(tree.unstack(tree.stack([a, b]))[1], torch.float64)
    ),
    lambda: ({"w": _x(2)}, {"w": _x(2, seed=1)}),
)
_case(
    "transforms.remat",
    transforms.remat(partial(tinyfn.encoder_layer, dropout_p=0.3, **GELU)),
    lambda: (
        _init(tinyfn.init_encoder_layer, 4, 2, 3),
        _x(2, 4),
        masks.padding(torch.tensor(1)),
        random.key(6),
    ),
)
_case(
    "transforms.value_and_grad",
    lambda params, x: transforms.value_and_grad(
        lambda params, x: (tinyfn.layer_norm(params, x) * x.sin()).sum(), (0, 1)
    )(params, x),
    lambda: (_init(tinyfn.init_layer_norm, 3), _x(2, 3)),
)
_case(
    "transforms.per_sample_grad_norms",
    lambda params, x: transforms.per_sample_grad_norms(
        lambda params, x: tinyfn.feed_forward(params, x, activation=torch.tanh).sum()
    )(params, x),
    lambda: (_init(tinyfn.init_feed_forward, 2, 3), _x(2, 1, 2)),
)
_case("cross_entropy", tinyfn.cross_entropy, lambda: (_x(3, 4), torch.tensor([1, 3, 0])), (0, 1))
_case(
    "cross_entropy perplexity",
    lambda logits, targets, real: (
        tinyfn.cross_entropy(logits, targets, real, label_smoothing=0.1, z_loss=0.1),
        tinyfn.perplexity(logits, targets, real),
    ),
    lambda: (_x(3, 4), torch.tensor([1, 3, 0]), torch.tensor([True, False, True])),
    (0, 1, 2),
    detail="_of_real_targets",
)
_case(
    "encoder_model first_pool",
    partial(tinyfn.encoder_model, **GELU),
    lambda: (
        _init(tinyfn.init_encoder_model, 4, 2, 3, 1, 2, vocab_size=5, pooler=True),
        torch.tensor([1, 4, 2]),
        masks.padding(torch.tensor(2)),
    ),
    (1,),
)
_case(
    "encoder_model mean_pool",
    partial(tinyfn.encoder_model, pool=tinyfn.mean_pool, **GELU),
    lambda: (
        _init(tinyfn.init_encoder_model, 4, 2, 3, 1, 2, in_features=3),
        _x(3, 3),
        masks.padding(torch.tensor(2)),
    ),
    (1,),
    detail="_of_features",
)

LLAMA = {
    "position": None,
    "norm": tinyfn.rms_norm,
    "norm_first": True,
    "activation": F.silu,
    "feed_forward": tinyfn.gated_feed_forward,
    "attend": positions.rotary(tinyfn.dot_product_attention),
}


def _llama(*sizes: int) -> Any:
    return _init(
        tinyfn.init_language_model,
        *sizes,
        num_kv_heads=1,
        final_norm=True,
        bias=False,
        init_norm=tinyfn.init_rms_norm,
        init_feed_forward=tinyfn.init_gated_feed_forward,
    )


_case(
    "language_model",
    partial(tinyfn.language_model, **GELU),
    lambda: (
        _init(tinyfn.init_language_model, 4, 2, 3, 1, 5, tie_embeddings=True),
        torch.tensor([1, 4, 2]),
    ),
    (1,),
)
_case(
    "language_model",
    partial(tinyfn.language_model, **LLAMA),
    lambda: (_llama(4, 2, 3, 1, 5), torch.tensor([1, 4])),
    (1,),
    detail="_like_llama",
)


def _two_steps(params: Any, tokens: Tensor, mask: masks.Mask, **options: Any) -> tuple[Any, ...]:
    cache = tinyfn.init_cache(params, capacity=3, batch=tuple(tokens.shape[:-1]))
    first, cache = tinyfn.prefill(params, cache, tokens[..., :2], None, mask, **options)
    second, cache = tinyfn.decode_step(params, cache, tokens[..., 2], mask, **options)
    return first, second, cache.k[0]


_case(
    "prefill decode_step positions.kept positions.over_kept",
    partial(_two_steps, **LLAMA),
    lambda: (_llama(4, 2, 3, 1, 5), torch.tensor([1, 4, 2]), masks.causal()),
    (1,),
)
_case(
    "prefill decode_step",
    lambda params, memory, tokens: tinyfn.decode_step(
        params,
        tinyfn.prefill(
            params,
            tinyfn.init_cache(params, memory, capacity=2),
            tokens[..., :1],
            cross_mask=masks.padding(torch.tensor(2)),
            **GELU,
        )[1],
        tokens[..., 1],
        cross_mask=masks.padding(torch.tensor(2)),
        **GELU,
    )[0],
    lambda: (
        _init(tinyfn.init_transformer, 4, 2, 3, 1, 1, tgt_vocab_size=5),
        _x(3, 4),
        torch.tensor([3, 1]),
    ),
    (1, 2),
    detail="_with_memory",
)
_case(
    "generation.log_probs generation.chain generation.temperature generation.top_k "
    "generation.top_p generation.min_p generation.repetition_penalty",
    lambda params, prompt, tokens: (
        generation.log_probs(params, prompt, tokens, **GELU),
        generation.chain(
            generation.top_k(4),
            generation.top_p(0.9),
            generation.min_p(0.01),
            generation.repetition_penalty(1.1),
            generation.temperature(0.7),
        )(tinyfn.language_model(params, prompt, **GELU)[..., -1, :], prompt).softmax(-1),
    ),
    lambda: (
        _init(tinyfn.init_language_model, 4, 2, 3, 1, 5),
        torch.tensor([1, 4]),
        torch.tensor([2, 3]),
    ),
    (1, 2),
)

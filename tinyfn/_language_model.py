"""A model of the next token: logits = linear(decoder(tokens)), what comes next at every position.

GPT-style and Llama-style models are the same function with other parts passed to it.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tinyfn import _checks, masks, positions, random
from tinyfn._primitives import init_linear, linear
from tinyfn._transformer import decoder, init_decoder, linear_options, to_logits
from tinyfn.types import Key, Output, Params, Position

Mask = masks.Mask


def init_language_model(
    key: Key,
    num_features: int,
    num_heads: int,
    dim_feedforward: int,
    num_layers: int,
    vocab_size: int,
    *,
    tie_embeddings: bool = False,
    embedding_features: int | None = None,
    init_position: Callable[..., Params] | None = None,
    final_norm: bool = False,
    **layer: Any,
) -> Params:
    """Params of `language_model`: `decoder`, and `linear` unless the output is tied.

    They are those of a `transformer` that has no encoder.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis within the stack.
        num_heads: How many heads look.
        dim_feedforward: Size of the hidden layers.
        num_layers: How many layers.
        vocab_size: How many tokens there are, in and out.
        tie_embeddings: Whether the embedding is the output matrix.
        embedding_features: Width of an embedding; num_features if None.
        init_position: For learned positions: a function of a key.
        final_norm: Whether a norm follows the last layer, as pre-norm needs.
        layer: For `init_decoder_layer`: num_kv_heads, init_norm, init_feed_forward, bias, ...

    Raises:
        ValueError: A size is below 1, heads do not divide, or a tied embedding has another width.

    Example:
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> list(params), list(params["decoder"])
        (['decoder', 'linear'], ['embedding', 'layers'])
    """
    name = "init_language_model"
    _checks.sizes(name, vocab_size=vocab_size, num_features=num_features)
    if tie_embeddings and embedding_features not in (None, num_features):
        raise _checks.fail(
            ValueError,
            name,
            "embedding_features",
            f"be num_features={num_features} where the output is tied",
            embedding_features,
            "Leave embedding_features or tie_embeddings out",
        )
    decoder_key, linear_key = random.split(key)
    params = {
        "decoder": init_decoder(
            decoder_key,
            num_features,
            num_heads,
            dim_feedforward,
            num_layers,
            vocab_size=vocab_size,
            embedding_features=embedding_features,
            init_position=init_position,
            final_norm=final_norm,
            cross_attention=False,
            **layer,
        )
    }
    if not tie_embeddings:
        made = linear_options(layer)
        params["linear"] = init_linear(linear_key, num_features, vocab_size, **made)
    return params


def language_model(
    params: Params,
    tokens: Integer[Tensor, "... seq"],
    self_mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
    key: Key | None = None,
    *,
    position: Position | None = positions.add_sinusoidal,
    output: Output = linear,
    **options: Any,
) -> Float[Tensor, "... seq vocab"]:
    """Logits of what follows each token, given those before it.

    GPT's parts and Llama's are passed to it: norm, norm_first, activation, feed_forward, position,
    and attend, such as `positions.rotary(dot_product_attention)`.

    Args:
        params: From `init_language_model`. Without a `linear` the embedding is the output matrix.
        tokens: Token ids; padding goes behind them, where a causal mask hides it.
        self_mask: True where a token may look at a token.
        key: Randomness for dropout; without it nothing is dropped.
        position: Joins positions to the features; None leaves them out.
        output: Makes logits of features, with `linear` or with the tied matrix.
        options: As in `decoder`: embed, norm, activation, norm_first, dropout_p, attend, remat, ...

    Raises:
        ValueError: `self_mask` does not fit, or the params are of another function.
        TypeError: `self_mask` is not bool.

    Example:
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> language_model(params, torch.tensor([1, 2, 3])).shape
        torch.Size([3, 10])

    Reference: Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018.
    """
    if "encoder" in params:
        requirement, remedy = "have no encoder", "Call transformer, which reads a source"
        raise _checks.fail(ValueError, "language_model", "params", requirement, "'encoder'", remedy)
    stack = _checks.part("language_model", params, "decoder")
    x = decoder(stack, tokens, None, self_mask, None, key, position=position, **options)
    return to_logits(params, x, output)

"""`TinyTransformer`: the functions as one `nn.Module`, for code that trains modules.

It has no maths of its own. It holds params, hands them out as the nested dict that the functions
take, and calls `transformer`.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from tinyfn import _checks, masks, positions
from tinyfn._primitives import layer_norm
from tinyfn._transformer import init_transformer, transformer
from tinyfn.types import Activation, Attend, Embed, FeedForward, Norm, Params, Position

Mask = masks.Mask


class TinyTransformer(nn.Module):
    """An encoder-decoder that ends in a linear layer and a softmax.

    Randomness is the module's affair here: initial weights and dropout come from
    `torch.manual_seed`, and dropout stops at `eval()`.

    Args:
        num_encoder_layers: How many layers the encoder has.
        num_decoder_layers: How many layers the decoder has.
        num_features: Size of the last axis within the stacks.
        num_heads: How many heads look; divides `num_features`.
        dim_feedforward: Size of the hidden layers.
        dropout: Chance of a drop in training, in [0, 1).
        activation: Of the feed-forward.
        device: Of the params.
        dtype: Of the params.
        norm: Of the layers.
        norm_first: Pre-norm, with final norms, in place of post-norm.
        position: Joins positions to source and target; None leaves them out.
        attend: What the heads of the self-attentions do; `transformer`'s own default if None.
        cross_attend: What the heads of the cross-attentions do; likewise.
        feed_forward: Such as `gated_feed_forward`, with its `init_feed_forward`; likewise.
        embed: Makes features of token ids; likewise.
        init: For `init_transformer`: src_vocab_size, tgt_vocab_size, tie_embeddings, ...

    Raises:
        ValueError: A size is below 1, heads do not divide, `dropout` is not in [0, 1), or a
            part is a module with parameters.

    Example:
        >>> t = TinyTransformer(num_features=8, num_heads=2, dim_feedforward=16)
        >>> t(torch.ones(1, 5, 8), torch.ones(1, 3, 8)).shape
        torch.Size([1, 3, 8])

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762.
    """

    def __init__(
        self,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_features: int = 512,
        num_heads: int = 8,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = torch.relu,
        device: torch.device | str | None = None,
        *,
        dtype: torch.dtype | None = None,
        norm: Norm = layer_norm,
        norm_first: bool = False,
        position: Position | None = positions.add_sinusoidal,
        attend: Attend | None = None,
        cross_attend: Attend | None = None,
        feed_forward: FeedForward | None = None,
        embed: Embed | None = None,
        **init: Any,
    ) -> None:
        """See the class."""
        super().__init__()
        _checks.probability("TinyTransformer", "dropout", dropout)
        sizes = (num_features, num_heads, dim_feedforward, num_encoder_layers, num_decoder_layers)
        made = {"final_norm": norm_first, "dtype": dtype, "device": device, **init}
        _store(self, init_transformer(_draw_key(device), *sizes, **made))
        self.dropout = dropout
        self.options = {
            "activation": activation,
            "norm": norm,
            "norm_first": norm_first,
            "position": position,
        }
        parts = {
            "attend": attend,
            "cross_attend": cross_attend,
            "feed_forward": feed_forward,
            "embed": embed,
        }
        self.options |= {name: part for name, part in parts.items() if part is not None}
        for name, part in self.options.items():
            if isinstance(part, nn.Module) and next(part.parameters(), None) is not None:
                remedy = "Pass a function, or an nn.Module without parameters"
                kind = f"{type(part).__name__} with parameters"
                requirement = "hold no parameters, which nothing would train"
                raise _checks.fail(ValueError, "TinyTransformer", name, requirement, kind, remedy)

    @property
    def params(self) -> Params:
        """The nested dict that the functions take; its leaves are the module's parameters."""
        return _collect(self)

    def logits(
        self,
        src: Float[Tensor, "... src_seq src_features"] | Integer[Tensor, "... src_seq"],
        tgt: Float[Tensor, "... tgt_seq tgt_features"] | Integer[Tensor, "... tgt_seq"],
        src_mask: Mask | Bool[Tensor, "..."] | None = None,
        tgt_mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
        memory_mask: Mask | Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "... tgt_seq out_features"]:
        """Unnormalised outputs: `transformer` of the module's params.

        Args:
            src: Source features or token ids.
            tgt: Target features or token ids.
            src_mask: True where a source position may look at a source position.
            tgt_mask: True where a target position may look at a target position.
            memory_mask: True where a target position may look at a source position.
        """
        dropped = self.training and self.dropout > 0.0
        key = _draw_key(src.device) if dropped else None
        options = {"dropout_p": self.dropout, **self.options}
        return transformer(self.params, src, tgt, src_mask, tgt_mask, memory_mask, key, **options)

    def forward(
        self,
        src: Float[Tensor, "... src_seq src_features"] | Integer[Tensor, "... src_seq"],
        tgt: Float[Tensor, "... tgt_seq tgt_features"] | Integer[Tensor, "... tgt_seq"],
        src_mask: Mask | Bool[Tensor, "..."] | None = None,
        tgt_mask: Mask | Bool[Tensor, "..."] | None = masks.causal(),
        memory_mask: Mask | Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "... tgt_seq out_features"]:
        """Probabilities: each row of the last axis sums to 1. Arguments as in `logits`."""
        return self.logits(src, tgt, src_mask, tgt_mask, memory_mask).softmax(-1)


def _draw_key(device: torch.device | str | None) -> Tensor:
    """A key from torch's global generator, the only place where it is read."""
    info = torch.iinfo(torch.int64)
    drawn = torch.randint(info.min, info.max, (), dtype=torch.int64, device="cpu")
    return drawn.to(device or torch.get_default_device())


def _store(module: nn.Module, params: Params) -> None:
    """Params as parameters of nested modules, under the same names."""
    for name, value in params.items():
        if isinstance(value, Tensor):
            module.register_parameter(name, nn.Parameter(value))
        elif isinstance(value, list):
            module.add_module(name, nn.ModuleList(_stored(child) for child in value))
        else:
            module.add_module(name, _stored(value))


def _stored(params: Params) -> nn.Module:
    module = nn.Module()
    _store(module, params)
    return module


def _collect(module: nn.Module) -> Any:
    children = {n: _collect(child) for n, child in module._modules.items() if child is not None}
    if isinstance(module, nn.ModuleList):
        return list(children.values())
    return {**module._parameters, **children}

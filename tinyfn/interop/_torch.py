"""Modules of torch.nn as params: `from_torch`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tinyfn import _checks, tree
from tinyfn._primitives import layer_norm
from tinyfn.types import Params

Converted = tuple[Params, dict[str, Any]]


def from_torch(module: nn.Module) -> Converted:
    """Params of a torch.nn module, and the keyword arguments that make the function agree with it.

    | module | function |
    |---|---|
    | nn.MultiheadAttention | attention |
    | nn.TransformerEncoderLayer, nn.TransformerDecoderLayer | encoder_layer, decoder_layer |
    | nn.TransformerEncoder, nn.TransformerDecoder | encoder, decoder |
    | nn.Transformer | transformer |

    The params are copies. torch's modules look everywhere unless told otherwise, so the keyword
    arguments hold `self_mask=None` or `tgt_mask=None` where the function's own default is causal;
    replace them to pass a mask. Sequences are (batch, seq, features) here, whatever `batch_first`,
    which is kept no more than `enable_nested_tensor` is.

    Args:
        module: One of the above; a mask of torch's is the inverse (`~`) of one here.

    Raises:
        TypeError: The module is of another class, or has parts of another class.
        ValueError: The module has an option that the function does not reproduce.

    Example:
        >>> import tinyfn
        >>> module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> params, options = from_torch(module)
        >>> x = torch.ones(1, 5, 8)
        >>> torch.allclose(tinyfn.encoder_layer(params, x, **options), module(x), atol=1e-6)
        True
    """
    params, options = as_views(module)
    return tree.map(lambda leaf: leaf.detach().clone(), params), options


def as_views(module: nn.Module) -> Converted:
    """As `from_torch`, but the params are views of the module's weights, all of them.

    Example:
        >>> module = nn.MultiheadAttention(4, 2)
        >>> as_views(module)[0]["q_proj"]["weight"].data_ptr() == module.in_proj_weight.data_ptr()
        True
    """
    converters: dict[type[nn.Module], Callable[[Any], Converted]] = {
        nn.MultiheadAttention: _attention,
        nn.TransformerEncoderLayer: partial(_layer, decoder=False),
        nn.TransformerDecoderLayer: partial(_layer, decoder=True),
        nn.TransformerEncoder: partial(_stack, decoder=False),
        nn.TransformerDecoder: partial(_stack, decoder=True),
        nn.Transformer: _transformer,
    }
    for kind, convert in converters.items():
        if isinstance(module, kind):
            _check_forward(module, kind)
            params, options = convert(module)
            _check_all_read(module, params)
            return params, options
    raise _checks.fail(
        TypeError,
        "interop.from_torch",
        "module",
        f"be one of {', '.join(f'nn.{kind.__name__}' for kind in converters)}",
        type(module).__name__,
        "Convert its parts",
    )


def _check_all_read(module: nn.Module, params: Params) -> None:
    read = {leaf.untyped_storage().data_ptr() for leaf in tree.leaves(params)}
    for name, weight in module.named_parameters():
        if weight.untyped_storage().data_ptr() not in read:
            raise _refuse("have no weight without a place", repr(name))


def _check_forward(module: nn.Module, kind: type[nn.Module], what: str = "") -> None:
    """The module computes what its class does, however it may have been derived."""
    if type(module).forward is not kind.forward:
        own = ", a subclass with its own" if isinstance(module, kind) else ""
        actual = f"{type(module).__name__}{own}"
        raise _refuse(f"have {what}the forward of nn.{kind.__name__}", actual)


def _refuse(requirement: str, actual: object, remedy: str = "Convert its parts") -> Exception:
    return _checks.fail(ValueError, "interop.from_torch", "module", requirement, actual, remedy)


def _attention(module: nn.MultiheadAttention) -> Converted:
    _check_forward(module, nn.MultiheadAttention, "in its attention ")
    _check_forward(module.out_proj, nn.Linear, "in its out_proj ")
    for option, on in (
        ("add_bias_kv", module.bias_k is not None),
        ("add_zero_attn", module.add_zero_attn),
    ):
        if on:
            raise _refuse(f"have {option}=False", True, "No function here reproduces it")
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    heads = {"heads": module.num_heads}
    params: Params = {
        name: {"weight": rearrange(weight, "(heads head_dim) f -> heads head_dim f", **heads)}
        for name, weight in zip(("q_proj", "k_proj", "v_proj"), weights, strict=True)
    }
    out = rearrange(module.out_proj.weight, "f (heads head_dim) -> f heads head_dim", **heads)
    params["out_proj"] = {"weight": out}
    if module.in_proj_bias is not None:
        for name, bias in zip(params, module.in_proj_bias.chunk(3), strict=False):
            params[name]["bias"] = rearrange(bias, "(heads head_dim) -> heads head_dim", **heads)
        params["out_proj"]["bias"] = module.out_proj.bias
    return params, {"dropout_p": module.dropout}


def _leaves(module: nn.Module) -> Params:
    return {name: leaf for name, leaf in module.named_parameters() if isinstance(leaf, Tensor)}


def _linear(module: nn.Module) -> Params:
    _check_forward(module, nn.Linear, "in its linear maps ")
    return {name: leaf for name, leaf in _leaves(module).items() if name in ("weight", "bias")}


def _norm(module: nn.Module) -> Params:
    if not isinstance(module, nn.LayerNorm) or module.weight is None:
        kind = f"{type(module).__name__} with weight={getattr(module, 'weight', None)}"
        raise _refuse("have norms that are nn.LayerNorm with a weight", kind)
    return _leaves(module)


def _layer(module: Any, *, decoder: bool) -> Converted:
    names = ["self_attention"]
    attentions = {"self_attention": module.self_attn}
    if decoder:
        names.append("cross_attention")
        attentions["cross_attention"] = module.multihead_attn
    names.append("feed_forward")
    params: Params = {name: _attention(part)[0] for name, part in attentions.items()}
    params["feed_forward"] = {
        "up_proj": _linear(module.linear1),
        "down_proj": _linear(module.linear2),
    }
    norms = [module.norm1, module.norm2] + ([module.norm3] if decoder else [])
    params |= {f"{name}_norm": _norm(norm) for name, norm in zip(names, norms, strict=True)}
    drops = {part.dropout for part in attentions.values()}
    drops |= {part.p for name, part in module.named_children() if name.startswith("dropout")}
    options = {
        "norm": partial(layer_norm, eps=_one("eps", {norm.eps for norm in norms})),
        "activation": _activation(module.activation),
        "norm_first": module.norm_first,
        "dropout_p": _one("dropout", drops),
    }
    return params, {"self_mask": None, **options} if decoder else options


def _activation(activation: Any) -> Callable[[Tensor], Tensor]:
    if activation is F.relu or isinstance(activation, nn.ReLU):
        return torch.relu
    if isinstance(activation, nn.Module) and next(activation.parameters(), None) is not None:
        kind = f"{type(activation).__name__} with parameters"
        raise _refuse("have an activation without parameters", kind)
    return activation


def _one(name: str, values: set[Any]) -> Any:
    if len(values) != 1:
        raise _refuse(f"have one {name}", sorted(values, key=str), "Convert its layers one by one")
    return values.pop()


def _stack(module: Any, *, decoder: bool) -> Converted:
    kind = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    others = [type(layer).__name__ for layer in module.layers if not isinstance(layer, kind)]
    if others or not len(module.layers):
        raise _refuse(f"have layers that are nn.{kind.__name__}", others or "none")
    for layer in module.layers:
        _check_forward(layer, kind, "in its layers ")
    converted = [_layer(layer, decoder=decoder) for layer in module.layers]
    params: Params = {"layers": [layer for layer, _ in converted]}
    options = converted[0][1]
    epsilons = {other["norm"].keywords["eps"] for _, other in converted}
    for _, other in converted[1:]:
        for name in ("norm_first", "dropout_p"):
            _one(name, {options[name], other[name]})
        _same_activation(options["activation"], other["activation"])
    if module.norm is not None:
        params["final_norm"] = _norm(module.norm)
        epsilons.add(module.norm.eps)
    _one("eps", epsilons)
    return params, options


def _same_activation(one: Any, other: Any) -> None:
    alike = one is other or (isinstance(one, nn.Module) and repr(one) == repr(other))
    if not alike:
        raise _refuse("have one activation", f"{one} and {other}", "Convert its layers one by one")


def _transformer(module: nn.Transformer) -> Converted:
    for name, part, kind in (
        ("encoder", module.encoder, nn.TransformerEncoder),
        ("decoder", module.decoder, nn.TransformerDecoder),
    ):
        if not isinstance(part, kind):
            raise _refuse(f"have an {name} that is nn.{kind.__name__}", type(part).__name__)
        _check_forward(part, kind, f"in its {name} ")
    encoder, options = _stack(module.encoder, decoder=False)
    decoder, others = _stack(module.decoder, decoder=True)
    for name in ("norm_first", "dropout_p"):
        _one(name, {options[name], others[name]})
    _one("eps", {options["norm"].keywords["eps"], others["norm"].keywords["eps"]})
    _same_activation(options["activation"], others["activation"])
    params = {"encoder": encoder, "decoder": decoder}
    return params, {"tgt_mask": None, "position": None, **options}

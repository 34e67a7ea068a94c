"""Params as modules of torch.nn: `to_torch`, the inverse of `from_torch`.

There is one table of names: `from_torch` reads a module as params that are views of its weights,
and `to_torch` writes into those of a module that is empty.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinyfn import _checks, tree
from tinyfn._attend import dot_product_attention
from tinyfn._primitives import feed_forward, layer_norm
from tinyfn.interop._torch import as_views
from tinyfn.types import Norm, Params

NAME = "interop.to_torch"


def to_torch(
    params: Params,
    *,
    batch_first: bool,
    enable_nested_tensor: bool = False,
    **options: Any,
) -> nn.Module:
    """The torch.nn module of params and of the keyword arguments that a function takes with them.

    The inverse of `from_torch`: `to_torch(params, batch_first=..., **options)` of what it returned
    has the weights of its module, bit for bit. The names in the params say of which class it is;
    the order of a sequence's axes they do not say.

    | params of | module |
    |---|---|
    | attention | nn.MultiheadAttention |
    | encoder_layer, decoder_layer | nn.TransformerEncoderLayer, nn.TransformerDecoderLayer |
    | encoder, decoder | nn.TransformerEncoder, nn.TransformerDecoder |
    | transformer, without embeddings or a linear | nn.Transformer |

    The weights are copies that want gradients, of the dtype and on the device of the params; the
    module is in training, as a new one is. A torch module is given its masks when it is called.

    Args:
        params: Of one of the above.
        batch_first: Whether the module's sequences are (batch, seq, features), as here, or
            (seq, batch, features), as torch's own default is.
        enable_nested_tensor: Of nn.TransformerEncoder, which then reads zeros for padding; torch's
            own default is True, and warns where layers cannot, such as those with `norm_first`.
        options: dropout_p, norm, activation, norm_first; what else a function takes, where it is
            as `from_torch` has it (`position=None`).

    Raises:
        ValueError: A weight has no place in the module, a place has no weight, or the module does
            not reproduce an option.
        TypeError: The weights are of more than one dtype or device.

    Example:
        >>> from tinyfn import interop
        >>> module = nn.TransformerEncoderLayer(8, 2, 16)
        >>> params, options = interop.from_torch(module)
        >>> again = to_torch(params, batch_first=False, **options)
        >>> torch.equal(again.linear1.weight, module.linear1.weight)
        True
    """
    leaf = _first_leaf(params)
    made = {"batch_first": batch_first, "enable_nested_tensor": enable_nested_tensor, **options}
    if "q_proj" in params:
        module = _attention(params, "", **made)
    elif "layers" in params:
        module = _stack(params, "", **made)
    elif "self_attention" in params:
        module = _layer(params, "", **made)
    else:
        module = _transformer(params, **made)
    module = module.to(leaf.dtype).to_empty(device=leaf.device)
    _fill(module, params)
    return module


def _refuse(argument: str, requirement: str, actual: object, remedy: str) -> Exception:
    return _checks.fail(ValueError, NAME, argument, requirement, actual, remedy)


def _first_leaf(params: Params) -> Tensor:
    leaves = tree.flatten(params) if isinstance(params, dict) else {}
    kinds = {(leaf.dtype, leaf.device) for leaf in leaves.values()}
    if len(kinds) != 1:
        remedy, kind = "Convert them with tree.cast", [f"{d} on {where}" for d, where in kinds]
        requirement = "hold weights of one dtype on one device"
        raise _checks.fail(TypeError, NAME, "params", requirement, kind or "no weight", remedy)
    return next(iter(leaves.values()))


def _part(params: Params, path: str, *names: str) -> Any:
    """A part of the params, or an error that names the whole way to it."""
    for name in names:
        path = _join(path, name)
        if not isinstance(params, dict) or name not in params:
            remedy = "Make params with an init function, or with interop.from_torch"
            raise _refuse("params", f"have {path!r}", "none", remedy)
        params = params[name]
    return params


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_NEUTRAL = {
    "attend": dot_product_attention,
    "cross_attend": dot_product_attention,
    "feed_forward": feed_forward,
    "remat": False,
    "self_mask": None,
    "tgt_mask": None,
    "position": None,
}


def _check_neutral(options: dict[str, Any]) -> None:
    """No option is left that a module of torch has no equal to."""
    for name, option in options.items():
        if name not in _NEUTRAL:
            actual = getattr(option, "__name__", option)
            raise _refuse(name, "be an option of a torch.nn module", actual, "Leave it out")
        neutral = _NEUTRAL[name]
        if option is not neutral:
            requirement = f"be {getattr(neutral, '__name__', neutral)}"
            remedy = "No module of torch.nn reproduces it"
            if name.endswith("mask"):
                remedy = "Give it to the module when you call it"
            raise _refuse(name, requirement, getattr(option, "__name__", option), remedy)


def _attention(
    params: Params,
    path: str,
    *,
    batch_first: bool,
    enable_nested_tensor: bool,
    dropout_p: float = 0.0,
    **others: Any,
) -> nn.MultiheadAttention:
    _check_neutral(others)
    heads, features = _check_heads(params, path)
    widths = [_part(params, path, name, "weight").shape[-1] for name in ("k_proj", "v_proj")]
    return nn.MultiheadAttention(
        features,
        heads,
        dropout_p,
        bias="bias" in params["q_proj"],
        kdim=widths[0],
        vdim=widths[1],
        batch_first=batch_first,
        device="meta",
    )


def _check_heads(params: Params, path: str) -> tuple[int, int]:
    """How many heads there are and features; torch has as many keys, of features / heads."""
    heads, head_dim, features = _part(params, path, "q_proj", "weight").shape
    if heads * head_dim != features:
        remedy = "No module of torch.nn has heads of another width"
        requirement = f"have {_join(path, 'head_dim')} = features / heads = {features} / {heads}"
        raise _refuse("params", requirement, head_dim, remedy)
    return heads, features


def _layer(
    params: Params,
    path: str,
    *,
    batch_first: bool,
    enable_nested_tensor: bool,
    norm: Norm = layer_norm,
    activation: Any = torch.relu,
    norm_first: bool = False,
    dropout_p: float = 0.0,
    **others: Any,
) -> nn.Module:
    _check_neutral(others)
    own = _part(params, path, "self_attention")
    heads, features = _check_heads(own, _join(path, "self_attention"))
    hidden = _part(params, path, "feed_forward", "up_proj", "weight").shape[0]
    kind = nn.TransformerEncoderLayer
    if "cross_attention" in params:
        kind = nn.TransformerDecoderLayer
    return kind(
        features,
        heads,
        hidden,
        dropout_p,
        F.relu if activation is torch.relu else copy.deepcopy(activation),
        _eps(norm),
        batch_first,
        norm_first,
        "bias" in params["feed_forward"]["up_proj"],
        device="meta",
    )


def _eps(norm: Norm) -> float:
    options = norm.keywords if isinstance(norm, partial) else {}
    plain = norm.func if isinstance(norm, partial) and not norm.args else norm
    if plain is not layer_norm or not options.keys() <= {"eps"}:
        remedy = "No layer of torch.nn has another norm"
        actual = getattr(norm, "__name__", norm)
        raise _refuse("norm", "be layer_norm, or a partial of it with eps", actual, remedy)
    return options.get("eps", 1e-5)


def _stack(params: Params, path: str, **options: Any) -> Any:
    layers = _part(params, path, "layers")
    if not layers:
        where = _join(path, "layers")
        raise _refuse("params", f"have a layer in {where!r}", "none", "Make it with num_layers=1")
    made: list[Any] = [
        _layer(x, _join(path, f"layers.{i}"), **options) for i, x in enumerate(layers)
    ]
    norm = None
    if "final_norm" in params:
        features = _part(params, path, "final_norm", "weight").shape[-1]
        eps = _eps(options.get("norm", layer_norm))
        norm = nn.LayerNorm(features, eps, bias="bias" in params["final_norm"], device="meta")
    if isinstance(made[0], nn.TransformerDecoderLayer):
        stack: Any = nn.TransformerDecoder(made[0], 0, norm)
    else:
        nested = options["enable_nested_tensor"]
        stack = nn.TransformerEncoder(made[0], 0, norm, enable_nested_tensor=nested)
    stack.layers, stack.num_layers = nn.ModuleList(made), len(made)
    return stack


def _transformer(params: Params, **options: Any) -> nn.Transformer:
    if "position" not in options:
        remedy = "Pass position=None, and add positions before the module"
        raise _refuse("position", "be None", "the function's own default, sinusoidal ones", remedy)
    encoder, decoder = (
        _stack(_part(params, "", name), name, **options) for name in ("encoder", "decoder")
    )
    for name, stack, kind in (
        ("encoder", encoder, nn.TransformerEncoder),
        ("decoder", decoder, nn.TransformerDecoder),
    ):
        if not isinstance(stack, kind):
            crossed = "without" if name == "encoder" else "with"
            requirement = f"have an {name} {crossed} cross-attention"
            raise _refuse("params", requirement, type(stack).__name__, "Swap the stacks")
    own = encoder.layers[0].self_attn
    return nn.Transformer(
        own.embed_dim,
        own.num_heads,
        custom_encoder=encoder,
        custom_decoder=decoder,
        batch_first=options["batch_first"],
    )


def _fill(module: nn.Module, params: Params) -> None:
    """The weights, each into the view of a module's weight that `from_torch` reads it from."""
    places, weights = tree.flatten(as_views(module)[0]), tree.flatten(params)
    remedy = "No module of torch.nn has these params"
    for name in weights.keys() - places.keys():
        kind = type(module).__name__
        raise _refuse("params", f"have no weight without a place in nn.{kind}", repr(name), remedy)
    for name, place in places.items():
        if name not in weights:
            requirement = f"have a weight for every place in nn.{type(module).__name__}"
            raise _refuse("params", requirement, f"none for {name!r}", remedy)
        if weights[name].shape != place.shape:
            actual = _checks.shape(weights[name])
            raise _refuse("params", f"have {name!r} of shape {tuple(place.shape)}", actual, remedy)
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(weights[name])

"""The parts of a layer: linear, norms, embedding, feed-forward.

    linear        x Wᵀ + b
    layer_norm    (x - mean) / √(var + eps) · weight + bias
    rms_norm      x / √(mean(x²) + eps) · weight
    feed_forward  down_proj(activation(up_proj(x)))

All act on the last axis; any axes before it are carried along.
"""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from tinyfn import _checks, _kernels, _levels, initializers, random
from tinyfn._dropout import Drawn, dropout
from tinyfn.types import Activation, Initializer, Key, Params


def init_linear(
    key: Key,
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    weight_init: Initializer = initializers.xavier_uniform,
    bias_init: Initializer = initializers.zeros,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Params:
    """Params of `linear`: `weight` (out, in) and `bias` (out,).

    Args:
        key: Randomness of the weights.
        in_features: Size of the last axis of what goes in.
        out_features: Size of the last axis of what comes out.
        bias: Whether there is a bias; without one the key is absent.
        weight_init: How the weight begins.
        bias_init: How the bias begins.
        dtype: Of the params; torch's default dtype if None.
        device: Of the params; the key's if None.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> {name: tuple(leaf.shape) for name, leaf in init_linear(random.key(0), 3, 2).items()}
        {'weight': (2, 3), 'bias': (2,)}
    """
    _checks.sizes("init_linear", in_features=in_features, out_features=out_features)
    weight_key, bias_key = random.split(key)
    shape = (out_features, in_features)
    fans = {"in_axes": (1,), "out_axes": (0,)}
    params = {"weight": weight_init(weight_key, shape, **fans, dtype=dtype, device=device)}
    if bias:
        params["bias"] = bias_init(bias_key, shape[:1], dtype=dtype, device=device)
    return params


def linear(
    params: Params, x: Float[Tensor, "... in_features"]
) -> Float[Tensor, "... out_features"]:
    """An affine map of the last axis: x Wᵀ + b.

    Args:
        params: From `init_linear`: `weight` (out, in), and `bias` (out,) if there is one.
        x: Any leading axes.

    Raises:
        ValueError: The last axis is not as long as the weight's.
        TypeError: `x` is not a tensor of the weight's dtype.

    Example:
        >>> linear({"weight": torch.tensor([[1.0, 2.0]])}, torch.tensor([3.0, 4.0]))
        tensor([11.])
    """
    weight = _checks.part("linear", params, "weight")
    _checks.operand("linear", "x", x, weight)
    return affine(x, weight, params.get("bias"))


def affine(
    x: Float[Tensor, "... in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, "out_features"] | None = None,
) -> Float[Tensor, "... out_features"]:
    """The one product with params, x Wᵀ + b, of what has been checked.

    Args:
        x: Any leading axes.
        weight: The matrix.
        bias: What is added, if anything.

    Example:
        >>> affine(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 2.0]]))
        tensor([11.])
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    if _READS_BY_BLOCKS and _pays_by_blocks(*given):
        return _affine_by_blocks(*given)
    return _levels.push(F.linear, _AFFINE_TERMS, *given)


_is_tracing = torch.jit.is_tracing  # pyright: ignore[reportPrivateImportUsage]  documented
# Measured: half the time by blocks on a CPU with AVX512, none less on one with AVX2 alone.
_READS_BY_BLOCKS = (
    torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
)
_MOST_ROWS, _LEAST_WEIGHTS, _LONGEST_ROW, _BLOCK, _LEAST_BLOCKS = 2, 2**18, 2048, 64, 8


def _pays_by_blocks(x: Tensor, *params: Tensor) -> bool:
    """Whether little else is done than to read the weights of a CPU, as for a token more."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or _is_tracing():
        return False  # sizes may be open, or to ask for them a warning
    if not 0 < x.numel() <= _MOST_ROWS * x.shape[-1]:
        return False
    weight, given = params[0], (x, *params)
    return (
        _levels.constant(x)
        and _levels.free(*given)
        and all(y.device.type == "cpu" for y in given)
        and all(y.dtype == torch.float32 and y.layout == torch.strided for y in given)
        and weight.numel() >= _LEAST_WEIGHTS
        and weight.shape[1] <= _LONGEST_ROW
        and weight.shape[0] % _BLOCK == 0
        and weight.shape[0] >= _LEAST_BLOCKS * _BLOCK
        and weight.is_contiguous()
        and all(bias.shape == weight.shape[:1] for bias in params[1:])
    )


def _affine_by_blocks(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    """The same as many small products, for which MKL reads memory up to twice as fast."""
    (out, width), rows = weight.shape, x.numel() // x.shape[-1]
    blocks = out // _BLOCK
    columns = x.reshape(rows, width).mT.expand(blocks, width, rows)
    split = weight.view(blocks, _BLOCK, width)
    if bias:
        y = torch.baddbmm(bias[0].reshape(blocks, _BLOCK, 1), split, columns)
    else:
        y = torch.bmm(split, columns)
    y = y.view(out, rows).mT.contiguous()
    return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], out))  # as F.linear: no view to autograd


_AFFINE_TERMS = (
    lambda tangent, x, weight, *bias: F.linear(tangent, weight),
    lambda tangent, x, weight, *bias: F.linear(x, tangent),
    lambda tangent, x, weight, bias: tangent.clone(),
)


def init_layer_norm(
    key: Key | None,
    num_features: int,
    *,
    bias: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Params:
    """Params of `layer_norm`: `weight` of ones and `bias` of zeros, both (features,).

    Args:
        key: Not used, since nothing is random; may be None.
        num_features: Size of the axis that is normalised.
        bias: Whether there is a bias.
        dtype: Of the params.
        device: Of the params.

    Raises:
        ValueError: `num_features` is below 1.

    Example:
        >>> init_layer_norm(None, 2)
        {'weight': tensor([1., 1.]), 'bias': tensor([0., 0.])}
    """
    _checks.sizes("init_layer_norm", num_features=num_features)
    params = {"weight": initializers.ones(key, (num_features,), dtype=dtype, device=device)}
    if bias:
        params["bias"] = initializers.zeros(key, (num_features,), dtype=dtype, device=device)
    return params


def layer_norm(
    params: Params, x: Float[Tensor, "... features"], *, eps: float = 1e-5
) -> Float[Tensor, "... features"]:
    """Each position brought to mean 0 and variance 1, then scaled and shifted.

    Half precision is computed in float32, as `torch.nn.functional.layer_norm` does.

    Args:
        params: From `init_layer_norm`: `weight`, and `bias` if there is one.
        x: Any leading axes.
        eps: Added to the variance.

    Raises:
        ValueError: The last axis is not as long as the weight.

    Example:
        >>> layer_norm(init_layer_norm(None, 2), torch.tensor([1.0, 3.0]), eps=0.0)
        tensor([-1.,  1.])

    Reference: Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv 1607.06450.
    """
    weight = _checks.part("layer_norm", params, "weight")
    bias, shape = params.get("bias"), weight.shape
    tensors = (weight,) if bias is None else (weight, bias)
    if (
        isinstance(x, Tensor)
        and x.dtype == weight.dtype
        and x.shape[-1:] == shape
        and shape[0] > 0
        and x.is_floating_point()
        and (bias is None or (bias.dtype == x.dtype and bias.shape == shape))
    ):
        return _kernels.layer_norm(_layer_norm, x, *tensors, eps=eps)
    _checks.features("layer_norm", "x", x, shape[-1])
    for leaf in tensors:
        _checks.broadcasts("layer_norm", "its bias", leaf, x.shape[-1:], "(features,)")
    return _layer_norm(eps, x, *tensors)


def _layer_norm(eps: float, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * _inverse_root_mean_square(centred, eps)
    return _scale_and_shift(normed.to(x.dtype), weight, bias)


def init_rms_norm(
    key: Key | None,
    num_features: int,
    *,
    bias: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Params:
    """Params of `rms_norm`: `weight` (features,) of ones, and no bias unless asked for.

    Args:
        key: Not used, since nothing is random; may be None.
        num_features: Size of the axis that is normalised.
        bias: Whether there is a bias.
        dtype: Of the params.
        device: Of the params.

    Raises:
        ValueError: `num_features` is below 1.

    Example:
        >>> init_rms_norm(None, 2)
        {'weight': tensor([1., 1.])}
    """
    _checks.sizes("init_rms_norm", num_features=num_features)
    return init_layer_norm(key, num_features, bias=bias, dtype=dtype, device=device)


def rms_norm(
    params: Params, x: Float[Tensor, "... features"], *, eps: float = 1e-6
) -> Float[Tensor, "... features"]:
    """Each position divided by its root mean square, then scaled.

    Args:
        params: From `init_rms_norm`: `weight`, and `bias` if there is one.
        x: Any leading axes.
        eps: Added to the mean square.

    Raises:
        ValueError: The last axis is not as long as the weight.

    Example:
        >>> rms_norm(init_rms_norm(None, 2), torch.tensor([3.0, -3.0]), eps=0.0)
        tensor([ 1., -1.])

    Reference: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv 1910.07467.
    """
    weight = _checks.part("rms_norm", params, "weight")
    _checks.features("rms_norm", "x", x, weight.shape[-1])
    wide = _wide(x)
    normed = wide * _inverse_root_mean_square(wide, eps)
    return _scale_and_shift(normed.to(x.dtype), weight, params.get("bias"))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _inverse_root_mean_square(x: Tensor, eps: float) -> Tensor:
    root, term = partial(_inverse_root, eps), partial(_inverse_root_term, eps)
    return _levels.push(root, [term], (x * x).mean(-1, keepdim=True))


def _inverse_root(eps: float, x: Tensor) -> Tensor:
    return torch.rsqrt(x + eps)


def _inverse_root_term(eps: float, tangent: Tensor, x: Tensor) -> Tensor:
    return -0.5 * tangent * _inverse_root(eps, x) / (x + eps)


def _scale_and_shift(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return _levels.push(torch.mul, _SCALE_TERMS, x, weight)
    return _levels.push(_scaled_and_shifted, _SCALE_TERMS, x, weight, bias)


def _scaled_and_shifted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias, x, weight)


_SCALE_TERMS = (
    lambda tangent, x, weight, *bias: tangent * weight,
    lambda tangent, x, weight, *bias: x * tangent,
    lambda tangent, x, weight, bias: tangent.clone(),
)


def init_embedding(
    key: Key,
    vocab_size: int,
    num_features: int,
    *,
    weight_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Params:
    """Params of `embedding`: `weight` (vocab, features).

    Args:
        key: Randomness of the weights.
        vocab_size: How many tokens there are.
        num_features: How many numbers stand for each.
        weight_init: How the weight begins; by default normal with standard deviation
            num_features^-½, so that `scaled_embedding` gives numbers of size 1, and the same
            matrix serves as output layer.
        dtype: Of the params.
        device: Of the params.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> init_embedding(random.key(0), vocab_size=5, num_features=3)["weight"].shape
        torch.Size([5, 3])
    """
    _checks.sizes("init_embedding", vocab_size=vocab_size, num_features=num_features)
    shape, fans = (vocab_size, num_features), {"in_axes": (0,), "out_axes": (1,)}
    if weight_init is None:
        std = num_features**-0.5
        weight = initializers.normal(key, shape, std=std, dtype=dtype, device=device)
    else:
        weight = weight_init(key, shape, **fans, dtype=dtype, device=device)
    return {"weight": weight}


def embedding(params: Params, tokens: Integer[Tensor, "..."]) -> Float[Tensor, "... features"]:
    """The row of the weight for each token.

    A token outside the vocabulary cannot be seen from shapes: torch counts negative ones from the
    end, and others raise its IndexError on a CPU and are undefined on a GPU.

    Args:
        params: From `init_embedding`: `weight`.
        tokens: Integers in [0, vocab_size).

    Raises:
        TypeError: `tokens` are not integers.

    Example:
        >>> embedding({"weight": torch.tensor([[1.0], [2.0]])}, torch.tensor([1, 0, 1]))
        tensor([[2.],
                [1.],
                [2.]])
    """
    weight = _checks.part("embedding", params, "weight")
    _checks.integers("embedding", "tokens", tokens)
    # jacfwd and jacrev of F.embedding can disagree; indexing reads uint8 as a mask, hence long.
    return rows(weight, tokens.long())


def rows(
    weight: Float[Tensor, "num features"], at: Integer[Tensor, "..."]
) -> Float[Tensor, "... features"]:
    """`weight[at]`, the one place where params are indexed.

    Compiled, it is a gather: inductor of torch 2.13 scatters the tangent of an index's gradient
    into the gradient's own buffer, so that a compiled Hessian-vector product is silently wrong.

    Example:
        >>> rows(torch.tensor([[1.0], [2.0]]), torch.tensor(1))
        tensor([2.])
    """
    if not torch.compiler.is_compiling() or _levels.exporting():
        return weight[at]
    at = torch.where(at < 0, at + weight.shape[0], at)
    index = at.reshape(-1, 1).expand(-1, weight.shape[-1])
    return weight.gather(0, index).reshape(*at.shape, weight.shape[-1])


def scaled_embedding(
    params: Params, tokens: Integer[Tensor, "..."]
) -> Float[Tensor, "... features"]:
    """The row of the weight for each token times √features, as the paper has it.

    Args:
        params: From `init_embedding`: `weight`.
        tokens: Integers in [0, vocab_size).

    Example:
        >>> scaled_embedding({"weight": torch.ones(2, 4)}, torch.tensor([1]))
        tensor([[2., 2., 2., 2.]])

    Reference: Vaswani et al., 2017, section 3.4, arXiv 1706.03762.
    """
    return embedding(params, tokens) * math.sqrt(params["weight"].shape[-1])


def init_feed_forward(key: Key, num_features: int, dim_feedforward: int, **options: Any) -> Params:
    """Params of `feed_forward`: `up_proj` (hidden, features) and `down_proj` (features, hidden).

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis, in and out.
        dim_feedforward: Size of the hidden layer.
        options: For `init_linear`: bias, weight_init, bias_init, dtype, device.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> list(init_feed_forward(random.key(0), num_features=4, dim_feedforward=8))
        ['up_proj', 'down_proj']
    """
    _checks.sizes("init_feed_forward", num_features=num_features, dim_feedforward=dim_feedforward)
    up, down = random.split(key)
    return {
        "up_proj": init_linear(up, num_features, dim_feedforward, **options),
        "down_proj": init_linear(down, dim_feedforward, num_features, **options),
    }


def feed_forward(
    params: Params,
    x: Float[Tensor, "... features"],
    key: Key | Drawn | None = None,
    *,
    activation: Activation = torch.relu,
    dropout_p: float = 0.0,
) -> Float[Tensor, "... features"]:
    """Two linear maps with an activation between, at every position alike.

    Args:
        params: From `init_feed_forward`: `up_proj`, `down_proj`.
        x: Any leading axes.
        key: Randomness for dropout; without it nothing is dropped.
        activation: Any elementwise function.
        dropout_p: Chance that a hidden number is dropped, in [0, 1).

    Raises:
        ValueError: The last axis is not as long as the weight's, or the params have a gate.

    Example:
        >>> params = init_feed_forward(random.key(0), num_features=4, dim_feedforward=8)
        >>> feed_forward(params, torch.ones(3, 4)).shape
        torch.Size([3, 4])
    """
    if "gate_proj" in params:
        remedy = "Pass feed_forward=gated_feed_forward"
        raise _checks.fail(
            ValueError, "feed_forward", "params", "have no gate", "'gate_proj'", remedy
        )
    hidden = activation(linear(_checks.part("feed_forward", params, "up_proj"), x))
    hidden = dropout(hidden, key, dropout_p=dropout_p)
    return linear(_checks.part("feed_forward", params, "down_proj"), hidden)


def init_gated_feed_forward(
    key: Key, num_features: int, dim_feedforward: int, **options: Any
) -> Params:
    """Params of `gated_feed_forward`: `gate_proj`, `up_proj` and `down_proj`.

    Args:
        key: Randomness of the weights.
        num_features: Size of the last axis, in and out.
        dim_feedforward: Size of the hidden layer.
        options: For `init_linear`: bias, weight_init, bias_init, dtype, device.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> list(init_gated_feed_forward(random.key(0), num_features=4, dim_feedforward=8))
        ['gate_proj', 'up_proj', 'down_proj']
    """
    sizes = {"num_features": num_features, "dim_feedforward": dim_feedforward}
    _checks.sizes("init_gated_feed_forward", **sizes)
    gate, rest = random.split(key)
    params = init_feed_forward(rest, num_features, dim_feedforward, **options)
    return {"gate_proj": init_linear(gate, num_features, dim_feedforward, **options), **params}


def gated_feed_forward(
    params: Params,
    x: Float[Tensor, "... features"],
    key: Key | Drawn | None = None,
    *,
    activation: Activation = F.silu,
    dropout_p: float = 0.0,
) -> Float[Tensor, "... features"]:
    """A feed-forward whose hidden layer is multiplied by a gate: activation(gate) · up.

    SwiGLU with the default activation, GEGLU with gelu, GLU with sigmoid.

    Args:
        params: From `init_gated_feed_forward`: `gate_proj`, `up_proj`, `down_proj`.
        x: Any leading axes.
        key: Randomness for dropout; without it nothing is dropped.
        activation: Any elementwise function, of the gate.
        dropout_p: Chance that a hidden number is dropped, in [0, 1).

    Raises:
        ValueError: The last axis is not as long as the weight's.

    Example:
        >>> params = init_gated_feed_forward(random.key(0), num_features=4, dim_feedforward=8)
        >>> gated_feed_forward(params, torch.ones(3, 4)).shape
        torch.Size([3, 4])

    Reference: Shazeer, "GLU Variants Improve Transformer", 2020, arXiv 2002.05202.
    """
    gate = activation(linear(_checks.part("gated_feed_forward", params, "gate_proj"), x))
    hidden = gate * linear(_checks.part("gated_feed_forward", params, "up_proj"), x)
    hidden = dropout(hidden, key, dropout_p=dropout_p)
    return linear(_checks.part("gated_feed_forward", params, "down_proj"), hidden)

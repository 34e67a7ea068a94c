"""How weights begin: functions of a key and a shape, with the fan axes named.

Every one has the contract `initializer(key, shape, *, in_axes, out_axes, dtype, device)`, so any
may be passed where another stands; options of one are set with `functools.partial`. `in_axes` are
the axes a layer sums over and `out_axes` those it produces: with weights such as
(heads, head_dim, features) no rule can guess them from the shape.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tinyfn import _checks, random
from tinyfn.types import Key

Shape = Sequence[int]
Axes = Sequence[int]
Device = torch.device | str | None


def zeros(
    key: Key | None,
    shape: Shape,
    *,
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Nothing but 0; the key is not used and may be None.

    Example:
        >>> zeros(None, (2,))
        tensor([0., 0.])
    """
    return torch.zeros(shape, dtype=dtype, device=_device(key, device))


def ones(
    key: Key | None,
    shape: Shape,
    *,
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Nothing but 1; the key is not used and may be None.

    Example:
        >>> ones(None, (2,))
        tensor([1., 1.])
    """
    return torch.ones(shape, dtype=dtype, device=_device(key, device))


def _device(key: Key | None, device: Device) -> Device:
    return key.device if device is None and key is not None else device


def normal(
    key: Key,
    shape: Shape,
    *,
    std: float = 0.02,
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Normal numbers of mean 0 and standard deviation `std`.

    Example:
        >>> normal(random.key(0), (3, 4)).shape
        torch.Size([3, 4])
    """
    return std * random.normal(key, shape, dtype=dtype, device=device)


def truncated_normal(
    key: Key,
    shape: Shape,
    *,
    std: float = 0.02,
    bound: float = 2.0,
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Normal numbers of mean 0, none further than `bound` times `std` away.

    `std` is that of the normal before it is cut, as in `nn.init.trunc_normal_`.

    Raises:
        ValueError: `bound` is not positive.

    Example:
        >>> bool((truncated_normal(random.key(0), (100,), std=1.0).abs() <= 2).all())
        True
    """
    if not bound > 0:
        raise _checks.fail(
            ValueError,
            "initializers.truncated_normal",
            "bound",
            "be positive",
            bound,
            "Count it in std",
        )
    inside = math.erf(bound / math.sqrt(2))
    u = random.uniform(key, shape, dtype=torch.float64, device=device)
    x = math.sqrt(2) * torch.erfinv((2 * u - 1) * inside)
    dtype = dtype or torch.get_default_dtype()
    return (std * x.clamp(-bound, bound)).to(dtype)


def xavier_uniform(
    key: Key,
    shape: Shape,
    *,
    gain: float = 1.0,
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Uniform in ±gain √(6 / (fan_in + fan_out)).

    Example:
        >>> bool(xavier_uniform(random.key(0), (3, 3)).abs().max() <= 1)
        True

    Reference: Glorot and Bengio, "Understanding the difficulty of training deep feedforward
    neural networks", 2010.
    """
    fan_in, fan_out = _fans("xavier_uniform", shape, in_axes, out_axes)
    bound = gain * math.sqrt(6 / (fan_in + fan_out))
    return _uniform(key, shape, bound, dtype, device)


def xavier_normal(
    key: Key,
    shape: Shape,
    *,
    gain: float = 1.0,
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Normal with standard deviation gain √(2 / (fan_in + fan_out)).

    Example:
        >>> xavier_normal(random.key(0), (3, 4)).shape
        torch.Size([3, 4])

    Reference: Glorot and Bengio, 2010, as in `xavier_uniform`.
    """
    fan_in, fan_out = _fans("xavier_normal", shape, in_axes, out_axes)
    std = gain * math.sqrt(2 / (fan_in + fan_out))
    return normal(key, shape, std=std, dtype=dtype, device=device)


def kaiming_uniform(
    key: Key,
    shape: Shape,
    *,
    gain: float = math.sqrt(2),
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Uniform in ±gain √(3 / fan_in); the gain √2 suits relu.

    Example:
        >>> bool(kaiming_uniform(random.key(0), (5, 6)).abs().max() <= 1)
        True

    Reference: He et al., "Delving deep into rectifiers", 2015, arXiv 1502.01852.
    """
    fan_in, _ = _fans("kaiming_uniform", shape, in_axes, out_axes)
    return _uniform(key, shape, gain * math.sqrt(3 / fan_in), dtype, device)


def kaiming_normal(
    key: Key,
    shape: Shape,
    *,
    gain: float = math.sqrt(2),
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Normal with standard deviation gain / √fan_in; the gain √2 suits relu.

    Example:
        >>> kaiming_normal(random.key(0), (3, 4)).shape
        torch.Size([3, 4])

    Reference: He et al., 2015, as in `kaiming_uniform`.
    """
    fan_in, _ = _fans("kaiming_normal", shape, in_axes, out_axes)
    return normal(key, shape, std=gain / math.sqrt(fan_in), dtype=dtype, device=device)


glorot_uniform, glorot_normal = xavier_uniform, xavier_normal
he_uniform, he_normal = kaiming_uniform, kaiming_normal


def orthogonal(
    key: Key,
    shape: Shape,
    *,
    gain: float = 1.0,
    in_axes: Axes = (-1,),
    out_axes: Axes = (0,),
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer, of the (out, in) matrix, times `gain`.

    Raises:
        ValueError: `in_axes` and `out_axes` do not name every axis once.

    Example:
        >>> w = orthogonal(random.key(0), (2, 4), dtype=torch.float64)
        >>> torch.allclose(w @ w.T, torch.eye(2, dtype=torch.float64))
        True

    Reference: Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks", 2013, arXiv 1312.6120.
    """
    fan_in, fan_out = _fans("orthogonal", shape, in_axes, out_axes)
    axes = [axis % len(shape) for axis in (*out_axes, *in_axes)]
    if sorted(axes) != list(range(len(shape))):
        raise _checks.fail(
            ValueError,
            "initializers.orthogonal",
            "in_axes and out_axes",
            f"name each of {len(shape)} axes once",
            f"in_axes={tuple(in_axes)}, out_axes={tuple(out_axes)}",
            "An orthogonal matrix has no other axes",
        )
    rows, columns = max(fan_in, fan_out), min(fan_in, fan_out)
    draw = random.normal(key, (rows, columns), dtype=torch.float64, device=device)
    q, r = torch.linalg.qr(draw)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)  # a sign per column makes the draw uniform
    matrix = q if fan_out >= fan_in else q.T
    permuted = matrix.reshape([shape[axis] for axis in axes])
    weight = permuted.permute([axes.index(axis) for axis in range(len(shape))])
    return (gain * weight).to(dtype or torch.get_default_dtype()).contiguous()


def _uniform(
    key: Key, shape: Shape, bound: float, dtype: torch.dtype | None, device: Device
) -> Tensor:
    return (2 * random.uniform(key, shape, dtype=dtype, device=device) - 1) * bound


def _fans(name: str, shape: Shape, in_axes: Axes, out_axes: Axes) -> tuple[int, int]:
    """How many inputs each output sums, and how many outputs each input feeds."""
    ndim = len(shape)
    if any(not -ndim <= axis < ndim for axis in (*in_axes, *out_axes)):
        raise _checks.fail(
            ValueError,
            f"initializers.{name}",
            "in_axes and out_axes",
            f"be axes of a shape with {ndim}",
            f"in_axes={tuple(in_axes)}, out_axes={tuple(out_axes)}",
            "A weight needs an axis that is summed and one that is produced",
        )
    fan_in = math.prod(shape[axis] for axis in in_axes)
    fan_out = math.prod(shape[axis] for axis in out_axes)
    return max(fan_in, 1), max(fan_out, 1)

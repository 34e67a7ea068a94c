"""Fused kernels, closed under every transform.

A kernel comes with its formula: the same thing written out. Reverse mode is a pair of fused
functions, the kernel and its derivative, and the derivative of the second is the formula's, right
to any order; where torch's own node does the first two, a hook on it brings in the third. Forward
mode cannot run fused: `_levels` tells where it is live.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from tinyfn import _levels

Tensors: TypeAlias = tuple[Tensor, ...]
Fused: TypeAlias = Callable[..., Tensors]
Pull: TypeAlias = Callable[[Tensors, Tensors, Tensors], Tensors]
Dims: TypeAlias = tuple[int | None, ...]
Lift: TypeAlias = Callable[[Fused, Pull, Dims, Tensors], tuple[Fused, Pull, Tensors]]


class Kernel(NamedTuple):
    """A fused function and what it takes to close it.

    `forward(*inputs)` gives a result, and whatever else `backward(grad, *inputs, *outputs)` needs
    for the gradients of the first `count` inputs; the others have none. `formula(*inputs)` is the
    result written out. `lift` is how a mapped axis reaches both.
    """

    forward: Fused
    backward: Fused
    formula: Callable[..., Tensor]
    count: int
    lift: Lift


def _run(kernel: Kernel, *inputs: Tensor) -> Tensor:
    if _plain(*inputs):
        return kernel.forward(*inputs)[0]
    if _levels.live(*inputs) is _levels.Derivatives.ANY:
        return kernel.formula(*inputs)
    return _closed(kernel, *inputs)


def _closed(kernel: Kernel, *inputs: Tensor) -> Tensor:
    return _Closed.apply(kernel.forward, partial(_pull_forward, kernel), kernel.lift, *inputs)[0]


def _pull_forward(kernel: Kernel, grads: Tensors, inputs: Tensors, outputs: Tensors) -> Tensors:
    # Through autograd's own mapping the graph of a Function is lost.
    if _levels.forward_mode() or _levels.mapped_by_autograd(grads[0]):
        return _pull_formula(kernel, grads[0], *inputs)
    given = (grads[0], *inputs, *outputs)
    if _plain(*given):
        return kernel.backward(*given)
    pull = partial(_pull_backward, kernel, len(inputs))
    return _Closed.apply(kernel.backward, pull, kernel.lift, *given)


def _pull_backward(
    kernel: Kernel, inputs_of_forward: int, grads: Tensors, inputs: Tensors, outputs: Tensors
) -> Tensors:
    end = 1 + kernel.count
    fixed = inputs[end : 1 + inputs_of_forward]
    return torch.func.vjp(lambda *xs: _pull_formula(kernel, *xs, *fixed), *inputs[:end])[1](grads)


def _pull_formula(kernel: Kernel, grad: Tensor, *inputs: Tensor) -> Tensors:
    fixed = inputs[kernel.count :]
    return torch.func.vjp(lambda *xs: kernel.formula(*xs, *fixed), *inputs[: kernel.count])[1](grad)


def _plain(*tensors: Tensor) -> bool:
    """Whether torch needs no help of ours."""
    if torch.compiler.is_compiling():
        return _levels.compiled_alone(*tensors)
    return _levels.free(*tensors)


class _Closed(Function):
    """A fused function whose gradients `pull(grads, inputs, outputs)` gives, itself closed.

    No jvp is defined: through one, torch's second forward derivative is silently zero.
    """

    @classmethod
    def apply(cls, fused: Fused, pull: Pull, lift: Lift, *tensors: Tensor) -> Tensors:
        if _levels.transformed():
            return super().apply(fused, pull, lift, *tensors)
        # As torch does then: unwrapped, but without its look at the signature, the longest part.
        base: Any = super(Function, cls)
        return base.apply(fused, pull, lift, *map(_levels.alive, tensors))

    @staticmethod
    def forward(fused: Fused, pull: Pull, lift: Lift, *tensors: Tensor) -> Tensors:
        return fused(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        _, ctx.pull, _, *tensors = inputs
        ctx.count = len(tensors)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved = tuple(map(_levels.alive, ctx.saved_tensors))
        inputs, outputs = saved[: ctx.count], saved[ctx.count :]
        pulled = ctx.pull(grads, inputs, outputs)
        return None, None, None, *pulled, *(None,) * (ctx.count - len(pulled))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], fused: Fused, pull: Pull, lift: Lift, *tensors: Tensor
    ) -> tuple[Tensors, tuple[int, ...]]:
        fused, pull, tensors = lift(fused, pull, in_dims[3:], tensors)
        outputs = _Closed.apply(fused, pull, lift, *tensors)
        return outputs, (0,) * len(outputs)


def _lift_by_vmap(
    fused: Fused, pull: Pull, dims: Dims, tensors: Tensors
) -> tuple[Fused, Pull, Tensors]:
    """For functions that torch maps itself."""

    def lifted(grads: Tensors, inputs: Tensors, outputs: Tensors) -> Tensors:
        each = torch.vmap(pull, (0, dims, 0))(grads, inputs, outputs)
        pairs = zip(each, dims, strict=False)
        return tuple(g.sum(0) if dim is None else g.movedim(0, dim) for g, dim in pairs)

    return torch.vmap(fused, dims), lifted, tensors


def _lift_by_axis(
    fused: Fused, pull: Pull, dims: Dims, tensors: Tensors
) -> tuple[Fused, Pull, Tensors]:
    """For functions that carry leading axes along: the mapped axis is one more."""
    size = next(x.shape[dim] for x, dim in zip(tensors, dims, strict=True) if dim is not None)
    return (
        fused,
        pull,
        tuple(
            x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, dims, strict=True)
        ),
    )


def layer_norm(
    formula: Callable[..., Tensor],
    x: Float[Tensor, "... features"],
    *params: Float[Tensor, "features"],
    eps: float,
) -> Float[Tensor, "... features"]:
    """The layer norm of torch, which in half precision computes in single, where it pays.

    Args:
        formula: The same function of (eps, x, *params), written out.
        x: Of the params' dtype.
        params: The weight, or the weight and the bias.
        eps: Added to the variance.
    """
    live = _levels.live(x, *params)
    if live is _levels.Derivatives.NONE:
        return _layer_norm(eps, x, *params)[0]
    if live is _levels.Derivatives.ANY:
        return formula(eps, x, *params)
    transformed = _levels.transformed()
    if transformed and x.numel() < _LEAST_ELEMENTS:
        return formula(eps, x, *params)
    make = partial(_layer_norm_kernel, formula, eps, 1 + len(params))
    if not transformed and not _levels.saved_by_hooks():
        # A hook on torch's own node costs less than a node of ours.
        normed = _layer_norm(eps, x, *params)[0]
        node: Any = normed.grad_fn
        if hasattr(type(node), "_saved_input"):
            node.register_hook(partial(_mend_second_order, make))
            return normed
    return _closed(make(), x, *params)


# With fewer elements the pair's calls under torch.func cost more than they save.
_LEAST_ELEMENTS = 2**18


def _layer_norm_kernel(formula: Callable[..., Tensor], eps: float, count: int) -> Kernel:
    forward = partial(_layer_norm, eps)
    return Kernel(forward, _layer_norm_backward, partial(formula, eps), count, _lift_by_vmap)


def _layer_norm(eps: float, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensors:
    return torch.native_layer_norm(x, weight.shape, weight, bias, eps)


def _mend_second_order(
    make: Callable[[], Kernel],
    pulled: tuple[Tensor | None, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...] | None:
    """Closed gradients, where they are to be differentiated: torch's are wrong from there.

    What they are gradients by is asked of the node: a hook that held it would keep it alive for
    longer than torch does.
    """
    grad = grads[0]
    if grad is None or not torch.is_grad_enabled():
        return None
    kernel, node = make(), _levels.running_node()
    inputs = (node._saved_input, node._saved_weight, node._saved_bias)[: kernel.count]
    outputs = (grad, node._saved_result1, node._saved_result2)  # the first is not looked at
    right = dict(enumerate(_pull_forward(kernel, (grad,), inputs, outputs)))
    return tuple(None if old is None else right[i] for i, old in enumerate(pulled))


def _layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Tensor) -> Tensors:
    *bias, _, mean, inverse_std = rest
    grads = torch.ops.aten.native_layer_norm_backward(
        grad,
        x,
        weight.shape,
        mean,
        inverse_std,
        weight,
        *(bias or [None]),
        [True, True, bool(bias)],
    )
    return grads[: 2 + len(bias)]


def attention(
    formula: Callable[..., Tensor],
    q: Float[Tensor, "... heads q_seq head_dim"],
    k: Float[Tensor, "... heads kv_seq head_dim"],
    v: Float[Tensor, "... heads kv_seq head_dim"],
    *bias: Float[Tensor, "... #heads #q_seq kv_seq"],
    causal: bool,
    scale: float,
) -> Float[Tensor, "... heads q_seq head_dim"]:
    """The fused attention of torch, which needs no memory for the weights.

    Args:
        formula: The same function of (q, k, v, *bias), written out.
        q: What looks.
        k: What is looked at.
        v: What is read.
        bias: At most one: added to the scores, -inf where they are hidden. It has no gradient.
        causal: Whether query i sees keys up to i only.
        scale: Of the scores.
    """
    if not bias and q.ndim == 4 and _plain(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    on_cpu = has_cpu_pair(q)
    pair = (_cpu_attention, _cpu_backward) if on_cpu else (_sdpa, _sdpa_backward)
    forward, backward = (partial(fused, causal, scale) for fused in pair)
    kernel = Kernel(forward, backward, formula, 3, _lift_by_axis)
    if on_cpu or not bias:
        return _run(kernel, q, k, v, *bias)
    # Not every kernel of torch reads zeros where all is hidden: there, let it look everywhere.
    blind = (bias[0] == -torch.inf).all(-1, keepdim=True)
    return torch.where(blind, 0.0, _run(kernel, q, k, v, torch.where(blind, 0.0, bias[0])))


_CPU_PAIR = "_scaled_dot_product_flash_attention_for_cpu"


def has_cpu_pair(q: Tensor) -> bool:
    """Whether torch's own pair for the CPU will run, which takes `causal` and a bias together.

    The public form would have to run its forward again in the backward.
    """
    return (
        q.device.type == "cpu"
        and hasattr(torch.ops.aten, f"{_CPU_PAIR}_backward")
        and not torch.compiler.is_compiling()
    )


def _cpu_attention(causal: bool, scale: float, *inputs: Tensor) -> Tensors:
    lead, (q, k, v), bias = _fold(inputs[:3], inputs[3:])
    out, log_sum = getattr(torch.ops.aten, _CPU_PAIR)(
        q, k, v, 0.0, causal, attn_mask=bias, scale=scale
    )
    return _unfold(lead, out), _unfold(lead, log_sum)


def _cpu_backward(causal: bool, scale: float, *inputs: Tensor) -> Tensors:
    *operands, out, log_sum = inputs
    each = (*operands[:4], out, log_sum.unsqueeze(-1))
    lead, (grad, q, k, v, out, log_sum), bias = _fold(each, operands[4:])
    grads = getattr(torch.ops.aten, f"{_CPU_PAIR}_backward")(
        grad, q, k, v, out, log_sum.squeeze(-1), 0.0, causal, attn_mask=bias, scale=scale
    )
    return tuple(_unfold(lead, g) for g in grads)


def _sdpa(causal: bool, scale: float, *inputs: Tensor) -> Tensors:
    lead, (q, k, v), bias = _fold(inputs[:3], inputs[3:])
    out = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=scale)
    return (_unfold(lead, out),)


def _sdpa_backward(causal: bool, scale: float, *inputs: Tensor) -> Tensors:
    lead, (grad, q, k, v), bias = _fold(inputs[:4], inputs[4:-1])
    sdpa = partial(F.scaled_dot_product_attention, attn_mask=bias, is_causal=causal, scale=scale)
    grads = torch.func.vjp(sdpa, q, k, v)[1](grad)
    return tuple(_unfold(lead, g) for g in grads)


def _fold(
    each: Sequence[Tensor], bias: Sequence[Tensor]
) -> tuple[tuple[int, ...], Sequence[Tensor], Tensor | None]:
    """All leading axes as one, as the kernels want them; of a bias that only repeats, one.

    torch's private pair takes it on trust that the last axis has stride 1.
    """
    each, bias = ([x if x.stride(-1) == 1 else x.contiguous() for x in xs] for xs in (each, bias))
    lead = each[0].shape[:-3]
    if len(lead) == 1:
        return lead, each, bias[0] if bias else None
    size = math.prod(lead)
    folded = [x.reshape(size, *x.shape[-3:]) for x in each]
    if not bias:
        return lead, folded, None
    axes = range(bias[0].ndim - 3)
    if all(bias[0].shape[i] == 1 or bias[0].stride(i) == 0 for i in axes):
        return lead, folded, bias[0][(0,) * len(axes)].unsqueeze(0)
    return lead, folded, bias[0].expand(*lead, -1, -1, -1).reshape(size, *bias[0].shape[-3:])


def _unfold(lead: tuple[int, ...], x: Tensor) -> Tensor:
    return x if len(lead) == 1 else x.reshape(*lead, *x.shape[1:])

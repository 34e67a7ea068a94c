"""Which derivatives may be asked of what runs now.

A fused kernel has no forward-mode derivative, and some have no second one: whoever calls one asks
here first. torch keeps its stack of transforms in a private place, which is read in this file and
nowhere else; where it is missing, the answer is ANY and everything runs explicitly. Whoever makes
constants asks here whether a transform has to see it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_NAMES = (
    "TransformType",
    "get_interpreter_stack",
    "get_unwrapped",
    "is_legacy_batchedtensor",
    "is_dead_tensor_wrapper",
    "is_functorch_wrapped_tensor",
    "maybe_get_bdim",
    "unwrap_if_dead",
)
_functorch: Any = getattr(torch._C, "_functorch", None)
if not all(hasattr(_functorch, name) for name in _NAMES):
    _functorch = None
_running_node: Any = getattr(torch._C, "_current_autograd_node", None)
_saving_hooks: Any = getattr(
    getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None
)

_dispatch_modes: Any = getattr(torch._C, "_len_torch_dispatch_stack", None)
_early_modes: Any = getattr(torch._ops, "_len_torch_dispatch_stack_pre_dispatch", None)
_unseen: Any = getattr(torch._C, "_DisableFuncTorch", None)


class Derivatives(Enum):
    """What may be asked of an operation."""

    NONE = 0
    REVERSE = 1
    ANY = 2


def live(*tensors: Tensor) -> Derivatives:
    """What may be asked of an operation on these tensors.

    ANY too where a tensor is not torch's own kind (a DTensor, a tracer's stand-in), and while
    compiling: there, `compiled_alone` knows more.

    Example:
        >>> seen = []
        >>> _ = torch.func.grad(lambda x: [x.sum(), seen.append(live(x))][0])(torch.ones(2))
        >>> live(torch.ones(2)).name, seen[0].name
        ('NONE', 'REVERSE')
    """
    if torch.compiler.is_compiling() or _functorch is None or forward_ad._current_level >= 0:
        return Derivatives.ANY
    levels = _functorch.get_interpreter_stack()
    if levels is not None and _unlike_reverse(levels):
        return Derivatives.ANY
    recorded, mapped = False, levels is not None
    for x in tensors:
        for layer in _layers(x) if mapped else (x,):
            kind = type(layer)
            if kind is not Tensor and kind is not nn.Parameter:
                return Derivatives.ANY
            recorded = recorded or layer.requires_grad
    asked = recorded and (mapped or torch.is_grad_enabled())
    return Derivatives.REVERSE if asked else Derivatives.NONE


def free(*tensors: Tensor) -> bool:
    """Whether nobody follows an operation on these tensors: no transform, no gradient, no compiler.

    It asks as little as it can: between large products, all code that runs is out of the caches.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> free(x), free(x.detach()), torch.no_grad()(free)(x)
        (False, True, True)
    """
    if torch.compiler.is_compiling() or _functorch is None or forward_ad._current_level >= 0:
        return False
    if _functorch.get_interpreter_stack() is not None:
        return False
    recorded = torch.is_grad_enabled()
    for x in tensors:
        kind = type(x)
        if (kind is not Tensor and kind is not nn.Parameter) or (recorded and x.requires_grad):
            return False
    return True


def forward_mode() -> bool:
    """Whether tangents may be carried along now, or a transform is live that is not known here.

    Example:
        >>> seen = []
        >>> x = torch.ones(2)
        >>> _ = torch.func.jvp(lambda x: [x, seen.append(forward_mode())][0], (x,), (x,))
        >>> forward_mode(), seen
        (False, [True])
    """
    if _functorch is None or forward_ad._current_level >= 0:
        return True
    levels = _functorch.get_interpreter_stack()
    return levels is not None and _unlike_reverse(levels)


def _unlike_reverse(levels: Sequence[Any]) -> bool:
    """Whether a transform among them is neither grad nor vmap."""
    known = (_functorch.TransformType.Grad, _functorch.TransformType.Vmap)
    return any(level.key() not in known for level in levels)


def compiled_alone(*tensors: Tensor) -> bool:
    """Whether an operation on these tensors is compiled, and no transform is live in the compiled.

    The compiler then takes a kernel of torch as it is, and its derivative with it.

    Example:
        >>> compiled_alone(torch.ones(2))
        False
    """
    return (
        torch.compiler.is_compiling()
        and forward_ad._current_level < 0  # read here, the compiler compiles anew when it changes
        and all(type(x) in (Tensor, nn.Parameter) for x in tensors)
        and not _traced_levels()
    )


def _traced_levels() -> bool:
    """Whether a transform is live where the compiler stands."""
    return transformed() or forward_mode()


# torch.compiler.assume_constant_result sets this, and imports the whole compiler to do so.
_traced_levels._dynamo_marked_constant = True  # type: ignore[attr-defined]  it is a mark


def exporting() -> bool:
    """Whether a program for all sizes is made, as `torch.export` does.

    Example:
        >>> exporting()
        False
    """
    return torch.compiler.is_exporting()


# Asked where it stands, the compiler of torch 2.11 says so of everything that it compiles.
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]  it is a mark


def push(
    f: Callable[..., Tensor], terms: Sequence[Callable[..., Tensor]], *tensors: Tensor
) -> Tensor:
    """`f(*tensors)`, its tangent in forward mode the sum of a term for each tensor that has one.

    torch's own rules multiply and add tangents of zeros for everything constant. Outer transforms
    see the plain operations of `f` and the terms, so this is as closed as those are.

    Args:
        f: A function of the tensors.
        terms: For each tensor, a function of its tangent and all tensors. What it gives is a new
            tensor, and broadcasts to what `f` gives.
        tensors: What `f` is given; terms beyond them are not used.

    Example:
        >>> def scale(x):
        ...     return push(lambda x: 2 * x, [lambda tangent, x: 2 * tangent], x)
        >>> torch.func.jvp(scale, (torch.ones(2),), (torch.ones(2),))
        (tensor([2., 2.]), tensor([2., 2.]))
    """
    if forward_ad._current_level < 0 or not _pushes(tensors):
        return f(*tensors)
    pairs = [forward_ad.unpack_dual(x) for x in tensors]
    primals = [pair.primal for pair in pairs]
    given = [
        term(pair.tangent, *primals)
        for term, pair in zip(terms, pairs, strict=False)
        if pair.tangent is not None
    ]
    out = f(*primals)
    if not given:
        return out
    return forward_ad.make_dual(out, sum(given[1:], given[0]).to(out.dtype).expand_as(out))


def _pushes(tensors: Sequence[Tensor]) -> bool:
    """Whether forward mode is the innermost transform, and the tensors are torch's own."""
    if _functorch is None or torch.compiler.is_compiling():
        return False
    if any(type(x) not in (Tensor, nn.Parameter) for x in tensors):
        return False
    levels = _functorch.get_interpreter_stack()
    return levels is None or levels[-1].key() == _functorch.TransformType.Jvp


def transformed() -> bool:
    """Whether any torch.func transform is live.

    Example:
        >>> transformed()
        False
    """
    return _functorch is None or _functorch.get_interpreter_stack() is not None


def constant(x: Tensor) -> bool:
    """Whether a tensor is the same for all who follow operations, but for autograd (see `live`).

    They are the transforms that are live, of which none has wrapped it, compilers, tracers, modes.

    Example:
        >>> constant(torch.tensor(3)), torch.vmap(lambda x: x + constant(x))(torch.tensor([3]))
        (True, tensor([3]))
    """
    if torch.compiler.is_compiling() or None in (_functorch, _dispatch_modes, _early_modes):
        return False
    return (
        type(x) in (Tensor, nn.Parameter)
        and not _functorch.is_functorch_wrapped_tensor(x)
        and not _functorch.is_legacy_batchedtensor(x)
        and not _dispatch_modes()
        and not _early_modes()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]  documented
    )


def below(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """In which no transform sees what is made of a constant, so that it costs what it costs alone.

    What comes out is a constant too: to write into it is what transforms refuse.

    Example:
        >>> def f(x, constant=torch.tensor(3)):
        ...     with below(constant):
        ...         more = constant + 1
        ...     return x + more
        >>> torch.func.grad(f)(torch.tensor(1.0))
        tensor(1.)
    """
    if torch.compiler.is_compiling() or _unseen is None:
        return contextlib.nullcontext()
    return _unseen() if transformed() and constant(x) else contextlib.nullcontext()


def value(x: Tensor) -> int | None:
    """The number in a constant integer scalar, unless a device would be waited for.

    Example:
        >>> value(torch.tensor(3)), torch.vmap(lambda x: x + (value(x) is None))(torch.tensor([3]))
        (3, tensor([4]))
    """
    return int(x) if constant(x) and x.device.type == "cpu" else None


def unmapped(x: Tensor) -> tuple[Tensor, int | None]:
    """What the innermost `torch.vmap` has wrapped and its mapped axis, or the tensor and None.

    Example:
        >>> seen = []
        >>> _ = torch.vmap(lambda x: [x, seen.append(unmapped(x))][0], in_dims=1)(torch.ones(3, 2))
        >>> seen[0][0].shape, seen[0][1]
        (torch.Size([3, 2]), 1)
    """
    at = _functorch.maybe_get_bdim(x)
    return (x, None) if at < 0 else (_functorch.get_unwrapped(x), at)


def depth() -> int | None:
    """How many transforms are live, one inside the other; None where torch does not say.

    Example:
        >>> depth(), torch.vmap(lambda x: x + depth())(torch.zeros(2))
        (0, tensor([1., 1.]))
    """
    return len(_functorch.get_interpreter_stack() or ()) if _functorch is not None else None


def alive(x: Tensor) -> Tensor:
    """The tensor without the wrappings of transforms that are over.

    A pullback keeps what its transform wrapped. torch's operations unwrap by themselves, but a
    transform of a pullback that begins with such a tensor does not.

    Example:
        >>> x = torch.ones(2)
        >>> alive(x) is x
        True
    """
    while _functorch is not None and _functorch.is_dead_tensor_wrapper(x):
        x = _functorch.unwrap_if_dead(x)
    return x


def saved_by_hooks() -> bool:
    """Whether what autograd saves now passes through hooks, as under a checkpoint.

    Such hooks may give what was saved once only. True too where torch does not say, or could not
    say later which node runs.

    Example:
        >>> with torch.autograd.graph.save_on_cpu():
        ...     saved_by_hooks()
        True
    """
    if _running_node is None or _saving_hooks is None:
        return True
    return _saving_hooks(True) is not None


def running_node() -> Any:
    """The node of autograd that runs now, which a hook of it may ask.

    Example:
        >>> print(running_node())
        None
    """
    return _running_node()


def mapped_by_autograd(x: Tensor) -> bool:
    """Whether `torch.autograd.grad(..., is_grads_batched=True)` has wrapped a gradient.

    Example:
        >>> mapped_by_autograd(torch.ones(2))
        False
    """
    return _functorch is not None and _functorch.is_legacy_batchedtensor(x)


def _layers(x: Tensor) -> Iterator[Tensor]:
    """The tensor, and what each transform has wrapped."""
    yield x
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
        yield x

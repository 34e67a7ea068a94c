"""Where functions take DTensors, and what torch does wrong for them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.distributed.tensor.experimental import implicit_replication
from torch.utils._python_dispatch import TorchDispatchMode

from tinyfn import _checks, _levels


@contextlib.contextmanager
def on_mesh() -> Iterator[None]:
    """Within, functions take DTensors: any other tensor counts as the same on every process.

    Those are the masks, positions and draws that functions make, and whatever else is passed.
    A draw is a function of its key and the index in the whole tensor, so dropout does not depend
    on the layout.

    Raises:
        NotImplementedError: Forward mode (jvp, jacfwd, hessian) of DTensors, which torch lacks.

    Example:
        >>> from tinyfn.sharding import gather, mesh, plan, shard
        >>> params = {"weight": torch.ones(1, 2)}
        >>> params = shard(params, plan(params, mesh(data=1)))
        >>> with on_mesh():
        ...     gather(params["weight"] @ torch.ones(2))
        tensor([2.])
        >>> torch.distributed.destroy_process_group()
    """
    dispatcher: Any = getattr(DTensor, "_op_dispatcher", None)
    before = getattr(dispatcher, "_allow_implicit_replication", False)
    try:
        with implicit_replication(), _Repairs():
            yield
    finally:
        if before:  # implicit_replication ends those around it too
            dispatcher._allow_implicit_replication = before


class _Repairs(TorchDispatchMode):
    """What torch 2.13 gets wrong for DTensors, each by name."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _levels.forward_mode() and any(issubclass(kind, DTensor) for kind in types):
            raise _checks.fail(
                NotImplementedError,
                "sharding.on_mesh",
                "derivatives of DTensors",
                "be of reverse mode",
                "forward mode (jvp, jacfwd or hessian), which torch lacks for them",
                "Use vjp, jacrev or grad, of each other for higher orders",
            )
        if op is torch.ops.aten.view.default and isinstance(args[0], DTensor):
            args = (_contiguous_part(args[0]), *args[1:])
        if op in _FACTORS and any(issubclass(kind, DTensor) for kind in types):
            return _product(op, args, kwargs or {})
        return op(*args, **(kwargs or {}))


# Products with params, and where their two factors stand.
_FACTORS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}


def _product(op: Any, args: Any, kwargs: Any) -> Tensor:
    """A product that sends what the textbook says.

    Where the first factor's rows are cut, each process needs the second whole. Left alone, torch
    may gather the rows instead, and sums over "tensor" anew for each user of a product.
    """
    at = _FACTORS[op]
    *before, a, b = args[: at + 2]
    if isinstance(a, DTensor) and isinstance(b, DTensor):
        b = _moved(b, lambda i, cut: a.placements[i].is_shard(0) and cut.is_shard())
    out = op(*before, a, b, *args[at + 2 :], **kwargs)
    if not isinstance(out, DTensor):
        return out
    names = out.device_mesh.mesh_dim_names or ()
    return _moved(out, lambda i, cut: names[i] == "tensor" and cut.is_partial())


def _moved(x: DTensor, chosen: Callable[[int, Placement], bool]) -> DTensor:
    """The same, whole along the chosen axes of its mesh."""
    cuts = [Replicate() if chosen(i, cut) else cut for i, cut in enumerate(x.placements)]
    with torch.no_grad():
        return x if tuple(cuts) == x.placements else x.redistribute(x.device_mesh, cuts)


def _contiguous_part(x: DTensor) -> Tensor:
    """The same with its part in order: a part's strides may be others than the whole's say.

    autograd looks at the whole's, and asks for views of parts that have none.
    """
    with torch.no_grad():
        part = x.to_local()
    return x if part.is_contiguous() else x.clone(memory_format=torch.contiguous_format)

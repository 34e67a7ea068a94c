"""Meshes, plans, and the ways to them and back."""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from tinyfn import _checks, tree
from tinyfn.types import Params

_AXES = ("data", "full", "tensor", "sequence")

# Which axis of a param the axis "tensor" of a mesh cuts, counted from the end because models may be
# stacked, and what stands there. Whatever has no row is whole on every process.
_TENSOR = (
    (r"(?<!attend\.)\b[qkv]_proj\.weight$", -3, "heads"),
    (r"(?<!attend\.)\b[qkv]_proj\.bias$", -2, "heads"),
    (r"(?<!attend\.)\bout_proj\.weight$", -2, "heads"),
    (r"\b(up|gate)_proj\.weight$", -2, "hidden"),
    (r"\b(up|gate)_proj\.bias$", -1, "hidden"),
    (r"\bdown_proj\.weight$", -1, "hidden"),
)


def mesh(device: str = "cpu", **sizes: int) -> DeviceMesh:
    """The processes of this run along named axes, which say what each is for.

    Where no process group is, one begins: that of `torchrun`, or else one of this process alone.

    Args:
        device: Kind of the devices, such as "cpu" or "cuda".
        sizes: How many processes along "data", "full", "tensor" and "sequence", the first being
            the farthest apart; together as many as there are.

    Raises:
        ValueError: An axis has another name, or there are more or fewer processes.

    Example:
        >>> mesh(data=1, tensor=1).mesh_dim_names
        ('data', 'tensor')
        >>> dist.destroy_process_group()
    """
    _check_axes("sharding.mesh", tuple(sizes))
    _checks.sizes("sharding.mesh", **sizes)
    if not dist.is_initialized():
        if dist.is_torchelastic_launched():
            dist.init_process_group()
        else:
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]  it has no other
            dist.init_process_group(store=store, rank=0, world_size=1)
    wanted, world = math.prod(sizes.values()), dist.get_world_size()
    if wanted != world:
        requirement = f"multiply to the number of processes, {world}"
        remedy = f"Start {wanted} with torchrun --nproc-per-node {wanted}, or choose other sizes"
        raise _checks.fail(ValueError, "sharding.mesh", "sizes", requirement, f"{sizes}", remedy)
    return init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def _check_axes(function: str, names: tuple[str, ...] | None) -> None:
    if not names or not set(names) <= set(_AXES):
        requirement = f"have axes named {', '.join(_AXES)}"
        remedy = "Name each for what it is for, as in sharding.mesh(data=2, tensor=2)"
        raise _checks.fail(ValueError, function, "the mesh", requirement, names or "none", remedy)


@dataclass(frozen=True)
class Layout:
    """Where a tensor lies.

    Attributes:
        mesh: The processes.
        placements: For each axis of the mesh, `Replicate()` or `Shard(axis of the tensor)`.

    Example:
        >>> one = mesh(tensor=1)
        >>> Layout(one, (Shard(0),)).placements
        (Shard(dim=0),)
        >>> dist.destroy_process_group()
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]


def plan(params: Params, mesh: DeviceMesh) -> Any:
    """A layout for every param, by the names of the mesh's axes.

    The axis "tensor" cuts heads and hidden layers, "full" the first axis of a matrix that it
    divides and that is not cut already; what neither cuts is whole on every process, as biases
    and norms are, which are small.

    Args:
        params: Of any function here, stacked or not.
        mesh: From `sharding.mesh`.

    Returns:
        The tree of `params` with a `Layout` in the place of each leaf.

    Raises:
        ValueError: Heads or hidden do not divide among the processes of "tensor", or an axis of
            the mesh has another name.

    Example:
        >>> from tinyfn import init_feed_forward, random
        >>> layouts = plan(init_feed_forward(random.key(0), 4, 8), mesh(tensor=1))
        >>> layouts["down_proj"]["weight"].placements
        (Shard(dim=1),)
        >>> dist.destroy_process_group()
    """
    _check_axes("sharding.plan", mesh.mesh_dim_names)
    flat = tree.flatten(params)
    return tree.unflatten({name: _layout(name, leaf, mesh) for name, leaf in flat.items()})


def _layout(name: str, leaf: Tensor, mesh: DeviceMesh) -> Layout:
    cuts = {}
    if "tensor" in _names(mesh):
        cuts["tensor"] = _tensor_axis(name, leaf, _size(mesh, "tensor"))
    if "full" in _names(mesh) and leaf.ndim > 1 and not name.endswith("bias"):
        free = (axis for axis in range(leaf.ndim) if axis != cuts.get("tensor"))
        divided = (axis for axis in free if leaf.shape[axis] % _size(mesh, "full") == 0)
        cuts["full"] = next(divided, None)
    return Layout(mesh, tuple(_cut(leaf, cuts.get(name)) for name in _names(mesh)))


def _names(mesh: DeviceMesh) -> tuple[str, ...]:
    return mesh.mesh_dim_names or ()


def _size(mesh: DeviceMesh, name: str) -> int:
    return mesh.size(_names(mesh).index(name))


def _cut(x: Tensor, axis: int | None) -> Placement:
    whole = axis is None or x.shape[axis] == 1  # which torch cannot flatten if it is cut
    return Replicate() if whole else Shard(axis)


def _tensor_axis(name: str, leaf: Tensor, processes: int) -> int | None:
    for pattern, axis, counted in _TENSOR:
        if re.search(pattern, name):
            count = leaf.shape[axis]
            if count % processes:
                kinds = f"{counted} of {name}"
                divisors = [n for n in range(1, count + 1) if count % n == 0]
                requirement = f"divide among the {processes} processes of the axis 'tensor'"
                remedy = (
                    f"Choose a multiple of {processes} {counted}, or one of {divisors} processes"
                )
                raise _checks.fail(ValueError, "sharding.plan", kinds, requirement, count, remedy)
            return leaf.ndim + axis
    return None


def shard(params: Params, plan: Any) -> Params:
    """Params as DTensors, each process with its part of those of the first process.

    Args:
        params: Plain tensors; those that require gradients become leaves that do.
        plan: A `Layout` for each, from `plan`.

    Example:
        >>> params = {"up_proj": {"weight": torch.ones(4, 2)}}
        >>> sharded = shard(params, plan(params, mesh(tensor=1)))
        >>> sharded["up_proj"]["weight"].placements
        (Shard(dim=0),)
        >>> dist.destroy_process_group()
    """
    return tree.map(lambda leaf, to: distribute_tensor(leaf, to.mesh, to.placements), params, plan)


def gather(params: Any) -> Any:
    """The whole tensors on every process; what is no DTensor stays as it is.

    Args:
        params: Any tree: params, gradients, results. All processes have to ask.

    Example:
        >>> params = {"up_proj": {"weight": torch.ones(1, 2)}}
        >>> gather(shard(params, plan(params, mesh(tensor=1))))
        {'up_proj': {'weight': tensor([[1., 1.]])}}
        >>> dist.destroy_process_group()
    """
    return tree.map(lambda leaf: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf, params)


def align(gradients: Any, params: Any) -> Any:
    """Gradients laid out as their params are, as an optimiser needs them.

    A gradient comes as it falls out, often as a sum of which each process has a term.

    Args:
        gradients: A tree, of `torch.func.grad` and the like.
        params: The tree by which they were taken.

    Example:
        >>> params = {"up_proj": {"weight": torch.ones(2, 2)}}
        >>> params = shard(params, plan(params, mesh(tensor=1)))
        >>> gradients = torch.func.grad(lambda p: p["up_proj"]["weight"].sum())(params)
        >>> align(gradients, params)["up_proj"]["weight"].placements
        (Shard(dim=0),)
        >>> dist.destroy_process_group()
    """

    def aligned(gradient: Tensor, leaf: Tensor) -> Tensor:
        if not isinstance(leaf, DTensor) or not isinstance(gradient, DTensor):
            return gradient
        return gradient.redistribute(leaf.device_mesh, leaf.placements)

    return tree.map(aligned, gradients, params)


def place(batch: Any, mesh: DeviceMesh) -> Any:
    """What params are applied to, laid out over the mesh.

    The axes "data" and "full" cut a tensor's first axis, the batch, and "sequence" its second;
    over "tensor" it is whole.

    Args:
        batch: A tree of tensors (batch, ...) or (batch, seq, ...), the same on every process.
        mesh: From `sharding.mesh`.

    Raises:
        ValueError: Batch or seq do not divide among their processes.

    Example:
        >>> place(torch.ones(2, 3), mesh(data=1, sequence=1)).placements
        (Shard(dim=0), Shard(dim=1))
        >>> dist.destroy_process_group()
    """
    _check_axes("sharding.place", mesh.mesh_dim_names)
    axes = {"data": 0, "full": 0, "sequence": 1}

    def placed(x: Tensor) -> Tensor:
        cuts = [axes.get(name, x.ndim) for name in _names(mesh)]
        cuts = [axis if axis < x.ndim else None for axis in cuts]
        for axis, argument in ((0, "batch"), (1, "seq")):
            processes = math.prod(mesh.size(i) for i, cut in enumerate(cuts) if cut == axis)
            if axis < x.ndim and x.shape[axis] % processes:
                remedy = f"Pad it to a multiple of {processes}"
                requirement = f"divide among {processes} processes"
                raise _checks.fail(
                    ValueError, "sharding.place", argument, requirement, x.shape[axis], remedy
                )
        return distribute_tensor(x, mesh, [_cut(x, axis) for axis in cuts], src_data_rank=None)

    return tree.map(placed, batch)

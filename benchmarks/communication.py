"""How many bytes does each plan send in a step, beside the textbook's count?

The gradient of an encoder and its way to the params' layout, counted by torch's
CommDebugMode in a group of processes of which only this one is there, so nothing is timed. A byte
counts when a process sends it, all of them passing parts on in a ring.

    python benchmarks/communication.py [--sizes 8x32x64 64x64x64] [--layers 2 8] [--processes 4]
        [--estimates]

A size is batch x seq x features; heads are 8, the hidden layer four times as wide.
"""

import argparse
import itertools
import math
from typing import Any

import torch
import torch.distributed as dist
from measuring import numbers, positive
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

import tinyfn
from tinyfn import random, sharding, tree

HEADS = 8
PLANS = ("data", "full", "tensor", "sequence")


class Sent(CommDebugMode):
    """Bytes that a process sends, by kind of collective."""

    def __init__(self, processes: int):
        super().__init__()
        self.processes, self.bytes = processes, dict[str, float]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(op, types, args, kwargs)
        if out is not NotImplemented and op.overloadpacket in self.comm_registry:
            name = op.overloadpacket.__name__
            sent = passed_on(name, args[0], self.processes)
            self.bytes[name] = self.bytes.get(name, 0) + sent
        return out


def passed_on(name: str, part: torch.Tensor, processes: int) -> float:
    """What one process sends of a collective over a ring, given its own part."""
    size, others = part.numel() * part.element_size(), processes - 1
    ways = {
        "all_reduce": 2 * size * others / processes,
        "all_gather_into_tensor": size * others,
        "reduce_scatter_tensor": size * others / processes,
        "all_to_all_single": size * others / processes,
        "shard_dim_alltoall": size * others / processes,
    }
    return ways[name]


def textbook(plan: str, processes: int, params: float, activations: float, layers: int) -> float:
    """The bytes of a step, given those of all params and of a layer's input.

    data: the gradients are summed. full: params are gathered forward and backward, gradients
    scattered. tensor: two sums a layer, and two backward. sequence: keys and values are gathered
    and their gradients scattered, and gradients of params are summed.
    """
    share = (processes - 1) / processes
    return (
        share
        * {
            "data": 2 * params,
            "full": 3 * params,
            "tensor": layers * 4 * 2 * activations,
            "sequence": 2 * params + layers * 4 * activations,
        }[plan]
    )


def counted(
    plan: str, processes: int, batch: int, seq: int, features: int, layers: int
) -> tuple[float, float]:
    """What a step sends, and the textbook's count."""
    params = tinyfn.init_encoder(random.key(0), features, HEADS, 4 * features, layers)
    x = random.normal(random.key(1), (batch, seq, features))
    sizes: Any = {plan: processes}
    mesh = sharding.mesh(**sizes)
    there, placed = sharding.shard(params, sharding.plan(params, mesh)), sharding.place(x, mesh)

    def loss(params: Any, x: torch.Tensor) -> torch.Tensor:
        return (tinyfn.encoder(params, x) * x).sum()

    with Sent(processes) as sent, sharding.on_mesh():
        sharding.align(torch.func.grad(loss)(there, placed), there)
    size = x.element_size()
    book = textbook(plan, processes, size * tree.size(params), size * x.numel(), layers)
    return sum(sent.bytes.values()), book


def estimates() -> str:
    """Counts for a step of a larger model, in GB that each process sends.

    The textbook's, but for tensor, of which `counted` finds 6 sums a layer less 3 in place of 4.
    24 layers of 2048 features, 1.2e9 params, bfloat16; 8 sequences of 2048 a process, but for
    tensor and sequence, where all processes have 8 together.
    """
    features, layers, size = 2048, 24, 2
    params = 12 * features**2 * layers * size
    activations = 8 * 2048 * features * size
    lines = ["| plan | 8 devices | 64 | 1,024 |", "|---|---|---|---|"]
    for plan in PLANS:
        scale = (6 * layers - 3) / (4 * layers) if plan == "tensor" else 1
        sent = (scale * textbook(plan, n, params, activations, layers) / 1e9 for n in (8, 64, 1024))
        lines.append(f"| {plan} | " + " | ".join(f"{gigabytes:.1f}" for gigabytes in sent) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table for each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["8x32x64", "64x64x64"], metavar="SIZE")
    parser.add_argument("--layers", nargs="+", type=positive, default=[2, 8])
    parser.add_argument("--processes", type=positive, default=4)
    parser.add_argument("--estimates", action="store_true", help="of a larger model, by formula")
    given = parser.parse_args()
    if given.estimates:
        print(estimates())
        return
    wrong = [text for text in given.sizes if text.count("x") != 2]
    if wrong:
        parser.error(f"a size must be batch, seq and features, such as 8x32x64, got {wrong[0]}")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=given.processes)
    for text, layers in itertools.product(given.sizes, given.layers):
        batch, seq, features = numbers(text)
        print(
            f"| {text}, {layers} layers, {given.processes} processes | kB | textbook | × textbook |"
        )
        print("|---|---|---|---|")
        for plan in PLANS:
            sent, book = counted(plan, given.processes, batch, seq, features, layers)
            ratio = sent / book if book else math.nan
            print(f"| {plan} | {sent / 1e3:,.0f} | {book / 1e3:,.0f} | {ratio:.2f} |", flush=True)
        print()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

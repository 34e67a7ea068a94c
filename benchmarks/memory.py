"""How much memory and time does a gradient of twelve layers take, kept, recomputed or pulled once?

An encoder of 12 layers, 256 features, 4 heads, 512 hidden. Each candidate has a process of its own:
its peak, beyond what the process held before.

    python benchmarks/memory.py [--size 8x256] [--rounds 3] [--threads 1]
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import numbers, positive
from torch import Tensor, nn
from torch.func import functional_call, grad

import tinyfn
from tinyfn import interop, transforms, tree
from tinyfn.types import Params

LAYERS, FEATURES, HEADS, HIDDEN = 12, 256, 4, 512


def candidates(batch: int, seq: int) -> dict[str, Callable[[], object]]:
    """A gradient by params in each way; the first is the base."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(FEATURES, HEADS, HIDDEN, dropout=0.0, batch_first=True)
    module = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    params, options = interop.from_torch(module)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    leaves = tree.leaves(tree.map(lambda leaf: leaf.requires_grad_(), params))
    detached = tree.map(lambda leaf: leaf.detach(), params)
    x = torch.randn(batch, seq, FEATURES)

    def loss(params: Params, **more: Any) -> Tensor:
        return tinyfn.encoder(params, x, **options, **more).square().mean()

    def kept_inputs(params: Params) -> Tensor:
        return loss(params, remat=True)

    def of_peer(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(module, weights, (x,)).square().mean()

    return {
        "tinyfn, torch.func.grad": lambda: grad(loss)(detached),
        "tinyfn, torch.func.grad, remat": lambda: grad(kept_inputs)(detached),
        "tinyfn, transforms.value_and_grad": lambda: transforms.value_and_grad(loss)(detached),
        "tinyfn, torch.autograd.grad": lambda: torch.autograd.grad(loss(params), leaves),
        "nn.TransformerEncoder, torch.func.grad": lambda: grad(of_peer)(weights),
        "nn.TransformerEncoder, torch.autograd.grad": lambda: torch.autograd.grad(
            of_peer(dict(module.named_parameters())), list(module.parameters())
        ),
    }


def alone(name: str, batch: int, seq: int, rounds: int) -> None:
    """Print the MiB and the seconds of one candidate, in this process."""
    candidates(1, 8)[name]()  # what is imported and set up at a first call
    call = candidates(batch, seq)[name]
    before = _peak()
    call()
    after = _peak()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    print((after - before) / 1024, min(seconds))


def _peak() -> int:
    """KiB this process has held at most; getrusage's counts what its parent held, too."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("memory.py needs VmHWM in /proc/self/status")
    return int(found[1])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=numbers, default=[8, 256], metavar="BATCHxSEQ")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--alone", help="measure this candidate in this process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if len(given.size) != 2:
        parser.error("argument --size: must be two numbers joined by x, such as 8x256")
    batch, seq = given.size
    if given.alone:
        return alone(given.alone, batch, seq, given.rounds)
    print(f"torch {torch.__version__}, {given.threads} thread(s)")
    print(f"| {batch}x{seq} | MiB | × the first | s, least of {given.rounds} | × the first |")
    print("|---|---|---|---|---|")
    base: list[float] = []
    for name in candidates(1, 8):
        command = [sys.executable, __file__, *sys.argv[1:], "--alone", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        memory, seconds = map(float, done.stdout.split())
        base = base or [memory, seconds]
        ratios = memory / base[0], seconds / base[1]
        print(
            f"| {name} | {memory:.0f} | {ratios[0]:.2f} | {seconds:.2f} | {ratios[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

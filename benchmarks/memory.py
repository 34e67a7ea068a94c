"""How much memory and time does a gradient of twelve layers take, kept, recomputed or pulled once?

An encoder of 12 layers, 256 features, 4 heads, 512 hidden. Each candidate has a process of its own.
"Tensors" are the bytes that torch holds at once at most, as its profiler counts them; "process" is
the peak of the process beyond what it held before, with what the C library keeps of freed memory.

    python benchmarks/memory.py [--size 8x256] [--rounds 3] [--threads 1] [--keep-freed]
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import keep_freed, numbers, positive
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.profiler import ProfilerActivity, profile

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


def alone(name: str, batch: int, seq: int, rounds: int, kept: bool) -> None:
    """Print MiB of tensors, MiB of this process and seconds of one candidate."""
    candidates(1, 8)[name]()  # what is imported and set up at a first call
    call = candidates(batch, seq)[name]
    before = _peak()
    call()
    after = _peak()
    if kept:
        keep_freed()
        call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    print(_held(call) / 2**20, (after - before) / 2**10, min(seconds))


def _held(call: Callable[[], object]) -> int:
    """Bytes of tensors that the call made and that were there at once, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [e for e in events if e["name"] == "[memory]"]
    changes.sort(key=lambda e: e["ts"])
    return max(itertools.accumulate(e["args"]["Bytes"] for e in changes))


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
    parser.add_argument("--keep-freed", action="store_true", help=keep_freed.__doc__)
    parser.add_argument("--alone", help="measure this candidate in this process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if len(given.size) != 2:
        parser.error("argument --size: must be two numbers joined by x, such as 8x256")
    batch, seq = given.size
    if given.alone:
        return alone(given.alone, batch, seq, given.rounds, given.keep_freed)
    freed = ", freed memory kept while timed" if given.keep_freed else ""
    print(f"torch {torch.__version__}, {given.threads} thread(s){freed}")
    heads = "MiB of tensors", "MiB of the process", f"s, least of {given.rounds}"
    print(f"| {batch}x{seq} |" + "".join(f" {head} | × the first |" for head in heads))
    print("|---" * 7 + "|")
    base: list[float] = []
    for name in candidates(1, 8):
        command = [sys.executable, __file__, *sys.argv[1:], "--alone", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = [float(number) for number in done.stdout.split()]
        base = base or found
        ratios = [f"{a / b:.2f}" for a, b in zip(found, base, strict=True)]
        tensors, process, seconds = f"{found[0]:.0f}", f"{found[1]:.0f}", f"{found[2]:.2f}"
        cells = name, tensors, ratios[0], process, ratios[1], seconds, ratios[2]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

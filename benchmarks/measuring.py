"""What every benchmark does: interleaved rounds, medians, and ratios within a round."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

Calls = dict[str, Callable[[], object]]
Seconds = dict[str, list[float]]


def begin(question: str | None, rounds: int, sizes: list[str]) -> tuple[int, dict[str, list[int]]]:
    """Read the command line, set the threads and say what is run: the rounds, and each size."""
    parser = argparse.ArgumentParser(description=(question or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="BATCHxSEQ")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} thread(s)"
    precision = torch.get_float32_matmul_precision()
    print(f"{machine}, float32 products: {precision}, {arguments.rounds} rounds")
    return arguments.rounds, {size: [int(n) for n in size.split("x")] for size in arguments.sizes}


def measure(calls: Calls, rounds: int) -> Seconds:
    """Seconds of every candidate in every round; each round begins with another candidate."""
    for call in calls.values():
        call()
    seconds: Seconds = {name: [] for name in calls}
    for turn in range(rounds):
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(question: str, base: str, seconds: Seconds) -> None:
    """Print a row for each candidate: the median, and the median ratio to `base` in its round."""
    print(f"| {question} | median ms | × {base} |\n|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[base], strict=True))
        median = 1000 * statistics.median(times)
        print(f"| {name} | {median:.2f} | {ratio:.2f} |", flush=True)
    print()

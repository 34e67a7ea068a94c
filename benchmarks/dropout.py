"""What does dropout by key cost, as a multiple of F.dropout?

    python benchmarks/dropout.py [--rounds 51] [--elements 1000000]

One thread, eager; rounds are interleaved, the ratio is the median of the ratios within a round.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

import tinyfn
from tinyfn import random


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--elements", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, key = torch.randn(arguments.elements), random.key(0)
    calls: dict[str, Callable[[], object]] = {
        "F.dropout": lambda: F.dropout(x, 0.1, training=True),
        "tinyfn.dropout": lambda: tinyfn.dropout(x, key, dropout_p=0.1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(arguments.rounds + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - start)
    print(f"torch {torch.__version__}, 1 thread, {arguments.elements} float32 elements")
    print("| candidate | median ms | × F.dropout |")
    print("|---|---|---|")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["F.dropout"], strict=True)]
        median = 1000 * statistics.median(times)
        print(f"| {name} | {median:.2f} | {statistics.median(ratios):.2f} |")


if __name__ == "__main__":
    main()

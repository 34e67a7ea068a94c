"""What does dropout by key cost, as a multiple of F.dropout?

    python benchmarks/dropout.py [--rounds 51] [--elements 1000000]

One thread, eager; rounds are interleaved, the ratio is the median of the ratios within a round.
"""

import argparse

import torch
from measuring import Calls, measure, report
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
    calls: Calls = {
        "F.dropout": lambda: F.dropout(x, 0.1, training=True),
        "tinyfn.dropout": lambda: tinyfn.dropout(x, key, dropout_p=0.1),
    }
    print(f"torch {torch.__version__}, 1 thread")
    seconds = measure(calls, arguments.rounds)
    report(f"{arguments.elements} float32 elements", "F.dropout", seconds)


if __name__ == "__main__":
    main()

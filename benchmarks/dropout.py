"""What does dropout by key cost, as a multiple of F.dropout?

Float32, eager, keep nine of ten.

    python benchmarks/dropout.py [--rounds 51] [--sizes 1000000]
"""

import torch
from measuring import Questions, run
from torch.nn import functional as F

import tinyfn
from tinyfn import random


def candidates(elements: int) -> Questions:
    """Calls of both on float32 elements."""
    x, key = torch.randn(elements), random.key(0)
    return {
        "": {
            "F.dropout": lambda: F.dropout(x, 0.1, training=True),
            "tinyfn.dropout": lambda: tinyfn.dropout(x, key, dropout_p=0.1),
        }
    }


if __name__ == "__main__":
    run(__doc__, candidates, rounds=51, sizes=["1000000"])

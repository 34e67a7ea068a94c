"""A short version of every benchmark, by pytest-benchmark.

    pytest benchmarks -o addopts=--import-mode=importlib

leaves out the shape checks of the tests, which cost more than what is measured. Compare two states
of the code with `--benchmark-autosave` and `--benchmark-compare`. A plain `pytest benchmarks` runs
each candidate once, checked and not timed.
"""

import importlib
import warnings
from collections.abc import Iterator

import pytest
import torch
from measuring import chosen

SIZES = {
    "attention": (128,),
    "decoding": (2, 8),
    "dropout": (100_000,),
    "ensemble": (16,),
    "forward_mode": (2, 8),
    "layer_norm": (64, 16),
    "per_sample": (4, 8),
    "seed_model": (1, 22, 1),
    "tiny_layer": (1, 8),
}


def _short() -> Iterator[object]:
    for name, size in SIZES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peers' own
            questions = importlib.import_module(name).candidates(*size)
        for question, calls in questions.items():
            for candidate, call in chosen(calls).items():
                yield pytest.param(call, id=", ".join(filter(None, (name, question, candidate))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", list(_short()))
def test_short(call, benchmark):
    torch.set_num_threads(1)
    benchmark(call)

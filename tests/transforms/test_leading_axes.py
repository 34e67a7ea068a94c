"""f(batch) is the batch of f, with any number of leading axes."""

import pytest
import torch

from cases import CASES
from tinyfn import testing

BATCHED = [case for case in CASES if case.batched]


@pytest.mark.parametrize("case", BATCHED, ids=lambda case: case.name)
def test_a_batch_is_a_batch_of_results(case):
    args = list(case.args())
    for position in case.batched:
        x = args[position]
        other = x.flip(-1) if not x.is_floating_point() else x.flip(-1) * 0.7 - 0.1
        args[position] = torch.stack([x, other, x])
    in_dims = [0 if position in case.batched else None for position in range(len(args))]
    testing.check_leading_axes(case.f, *args, in_dims=in_dims)

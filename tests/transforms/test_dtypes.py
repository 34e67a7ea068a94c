"""float32 and bfloat16 give the float64 answer to their own precision, in their own dtype."""

import pytest
import torch
from torch.utils import _pytree as pytree

from cases import CASES

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 0.1}


def to(dtype, values):
    return pytree.tree_map(
        lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x,
        values,
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_dtype_stays_and_is_as_right_as_it_can_be(case, dtype):
    if case.name.startswith("tree.stack") or "dropout" in case.name or "other_parts" in case.name:
        args = case.args()  # cast to a dtype, or dropped elements: the same, but by other chances
        outputs = pytree.tree_leaves(case.f(*to(dtype, args)))
        assert all(y.isfinite().all() for y in outputs)
        return
    args = case.args()
    expected = pytree.tree_leaves(case.f(*args))
    actual = pytree.tree_leaves(case.f(*to(dtype, args)))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.to(e), e, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])

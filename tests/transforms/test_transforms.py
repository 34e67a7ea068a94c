"""Every public function under every transform, in float64 against finite differences."""

import pytest

from cases import CASES
from tinyfn import testing


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_closed_under_every_transform(case):
    testing.check_transforms(case.f, *case.args())

"""Transforms of functions that torch.func does not have, closed under those that it has.

`remat` is a function that computes again what its derivative needs; `value_and_grad` is
torch.func.grad_and_value without a graph of its backward; `per_sample_grad_norms` are the norms of
what vmap(grad) gives, without that.
"""

from tinyfn.transforms._per_sample import per_sample_grad_norms as per_sample_grad_norms
from tinyfn.transforms._remat import remat as remat
from tinyfn.transforms._value_and_grad import value_and_grad as value_and_grad

"""A kit for tests of your own functions: strategies that draw inputs, laws that hold you to them.

A law takes any function that you composed, and raises AssertionError with what went wrong:

    check_transforms      everything below that needs no more than the function, as a table
    check_vmap            mapping is looping, in every position and nested
    check_leading_axes    f(batch) is the batch of f
    check_derivatives     every mode to the third order, against finite differences
    check_causal          the output at t ignores what follows
    check_masked_values_cannot_matter
    check_permutation_equivariant, check_permutation_invariant
    check_decoding        a token at a time is all at once
    check_pure            arguments, generators, flags and memory are left alone

Strategies draw structure (sizes, axes, masks) and derive the numbers from a drawn seed. They need
hypothesis: `pip install tinyfn[test]`.
"""

from tinyfn.testing._batching import check_leading_axes as check_leading_axes
from tinyfn.testing._batching import check_vmap as check_vmap
from tinyfn.testing._decoding import check_decoding as check_decoding
from tinyfn.testing._derivatives import check_derivatives as check_derivatives
from tinyfn.testing._independence import check_causal as check_causal
from tinyfn.testing._independence import (
    check_masked_values_cannot_matter as check_masked_values_cannot_matter,
)
from tinyfn.testing._purity import check_pure as check_pure
from tinyfn.testing._strategies import AttentionInputs as AttentionInputs
from tinyfn.testing._strategies import attention_inputs as attention_inputs
from tinyfn.testing._strategies import keys as keys
from tinyfn.testing._strategies import masks as masks
from tinyfn.testing._strategies import params as params
from tinyfn.testing._strategies import shapes as shapes
from tinyfn.testing._symmetry import check_permutation_equivariant as check_permutation_equivariant
from tinyfn.testing._symmetry import check_permutation_invariant as check_permutation_invariant
from tinyfn.testing._transforms import check_transforms as check_transforms

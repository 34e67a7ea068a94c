"""Losses against torch's own, and what padding may not do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import tinyfn
from tinyfn import random

F64 = {"dtype": torch.float64}


@given(
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.integers(0, 99),
)
def test_cross_entropy_is_torchs(axes, vocab, smoothing, seed):
    keys = random.split(random.key(seed), 3)
    logits = 3 * random.normal(keys[0], (*axes, vocab), **F64)
    targets = (random.uniform(keys[1], tuple(axes)) * vocab).long()
    real = random.bernoulli(keys[2], 0.7, tuple(axes))
    expected = F.cross_entropy(
        logits.reshape(-1, vocab), targets.reshape(-1), reduction="none", label_smoothing=smoothing
    ).reshape(axes)
    actual = tinyfn.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(actual, expected)
    # What stands at padding may be anything.
    logits = torch.where(real[..., None], logits, torch.nan)
    targets = torch.where(real, targets, -100)
    actual = tinyfn.cross_entropy(logits, targets, real, label_smoothing=smoothing)
    torch.testing.assert_close(actual, torch.where(real, expected, 0.0))
    gradient = torch.func.grad(
        lambda x: tinyfn.cross_entropy(x, targets, real, label_smoothing=smoothing).sum()
    )(logits)
    assert gradient.isfinite().all()
    assert (gradient[~real] == 0).all()


def test_z_loss_is_the_square_of_the_logarithm_of_the_sum():
    logits, targets = random.normal(random.key(0), (3, 4), **F64), torch.tensor([0, 3, 1])
    extra = tinyfn.cross_entropy(logits, targets, z_loss=0.5) - tinyfn.cross_entropy(
        logits, targets
    )
    torch.testing.assert_close(extra, 0.5 * logits.exp().sum(-1).log() ** 2)


def test_perplexity_counts_what_is_real():
    logits, targets = random.normal(random.key(0), (2, 3, 4), **F64), torch.tensor([[0, 3, 1]] * 2)
    real = torch.tensor([[True, True, False], [False, False, False]])
    first = F.cross_entropy(logits[0, :2], targets[0, :2]).exp()
    actual = tinyfn.perplexity(logits, targets, real)
    torch.testing.assert_close(actual, torch.stack([first, torch.ones((), **F64)]))
    whole = F.cross_entropy(logits[1], targets[1]).exp()
    torch.testing.assert_close(tinyfn.perplexity(logits, targets)[1], whole)


def test_large_logits_stay_finite():
    logits = torch.tensor([1e30, 0.0])
    assert tinyfn.cross_entropy(logits, torch.tensor(0)) == 0
    assert tinyfn.cross_entropy(logits, torch.tensor(1)) == 1e30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_small_loss(dtype):
    logits = (20 + random.normal(random.key(0), (50, 8))).to(dtype)
    logits[:, 3] += 8
    targets = torch.full((50,), 3)
    expected = tinyfn.cross_entropy(logits.double(), targets)
    actual = tinyfn.cross_entropy(logits, targets)
    assert actual.dtype == dtype
    torch.testing.assert_close(
        actual.double(), expected, atol=1e-6, rtol=2 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (
            (torch.zeros(2, 3), torch.zeros(3).long()),
            {},
            ValueError,
            r"cross_entropy: targets must have the logits' axes but the last, \(2,\), got shape",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2)),
            {},
            TypeError,
            r"cross_entropy: targets must be an integer tensor, got a float32 tensor\. ",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2).long(), torch.ones(2)),
            {},
            TypeError,
            r"cross_entropy: real must be a bool tensor, got a float32 tensor\. A mask",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2).long()),
            {"label_smoothing": 1.0},
            ValueError,
            r"cross_entropy: label_smoothing must be in \[0, 1\), got 1\.0\. ",
        ),
    ],
)
def test_errors(unchecked, arguments, options, error, match):
    with pytest.raises(error, match=match):
        tinyfn.cross_entropy(*arguments, **options)


def test_perplexity_needs_a_text(unchecked):
    with pytest.raises(ValueError, match=r"perplexity: targets must have shape \(\.\.\., seq\)"):
        tinyfn.perplexity(torch.zeros(3), torch.tensor(1))

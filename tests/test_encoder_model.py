"""A few numbers for a whole sequence."""

import pytest
import torch
from torch.nn import functional as F

import tinyfn
from tinyfn import masks, random, testing

SIZES = (8, 2, 12, 1, 3)


def test_it_is_an_encoder_a_pool_and_a_linear_map():
    params = tinyfn.init_encoder_model(random.key(0), *SIZES, vocab_size=6, pooler=True)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 0]])
    x = tinyfn.encoder(params["encoder"], tokens, activation=F.gelu)
    expected = tinyfn.linear(params["linear"], torch.tanh(tinyfn.linear(params["pooler"], x[:, 0])))
    actual = tinyfn.encoder_model(params, tokens, position=None, activation=F.gelu)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("pool", [tinyfn.first_pool, tinyfn.mean_pool])
def test_padding_cannot_matter(pool):
    params = tinyfn.init_encoder_model(random.key(0), *SIZES, in_features=4, dtype=torch.float64)
    x = random.normal(random.key(1), (5, 4), dtype=torch.float64)
    testing.check_masked_values_cannot_matter(
        lambda x: tinyfn.encoder_model(params, x, masks.padding(3), pool=pool),
        x,
        hidden=torch.arange(5) >= 3,
        gradients=False,  # a padded position is a query too, and NaN there is in its own row
    )
    alone = tinyfn.encoder_model(params, x[:3], pool=pool)
    together = tinyfn.encoder_model(params, x, masks.padding(3), pool=pool)
    torch.testing.assert_close(together, alone)


def test_a_mean_of_what_is_seen():
    x = torch.arange(12.0).reshape(2, 3, 2)
    lengths = torch.tensor([2, 0])
    expected = torch.stack([x[0, :2].mean(0), torch.zeros(2)])
    torch.testing.assert_close(tinyfn.mean_pool(x, masks.padding(lengths)), expected)
    torch.testing.assert_close(tinyfn.mean_pool(x), x.mean(1))
    by_head = torch.tensor([[[True, False, False]], [[False, True, False]]])  # (heads 1 seq)
    torch.testing.assert_close(tinyfn.mean_pool(x[0], by_head), x[0, :2].mean(0))


def test_a_pool_without_positions_is_refused(unchecked):
    for pool in (tinyfn.first_pool, tinyfn.mean_pool):
        with pytest.raises(ValueError, match=r"_pool: the length of x must be at least 1, got 0"):
            pool(torch.zeros(2, 0, 4))


def test_a_mask_of_other_rows_is_refused(unchecked):
    x, real = torch.zeros(3, 6, 4), torch.ones(3, 6, dtype=torch.bool)
    for mask in (real, real[:2], torch.ones(3, 5, 6, dtype=torch.bool)):
        with pytest.raises(
            ValueError, match=r"mean_pool: mask must broadcast to \(\.\.\., heads, s"
        ):
            tinyfn.mean_pool(x, mask)


def test_params_are_checked(unchecked):
    with pytest.raises(ValueError, match=r"init_encoder_model: out_features must be at least 1"):
        tinyfn.init_encoder_model(random.key(0), 8, 2, 12, 1, 0)
    with pytest.raises(ValueError, match=r"encoder_model: params must have 'encoder', got \[\]"):
        tinyfn.encoder_model({}, torch.ones(2, 8))

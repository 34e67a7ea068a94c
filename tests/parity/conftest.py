"""What tests against transformers stand on."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


@contextmanager
def _in_double() -> Iterator[None]:
    default = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@pytest.fixture
def in_double() -> Callable[[], AbstractContextManager[None]]:
    """Where transformers says float32, as in its norms and angles, it computes in float64."""
    return _in_double


@pytest.fixture
def name_of_cache() -> Callable[[torch.nn.Module], str]:
    """What a model's forward and output call the cache: releases of transformers differ."""

    def found(model: torch.nn.Module) -> str:
        taken = inspect.signature(model.forward).parameters
        return "cache" if "cache" in taken else "past_key_values"

    return found

"""Positions as numbers: from an offset on, as exact as the device has it."""

import torch
from jaxtyping import Integer
from torch import Tensor

Offset = int | Integer[Tensor, "..."]


def counted(seq: int, offset: Offset, device: torch.device | str | None) -> Tensor:
    """The positions from an offset on, (... seq)."""
    if not isinstance(offset, Tensor):
        return torch.arange(offset, offset + seq, device=device)
    return torch.arange(seq, device=device) + offset.unsqueeze(-1)


def exact_dtype(device: torch.device | str | None) -> torch.dtype:
    """Float64 where the device has it."""
    return torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64

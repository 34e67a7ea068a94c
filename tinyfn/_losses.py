"""What training makes small: a number for each target, 0 where it is padding.

    cross_entropy   -log softmax(logits)[target]
    perplexity      exp of its mean over a text

Nothing branches on targets and nothing is picked out by a mask, so both are closed under vmap.
"""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tinyfn import _checks


def cross_entropy(
    logits: Float[Tensor, "... vocab"],
    targets: Integer[Tensor, "..."],
    real: Bool[Tensor, "..."] | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Float[Tensor, "..."]:
    """How surprised the logits are by each target, in nats.

    The mean over what is real is `losses.sum() / real.sum()`.

    Args:
        logits: Unnormalised log chances.
        targets: The index of what came, for each row of logits. Padding is told by `real`, not by
            an index such as torch's -100.
        real: False where a target is padding: its loss is 0, whatever stands there, and so is its
            gradient. Such a mask is `masks.padding(lengths).dense(1, seq)[..., 0, :]`.
        label_smoothing: The share of each target that is spread evenly over the vocabulary.
        z_loss: The weight of log² of the softmax's sum, which keeps logits from drifting.

    Raises:
        ValueError: The shapes do not fit, or label_smoothing is not in [0, 1).
        TypeError: `targets` are not integers, or `real` is not bool.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, 3]), torch.tensor([True, False]))
        tensor([1.3863, 0.0000])

    Reference: Szegedy et al., 2015, arXiv 1512.00567 (label smoothing); Chowdhery et al., "PaLM",
    2022, arXiv 2204.02311, section 5 (z-loss).
    """
    name = "cross_entropy"
    _check(name, logits, targets, real)
    _checks.probability(name, "label_smoothing", label_smoothing)
    if real is not None:  # what stands at padding may be anything, -1 and NaN too
        logits = torch.where(real.unsqueeze(-1), logits, 0.0)
        targets = torch.where(real, targets, 0)
    dtype = logits.dtype
    logits = logits.to(torch.promote_types(dtype, torch.float32))
    total = logits.logsumexp(-1)
    target = logits.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * logits.mean(-1)
    losses = total - target
    if z_loss:
        losses = losses + z_loss * total.square()
    return (losses if real is None else torch.where(real, losses, 0.0)).to(dtype)


def perplexity(
    logits: Float[Tensor, "... seq vocab"],
    targets: Integer[Tensor, "... seq"],
    real: Bool[Tensor, "... seq"] | None = None,
) -> Float[Tensor, "..."]:
    """Of how many equally likely tokens each text seems to be drawn: exp of its mean loss.

    Args:
        logits: Unnormalised log chances of each target.
        targets: What came.
        real: False where a target is padding. A text of nothing else has perplexity 1.

    Raises:
        ValueError: The shapes do not fit.
        TypeError: `targets` are not integers, or `real` is not bool.

    Example:
        >>> perplexity(torch.zeros(3, 4), torch.tensor([1, 3, 0]))
        tensor(4.)
    """
    _check("perplexity", logits, targets, real)
    _checks.axes("perplexity", "targets", targets, "seq")
    losses = cross_entropy(logits, targets, real)
    if real is None:
        return losses.mean(-1).exp()
    return (losses.sum(-1) / real.sum(-1).clamp(min=1)).exp()


def _check(name: str, logits: Tensor, targets: Tensor, real: Tensor | None) -> None:
    _checks.floating(name, "logits", logits)
    _checks.axes(name, "logits", logits, "vocab")
    _checks.integers(name, "targets", targets)
    rows = tuple(logits.shape[:-1])
    if real is not None and (not isinstance(real, Tensor) or real.dtype != torch.bool):
        remedy = "A mask gives one by mask.dense(1, seq)[..., 0, :]"
        kind = _checks.kind_of(real)
        raise _checks.fail(TypeError, name, "real", "be a bool tensor", kind, remedy)
    for argument, x in (("targets", targets), ("real", real)):
        if x is not None and tuple(x.shape) != rows:
            remedy = "Give each row of logits one of them"
            requirement = f"have the logits' axes but the last, {rows}"
            raise _checks.fail(ValueError, name, argument, requirement, _checks.shape(x), remedy)

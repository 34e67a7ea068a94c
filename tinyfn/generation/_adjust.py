"""What may follow: functions of logits and of the text so far, and how they are joined."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from tinyfn import _checks

Adjust: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`adjust(logits, history)`: logits (... vocab) after tokens (... seq), -1 behind the last of them.

The last stands at `(history >= 0).sum(-1) - 1`.
"""


def chain(*adjusts: Adjust) -> Adjust:
    """The functions of logits one after the other, the first first.

    Example:
        >>> chain(top_k(1), temperature(0.5))(torch.tensor([1.0, 2.0]), torch.tensor([0]))
        tensor([-inf, 4.])
    """

    def chained(logits: Tensor, history: Tensor) -> Tensor:
        for adjust in adjusts:
            logits = adjust(logits, history)
        return logits

    return chained


def temperature(value: float) -> Adjust:
    """Logits divided by a number: below 1 the likely becomes likelier.

    Raises:
        ValueError: `value` is not above 0, or infinite.

    Example:
        >>> temperature(0.5)(torch.tensor([1.0, 2.0]), torch.tensor([0]))
        tensor([2., 4.])
    """
    if not 0 < value < math.inf:
        remedy = "The likeliest token alone is what greedy takes"
        name = "generation.temperature"
        raise _checks.fail(ValueError, name, "value", "be above 0 and finite", value, remedy)
    return lambda logits, history: logits / value


def top_k(k: int) -> Adjust:
    """Only the k likeliest tokens; those that tie with the last of them too.

    Raises:
        ValueError: `k` is below 1.

    Example:
        >>> top_k(2)(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0]))
        tensor([-inf, 3., 2.])

    Reference: Fan, Lewis and Dauphin, 2018, arXiv 1805.04833.
    """
    _checks.at_least("generation.top_k", "k", k)

    def cut(logits: Tensor, history: Tensor) -> Tensor:
        least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
        return torch.where(logits >= least, logits, -torch.inf)

    return cut


def top_p(p: float) -> Adjust:
    """Only the likeliest tokens that together have a chance of p; one at least.

    Raises:
        ValueError: `p` is not in (0, 1].

    Example:
        >>> top_p(0.6)(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0])).exp()
        tensor([0.5000, 0.3000, 0.0000])

    Reference: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019,
    arXiv 1904.09751.
    """
    _check_share("generation.top_p", p)

    def cut(logits: Tensor, history: Tensor) -> Tensor:
        ordered, order = logits.sort(dim=-1, descending=True)
        exact = torch.promote_types(logits.dtype, torch.float32)
        chances = ordered.softmax(-1, dtype=exact)
        likelier = chances.cumsum(-1) - chances  # of those before each
        kept = torch.where((likelier < p) | (p == 1), ordered, -torch.inf)
        return torch.empty_like(logits).scatter(-1, order, kept)

    return cut


def min_p(p: float) -> Adjust:
    """Only tokens at least p times as likely as the likeliest.

    Raises:
        ValueError: `p` is not in (0, 1].

    Example:
        >>> min_p(0.5)(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0])).exp()
        tensor([0.5000, 0.3000, 0.0000])

    Reference: Nguyen et al., "Turning Up the Heat", 2024, arXiv 2407.01082.
    """
    _check_share("generation.min_p", p)

    def cut(logits: Tensor, history: Tensor) -> Tensor:
        least = logits.amax(-1, keepdim=True) + math.log(p)
        return torch.where(logits >= least, logits, -torch.inf)

    return cut


def _check_share(name: str, p: float) -> None:
    if not 0 < p <= 1:
        raise _checks.fail(ValueError, name, "p", "be in (0, 1]", p, "It is a share of the chance")


def repetition_penalty(penalty: float) -> Adjust:
    """Logits of tokens that were there already, divided by the penalty if positive, else times it.

    Raises:
        ValueError: `penalty` is not above 0.

    Example:
        >>> repetition_penalty(2.0)(torch.tensor([4.0, 4.0, -4.0]), torch.tensor([0, 2, -1]))
        tensor([ 2., 4., -8.])

    Reference: Keskar et al., "CTRL", 2019, arXiv 1909.05858.
    """
    if not penalty > 0:
        name = "generation.repetition_penalty"
        raise _checks.fail(ValueError, name, "penalty", "be above 0", penalty, "1 changes nothing")

    def lessen(logits: Tensor, history: Tensor) -> Tensor:
        spare = torch.zeros_like(logits[..., :1])  # where the tokens go that are none
        index = torch.where(history < 0, logits.shape[-1], history)
        seen = torch.cat([torch.zeros_like(logits), spare], -1)
        seen = seen.scatter(-1, index, torch.ones_like(index, dtype=logits.dtype))[..., :-1]
        lessened = torch.where(logits > 0, logits / penalty, logits * penalty)
        return torch.where(seen > 0, lessened, logits)

    return lessen

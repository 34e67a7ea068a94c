"""What does attention alone cost, as a multiple of F.scaled_dot_product_attention?

Forward and backward, causal and padded, of 4 heads of 64 features and 4 samples; and a gradient for
every sample, which torch's own, seeing no batch axis, computes written out (with one, it loops).

    python benchmarks/attention.py [--rounds 9] [--threads 1] [--sizes 128 512 2048]
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import Calls, Questions, run
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

import tinyfn
from tinyfn import masks

BATCH, HEADS, HEAD_DIM = 4, 4, 64


def candidates(seq: int) -> Questions:
    """Calls for each mask, by autograd and by vmap(grad)."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(BATCH, HEADS, seq, HEAD_DIM, requires_grad=True) for _ in range(3))
    detached = tuple(x.detach() for x in (q, k, v))
    lengths = torch.linspace(seq // 2, seq, BATCH).long()
    padding = masks.padding(lengths)
    visible = padding.dense(seq, seq).unsqueeze(1)

    def by_autograd(attend: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(q, k, v).sin().mean(), (q, k, v))

    def by_vmap(attend: Callable[..., Tensor]) -> Callable[[], object]:
        per_sample = vmap(grad(lambda *xs: attend(*xs).sin().mean(), (0, 1, 2)))

        def timed() -> object:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return per_sample(*detached)

        return timed

    def calls(way: Callable[..., Callable[[], object]], peer: Any, mask: Any) -> Calls:
        own = (tinyfn.dot_product_attention, tinyfn.explicit_attention)
        named = {f"tinyfn.{f.__name__}": way(partial(f, mask=mask)) for f in own}
        return {"F.scaled_dot_product_attention": way(peer), **named}

    sdpa = F.scaled_dot_product_attention
    causal = partial(sdpa, is_causal=True)
    return {
        "causal": calls(by_autograd, causal, masks.causal()),
        "padded": calls(by_autograd, partial(sdpa, attn_mask=visible), padding),
        "causal, vmap(grad)": calls(by_vmap, causal, masks.causal()),
    }


if __name__ == "__main__":
    run(__doc__, candidates, rounds=9, sizes=["128", "512", "2048"])

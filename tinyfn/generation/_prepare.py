"""Params made ready for many steps: each step compiled, and the weights laid out for it."""

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from tinyfn import _checks, masks, tree
from tinyfn._cache import Cache, Known, extend, model_part, put
from tinyfn.types import Params

_LAY_OUT = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
_BLOCK = 32  # By so many positions a cache grows: a step reads all of it, a new size copies it.


class Prepared:
    """Params with a compiled step, which generation takes in place of params. Made by `prepare`.

    Attributes:
        params: Those it was made of.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> prepare(params).params is params
        True
    """

    def __init__(self, params: Params, leaves: dict[str, Tensor]) -> None:
        """See the class."""
        from torch._inductor import config  # slow to import

        self.params = params
        self._versions = {name: (leaf, _version(leaf)) for name, leaf in leaves.items()}
        self._step = torch.compile(_Step(leaves), backend=_compile)
        on_cpu = all(leaf.device.type == "cpu" for leaf in leaves.values())
        # Both halves of the compiler read it; an option of torch.compile reaches one.
        self._laid_out = partial(config.patch, _LAY_OUT if on_cpu else {})

    def checked(self, function: str) -> "Prepared":
        """Itself, or an error where params were changed in their place, unseen by the step."""
        for name, (leaf, version) in self._versions.items():
            if _version(leaf) != version:
                requirement = "be as they were when prepared"
                remedy = "Call generation.prepare again"
                actual = f"{name!r} with other numbers"
                raise _checks.fail(ValueError, function, "params", requirement, actual, remedy)
        return self

    def step(
        self,
        cache: Cache,
        tokens: Tensor,
        self_mask: masks.Mask,
        cross_mask: masks.Mask | Tensor | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, Cache]:
        """The logits after one token more, for who owns the cache: the step writes into it."""
        for kept in (*cache.k, *cache.v):
            torch._dynamo.maybe_mark_dynamic(kept, kept.ndim - 2)
        with self._laid_out():
            logits, position = self._step(cache, tokens, self_mask, cross_mask, options)
        return logits, cache._replace(position=position)


def _version(leaf: Tensor) -> int:
    """How often a tensor was written to; torch does not count that of inference mode's."""
    return 0 if leaf.is_inference() else leaf._version


def prepare(params: Params) -> Prepared:
    """Params for `greedy`, `sample`, `stream` and `beam_search` whose steps are compiled.

    The first step of each batch size and each set of options takes long, half a minute for a model
    of six layers. On a CPU the compiler lays out the weights for products of few rows, tries which
    product is the quickest, and writes to stderr what it tried. Tokens are those of the params up
    to rounding: sums go in another order. Under a transform, and within `torch.compile`, the params
    are taken as they are.

    Args:
        params: Of `language_model` or `transformer`. To generate after a change in their place, as
            an optimiser makes it, is an error: prepare them again.

    Raises:
        ValueError: `params` has no decoder.
        TypeError: `params` is not a dict, or a leaf is not a plain tensor.

    Example:
        >>> from tinyfn import init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> ready = prepare(params)  # generation.greedy(ready, prompt, max_len=20)

    Reference: Ansel et al., "PyTorch 2: Faster machine learning through dynamic Python bytecode
    transformation and graph compilation", 2024.
    """
    name = "generation.prepare"
    model_part(name, params, "decoder")
    leaves = tree.flatten(params)
    for leaf_name, leaf in leaves.items():
        if type(leaf) not in (Tensor, nn.Parameter):
            actual, remedy = _checks.kind_of(leaf), "Steps of other tensors are not compiled"
            raise _checks.fail(TypeError, name, leaf_name, "be a plain tensor", actual, remedy)
    return Prepared(params, leaves)


class _Step(nn.Module):
    """A module, for its parameters are what a compiler takes for constants."""

    def __init__(self, leaves: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = list(leaves)
        fixed = (nn.Parameter(leaf.detach(), requires_grad=False) for leaf in leaves.values())
        self.leaves = nn.ParameterList(fixed)

    def forward(
        self,
        cache: Cache,
        tokens: Tensor,
        self_mask: masks.Mask,
        cross_mask: masks.Mask | Tensor | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        params = tree.unflatten(dict(zip(self.names, self.leaves, strict=True)))
        known = Known(partial(put, write=Tensor.index_put_))
        given = (cache, tokens, None, self_mask, cross_mask, known)
        logits, cache = extend("generation.prepare", params, *given, **options)
        return logits, cache.position


def _compile(graph: fx.GraphModule, inputs: list[Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of its own use of torch
        from torch import _inductor

        return _inductor.compile(graph, inputs)


def with_room(cache: Cache, num: int, capacity: int) -> Cache:
    """The cache with room for as many positions, and a block at most beyond, up to a capacity.

    Example:
        >>> from tinyfn import init_cache, init_language_model, random
        >>> params = init_language_model(random.key(0), 8, 2, 16, num_layers=1, vocab_size=10)
        >>> with_room(init_cache(params, capacity=5), 6, 100).k[0].shape
        torch.Size([2, 32, 4])
    """
    more = room(num, capacity) - cache.k[0].shape[-2] if cache.k else 0
    if more <= 0:
        return cache

    def grown(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(*x.shape[:-2], more, x.shape[-1])], -2)

    return cache._replace(k=[grown(x) for x in cache.k], v=[grown(x) for x in cache.v])


def room(num: int, capacity: int) -> int:
    """The capacity to have for as many positions.

    Example:
        >>> room(33, 1000), room(33, 40)
        (64, 40)
    """
    return min(-(-num // _BLOCK) * _BLOCK, capacity)

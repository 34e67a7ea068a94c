"""The norms of per-sample gradients, without those gradients.

The gradient of a weight in y = x Wᵀ is Σ gᵗ xᵗ over the positions t, where g is the gradient of y.
Its squared norm is Σ (gˢ·gᵗ)(xˢ·xᵗ): products between positions, and nothing of the weight's size.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree

from tinyfn import _checks, _levels
from tinyfn.types import Params

Dims: TypeAlias = int | tuple[int | None, ...]


def per_sample_grad_norms(
    f: Callable[..., Tensor], in_dims: Dims = 0
) -> Callable[..., Float[Tensor, "samples"]]:
    """The norm of the gradient of every sample by the params, over all of them together.

    The numbers are those of `vmap(grad(f))` and a norm of what that gives. Gradients of matrices
    that are used in linear maps and embeddings, which is where the memory goes, are not made; all
    others are. So it holds for any `f`, and pays for one that is composed of this library's
    functions, on sequences that are short beside the width of its layers. Where the gradients of
    many positions cancel, half of the digits of the sum may go. Where the norms are followed
    themselves, `f` runs for one sample before it runs for all. It may not change in place what it
    has multiplied.

    Args:
        f: A function of (params, *args) to one number, the loss of one sample.
        in_dims: The axis of the samples in all of `args`, or in each, None where it has none.

    Returns:
        A function of (params, *args), args with all samples, to their norms.

    Raises:
        ValueError: `f` does not give one number, calls other functions for one sample than for
            another, or there are no params.

    Example:
        >>> from tinyfn import init_linear, linear, random
        >>> def loss(params, x):
        ...     return linear(params, x).sum()
        >>> params, xs = init_linear(random.key(0), 3, 2), torch.ones(4, 5, 3)
        >>> norms = per_sample_grad_norms(loss)(params, xs)
        >>> norms
        tensor([14.1421, 14.1421, 14.1421, 14.1421])
        >>> def clipped(params):  # each to norm 1, and summed, as in private training
        ...     return torch.vmap(loss, (None, 0))(params, xs) @ (1 / norms).clamp(max=1)
        >>> torch.func.grad(clipped)(params)["bias"]
        tensor([1.4142, 1.4142])

    Reference: Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv 1510.01799;
    Li, Tramèr, Liang and Hashimoto, 2021, arXiv 2110.05679, for sequences.
    """

    def norms(params: Params, *args: Any) -> Tensor:
        leaves, spec = _pytree.tree_flatten(params)
        if not leaves:
            remedy = "Pass what f is to be differentiated by"
            raise _checks.fail(
                ValueError, "per_sample_grad_norms", "params", "have a tensor", "none", remedy
            )
        squared = _at_once(f, spec, leaves, in_dims, args)
        if squared is None:
            plan = _Plan(spec, leaves, _noted(f, spec, leaves, in_dims, args))
            squared = torch.vmap(lambda *sample: _squared_norm(f, plan, sample), in_dims)(*args)
        zero = squared <= 0.0  # where the root has no derivative; NaN stays NaN
        return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt()).to(leaves[0].dtype)

    return norms


class _Use(NamedTuple):
    """A call that reads a matrix, a vector, or both: of which leaves, and what comes out."""

    matrix: int | None
    vector: int | None
    by_row: bool
    """Whether rows are looked up, in place of multiplied."""
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class _Plan(NamedTuple):
    """The params, and the uses of those whose gradients are not made, in the order of calls."""

    spec: Any
    leaves: list[Tensor]
    uses: list[_Use]

    @property
    def named(self) -> set[int]:
        """The leaves whose gradients are not made."""
        return {i for use in self.uses for i in (use.matrix, use.vector) if i is not None}


class _Tape:
    """Notes how leaves are used, and adds to what each use gives the next of `added`."""

    def __init__(self, added: Sequence[Tensor] = ()) -> None:
        self.depth = _levels.depth()
        self.added = iter(added)
        self.uses: list[_Use] = []
        self.read: list[Tensor] = []
        self.shapes: dict[int, set[torch.Size]] = {}
        self.otherwise: set[int] = set()

    def call(self, function: Callable[..., Any], args: Sequence[Any], options: Any) -> Any:
        if _levels.depth() == self.depth:
            if function in _VIEWS and isinstance(args[0], _Leaf):
                views = (function(x, *args[1:], **options) for x in (args[0].value, args[0].own))
                return _leaf(self, args[0].index, *views)
            if function is F.linear:
                x, weight, bias = _bound(*args, **options)
                if not isinstance(x, _Leaf) and _is_affine(_value(weight), _value(bias)):
                    return self.use(weight, bias, False, x, F.linear(x, _value(weight)))
            if function is Tensor.__getitem__ and _looks_up(*args):
                rows, tokens = args[0].value, args[1]
                return self.use(args[0], None, True, tokens % len(rows), rows[tokens])
        given = [x for x in _pytree.tree_leaves((args, options)) if isinstance(x, Tensor)]
        args, options = _pytree.tree_map(_own, (args, options))
        result = function(*args, **options)
        # Whoever asks a leaf for its shape or the like gives nothing else, and gets no tensor.
        if len(given) > 1 or any(isinstance(x, Tensor) for x in _pytree.tree_leaves(result)):
            self.otherwise |= {x.index for x in given if isinstance(x, _Leaf)}
        return result

    def use(
        self, matrix: Tensor, vector: Tensor | None, by_row: bool, read: Tensor, result: Tensor
    ) -> Tensor:
        by, to = (x.index if isinstance(x, _Leaf) else None for x in (matrix, vector))
        for x in (matrix, vector):
            if isinstance(x, _Leaf):
                self.shapes.setdefault(x.index, set()).add(x.value.shape)
        self.uses.append(_Use(by, to, by_row, result.shape, result.dtype, result.device))
        self.read.append(read)
        terms = [term for term in (_value(vector), next(self.added, None)) if term is not None]
        # The terms first: mostly they have no axis of samples, and only one sum has.
        return result + sum(terms[1:], terms[0]).to(result.dtype) if terms else result


class _Leaf(Tensor):
    """Stands for a leaf of params, and tells a tape what is done with it."""

    value: Tensor
    own: Tensor
    """The same for each sample by itself, for whoever uses it in another way."""
    index: int
    tape: _Tape

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of `func`."""
        leaves = _pytree.tree_leaves((args, kwargs))
        tape = next(leaf.tape for leaf in leaves if isinstance(leaf, _Leaf))
        return tape.call(func, args, kwargs or {})


# What checks ask of a param says nothing of how it is used, and __torch_function__ is slow.
for _name in ("device", "dtype", "ndim", "shape"):
    setattr(_Leaf, _name, property(lambda leaf, _name=_name: getattr(leaf.value, _name)))

_VIEWS = (Tensor.flatten, Tensor.reshape, Tensor.view)


def _leaf(tape: _Tape, index: int, value: Tensor, own: Tensor) -> _Leaf:
    # Of no size and on no device: whatever reads it other than through the tape fails.
    leaf = torch.empty(0, device="meta").as_subclass(_Leaf)
    leaf.value, leaf.own, leaf.index, leaf.tape = value, own, index, tape
    return leaf


def _value(x: Any) -> Any:
    return x.value if isinstance(x, _Leaf) else x


def _own(x: Any) -> Any:
    return x.own if isinstance(x, _Leaf) else x


def _bound(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of `F.linear`, however they are given."""
    return input, weight, bias


def _is_affine(weight: Tensor, bias: Tensor | None) -> bool:
    return weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])


def _looks_up(x: Any, index: Any) -> bool:
    whole = isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64)
    return whole and isinstance(x, _Leaf) and x.value.ndim == 2


class _Mapped(NamedTuple):
    """What `torch.vmap` has wrapped, where its samples lie, and its version before any writing."""

    whole: Tensor
    at: int | None
    version: int

    @classmethod
    def of(cls, x: Tensor) -> "_Mapped":
        """What a tensor in `torch.vmap` is outside."""
        whole, at = _levels.unmapped(x)
        return cls(whole, at, whole._version)

    def first(self, x: Tensor, samples: int) -> Tensor:
        """`x`, which is as `whole`, with the samples first."""
        return x.expand(samples, *x.shape) if self.at is None else x.movedim(self.at, 0)


class _TapeOfAll(_Tape):
    """Notes, in one run for all samples, what every use reads and gives."""

    def __init__(self, zero: Tensor) -> None:
        super().__init__()
        self.zero = zero
        self.reads: list[_Mapped] = []
        self.given: list[_Mapped] = []

    def use(
        self, matrix: Tensor, vector: Tensor | None, by_row: bool, read: Tensor, result: Tensor
    ) -> Tensor:
        result = super().use(matrix, vector, by_row, read, result)
        given = _Mapped.of(result)
        if given.at is None or not given.whole.requires_grad:
            result = result + self.zero.to(result.dtype)
            given = _Mapped.of(result)
        self.reads.append(_Mapped.of(read))
        self.given.append(given)
        return result


def _at_once(
    f: Callable[..., Tensor], spec: Any, leaves: list[Tensor], in_dims: Dims, args: tuple[Any, ...]
) -> Tensor | None:
    """The squares in one run of `f` and one of autograd, where nobody outside follows.

    None where somebody does, or where `f` cannot be followed so.
    """
    tensors = [x for x in _pytree.tree_leaves(args) if isinstance(x, Tensor)]
    if not _levels.free(*leaves, *tensors) or torch.is_inference_mode_enabled():
        return None
    tapes: list[_TapeOfAll] = []

    def run(zero: Tensor, owns: list[Tensor], *sample: Any) -> Tensor:
        tapes.append(tape := _TapeOfAll(zero))
        both = zip(leaves, owns, strict=True)
        noting = [_leaf(tape, i, leaf, own) for i, (leaf, own) in enumerate(both)]
        result = f(_pytree.tree_unflatten(noting, spec), *sample)
        _checks.one_number("per_sample_grad_norms", result)
        return result + zero.to(result.dtype)

    dims = (in_dims,) * len(args) if isinstance(in_dims, int) else tuple(in_dims)
    try:
        (samples,) = torch.vmap(lambda *_: torch.zeros(()), dims)(*args).shape
        with torch.enable_grad():
            zero = torch.zeros(samples, device=leaves[0].device, requires_grad=True)
            owns = [x.detach().expand(samples, *x.shape).requires_grad_() for x in leaves]
            losses = torch.vmap(run, (0, 0, *dims))(zero, owns, *args)
            (tape,) = tapes
            followed = [given.whole for given in tape.given]
            grads = torch.autograd.grad(losses.sum(), [*followed, *owns], allow_unused=True)
    except Exception:  # of `f`, which will say so again, or since a leaf met what is not of torch
        return None
    by_use, by_leaf = grads[: len(followed)], grads[len(followed) :]
    plan = _Plan(spec, leaves, tape.uses)
    twice = any(by_leaf[i] is not None for i in plan.named)
    written = any(x.whole._version != x.version for x in (*tape.given, *tape.reads))
    if twice or written or any(len(shapes) > 1 for shapes in tape.shapes.values()):
        return None
    added = [
        given.first(torch.zeros_like(given.whole) if grad is None else grad, samples)
        for given, grad in zip(tape.given, by_use, strict=True)
    ]
    reads = [read.first(read.whole.detach(), samples) for read in tape.reads]
    direct = [grad for grad in by_leaf if grad is not None]
    with torch.no_grad():
        return _sum_of_squares(plan, direct, added, reads)


def _noted(
    f: Callable[..., Tensor], spec: Any, leaves: list[Tensor], in_dims: Dims, args: tuple[Any, ...]
) -> list[_Use]:
    """The uses of the leaves that are used in no other way; none if `f` cannot be followed."""
    if _levels.depth() is None:
        return []
    tapes: list[_Tape] = []

    def run(*sample: Any) -> Tensor:
        def note(zero: Tensor) -> Tensor:
            tapes.append(tape := _Tape())
            noting = [_leaf(tape, i, leaf, leaf) for i, leaf in enumerate(leaves)]
            f(_pytree.tree_unflatten(noting, spec), *sample)
            return zero

        return torch.func.grad(note)(torch.zeros(()))  # what f does may hang on what is live

    dims = (in_dims,) * len(args) if isinstance(in_dims, int) else in_dims
    try:
        torch.vmap(run, dims)(*map(_first, dims, args))
    except Exception:  # of `f`, which will say so again, or since a leaf met what is not of torch
        return []
    tape = tapes[0]
    otherwise = tape.otherwise | {i for i, shapes in tape.shapes.items() if len(shapes) > 1}

    def kept(index: int | None) -> int | None:
        return None if index in otherwise else index

    uses = [use._replace(matrix=kept(use.matrix), vector=kept(use.vector)) for use in tape.uses]
    return [use for use in uses if (use.matrix, use.vector) != (None, None)]


def _first(dim: int | None, arg: Any) -> Any:
    return arg if dim is None else _pytree.tree_map(lambda leaf: leaf.narrow(dim, 0, 1), arg)


def _squared_norm(f: Callable[..., Tensor], plan: _Plan, sample: tuple[Any, ...]) -> Tensor:
    named = plan.named
    direct = [leaf for i, leaf in enumerate(plan.leaves) if i not in named]
    added = [torch.zeros(u.shape, dtype=u.dtype, device=u.device) for u in plan.uses]

    def run(direct: list[Tensor], added: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        tape, rest = _Tape(added), iter(direct)
        leaves = [
            _leaf(tape, i, x, x) if i in named else next(rest) for i, x in enumerate(plan.leaves)
        ]
        result = f(_pytree.tree_unflatten(leaves, plan.spec), *sample)
        _checks.one_number("per_sample_grad_norms", result)
        if tape.otherwise or tape.uses != plan.uses:
            requirement, actual = "use params alike in every run", "another sequence of calls"
            remedy = "Let nothing but shapes decide what it calls"
            raise _checks.fail(
                ValueError, "per_sample_grad_norms", "f", requirement, actual, remedy
            )
        return result, tape.read

    (direct, added), read = torch.func.grad(run, (0, 1), has_aux=True)(direct, added)
    alone = ([x.unsqueeze(0) for x in tensors] for tensors in (direct, added, read))
    return _sum_of_squares(plan, *alone)[0]


def _sum_of_squares(
    plan: _Plan, direct: list[Tensor], added: list[Tensor], read: list[Tensor]
) -> Float[Tensor, "samples"]:
    """Of gradients that were made, and of those that what was read and `added` would give.

    All have an axis of samples first.
    """
    device = plan.leaves[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):  # squares are summed in single
            return _summed(plan, direct, added, read)
    return _summed(plan, direct, added, read)


def _summed(plan: _Plan, direct: list[Tensor], added: list[Tensor], read: list[Tensor]) -> Tensor:
    squares = [_flat(_wide(grad)).square().sum(1) for grad in direct]
    calls = list(zip(plan.uses, map(_wide, read), map(_wide, added), strict=True))
    for leaf in plan.named:
        vectors = [_rows(grad).sum(1) for use, _, grad in calls if use.vector == leaf]
        if vectors:
            squares.append(sum(vectors[1:], vectors[0]).square().sum(1))
        own = [call for call in calls if call[0].matrix == leaf]
        if own:
            squares.append(_squared_norm_of_matrix(own))
    return torch.stack(squares).sum(0)


def _squared_norm_of_matrix(calls: list[tuple[_Use, Tensor, Tensor]]) -> Tensor:
    """|Σ g xᵀ + Σ e_token gᵀ|² over the calls that multiply and the calls that look up."""
    products = [(_rows(x), _rows(grad)) for use, x, grad in calls if not use.by_row]
    lookups = [(_flat(tokens), _rows(grad)) for use, tokens, grad in calls if use.by_row]
    squares = []
    if products:
        x, g = _joined([x for x, _ in products]), _joined([g for _, g in products])
        (_, seq, columns), rows = x.shape, g.shape[2]
        if seq * (rows + columns) < rows * columns:
            squares.append(_flat((x @ x.mT) * (g @ g.mT)).sum(1))
        else:
            squares.append(_flat(g.mT @ x).square().sum(1))
    if lookups:
        tokens, e = _joined([t for t, _ in lookups]), _joined([e for _, e in lookups])
        same = tokens.unsqueeze(1) == tokens.unsqueeze(2)
        squares.append(_flat(torch.where(same, e @ e.mT, 0.0)).sum(1))
    if products and lookups:
        looked_up = g.gather(2, tokens.long().unsqueeze(1).expand(-1, g.shape[1], -1))
        squares.append(2.0 * _flat(looked_up * (x @ e.mT)).sum(1))
    return sum(squares[1:], squares[0])


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

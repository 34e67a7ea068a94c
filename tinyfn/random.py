"""Random numbers as functions of a key: the same key gives the same draw.

Word i of a key is mix((key ^ c) + (i + 1) γ): splitmix64's published stream, in plain int64
operations. So a draw is bitwise the same in a loop, under `vmap`, compiled, and on every device
(float64 normals and compiled Gumbel noise up to the last bits of a logarithm). Derived keys come of
other constants and another mix, and do not meet the words. Nothing reads or moves torch's own
generators.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int16, Int64, Integer, Shaped
from torch import Tensor

from tinyfn import _checks, _levels
from tinyfn.types import Key

Device = torch.device | str | None
Shape = Sequence[int]
Mix = tuple[Any, ...]
_INTS = int, torch.SymInt
# From here on `torch.vmap` maps views in another dtype, which are arithmetic before.
_MAPS_VIEWS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)


def _signed(word: int) -> int:
    """The int64 with the low 64 bits of `word`."""
    return (word + 2**63) % 2**64 - 2**63


def _mix(first: int, multiplier: int, second: int, last_multiplier: int, last: int) -> Mix:
    """Shifts to the right, each with the mask that cuts its repeated sign, and multipliers."""
    cut_first, cut_second, cut_last = (2 ** (64 - shift) - 1 for shift in (first, second, last))
    multiplier, last_multiplier = _signed(multiplier), _signed(last_multiplier)
    return first, cut_first, multiplier, second, cut_second, last_multiplier, last, cut_last


_SPLITMIX = _mix(30, 0xBF58476D1CE4E5B9, 27, 0x94D049BB133111EB, 31)
_MURMUR = _mix(33, 0xFF51AFD7ED558CCD, 33, 0xC4CEB9FE1A85EC53, 33)
# For a short draw, torch takes as long to make a tensor of a number as to compute with it.
_TENSORS = {
    mix: tuple(torch.tensor(number, device="cpu") for number in mix) for mix in (_SPLITMIX, _MURMUR)
}
_FEW = 16  # Up to as many keys are mixed sooner as Python's numbers.
_GAMMA, _GAMMA_INVERSE = _signed(0x9E3779B97F4A7C15), _signed(pow(0x9E3779B97F4A7C15, -1, 2**64))
_MULTIPLES = torch.arange(1, 2**16 + 1, device="cpu") * _GAMMA  # Read sooner than computed.
# What a key is xored with, one for each use: digits of π.
_WORDS, _SPLIT, _FOLD = 0x243F6A8885A308D3, 0x13198A2E03707344, _signed(0xA4093822299F31D0)
_PARTS = {torch.int64: 1, torch.int32: 2, torch.int16: 4}  # How many a word has.
_PRECISIONS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def key(seed: int, *, device: Device = None) -> Key:
    """Randomness that starts from a number.

    Args:
        seed: Any int; it counts modulo 2⁶⁴. Neighbouring seeds give unrelated keys.
        device: Where this key's draws, and those of its descendants, happen.

    Raises:
        TypeError: `seed` is not an int.

    Example:
        >>> bool(key(0) == key(0)), bool(key(0) == key(1))
        (True, False)

    Reference: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    if not isinstance(seed, int):
        raise _checks.fail(
            TypeError,
            "random.key",
            "seed",
            "be an int",
            _checks.kind_of(seed),
            "Pass a whole number, or derive a key from another with random.fold_in",
        )
    word = torch.tensor(_signed(_FOLD + seed * _GAMMA), dtype=torch.int64, device=device)
    return _mixed(word, _MURMUR)


def split(key: Key, num: int = 2) -> Int64[Tensor, " num"]:
    """Independent keys from one, to unpack or to map over with `torch.vmap`.

    Args:
        key: What they derive from; draw from them, and no longer from it.
        num: How many, at least 1.

    Raises:
        TypeError: `key` is not an int64 tensor, or `num` not an int.
        ValueError: `key` is not a scalar, or `num` is below 1.

    Example:
        >>> first, second = split(key(0))
        >>> torch.vmap(lambda k: uniform(k, (3,)))(split(first, 4)).shape
        torch.Size([4, 3])
    """
    _check_key("random.split", key)
    _checks.at_least("random.split", "num", num)
    with _levels.below(key):
        return _sequence(key, _SPLIT, num, _MURMUR)


def split_or_none(key: Key | None, num: int) -> tuple[Key | None, ...]:
    """The keys of `split`, or as many Nones: how a layer hands on what it was given.

    Args:
        key: Randomness, or None for none.
        num: How many, at least 1.

    Raises:
        TypeError: `key` is neither None nor an int64 tensor.
        ValueError: `key` is not a scalar, or `num` is below 1.

    Example:
        >>> split_or_none(None, 2)
        (None, None)
        >>> len(split_or_none(key(0), 3))
        3
    """
    if key is None:
        return (None,) * num
    with _levels.below(key):
        return split(key, num).unbind()


def fold_in(key: Key, data: int | Integer[Tensor, ""]) -> Key:
    """The key that belongs to a key and a number, such as a step or a layer's index.

    Args:
        key: What it derives from; it may be folded again with other numbers.
        data: From -2⁶³ to 2⁶³ - 1. As a tensor it may be mapped by `torch.vmap`.

    Raises:
        TypeError: `key` is not an int64 tensor, or `data` not an integer.
        ValueError: `key` or `data` is not a scalar, or `data` is beyond an int64.

    Example:
        >>> bool(fold_in(key(0), 1) == fold_in(key(0), 2))
        False
    """
    _check_key("random.fold_in", key)
    _check_data(data)
    number = _levels.value(key)
    if number is not None and isinstance(data, int):
        folded = (((number ^ _FOLD) * _GAMMA + data) ^ _SPLIT) * _GAMMA
        return torch.tensor(_mixed_number(folded, _MURMUR), device="cpu")
    folded = (_times(key ^ _FOLD, _GAMMA) + data) ^ _SPLIT
    return _mixed(_times(folded, _GAMMA), _MURMUR)


def _check_data(data: int | Tensor) -> None:
    if isinstance(data, Tensor):
        integer = not (data.is_floating_point() or data.is_complex() or data.dtype == torch.bool)
        if integer and not data.ndim:
            return
        kind = ValueError if integer else TypeError
        actual = _checks.shape(data) if integer else _checks.kind_of(data)
    else:
        if isinstance(data, int) and -(2**63) <= data < 2**63:
            return
        kind = ValueError if isinstance(data, int) else TypeError
        actual = _checks.kind_of(data)
    remedy = "Pass one whole number, or map over many with torch.vmap"
    raise _checks.fail(kind, "random.fold_in", "data", "be an int64 scalar", actual, remedy)


def uniform(
    key: Key, shape: Shape, *, dtype: torch.dtype | None = None, device: Device = None
) -> Float[Tensor, "..."]:
    """Uniform numbers in [0, 1), on the grid that the dtype has just below 1.

    Args:
        key: Randomness.
        shape: The result's.
        dtype: Float64, float32, float16 or bfloat16; torch's default otherwise.
        device: The key's otherwise.

    Raises:
        TypeError: `key` is not an int64 tensor, `shape` is not of ints, or `dtype` is another.
        ValueError: `key` is not a scalar, or a size is negative.

    Example:
        >>> uniform(key(0), (2, 3)).shape
        torch.Size([2, 3])
    """
    dtype = _check_dtype("random.uniform", dtype)
    words = _bits("random.uniform", key, shape, torch.int64, device)
    return _top(words, _PRECISIONS[dtype]).to(dtype) * 0.5 ** _PRECISIONS[dtype]


def bits(
    key: Key, shape: Shape, *, dtype: torch.dtype = torch.int32, device: Device = None
) -> Integer[Tensor, "..."]:
    """Whole numbers, every one that the dtype has as likely as any other.

    The narrower, the less they cost: a word of the generator serves two of int32, four of int16.

    Args:
        key: Randomness.
        shape: The result's.
        dtype: Int64, int32 or int16.
        device: The key's otherwise.

    Raises:
        TypeError: `key` is not an int64 tensor, `shape` is not of ints, or `dtype` is another.
        ValueError: `key` is not a scalar, or a size is negative.

    Example:
        >>> bits(key(0), (2,), dtype=torch.int16).dtype
        torch.int16
    """
    if dtype not in _PARTS:
        options, remedy = [str(d) for d in _PARTS], "Draw one, then convert"
        raise _checks.fail(TypeError, "random.bits", "dtype", f"be one of {options}", dtype, remedy)
    return _bits("random.bits", key, shape, dtype, device)


def _bits(function: str, key: Key, shape: Shape, dtype: torch.dtype, device: Device) -> Tensor:
    """The key's first words, in parts. The one place that draws."""
    _check_shape(function, shape)
    _check_key(function, key)
    size, parts = math.prod(shape), _PARTS[dtype]
    with _levels.below(key):
        key = key if device is None else key.to(device)
        # DTensor remembers the shape of a view in another dtype for the next one too (torch 2.13).
        if _levels.exporting() or type(key) is not Tensor:
            return _bits_of_any_size(key, size, dtype).view(tuple(shape))
        words = _sequence(key, _WORDS, (size + parts - 1) // parts, _SPLITMIX)
        words = _cut(words, dtype)
        if torch.compiler.is_compiling() or size % parts:  # no view costs nothing
            words = words.narrow(0, 0, size)
        return words.view(tuple(shape))


Sizes: TypeAlias = Sequence["int | Sizes"]


def bits_of_split(key: Key, sizes: Sizes) -> Int16[Tensor, " num"] | None:
    """Int16 `bits` of each key of `split(key, len(sizes))`, behind each other, in one mixing.

    None where that is not possible or does not pay. Each run starts at a multiple of 4.

    Args:
        key: Randomness.
        sizes: How many for each, or the same again for a key that is split further.

    Raises:
        TypeError: `key` is not an int64 tensor.
        ValueError: `key` is not a scalar.

    Example:
        >>> both = bits_of_split(key(0), [2, [100]])
        >>> second, = split(split(key(0))[1], 1)
        >>> both is not None and torch.equal(both[4:], bits(second, (100,), dtype=torch.int16))
        True
    """
    _check_key("random.split", key)
    if not _levels.constant(key) or key.device.type != "cpu":
        return None
    starts, nums = zip(*_runs(int(key), sizes), strict=True)
    if sum(nums) > _MULTIPLES.shape[0]:
        return None
    sums, before = _MULTIPLES.narrow(0, 0, sum(nums)).clone(), 0
    for start, num, run in zip(starts, nums, sums.split_with_sizes(nums), strict=True):
        run.add_(_signed(start - before * _GAMMA))
        before += num
    return _mixed(sums, _TENSORS[_SPLITMIX], in_place=True).view(torch.int16)


def _runs(parent: int, sizes: Sizes) -> Iterator[tuple[int, int]]:
    """Where the words of each key start, and how many there are."""
    for step, size in enumerate(sizes, 1):
        child = _mixed_number((parent ^ _SPLIT) + step * _GAMMA, _MURMUR)
        if isinstance(size, int):
            yield child ^ _WORDS, (size + 3) // 4
        else:
            yield from _runs(child, size)


def _viewed(x: Tensor) -> bool:
    """Whether a tensor may be seen as one of another dtype here."""
    if _MAPS_VIEWS:
        return True
    return _levels.compiled_alone(x) if torch.compiler.is_compiling() else not _levels.transformed()


def _cut(words: Int64[Tensor, " num"], dtype: torch.dtype) -> Integer[Tensor, " more"]:
    """Words in parts, the lowest first."""
    if _viewed(words):
        return words.view(dtype)
    width = 64 // _PARTS[dtype]
    above = torch.arange(64 - width, -1, -width, device=words.device)
    uppermost = torch.bitwise_left_shift(words.unsqueeze(-1), above)
    return _right(uppermost, 64 - width).to(dtype).flatten(-2)


def _bits_of_any_size(key: Key, size: int, dtype: torch.dtype) -> Tensor:
    """The same, each from its word: a program for all sizes cannot round one up and cut."""
    parts = _PARTS[dtype]
    width, at = 64 // parts, torch.arange(size, device=key.device)
    words = _mixed(_sums(key ^ _WORDS, at // parts + 1), _SPLITMIX)
    uppermost = torch.bitwise_left_shift(words, 64 - width - at % parts * width)
    return _right(uppermost, 64 - width).to(dtype)


def bernoulli(
    key: Key, p: float | Float[Tensor, "..."], shape: Shape, *, device: Device = None
) -> Bool[Tensor, "..."]:
    """True with chance p, each element by itself.

    Args:
        key: Randomness.
        p: In [0, 1], met to 2⁻³² and at both ends exactly. A tensor broadcasts to `shape`.
        shape: The result's.
        device: The key's otherwise.

    Raises:
        TypeError: `key` is not an int64 tensor, `shape` is not of ints, or `p` not a real number.
        ValueError: `key` is not a scalar, a size is negative, or `p` does not fit.

    Example:
        >>> bernoulli(key(0), 1.0, (2,))
        tensor([True, True])
    """
    name = "random.bernoulli"
    drawn = _bits(name, key, shape, torch.int32, device)
    _check_chance(p, shape)
    if isinstance(p, Tensor):
        return (drawn.to(torch.float64) + 2**31) * 0.5**32 < p
    if not 0 < p < 1:
        return torch.full_like(drawn, p == 1, dtype=torch.bool)
    return drawn < min(math.ceil(p * 2**32), 2**32 - 1) - 2**31


def _check_chance(p: float | Tensor, shape: Shape) -> None:
    name = "random.bernoulli"
    if isinstance(p, Tensor):
        _checks.floating(name, "p", p)
        _checks.broadcasts(name, "p", p, shape, "shape")
    elif not isinstance(p, int | float):
        kind = _checks.kind_of(p)
        raise _checks.fail(TypeError, name, "p", "be a number or a tensor", kind, "Pass a float")
    elif not 0 <= p <= 1:
        raise _checks.fail(ValueError, name, "p", "be in [0, 1]", p, "It is the chance of True")


def normal(
    key: Key, shape: Shape, *, dtype: torch.dtype | None = None, device: Device = None
) -> Float[Tensor, "..."]:
    """Normal numbers of mean 0 and standard deviation 1, by the inverse of their distribution.

    The same key gives the same numbers in every dtype, up to its rounding; none exceeds 8.3.

    Args:
        key: Randomness.
        shape: The result's.
        dtype: Float64, float32, float16 or bfloat16; torch's default otherwise.
        device: The key's otherwise.

    Raises:
        TypeError: `key` is not an int64 tensor, `shape` is not of ints, or `dtype` is another.
        ValueError: `key` is not a scalar, or a size is negative.

    Example:
        >>> normal(key(0), (2, 3)).shape
        torch.Size([2, 3])
    """
    dtype = _check_dtype("random.normal", dtype)
    words = _bits("random.normal", key, shape, torch.int64, device)
    odd = (_right(words, 10) & (2**53 - 1) | 1).to(torch.float64)  # over 2⁵⁴: the chance beyond x
    if dtype == torch.float64:
        x = -torch.special.ndtri(odd * 0.5**54)
    else:
        x = _fixed_quantile(odd).to(torch.float64) * 0.5**32
    return torch.where(words < 0, -x, x).to(dtype)


def _fixed_quantile(odd: Float[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """2³² x, where a normal exceeds x with chance odd / 2⁵⁴.

    Float32 logarithms and fused products differ in the last bit between kernels; integers do not.
    """
    pattern = _pattern(odd)
    # The exponent and four bits name the cubic, the next 32 are its argument.
    segment, t = _right(pattern, 48) - (1023 << 4), _right(pattern, 16) & (2**32 - 1)
    constant, linear, square, cube = _CUBICS.to(odd.device)
    x = square[segment] + _right(cube[segment] * t, 32)
    x = linear[segment] + _right(x * t, 32)
    return constant[segment] + _right(x * t, 32)


def _pattern(odd: Float[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """The bits of float64s that are whole and from 1 to 2⁵³."""
    if _viewed(odd):
        return odd.view(torch.int64)
    whole = odd.to(torch.int64)
    powers = 2 ** torch.arange(1, 53, device=odd.device)
    exponent = (whole.unsqueeze(-1) >= powers).sum(-1)
    return torch.bitwise_left_shift(whole, 52 - exponent) + (exponent + 1022) * 2**52


def _cubics() -> Int64[Tensor, "coefficients segments"]:
    """Cubics through the normal quantile in units of 2⁻³², 16 for each power of 2 of the chance."""
    inverse, rows = NormalDist().inv_cdf, []
    for segment in range(53 * 16):
        octave, part = divmod(segment, 16)
        scale = 2.0 ** (octave - 54) / 48
        y0, y1, y2, y3 = (-inverse(scale * (48 + 3 * part + third)) for third in range(4))
        first, second, third = y1 - y0, y2 - 2 * y1 + y0, y3 - 3 * y2 + 3 * y1 - y0
        linear, square, cube = first - second / 2 + third / 3, (second - third) / 2, third / 6
        rows.append([round(c * 2**32) for c in (y0, 3 * linear, 9 * square, 27 * cube)])
    return torch.tensor(rows, dtype=torch.int64, device="cpu").T.contiguous()


_CUBICS = _cubics()


def categorical(
    key: Key, logits: Float[Tensor, "*batch classes"], *, shape: Shape | None = None
) -> Int64[Tensor, "..."]:
    """Class indices, drawn with the chances softmax(logits) over the last axis.

    Args:
        key: Randomness.
        logits: Unnormalised log chances; a class at -inf is never drawn beside a finite one.
        shape: The result's, to which the leading axes of `logits` broadcast: (9,) draws 9 from one
            row. Their own otherwise.

    Raises:
        TypeError: `key` is not an int64 tensor, or `logits` is not floating.
        ValueError: `key` is not a scalar, `logits` has no class, or `shape` does not fit.

    Example:
        >>> categorical(key(0), torch.tensor([0.0, -torch.inf]), shape=(3,))
        tensor([0, 0, 0])

    Reference: Gumbel, "Statistical theory of extreme values", 1954 (the argmax of noisy logits).
    """
    name = "random.categorical"
    _checks.floating(name, "logits", logits)
    if not logits.ndim or not logits.shape[-1]:
        actual = _checks.shape(logits)
        raise _checks.fail(
            ValueError, name, "logits", "have at least 1 class", actual, "Put them on its last axis"
        )
    if shape is not None:
        _check_shape(name, shape)
        _checks.broadcasts(name, "logits", logits[..., 0], shape, "shape")
    shape = logits.shape[:-1] if shape is None else shape
    odd = _top(_bits(name, key, (*shape, logits.shape[-1]), torch.int64, None), 53) | 1
    noise = -torch.log(-torch.log(odd.to(torch.float64) * 0.5**53))
    return (logits + noise).argmax(-1)


def permutation(key: Key, x: int | Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "..."]:
    """The numbers below n, or the rows of a tensor, in random order.

    Args:
        key: Randomness.
        x: A number n of at least 0, or a tensor whose first axis is permuted.

    Raises:
        TypeError: `key` is not an int64 tensor, or `x` is neither an int nor a tensor.
        ValueError: `key` is not a scalar, `x` is one, or n is negative.

    Example:
        >>> sorted(permutation(key(0), 3).tolist())
        [0, 1, 2]
    """
    name = "random.permutation"
    if isinstance(x, Tensor) and not x.ndim:
        remedy = "Pass a Python int to permute the numbers below it"
        raise _checks.fail(ValueError, name, "x", "have rows", _checks.shape(x), remedy)
    if not isinstance(x, Tensor):
        _checks.at_least(name, "x", x, 0)
    rows = x.shape[0] if isinstance(x, Tensor) else x
    order = torch.argsort(_bits(name, key, (rows,), torch.int64, None), stable=True)
    return x[order.to(x.device)] if isinstance(x, Tensor) else order


def _check_key(function: str, key: Key) -> None:
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        raise _checks.fail(
            TypeError,
            function,
            "key",
            "be an int64 scalar tensor",
            _checks.kind_of(key),
            "Make one with random.key",
        )
    if key.ndim:
        raise _checks.fail(
            ValueError,
            function,
            "key",
            "be an int64 scalar tensor",
            _checks.shape(key),
            "Map over keys with torch.vmap or pass one key",
        )


def _check_shape(function: str, shape: Shape) -> None:
    sizes = isinstance(shape, Sequence) and all(isinstance(s, _INTS) for s in shape)
    if not sizes or any(size < 0 for size in shape):
        raise _checks.fail(
            ValueError if sizes else TypeError,
            function,
            "shape",
            "be a tuple of ints of at least 0",
            repr(shape),
            "Write (n,) for one axis and () for a scalar",
        )


def _check_dtype(function: str, dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in _PRECISIONS:
        options = [str(d) for d in _PRECISIONS]
        raise _checks.fail(
            TypeError, function, "dtype", f"be one of {options}", dtype, "Draw one, then convert"
        )
    return dtype


def _sequence(key: Key, use: int, num: int, mix: Mix) -> Int64[Tensor, " num"]:
    """The mixed sums start + γ, start + 2γ, ... modulo 2⁶⁴, where the key and its use start."""
    if not _levels.constant(key):  # as to a compiler, to which `num` may be open
        counter = torch.arange(1, num + 1, device=key.device)
        return _mixed(_sums(key ^ use, counter), mix)
    if key.device.type == "cpu" and num <= _MULTIPLES.shape[0]:
        start = int(key) ^ use
        if num <= _FEW:
            words = [_mixed_number(start + step * _GAMMA, mix) for step in range(1, num + 1)]
            return torch.tensor(words, dtype=torch.int64, device="cpu")
        sums = _MULTIPLES.narrow(0, 0, num) + start
    else:
        counter = torch.arange(1, num + 1, device=key.device)
        sums = torch.add(key ^ use, counter, alpha=_GAMMA, out=counter)
    return _mixed(sums, _TENSORS[mix], in_place=True)


def _mixed_number(z: int, mix: Mix) -> int:
    """As `_mixed`, of a Python number modulo 2⁶⁴."""
    first, _, multiplier, second, _, last_multiplier, last, _ = mix
    z %= 2**64
    z = (z ^ z >> first) * multiplier % 2**64
    z = (z ^ z >> second) * last_multiplier % 2**64
    return _signed(z ^ z >> last)


def _sums(start: Key, counter: Int64[Tensor, " num"]) -> Int64[Tensor, " num"]:
    """Compiled, they are γ (start / γ + 1), ...: see `_times`."""
    if not torch.compiler.is_compiling():
        return torch.add(start, counter, alpha=_GAMMA)
    return _times(counter + _times(start, _GAMMA_INVERSE), _GAMMA)


_right = torch.bitwise_right_shift  # `>>` gives a DTensor back unshifted (torch 2.13)


def _mixed(z: Tensor, mix: Mix, *, in_place: bool = False) -> Tensor:
    """Scatters 64 bits, one to one.

    In its argument's place it is quicker, but `torch.func.linearize` would replay it on what it
    left there.
    """
    xor, times, masked = Tensor.bitwise_xor, _times, Tensor.bitwise_and
    if in_place:
        xor, times, masked = Tensor.bitwise_xor_, Tensor.mul_, Tensor.bitwise_and_
    first, cut_first, multiplier, second, cut_second, last_multiplier, last, cut_last = mix
    z = times(xor(z, masked(_right(z, first), cut_first)), multiplier)
    z = times(xor(z, masked(_right(z, second), cut_second)), last_multiplier)
    return xor(z, masked(_right(z, last), cut_last))


def _times(z: Tensor, multiplier: int) -> Tensor:
    """A product modulo 2⁶⁴.

    Inductor writes C++, where a signed product that overflows is undefined: gcc has made of it
    wrong words, and loops that run past their end. An unsigned one wraps.
    """
    if torch.compiler.is_compiling():
        if _viewed(z):
            return (z.view(torch.uint64) * multiplier).view(torch.int64)
        return (z.to(torch.uint64) * multiplier).to(torch.int64)
    return z * multiplier


def _top(words: Int64[Tensor, "..."], num: int) -> Int64[Tensor, "..."]:
    """The upper bits of words, as numbers of at least 0."""
    return _right(words, 64 - num) & (2**num - 1)

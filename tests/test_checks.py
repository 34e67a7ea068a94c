"""Every error is one sentence: function, argument, requirement, actual, remedy."""

import re

import pytest
import torch

from tinyfn import _checks

SENTENCE = re.compile(r"[\w.]+: .+ must .+, got .+\. .+\.", re.DOTALL)

CASES = {
    "params are not a dict": (
        lambda: _checks.part("linear", [1], "weight"),
        TypeError,
        "linear: params must be a dict, got list. Make params with init_linear, or pass the "
        "sub-dict that linear eats.",
    ),
    "a part is absent": (
        lambda: _checks.part("linear", {"b": 1, "a": 2}, "weight"),
        ValueError,
        "linear: params must have 'weight', got ['a', 'b']. Make params with init_linear, or pass "
        "the sub-dict that linear eats.",
    ),
    "features differ": (
        lambda: _checks.features("linear", "x", torch.ones(2, 3), 4),
        ValueError,
        "linear: x must have shape (..., 4), as its params have, got shape (2, 3). Pass 4 features "
        "on the last axis, or make params for other sizes.",
    ),
    "there are no features": (
        lambda: _checks.features("linear", "x", torch.tensor(1.0), 4),
        ValueError,
        "linear: x must have shape (..., 4), as its params have, got shape (). Pass 4 features "
        "on the last axis, or make params for other sizes.",
    ),
    "there is no sequence": (
        lambda: _checks.features("encoder", "x", torch.ones(4), 4, min_ndim=2),
        ValueError,
        "encoder: x must have shape (..., seq, 4), as its params have, got shape (4,). Pass 4 "
        "features on the last axis, or make params for other sizes.",
    ),
    "integers where numbers are real": (
        lambda: _checks.floating("linear", "x", torch.ones(2, dtype=torch.int64)),
        TypeError,
        "linear: x must be a floating tensor, got an int64 tensor. Convert it with .float().",
    ),
    "no tensor": (
        lambda: _checks.floating("linear", "x", 1.5),
        TypeError,
        "linear: x must be a floating tensor, got float 1.5. Make a tensor of it.",
    ),
    "a product of two dtypes": (
        lambda: _checks.product_dtype("linear", "x", torch.ones(2).double(), torch.ones(2)),
        TypeError,
        "linear: x must be a float32 tensor, got a float64 tensor. Convert it with "
        ".to(torch.float32), or params with tree.cast.",
    ),
    "a mask for tokens": (
        lambda: _checks.integers("embedding", "tokens", torch.ones(2).bool()),
        TypeError,
        "embedding: tokens must be an integer tensor, got a bool tensor. A bool tensor is a mask: "
        "use masks.dense.",
    ),
    "real numbers for tokens": (
        lambda: _checks.integers("embedding", "tokens", torch.ones(2)),
        TypeError,
        "embedding: tokens must be an integer tensor, got a float32 tensor. Convert "
        "it with .long().",
    ),
    "complex numbers for tokens": (
        lambda: _checks.integers("embedding", "tokens", torch.ones(2, dtype=torch.complex64)),
        TypeError,
        "embedding: tokens must be an integer tensor, got a complex64 tensor. Convert "
        "it with .long().",
    ),
    "a list for tokens": (
        lambda: _checks.integers("embedding", "tokens", [1]),
        TypeError,
        "embedding: tokens must be an integer tensor, got list. Convert it with .long().",
    ),
    "certainty": (
        lambda: _checks.probability("dropout", "dropout_p", 1.0),
        ValueError,
        "dropout: dropout_p must be in [0, 1), got 1.0. It is the chance of being dropped.",
    ),
    "a negative chance": (
        lambda: _checks.probability("dropout", "dropout_p", -0.1),
        ValueError,
        "dropout: dropout_p must be in [0, 1), got -0.1. It is the chance of being dropped.",
    ),
    "no chance at all": (
        lambda: _checks.probability("dropout", "dropout_p", float("nan")),
        ValueError,
        "dropout: dropout_p must be in [0, 1), got nan. It is the chance of being dropped.",
    ),
    "too few": (
        lambda: _checks.at_least("random.split", "num", 0),
        ValueError,
        "random.split: num must be at least 1, got 0. Pass 1 or more.",
    ),
    "not whole": (
        lambda: _checks.at_least("random.split", "num", 1.5),
        TypeError,
        "random.split: num must be an int, got float 1.5. Pass a whole number.",
    ),
    "one of several sizes": (
        lambda: _checks.sizes("init_linear", in_features=3, out_features=-1),
        ValueError,
        "init_linear: out_features must be at least 1, got -1. Pass 1 or more.",
    ),
    "no divisor": (
        lambda: _checks.divides("init_attention", "num_heads", 4, "num_features", 6),
        ValueError,
        "init_attention: num_heads must divide num_features=6, got 4. Choose one of [1, 2, 3, 6].",
    ),
    "no broadcast": (
        lambda: _checks.broadcasts("f", "mask", torch.ones(3, 2), (2, 3), "(q_seq, kv_seq)"),
        ValueError,
        "f: mask must broadcast to (q_seq, kv_seq) = (2, 3), got shape (3, 2). Give each axis its "
        "full size or 1, and insert axes with unsqueeze.",
    ),
    "an axis too short": (
        lambda: _checks.broadcasts("f", "mask", torch.ones(2, 2), (2, 3), "(q_seq, kv_seq)"),
        ValueError,
        "f: mask must broadcast to (q_seq, kv_seq) = (2, 3), got shape (2, 2). Give each axis its "
        "full size or 1, and insert axes with unsqueeze.",
    ),
    "too many axes": (
        lambda: _checks.broadcasts("f", "mask", torch.ones(1, 2, 3), (2, 3), "(q_seq, kv_seq)"),
        ValueError,
        "f: mask must broadcast to (q_seq, kv_seq) = (2, 3), got shape (1, 2, 3). Give each axis "
        "its full size or 1, and insert axes with unsqueeze.",
    ),
}


@pytest.mark.parametrize(("check", "kind", "sentence"), CASES.values(), ids=list(CASES))
def test_a_check_says_what_is_wrong(check, kind, sentence, unchecked):
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$") as raised:
        check()
    assert SENTENCE.fullmatch(sentence)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("sentence", ["linear: x is bad.", "linear: x must fit, got 3."])
def test_another_sentence_is_not_one_of_ours(sentence):
    assert not SENTENCE.fullmatch(sentence)


def test_what_is_right_passes():
    x = torch.ones(2, 3)
    assert _checks.part("linear", {"weight": x}, "weight") is x
    _checks.features("linear", "x", x, 3)
    _checks.features("linear", "x", x, 3, min_ndim=2)
    _checks.floating("linear", "x", x.bfloat16())
    for dtype in (torch.int64, torch.int32, torch.uint8):
        _checks.integers("embedding", "tokens", x.to(dtype))
    _checks.probability("dropout", "dropout_p", 0.0)
    _checks.at_least("f", "n", 0, least=0)
    _checks.sizes("f", a=1, b=2)
    _checks.divides("f", "a", 2, "b", 4)
    for shape in ((), (1,), (3,), (2, 1), (1, 3), (2, 3)):
        _checks.broadcasts("f", "x", torch.ones(shape), (2, 3), "(a, b)")
    _checks.broadcasts("f", "x", torch.ones(2, 3), (5, 2, 3), "(a, b, c)")


@pytest.mark.parametrize("call", [_checks.floating, _checks.integers])
def test_checks_look_at_no_values(call):
    dtype = torch.int64 if call is _checks.integers else torch.float32
    call("f", "x", torch.empty(2, 3, dtype=dtype, device="meta"))
    torch.vmap(lambda x: call("f", "x", x) or x)(torch.ones(2, 3, dtype=dtype))


def test_the_fixture_leaves_only_our_own_error(unchecked):
    with pytest.raises(TypeError, match=r"^f: x must be a floating tensor, got int 1\. "):
        _checks.floating("f", "x", 1)


def test_without_the_fixture_annotations_are_checked():
    with pytest.raises(Exception, match="Type-check error whilst checking the parameters") as seen:
        _checks.floating("f", "x", 1)
    assert "jaxtyping" in type(seen.value).__module__

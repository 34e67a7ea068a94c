"""Masks: each rule against loops, the algebra of sets, batches, vmap, and every error."""

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree

import reference
from tinyfn import dot_product_attention, masks, random

SIZES = st.integers(1, 5)
NUMBERS = st.integers(-3, 6)


def number(draw, strategy=NUMBERS):
    """A whole number, and the same as a mask may be given it: bare, or as a tensor."""
    value = draw(strategy)
    return value, draw(st.sampled_from([value, torch.tensor(value)]))


@st.composite
def rules(draw, q_seq, kv_seq):
    """A mask and its definition in loops."""
    kind = draw(st.sampled_from(["full", "causal", "padding", "prefix", "window", "segments"]))
    sizes = (q_seq, kv_seq)
    if kind == "full":
        return masks.full(), reference.full(*sizes)
    if kind == "segments":
        ids = [draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)) for n in sizes]
        return masks.segments(*map(torch.tensor, ids)), reference.segments(*ids)
    if kind == "window":
        left, right = number(draw), number(draw)
        loop = reference.window(*sizes, left[0], right[0])
        return masks.window(left[1], right[1]), loop
    value, given_as = number(draw)
    return getattr(masks, kind)(given_as), getattr(reference, kind)(*sizes, value)


@st.composite
def tensors(draw, q_seq, kv_seq):
    count = q_seq * kv_seq
    bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    tensor = torch.tensor(bits).reshape(q_seq, kv_seq)
    return masks.dense(tensor), tensor.tolist()


def cell_by_cell(f, *loops):
    return [[f(*cells) for cells in zip(*rows, strict=True)] for rows in zip(*loops, strict=True)]


@st.composite
def expressions(draw, q_seq, kv_seq, depth=3):
    """A mask of some masks, and its definition in loops."""
    kind = draw(st.sampled_from("rule tensor and or not".split() if depth else ["rule", "tensor"]))
    if kind in ("rule", "tensor"):
        return draw({"rule": rules, "tensor": tensors}[kind](q_seq, kv_seq))
    a, a_loop = draw(expressions(q_seq, kv_seq, depth - 1))
    if kind == "not":
        return ~a, cell_by_cell(operator.not_, a_loop)
    b, b_loop = draw(expressions(q_seq, kv_seq, depth - 1))
    combine = {"and": operator.and_, "or": operator.or_}[kind]
    return combine(a, b), cell_by_cell(combine, a_loop, b_loop)


@st.composite
def sized(draw, count=1):
    """Sizes, and masks for them."""
    sizes = draw(SIZES), draw(SIZES)
    return sizes, *(draw(expressions(*sizes)) for _ in range(count))


def equal(a, b, sizes):
    return torch.equal(a.dense(*sizes), b.dense(*sizes))


@given(SIZES, SIZES, st.data())
def test_every_rule_is_its_loop(q_seq, kv_seq, data):
    mask, loop = data.draw(rules(q_seq, kv_seq))
    dense = mask.dense(q_seq, kv_seq)
    assert dense.dtype == torch.bool
    assert dense.tolist() == loop


@given(sized())
def test_every_expression_is_its_loop(case):
    sizes, (mask, loop) = case
    assert mask.dense(*sizes).tolist() == loop


@given(sized())
def test_compact_is_dense_with_axes_of_size_one(case):
    sizes, (mask, _) = case
    compact = mask.compact(*sizes)
    assert all(axis in (1, size) for axis, size in zip(compact.shape, sizes, strict=True))
    assert torch.equal(compact.expand(*sizes), mask.dense(*sizes))


@given(sized())
def test_what_is_built_is_the_mask_at_any_size(case):
    sizes, (mask, _) = case
    built = masks.built(mask, *sizes, torch.device("cpu"))
    if built is None:
        assert mask.dense(*sizes).all()
    else:
        assert torch.equal(built.dense(*sizes), mask.dense(*sizes))
        assert repr(built).count("Tensor") <= repr(mask).count("Tensor")
        assert masks.may_hide_keys(mask, *sizes) or not masks.may_hide_keys(built, *sizes)


def test_what_is_built_for_other_sizes_asks_the_rule():
    for mask in (masks.padding(1), masks.window(0, 0), masks.causal(1) & ~masks.prefix(1)):
        built = masks.built(mask, 1, 1, torch.device("cpu"))
        assert built is not None
        assert torch.equal(built.dense(2, 3), mask.dense(2, 3))


@given(sized(count=2))
def test_de_morgan(case):
    sizes, (a, _), (b, _) = case
    assert equal(~(a & b), ~a | ~b, sizes)
    assert equal(~(a | b), ~a & ~b, sizes)


@given(sized(count=3))
def test_masks_are_an_algebra_of_sets(case):
    sizes, (a, _), (b, _), (c, _) = case
    full, nothing = masks.full(), ~masks.full()
    assert equal(a & b, b & a, sizes)
    assert equal(a | b, b | a, sizes)
    assert equal((a & b) & c, a & (b & c), sizes)
    assert equal(a & (b | c), (a & b) | (a & c), sizes)
    assert equal(a | (a & b), a, sizes)
    assert equal(~~a, a, sizes)
    assert equal(a & full, a, sizes)
    assert equal(a | nothing, a, sizes)
    assert equal(a & ~a, nothing, sizes)
    assert equal(a | ~a, full, sizes)


@given(SIZES, SIZES, NUMBERS)
def test_rules_meet(q_seq, kv_seq, n):
    sizes = (q_seq, kv_seq)
    assert equal(masks.window(None, None), masks.full(), sizes)
    assert equal(masks.window(None, n), masks.causal(n), sizes)
    assert equal(masks.window(n, n), masks.window(n, None) & masks.window(None, n), sizes)
    assert equal(masks.prefix(n), masks.padding(n), sizes)
    assert equal(masks.padding(kv_seq), masks.full(), sizes)
    assert equal(~masks.causal(n), masks.window(-n - 1, None), sizes)


def test_causal_is_aligned_at_the_top_left():
    for q_seq, kv_seq in [(3, 3), (2, 5), (5, 2)]:
        expected = torch.ones(q_seq, kv_seq, dtype=torch.bool).tril()
        assert torch.equal(masks.causal().dense(q_seq, kv_seq), expected)


@given(SIZES, SIZES)
def test_the_sizes_come_from_where_the_mask_is_used(q_seq, kv_seq):
    mask = masks.causal() & ~masks.window(0, 0) | masks.prefix(1)
    assert mask.dense(q_seq, kv_seq).shape == (q_seq, kv_seq)
    assert masks.full().dense(0, kv_seq).shape == (0, kv_seq)


LEADING = st.lists(st.integers(1, 3), max_size=2)
PER_EXAMPLE = [masks.padding, masks.prefix, masks.causal, lambda n: masks.window(n, n)]


@pytest.mark.parametrize("rule", PER_EXAMPLE, ids=["padding", "prefix", "causal", "window"])
@given(leading=LEADING, seed=st.integers(0, 99), sizes=st.tuples(SIZES, SIZES))
def test_a_number_for_each_example(rule, leading, seed, sizes):
    numbers = torch.randint(0, 6, leading, generator=torch.Generator().manual_seed(seed))
    dense = rule(numbers).dense(*sizes)
    assert dense.shape == (*leading, *sizes)
    for one, n in zip(dense.reshape(-1, *sizes), numbers.flatten().tolist(), strict=True):
        assert torch.equal(one, rule(n).dense(*sizes))


@given(leading=LEADING, seed=st.integers(0, 99), sizes=st.tuples(SIZES, SIZES))
def test_segments_for_each_example(leading, seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    q_ids, kv_ids = (torch.randint(0, 3, (*leading, n), generator=generator) for n in sizes)
    dense = masks.segments(q_ids, kv_ids).dense(*sizes)
    assert dense.shape == (*leading, *sizes)
    flat = zip(
        *(x.reshape(-1, *x.shape[len(leading) :]) for x in (dense, q_ids, kv_ids)), strict=True
    )
    for one, q, kv in flat:
        assert one.tolist() == reference.segments(q.tolist(), kv.tolist())


def test_segments_of_one_sequence_look_within():
    ids = torch.tensor([0, 1, 0])
    within = masks.segments(ids).dense(3, 3)
    assert torch.equal(within, masks.segments(ids, ids).dense(3, 3))
    assert within.tolist() == reference.segments(ids.tolist(), ids.tolist())


def test_lengths_may_be_a_list():
    lengths = torch.tensor([1, 3])
    assert equal(masks.padding([1, 3]), masks.padding(lengths), (2, 4))
    assert equal(masks.padding((1, 3)), masks.padding(lengths), (2, 4))


def test_leading_axes_broadcast_when_masks_combine():
    lengths = torch.tensor([[1], [3]])
    offsets = torch.tensor([0, 1, 2])
    dense = (masks.padding(lengths) & masks.causal(offsets)).dense(2, 4)
    assert dense.shape == (2, 3, 2, 4)
    for i, j in [(0, 0), (1, 2)]:
        one = masks.padding(int(lengths[i, 0])) & masks.causal(int(offsets[j]))
        assert torch.equal(dense[i, j], one.dense(2, 4))


@given(LEADING, st.integers(0, 99))
def test_dense_gives_back_its_tensor(leading, seed):
    tensor = torch.rand(*leading, 2, 3, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(masks.dense(tensor).dense(2, 3), tensor)
    assert torch.equal(
        masks.dense(tensor[..., :1, :]).dense(2, 3), tensor[..., :1, :].expand_as(tensor)
    )


def test_a_bool_tensor_combines_from_either_side():
    tensor = torch.tensor([[True, False], [False, True]])
    expected = tensor & torch.ones(2, 2).bool().tril()
    assert torch.equal((masks.causal() & tensor).dense(2, 2), expected)
    assert torch.equal((masks.causal() | tensor).dense(2, 2), torch.ones(2, 2).bool().tril())


BATCHED = {
    "padding": lambda n: masks.padding(n),
    "inverse": lambda n: ~masks.prefix(n),
    "both": lambda n: masks.causal() & masks.padding(n),
    "nested": lambda n: (masks.causal(n) | masks.window(n, 1)) & ~masks.padding(n - 2),
    "segments": lambda n: masks.segments(torch.stack([n, n % 2, n * 0], -1)) & masks.causal(1),
    "dense": lambda n: masks.dense(n[..., None, None] > torch.arange(9).reshape(3, 3)),
}
EACH_BATCHED = pytest.mark.parametrize("make", BATCHED.values(), ids=list(BATCHED))


@EACH_BATCHED
def test_vmap_maps_a_mask_as_a_loop_would(make):
    lengths = torch.tensor([0, 1, 3])
    mapped = torch.vmap(lambda mask: mask.dense(3, 3))(make(lengths))
    looped = torch.stack([make(n).dense(3, 3) for n in lengths])
    assert torch.equal(mapped, looped)
    assert torch.equal(mapped, make(lengths).dense(3, 3))


@EACH_BATCHED
def test_vmap_maps_a_mask_beside_what_it_masks(make):
    lengths = torch.tensor([0, 1, 3])
    q, k, v = (random.normal(key, (3, 2, 3, 4)) for key in random.split(random.key(0), 3))
    mapped = torch.vmap(dot_product_attention)(q, k, v, make(lengths))
    looped = [dot_product_attention(q[i], k[i], v[i], make(lengths[i])) for i in range(3)]
    assert torch.allclose(mapped, torch.stack(looped), atol=1e-6)
    assert torch.allclose(mapped, dot_product_attention(q, k, v, make(lengths)), atol=1e-6)


def test_a_mask_without_tensors_is_the_same_for_every_example():
    mask = masks.causal() & ~masks.window(0, 0)
    both = torch.vmap(lambda mask, x: mask.dense(2, 2) & x)(mask, torch.tensor([True, False]))
    assert torch.equal(both[0], mask.dense(2, 2))
    assert not both[1].any()


@given(sized())
def test_a_mask_is_a_pytree_and_its_numbers_are_not_leaves(case):
    sizes, (mask, _) = case
    leaves, spec = _pytree.tree_flatten(mask)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert equal(_pytree.tree_unflatten(leaves, spec), mask, sizes)


@given(sized())
def test_may_hide_keys_is_false_only_if_every_key_is_seen(case):
    sizes, (mask, _) = case
    if not masks.may_hide_keys(mask, *sizes):
        assert mask.dense(*sizes).any(-2).all()


def test_may_hide_keys_knows_what_sizes_tell():
    assert not masks.may_hide_keys(None, 1, 3)
    assert not masks.may_hide_keys(masks.full(), 1, 3)
    assert not masks.may_hide_keys(masks.causal(), 3, 3)
    assert not masks.may_hide_keys(masks.causal(-1), 3, 2)
    assert masks.may_hide_keys(masks.causal(), 2, 3)
    assert masks.may_hide_keys(masks.causal(-1), 3, 3)
    assert masks.may_hide_keys(torch.ones(3, 3).bool(), 3, 3)


def test_over_heads_gives_a_mask_value_a_heads_axis_and_a_tensor_none():
    cpu = torch.device("cpu")
    assert masks.over_heads("f", None, 2, 2, cpu) is None
    tensor = torch.ones(2, 2).bool()
    assert masks.over_heads("f", tensor, 2, 2, cpu) is tensor
    batched = masks.over_heads("f", masks.dense(torch.ones(5, 2, 2).bool()), 2, 2, cpu)
    assert batched is not None
    assert batched.shape == (5, 1, 2, 2)


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (masks.full(), "full()"),
        (masks.causal(2), "causal(offset=2)"),
        (masks.padding(torch.ones(2, 3, dtype=torch.int64)), "padding(lengths=Tensor(2, 3,))"),
        (masks.window(None, 1), "window(left=None, right=1)"),
        (~masks.prefix(1), "~(prefix(n=1))"),
        (masks.full() & ~masks.causal(), "full() & ~(causal(offset=0))"),
        (masks.full() & (masks.full() | masks.full()), "full() & (full() | full())"),
    ],
)
def test_a_mask_shows_how_it_was_made(mask, shown):
    assert repr(mask) == shown


@pytest.mark.parametrize(
    "use",
    [bool, operator.not_, lambda m: m and m, lambda m: m or m, lambda m: 1 if m else 2],
    ids=["bool", "not", "and", "or", "if"],
)
def test_a_mask_has_no_one_truth(use):
    sentence = (
        r"^masks.Mask: a mask must not be used as a bool, got bool\(mask\). Combine .* & \| ~"
    )
    with pytest.raises(TypeError, match=sentence):
        use(masks.causal())


def test_a_mask_cannot_be_changed():
    with pytest.raises(AttributeError):
        masks.causal().rule = None  # pyright: ignore[reportAttributeAccessIssue]  wrong on purpose


def test_a_mask_moves_with_all_its_tensors():
    mask = masks.causal() & ~masks.padding(torch.tensor([1, 2]))
    assert mask.to("meta").dense(2, 2).device.type == "meta"
    assert mask.dense(2, 2).device.type == "cpu"
    assert masks.causal().dense(2, 2, device="meta").device.type == "meta"
    sentence = "^masks.Mask: mask must be on the device of what it masks, meta, got cpu. Move it"
    with pytest.raises(ValueError, match=sentence):
        mask.dense(2, 2, device="meta")


FLOATS = torch.ones(2, 2)
BOOL_TENSOR = "be a mask of tinyfn.masks or a bool tensor, True where a query may attend"


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda: masks.causal(1.5), TypeError, "masks.causal: offset must be an int or an integer"),
        (
            lambda: masks.causal(True),
            TypeError,
            "masks.causal: offset must be an int or an .* got b",
        ),
        (lambda: masks.prefix(FLOATS), TypeError, "masks.prefix: n must be an integer tensor"),
        (
            lambda: masks.padding([[1], [2, 3]]),
            TypeError,
            r"masks.padding: lengths must hold .*got \[\[1\], \[",
        ),
        (lambda: masks.padding([None]), TypeError, r"masks.padding: lengths must .*got \[None\]"),
        (lambda: masks.padding([2**70]), TypeError, "masks.padding: lengths must hold ints of 64"),
        (lambda: masks.padding("ab"), TypeError, "masks.padding: lengths must be an int or an int"),
        (
            lambda: masks.padding([1.5]),
            TypeError,
            "masks.padding: lengths must be an integer tensor",
        ),
        (
            lambda: masks.window(1.5, 0),
            TypeError,
            "masks.window: left must be an int or an integer",
        ),
        (
            lambda: masks.window(0, 1.5),
            TypeError,
            "masks.window: right must be an int or an integer",
        ),
        (
            lambda: masks.segments(FLOATS),
            TypeError,
            "masks.segments: q_ids must be an integer tens",
        ),
        (
            lambda: masks.segments(FLOATS.long(), FLOATS),
            TypeError,
            "masks.segments: kv_ids must be an integer tensor, got a float32 tensor",
        ),
        (
            lambda: masks.dense(FLOATS),
            TypeError,
            f"masks.dense: mask must {BOOL_TENSOR}, got a floa",
        ),
        (
            lambda: masks.dense([[True]]),
            TypeError,
            f"masks.dense: mask must {BOOL_TENSOR}, got list",
        ),
        (
            lambda: masks.dense(FLOATS[0].bool()),
            ValueError,
            r"masks.dense: tensor must have shape \(..., q_seq, kv_seq\), got shape \(2,\). Insert",
        ),
        (
            lambda: masks.causal() & 1,
            TypeError,
            "masks.Mask &: other must be a mask or a bool .* 1",
        ),
        (
            lambda: masks.causal() | None,
            TypeError,
            r"masks.Mask \|: other must be a mask or a bool",
        ),
        (
            lambda: masks.causal() & FLOATS,
            TypeError,
            f"masks.dense: mask must {BOOL_TENSOR}, got a",
        ),
        (
            lambda: masks.segments(torch.tensor([0, 1])).dense(2, 3),
            ValueError,
            r"masks.segments: kv_ids must have an id for each of 3 positions, got shape \(2,\).",
        ),
        (
            lambda: masks.segments(torch.tensor([0, 1])).dense(3, 2),
            ValueError,
            r"masks.segments: q_ids must have an id for each of 3 positions, got shape \(2,\).",
        ),
        (
            lambda: masks.segments(torch.tensor(0)).dense(1, 1),
            ValueError,
            r"masks.segments: q_ids must have an id for each of 1 positions, got shape \(\).",
        ),
        (
            lambda: masks.dense(FLOATS.bool()).dense(2, 3),
            ValueError,
            r"masks.dense: tensor must have shape \(..., q_seq=2, kv_seq=3\), got shape \(2, 2\).",
        ),
        (
            lambda: masks.over_heads("attention", FLOATS, 2, 2, torch.device("cpu")),
            TypeError,
            f"attention: mask must {BOOL_TENSOR}, got a float32 tensor. Compare to make it bool",
        ),
    ],
)
def test_what_is_no_mask_is_refused(make, kind, sentence, unchecked):
    with pytest.raises(kind, match=f"^{sentence}"):
        make()


RULES = [
    masks.full(),
    masks.causal(),
    masks.causal(2),
    masks.causal(-1),
    masks.window(2, 0),
    masks.window(None, 1),
    masks.window(0, None),
    masks.window(1, -1),
    masks.prefix(2),
    masks.padding(3),
    masks.causal() & masks.window(2, 3),
    masks.causal() | masks.window(1, 1),
    masks.window(1, 0) | masks.prefix(1),
    ~masks.causal(),
    masks.causal() & ~masks.window(1, -1),
    masks.padding(torch.tensor([2, 4])) & masks.causal(),
]


@pytest.mark.parametrize("mask", RULES, ids=repr)
def test_between_positions_is_a_part_of_the_whole(mask):
    q_at, kv_at = torch.tensor([5, 2]), torch.tensor([6, 0, 3, 2])
    whole = mask.dense(7, 7)
    part = masks.between(mask, q_at, kv_at)
    assert torch.equal(part.expand(*whole.shape[:-2], 2, 4), whole[..., q_at, :][..., kv_at])


@pytest.mark.parametrize("mask", RULES, ids=repr)
def test_reach_is_how_far_a_query_may_look(mask):
    whole = mask.dense(30, 30)
    distance = torch.arange(30) - torch.arange(30)[:, None]  # ahead of the query
    back, ahead = masks.reach(mask)
    seen = distance[whole.reshape(-1, 30, 30).any(0)]
    assert back is None or -seen.min() <= back
    assert ahead is None or seen.max() <= ahead
    itself = whole.diagonal(dim1=-2, dim2=-1).all()
    assert not masks.sees_itself(mask) or itself
    assert masks.by_rule(mask)


def test_reach_and_sight_know_the_common_masks():
    assert masks.reach(masks.causal() & masks.window(2, 3)) == (2, 0)
    assert masks.reach(masks.causal() | masks.window(1, 1)) == (None, 1)
    assert masks.reach(masks.causal() & masks.padding(3)) == (None, 0)
    assert masks.sees_itself(masks.causal() & masks.window(2, None))
    assert masks.sees_itself(masks.causal() | masks.prefix(1))
    assert not masks.sees_itself(masks.causal() & ~masks.prefix(1))
    made = masks.built(masks.window(2, 0), 4, 4, torch.device("cpu"))
    assert made is not None
    assert masks.reach(made) == (2, 0)
    assert torch.equal(
        masks.between(made, torch.arange(1, 5), torch.arange(4)),
        masks.window(2, 0).dense(5, 4)[1:],
    )


def test_a_mask_with_a_tensor_of_a_size_is_no_rule():
    for mask in (masks.dense(torch.ones(2, 2).bool()), masks.segments(torch.tensor([0, 1]))):
        assert not masks.by_rule(masks.causal() & mask)
        assert not masks.by_rule(~mask)

"""Trees: mapping keeps the structure, and stacking, naming and casting can be undone."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyfn import tree

NAMES = st.sampled_from(["weight", "bias", "q_proj", "norm", "a b", "x1"])


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return torch.rand(
        shape, dtype=dtype, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )


def dicts(children):
    return st.dictionaries(NAMES, children, min_size=1, max_size=3)


def trees(leaves, max_leaves=6):
    """Dicts and lists without empty branches, which a flat dict cannot show."""
    return st.recursive(
        dicts(leaves),
        lambda children: dicts(children) | st.lists(children, min_size=1, max_size=3),
        max_leaves=max_leaves,
    )


def same(a, b):
    """Equal in structure, order of names, dtypes and every number."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and torch.equal(a, b)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def test_same_tells_trees_apart():
    one = torch.ones(1)
    assert same({"a": [one]}, {"a": [torch.ones(1)]})
    for other in ({"b": [one]}, {"a": (one,)}, {"a": [one, one]}, {"a": [one.double()]}):
        assert not same({"a": [one]}, other)
    assert not same({"a": one, "b": one}, {"b": one, "a": one})


@given(trees(tensors()))
def test_mapping_the_identity_changes_nothing(t):
    assert same(tree.map(lambda leaf: leaf, t), t)


@given(trees(st.integers()))
def test_map_composes_and_meets_leaves_in_their_order(t):
    visited = []
    doubled = tree.map(lambda leaf: visited.append(leaf) or 2 * leaf, t)
    assert visited == tree.leaves(t)
    assert tree.leaves(doubled) == [2 * leaf for leaf in tree.leaves(t)]
    assert tree.map(lambda leaf: leaf + 1, doubled) == tree.map(lambda leaf: 2 * leaf + 1, t)


@given(trees(st.integers()))
def test_map_takes_leaves_at_the_same_place(t):
    negative = tree.map(lambda leaf: -leaf, t)
    assert set(tree.leaves(tree.map(lambda a, b, c: a + b + c, t, negative, t))) <= set(
        tree.leaves(t)
    )
    assert tree.leaves(tree.map(lambda a, b: a + b, t, negative)) == [0] * len(tree.leaves(t))


def test_map_finds_names_whatever_their_order():
    a, b = {"x": 1, "y": 2}, {"y": 20, "x": 10}
    assert list(tree.map(lambda i, j: i + j, a, b).items()) == [("x", 11), ("y", 22)]


def test_map_keeps_tuples_and_named_tuples():
    mapped = tree.map(lambda leaf: leaf + 1, (1, [Pair(2, 3)]))
    assert mapped == (2, [Pair(3, 4)])
    assert isinstance(mapped[1][0], Pair)


@pytest.mark.parametrize(
    ("first", "other", "shown"),
    [
        ({"a": 1}, {"b": 1}, r"a dict of \['a'\], got a dict of \['b'\]"),
        ({"a": 1}, {"a": 1, "b": 1}, r"a dict of \['a'\], got a dict of \['a', 'b'\]"),
        ({"a": {"b": 1}}, {"a": 1}, r"a dict of \['b'\], got int 1"),
        ({"a": {"b": 1}}, {"a": torch.ones(2)}, r"a dict of \['b'\], got shape \(2,\)"),
        ([1, 2], [1], "a list of 2, got a list of 1"),
        ([1], {"a": 1}, r"a list of 1, got a dict of \['a'\]"),
        ((1, 2), [1, 2], "a tuple of 2, got a list of 2"),
    ],
)
def test_map_refuses_another_structure(first, other, shown):
    sentence = f"^tree.map: rest must have the structure of the first tree, {shown}. Map over"
    with pytest.raises(ValueError, match=sentence):
        tree.map(lambda a, b: a, first, other)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.data())
def test_unstack_undoes_stack(seeds, data):
    first = data.draw(trees(tensors()))
    models = [tree.map(lambda leaf, s=s: leaf + s, first) for s in seeds]
    stacked = tree.stack(models)
    for leaf, part in zip(tree.leaves(stacked), tree.leaves(first), strict=True):
        assert leaf.shape == (len(models), *part.shape)
    assert same(tree.unstack(stacked), models)
    assert same(tree.stack(tree.unstack(stacked)), stacked)


def test_stack_is_differentiable():
    w = torch.tensor([1.0, 2.0])
    grad = torch.func.grad(lambda w: tree.stack([{"w": w * i} for i in (2, 3)])["w"].sum())(w)
    assert grad.tolist() == [5.0, 5.0]


def test_a_stacked_tree_is_mapped_by_vmap():
    models = [{"w": torch.tensor(float(i))} for i in range(3)]
    squares = torch.vmap(lambda p: p["w"] ** 2)(tree.stack(models))
    assert squares.tolist() == [0.0, 1.0, 4.0]


@pytest.mark.parametrize(
    ("trees", "sentence"),
    [
        ([], "tree.stack: trees must hold a tree, got none. Pass"),
        (
            [{"w": torch.ones(2)}, {"w": torch.ones(3)}],
            r"tree.stack: trees must have leaves of one shape, got \[\(2,\), \(3,\)\]. Stack",
        ),
        ([{"w": torch.ones(2)}, {"v": torch.ones(2)}], "rest must have the structure of the first"),
    ],
)
def test_stack_refuses_what_has_no_common_shape(trees, sentence):
    with pytest.raises(ValueError, match=sentence):
        tree.stack(trees)


@pytest.mark.parametrize(
    ("stacked", "lengths"),
    [
        ({"a": torch.ones(2), "b": torch.ones(3)}, r"\[2, 3\]"),
        ({"a": torch.tensor(1.0)}, r"\[None\]"),
        ({"a": torch.tensor(1.0), "b": torch.ones(3)}, r"\[3, None\]"),
        ({}, r"\[\]"),
    ],
)
def test_unstack_refuses_leaves_of_no_common_length(stacked, lengths):
    sentence = f"^tree.unstack: tree must have leaves with one first axis.*got lengths {lengths}. P"
    with pytest.raises(ValueError, match=sentence):
        tree.unstack(stacked)


@given(trees(tensors()))
def test_unflatten_undoes_flatten(t):
    flat = tree.flatten(t)
    assert all(isinstance(leaf, torch.Tensor) for leaf in flat.values())
    assert list(flat.values()) == tree.leaves(t)
    assert same(tree.unflatten(flat), t)


@given(trees(tensors()), st.randoms())
def test_unflatten_does_not_mind_the_order(t, random):
    items = list(tree.flatten(t).items())
    random.shuffle(items)
    back = tree.flatten(tree.unflatten(dict(items)))
    assert back.keys() == dict(items).keys()
    assert all(back[name] is leaf for name, leaf in items)


def test_numbered_names_are_a_list_only_without_a_gap():
    assert tree.unflatten({"a.1": "y", "a.0": "x"}) == {"a": ["x", "y"]}
    assert tree.unflatten({"a.1": "y", "a.2": "x"}) == {"a": {"1": "y", "2": "x"}}
    assert tree.unflatten({"a.0": "y", "a.b": "x"}) == {"a": {"0": "y", "b": "x"}}
    assert tree.unflatten({"a.00": "y"}) == {"a": {"00": "y"}}
    eleven = {f"layers.{i}": i for i in range(11)}
    assert tree.unflatten(eleven) == {"layers": list(range(11))}
    assert tree.unflatten({}) == {}


def test_flatten_names_as_a_state_dict_does():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.LayerNorm(3))
    state = module.state_dict()
    assert tree.flatten(tree.unflatten(state)).keys() == state.keys()


def test_flatten_refuses_a_name_with_two_readings():
    sentence = "^tree.flatten: tree must have names without dots, got 'a.b'. Rename it.$"
    with pytest.raises(ValueError, match=sentence):
        tree.flatten({"x": [{"a.b": 1}]})


@pytest.mark.parametrize(
    ("flat", "name"), [({"a": 1, "a.b": 2}, "a.b"), ({"a.b.c": 1, "a.b": 2}, "a.b")]
)
def test_unflatten_refuses_a_leaf_that_is_a_branch(flat, name):
    sentence = f"^tree.unflatten: flat must have no name .*a leaf and a branch, got '{name}'. R"
    with pytest.raises(ValueError, match=sentence):
        tree.unflatten(flat)


@given(trees(tensors()))
def test_size_counts_numbers(t):
    assert tree.size(t) == sum(len(leaf.flatten()) for leaf in tree.leaves(t))


def test_one_tree_is_no_list_of_trees(unchecked):
    with pytest.raises(TypeError, match=r"^tree.stack: trees must be a list of trees, got dict"):
        tree.stack({"w": torch.ones(2)})


@given(trees(tensors()), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, None]))
def test_cast_changes_the_dtype_and_nothing_else(t, dtype):
    cast = tree.cast(t, dtype)
    assert same(cast, tree.map(lambda leaf: leaf if dtype is None else leaf.to(dtype), t))


def test_cast_moves_to_a_device_and_is_differentiable():
    moved = tree.cast({"w": torch.ones(2)}, device="meta")["w"]
    assert (moved.device.type, moved.dtype) == ("meta", torch.float32)
    grads = torch.func.grad(lambda p: tree.cast(p, torch.float64)["w"].square().sum())
    assert grads({"w": torch.ones(2)})["w"].tolist() == [2.0, 2.0]
    assert grads({"w": torch.ones(2)})["w"].dtype == torch.float32

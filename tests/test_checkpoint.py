"""Checkpoints: what is loaded is what was saved, and a file is whole or not there."""

import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tinyfn import checkpoint, init_encoder, random, tree

PARAMS = {"layers": [{"weight": torch.ones(2, 3)}, {"weight": torch.zeros(2, 3)}]}


NAMES = st.text("abcxyz_", min_size=1, max_size=4)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]


LEAVES = st.builds(
    lambda shape, dtype: torch.arange(1, math.prod(shape) + 1).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
)
BRANCHES = st.lists(LEAVES, min_size=1, max_size=2) | st.dictionaries(
    NAMES, LEAVES, min_size=1, max_size=2
)
TREES = st.dictionaries(NAMES, LEAVES | BRANCHES, min_size=1, max_size=3)


def same(a, b):
    flat, other = tree.flatten(a), tree.flatten(b)
    return list(flat) == list(other) and all(
        leaf.dtype == other[name].dtype and torch.equal(leaf, other[name])
        for name, leaf in flat.items()
    )


@given(params=TREES, metadata=st.dictionaries(NAMES, st.text(max_size=5)))
def test_load_gives_what_save_was_given(params, metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    checkpoint.save(path, params, metadata)
    loaded, words = checkpoint.load(path)
    assert same(loaded, params)
    assert words == metadata


def test_leaves_keep_the_order_that_optimisers_know_them_by(tmp_path):
    params = {"b": {"d": torch.ones(1), "c": torch.ones(2)}, "a": torch.ones(3)}
    checkpoint.save(tmp_path / "a", params)
    loaded, _ = checkpoint.load(tmp_path / "a")
    assert [leaf.numel() for leaf in tree.leaves(loaded)] == [1, 2, 3]
    save_file({"b": torch.ones(1), "a": torch.ones(2)}, tmp_path / "foreign")
    assert set(checkpoint.load(tmp_path / "foreign")[0]) == {"a", "b"}


def test_leaves_that_share_memory_or_lie_askew_are_saved(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    params = {"a": weight, "b": weight, "c": weight.T, "d": weight[:, 1]}
    checkpoint.save(tmp_path / "a", params)
    assert same(checkpoint.load(tmp_path / "a")[0], params)


def test_dtype_is_that_of_floating_leaves_only(tmp_path):
    checkpoint.save(tmp_path / "a", {"w": torch.ones(2), "key": random.key(0)})
    loaded, _ = checkpoint.load(tmp_path / "a", "cpu", torch.bfloat16)
    assert (loaded["w"].dtype, loaded["key"].dtype) == (torch.bfloat16, torch.int64)


def test_params_keep_no_graph_and_are_not_touched(tmp_path):
    weight = torch.ones(2, requires_grad=True)
    checkpoint.save(tmp_path / "a", {"w": weight})
    assert not checkpoint.load(tmp_path / "a")[0]["w"].requires_grad
    assert weight.requires_grad


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": torch.zeros(2)})

    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="the disk is gone"):
        checkpoint.save(path, {"w": torch.ones(2)})
    monkeypatch.undo()
    assert torch.equal(checkpoint.load(path)[0]["w"], torch.zeros(2))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_of_others_can_be_read(tmp_path):
    save_file({"layers.0.w": torch.ones(2)}, tmp_path / "a", metadata={"format": "pt"})
    params, words = checkpoint.load(tmp_path / "a")
    assert same(params, {"layers": [{"w": torch.ones(2)}]})
    assert words == {"format": "pt"}


def test_no_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.load: path must be a file, got .*no"):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.load: path must be a file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_part_of_a_file_is_said(tmp_path, keep):
    checkpoint.save(tmp_path / "a", PARAMS)
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match="path must be a whole safetensors file, got"):
        checkpoint.load(tmp_path / "a")


def test_another_kind_of_file_is_said(tmp_path):
    (tmp_path / "a").write_text("word,phonemes\n" * 9)
    with pytest.raises(ValueError, match="path must be a whole safetensors file, got"):
        checkpoint.load(tmp_path / "a")


def test_what_is_not_a_tensor_is_said(tmp_path, unchecked):
    with pytest.raises(TypeError, match=r"checkpoint\.save: params must hold tensors, got int 3"):
        checkpoint.save(tmp_path / "a", {"layers": [3]})
    for nothing in ({}, {"layers": []}, torch.ones(1)):
        with pytest.raises(ValueError, match=r"checkpoint\.save: params must hold tensors, got"):
            checkpoint.save(tmp_path / "a", nothing)
    with pytest.raises(TypeError, match=r"metadata must hold strings, got int 3 at step"):
        checkpoint.save(tmp_path / "a", PARAMS, {"step": 3})
    with pytest.raises(ValueError, match="have names without dots"):
        checkpoint.save(tmp_path / "a", {"a.b": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_params_of_the_same_sizes_pass():
    make = init_encoder
    one, other = (make(random.key(seed), 8, 2, 16, num_layers=2) for seed in (0, 1))
    checkpoint.check_shapes(one, other)


def test_every_name_that_differs_is_listed():
    like = init_encoder(random.key(0), 8, 2, 16, num_layers=1, final_norm=True)
    found = init_encoder(random.key(0), 8, 2, 12, num_layers=2)
    with pytest.raises(ValueError, match="must have the names and shapes of `like`, got") as error:
        checkpoint.check_shapes(found, like)
    text = str(error.value)
    for part in (
        "final_norm.weight missing",
        "layers.1.self_attention.q_proj.weight extra",
        "layers.0.feed_forward.up_proj.weight (12, 8), not (16, 8)",
    ):
        assert part in text
    assert "layers.0.self_attention.q_proj.weight" not in text

"""Checkpoints: what is loaded is what was saved, and a file is whole or not there."""

import json
import math
import os
import struct
import subprocess
import sys

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tinyfn import checkpoint, encoder_layer, init_encoder, random, sharding, tree

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
    return list(tree.flatten(a)) == list(tree.flatten(b)) and alike(a, b)


def alike(a, b):
    """The same leaves under the same names, in whatever order."""
    return alike_flat(tree.flatten(a), tree.flatten(b))


def alike_flat(flat, other):
    return flat.keys() == other.keys() and all(
        leaf.dtype == other[name].dtype and torch.equal(leaf, other[name])
        for name, leaf in flat.items()
    )


PLAIN = st.text(max_size=5) | st.integers() | st.floats(allow_nan=False) | st.booleans()


@given(params=TREES, metadata=st.dictionaries(NAMES, PLAIN))
def test_load_gives_what_save_was_given(params, metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    checkpoint.save(path, params, metadata)
    loaded, words = checkpoint.load(path)
    assert same(loaded, params)
    assert words == metadata
    assert {n: type(word) for n, word in words.items()} == {n: type(m) for n, m in metadata.items()}


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


KILLED = """
import os, signal, sys, torch
from tinyfn import checkpoint
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save(sys.argv[1], {"w": torch.ones(2)})
"""


def test_a_process_killed_as_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": torch.zeros(2)})
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert torch.equal(checkpoint.load(path)[0]["w"], torch.zeros(2))
    visible = [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")]
    assert visible == ["a.safetensors"]


def test_others_read_what_is_saved(tmp_path):
    params = init_encoder(random.key(0), 8, 2, 16, num_layers=2)
    checkpoint.save(tmp_path / "a", params, {"norm_first": True, "note": "as it is"})
    assert alike_flat(tree.flatten(params), load_file(tmp_path / "a"))
    with safe_open(tmp_path / "a", framework="pt") as file:
        words = file.metadata()
    assert words["tinyfn.format"] == "1"
    assert (words["norm_first"], words["note"]) == ("true", "as it is")


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
    for odd in (None, [3], torch.relu, torch.ones(1)):
        with pytest.raises(TypeError, match=r"metadata must hold strings, .* at activation"):
            checkpoint.save(tmp_path / "a", PARAMS, {"activation": odd})
    with pytest.raises(TypeError, match=r"metadata must hold strings, .* int 3 at 5"):
        checkpoint.save(tmp_path / "a", PARAMS, {5: 3})
    with pytest.raises(ValueError, match=r"metadata must have names that do not begin with 'tiny"):
        checkpoint.save(tmp_path / "a", PARAMS, {"tinyfn.order": "x"})
    for odd in (torch.ones(1, device="meta"), torch.ones(1).to_sparse(), torch.ones(1) + 0j):
        odd = odd.to(torch.complex128) if odd.is_complex() else odd
        with pytest.raises(TypeError, match=r"params must hold tensors, got .* at layers\.0"):
            checkpoint.save(tmp_path / "a", {"layers": [odd]})
    with pytest.raises(ValueError, match="have names without dots"):
        checkpoint.save(tmp_path / "a", {"a.b": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def raw(path, header, content=b"", size=None):
    """A file by hand: the length of the header, the header, the numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + content)


def entry(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


ONE = {"a": entry(0, 4)}
TWICE = b'{"a":%b,"a":%b}' % tuple(json.dumps(entry(i, i + 4)).encode() for i in (0, 4))


@pytest.mark.parametrize(
    ("header", "content", "size"),
    [
        (ONE, b"", 2**63),
        (ONE, b"", 2**20),
        (ONE, b"12345", None),
        ({"a": entry(0, 4, [2**62, 2**62])}, b"1234", None),
        ({"a": entry(0, 4, [-1])}, b"1234", None),
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"1234", None),
        ({"a": entry(0, 4, dtype="PICKLE")}, b"1234", None),
        ({**ONE, "__metadata__": {"tinyfn.format": 1}}, b"1234", None),
        (TWICE, b"12345678", None),
        ([1], b"", None),
        (b"\xff\xfe", b"", None),
        (b"[" * 10_000, b"", None),
    ],
)
def test_a_file_that_makes_no_sense_is_said(tmp_path, header, content, size):
    raw(tmp_path / "a", header, content, size)
    with pytest.raises(
        ValueError, match=r"checkpoint\.load: path must be a whole safetensors file"
    ):
        checkpoint.load(tmp_path / "a")


def test_the_file_by_hand_is_read_where_it_makes_sense(tmp_path):
    raw(tmp_path / "a", ONE, struct.pack("<f", 3.0))
    assert same(checkpoint.load(tmp_path / "a")[0], {"a": torch.tensor([3.0])})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"tinyfn.format": "2"}, "be of format 1 or an earlier one, got .* of format '2'"),
        ({"tinyfn.format": "new"}, "be of format 1 or an earlier one"),
        ({"tinyfn.order": '["b"]'}, "have metadata under tinyfn.order"),
        ({"tinyfn.order": "garbage"}, "have metadata under tinyfn.order"),
        ({"tinyfn.order": "3"}, "have metadata under tinyfn.order"),
        ({"tinyfn.order": '["a", "a"]'}, "have metadata under tinyfn.order"),
        ({"tinyfn.order": "[" * 100_000}, "have metadata under tinyfn.order"),
        ({"tinyfn.json": '["eps"]'}, "have metadata under tinyfn.order and tinyfn.json"),
        ({"tinyfn.json": '["eps"]', "eps": "x"}, "have metadata under tinyfn.order and tinyfn.js"),
        ({"tinyfn.json": '["tinyfn.json"]'}, "have metadata under tinyfn.order and tinyfn.json"),
    ],
)
def test_metadata_that_make_no_sense_are_said(tmp_path, words, said):
    save_file({"a": torch.ones(1)}, tmp_path / "a", metadata=words)
    with pytest.raises(ValueError, match=rf"checkpoint\.load: path must {said}"):
        checkpoint.load(tmp_path / "a")


def test_names_that_are_no_tree_are_listed(tmp_path):
    save_file({n: torch.ones(1) for n in ("a", "a.b.c", "d.e", "d.e.f", "g")}, tmp_path / "a")
    with pytest.raises(ValueError, match=r"no name that is both a leaf and .* with a, d\.e\. "):
        checkpoint.load(tmp_path / "a")
    save_file({"a." * 10_000: torch.ones(1)}, tmp_path / "a")
    with pytest.raises(ValueError, match="names of at most 100 steps"):
        checkpoint.load(tmp_path / "a")


def test_a_dtype_is_floating(tmp_path, unchecked):
    checkpoint.save(tmp_path / "a", PARAMS)
    for odd in (torch.int8, "float16"):
        with pytest.raises(TypeError, match=r"checkpoint\.load: dtype must be a floating dtype"):
            checkpoint.load(tmp_path / "a", None, odd)


def test_a_change_of_what_is_loaded_does_not_reach_the_file(tmp_path):
    checkpoint.save(tmp_path / "a", PARAMS)
    loaded, _ = checkpoint.load(tmp_path / "a")
    loaded["layers"][0]["weight"].mul_(7.0)
    assert same(checkpoint.load(tmp_path / "a")[0], PARAMS)


def test_a_part_is_read_by_its_name(tmp_path):
    params = init_encoder(random.key(0), 8, 2, 16, num_layers=12, final_norm=True)
    checkpoint.save(tmp_path / "a", params, {"eps": 1e-6})
    save_file(tree.flatten(params), tmp_path / "foreign")
    for name in ("a", "foreign"):
        file = checkpoint.open(tmp_path / name)
        assert file.names("layers") == [f"layers.{i}" for i in range(12)]
        assert set(file.names()) == {"layers", "final_norm"}
        assert file.names("layers.0.feed_forward.up_proj.bias") == []
        layers = [file[name] for name in file.names("layers")]
        assert all(map(alike, layers, params["layers"]))
        assert alike(file["final_norm"], params["final_norm"])
        assert torch.equal(file["final_norm.weight"], params["final_norm"]["weight"])
        assert same(file["layers"][3:4], [file["layers.3"]])
        assert file.shapes["final_norm.weight"] == (8,)
    assert checkpoint.open(tmp_path / "a").metadata == {"eps": 1e-6}
    assert list(checkpoint.open(tmp_path / "a").shapes) == list(tree.flatten(params))


def test_a_part_comes_in_the_dtype_that_is_asked_for(tmp_path):
    checkpoint.save(tmp_path / "a", {"layers": [{"w": torch.ones(2), "key": random.key(0)}]})
    part = checkpoint.open(tmp_path / "a", "cpu", torch.bfloat16)["layers.0"]
    assert (part["w"].dtype, part["key"].dtype) == (torch.bfloat16, torch.int64)
    assert checkpoint.open(tmp_path / "a", "meta")["layers.0.w"].is_meta


def test_a_name_that_is_not_there_is_said(tmp_path):
    checkpoint.save(tmp_path / "a", PARAMS)
    file = checkpoint.open(tmp_path / "a")
    for name in ("layer", "layers.2", "", "layers."):
        with pytest.raises(ValueError, match=r"checkpoint\.open: name must be in the file, got '"):
            file[name]


def test_a_file_replaced_since_it_was_opened_is_refused(tmp_path):
    checkpoint.save(tmp_path / "a", PARAMS)
    file = checkpoint.open(tmp_path / "a")
    checkpoint.save(tmp_path / "a", tree.map(torch.ones_like, PARAMS))
    with pytest.raises(ValueError, match=r"checkpoint\.open: path must stay as it was, got .*repl"):
        file["layers.0"]
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.open: path must be a file, .*gone"):
        file["layers.0"]


USED = """
import sys, torch
from tinyfn import checkpoint

def peak():  # in MB; ru_maxrss would begin with that of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

how, path = sys.argv[1:]
checkpoint.load(f"{path}.small")[0]["w"].sum()
before = peak()
if how == "by layer":
    file = checkpoint.open(path)
    total = sum(float(file[name]["w"].sum()) for name in file.names("layers"))
elif how == "all":
    params, _ = checkpoint.load(path)
    total = sum(float(layer["w"].sum()) for layer in params["layers"])
elif how == "half":
    params, _ = checkpoint.load(path, dtype=torch.bfloat16)
    total = sum(float(layer["w"][0]) for layer in params["layers"]) * 5 * 2**20
print(total, peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of ten layers of 20 MB, and a small one beside it."""
    path = tmp_path_factory.mktemp("large") / "a"
    checkpoint.save(path, {"layers": [{"w": torch.ones(5 * 2**20)}] * 10})
    checkpoint.save(f"{path}.small", {"w": torch.ones(2)})
    yield path
    path.unlink()


@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="only Linux tells there what was used"
)
@pytest.mark.parametrize(
    ("how", "least", "most"), [("by layer", 15, 60), ("all", 190, 240), ("half", 100, 190)]
)
def test_memory_is_used_for_what_is_read_and_no_second_copy(fresh_python, large, how, least, most):
    total, used = map(float, fresh_python("-c", USED, how, str(large)).split())
    assert total == 10 * 5 * 2**20
    assert least < used < most


def in_shards(folder, params, **options):
    """As Hugging Face writes them: the path of the index, and of the shards."""
    save_torch_state_dict(tree.flatten(params), folder, max_shard_size=1000, **options)
    (index,) = folder.glob("*.index.json")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    return index, shards


def test_shards_are_read_as_one(tmp_path):
    params = init_encoder(random.key(0), 8, 2, 16, num_layers=2)
    index, _ = in_shards(tmp_path, params, metadata={"note": "as it is"})
    loaded, metadata = checkpoint.load(index, like=params)
    assert alike(loaded, params)
    assert metadata["note"] == "as it is"
    assert int(metadata["total_size"]) == 4 * tree.size(params)
    file, x = checkpoint.open(index, dtype=torch.float64), torch.ones(3, 8, dtype=torch.float64)
    got = encoder_layer(file["layers.1"], x)
    assert torch.equal(got, encoder_layer(tree.cast(params["layers"][1], torch.float64), x))


def test_shards_of_transformers_are_read_and_what_is_saved_goes_back(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 11}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes))
    model.save_pretrained(tmp_path, max_shard_size=1000)
    loaded, _ = checkpoint.load(tmp_path / "model.safetensors.index.json")
    assert alike_flat(tree.flatten(loaded), model.state_dict())
    (tmp_path / "back").mkdir()
    model.config.save_pretrained(tmp_path / "back")
    checkpoint.save(tmp_path / "back" / "model.safetensors", loaded, {"format": "pt"})
    back = LlamaForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert alike_flat(back.state_dict(), model.state_dict())


def test_a_file_is_made_as_open_makes_it(tmp_path):
    checkpoint.save(tmp_path / "a", PARAMS)
    file = checkpoint.File(tmp_path / "a", "cpu", torch.float64)
    opened = checkpoint.open(tmp_path / "a", "cpu", torch.float64)
    assert same(file.read(), opened.read())
    for make in (checkpoint.File, checkpoint.open):
        with pytest.raises(FileNotFoundError, match=r"^checkpoint\.open: path must be a file, got"):
            make(tmp_path / "none")


def test_shards_that_are_missing_are_listed(tmp_path):
    index, (first, second, *_) = in_shards(tmp_path, init_encoder(random.key(0), 8, 2, 16, 2))
    first.unlink()
    second.unlink()
    said = rf"checkpoint\.load: path must have its shards .*without {first.name}, {second.name}\."
    with pytest.raises(FileNotFoundError, match=said):
        checkpoint.load(index)


def test_names_that_the_shards_lack_are_listed(tmp_path):
    index, (first, *_) = in_shards(tmp_path, init_encoder(random.key(0), 8, 2, 16, 2))
    told = json.loads(index.read_text())
    told["weight_map"] |= {"ghost.weight": first.name, "ghost.bias": first.name}
    index.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"whose shards lack ghost\.weight, ghost\.bias\. "):
        checkpoint.load(index)


def test_a_shard_that_is_cut_is_said(tmp_path):
    index, (first, *_) = in_shards(tmp_path, init_encoder(random.key(0), 8, 2, 16, 2))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"be a whole safetensors file, got .*{first.name}"):
        checkpoint.load(index)


@pytest.mark.parametrize(
    "shard", ["../a.safetensors", "/a.safetensors", "in/a", "in\\a", "..", ".", "", "\0", "C:a"]
)
def test_an_index_names_files_beside_itself_only(tmp_path, shard):
    folder = tmp_path / "in"
    folder.mkdir()
    for place in (tmp_path, folder):
        checkpoint.save(place / "a.safetensors", {"w": torch.ones(1)})
    (folder / "a.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises((ValueError, FileNotFoundError), match=r"checkpoint\.load: path must "):
        checkpoint.load(folder / "a.index.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        '{"weight_map": {}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"w": 3}}',
        '{"weight_map": {"w": "a", "w": "b"}}',
        '{"weight_map": {"w": "a"}, "metadata": 3}',
    ],
)
def test_what_is_no_index_is_said(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"checkpoint\.load: path must be an index of shards, got"):
        checkpoint.load(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"checkpoint\.load: path must be an index of shards, got"):
        checkpoint.load(tmp_path / "a.json")


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


def test_load_compares_before_it_reads(tmp_path, unchecked):
    like = init_encoder(random.key(0), 8, 2, 16, num_layers=1, final_norm=True)
    found = init_encoder(random.key(0), 8, 2, 12, num_layers=1)
    found["layers"][0]["self_attention_norm"]["bias"] = torch.ones(8).long()
    checkpoint.save(tmp_path / "a", found)
    with pytest.raises(
        ValueError, match=r"checkpoint\.load: path must have the names and"
    ) as error:
        checkpoint.load(tmp_path / "a", like=like)
    for part in (
        "final_norm.weight missing",
        "layers.0.feed_forward.up_proj.weight (12, 8), not (16, 8)",
        "layers.0.self_attention_norm.bias integer, not floating",
    ):
        assert part in str(error.value)
    with pytest.raises(TypeError, match=r"like must hold tensors, got int 3 at w; str 'a' at b"):
        checkpoint.load(tmp_path / "a", like={"w": 3, "b": "a"})
    meta = init_encoder(random.key(0), 8, 2, 16, num_layers=1, device="meta", dtype=torch.float16)
    checkpoint.save(tmp_path / "a", init_encoder(random.key(0), 8, 2, 16, num_layers=1))
    assert checkpoint.load(tmp_path / "a", like=meta)[0].keys() == meta.keys()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.complex64, *DTYPES])
def test_a_kind_is_the_same_in_a_file_and_in_memory(tmp_path, dtype):
    params = {"w": torch.ones(2).to(dtype)}
    checkpoint.save(tmp_path / "a", params)
    checkpoint.load(tmp_path / "a", like=params)
    for other in (torch.bool, torch.int64, torch.float32, torch.complex64):
        if torch.ones(1, dtype=other).numpy().dtype.kind != kind_of(dtype):
            with pytest.raises(ValueError, match=r"got w \w+, not \w+\. "):
                checkpoint.load(tmp_path / "a", like={"w": torch.ones(2).to(other)})


def kind_of(dtype):
    kind = torch.ones(1).to(dtype).to(torch.float32 if dtype.is_floating_point else dtype)
    return kind.numpy().dtype.kind.replace("u", "i")


def test_a_folder_that_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint.save: path must lie in a folder, got"):
        checkpoint.save(tmp_path / "none" / "a.safetensors", {"w": torch.ones(1)})


def test_a_name_that_the_format_keeps_for_itself_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"params must have names .* got '__metadata__'\. Rename"):
        checkpoint.save(path, {"__metadata__": torch.ones(1)})
    assert checkpoint.load(path)[0]["w"].item() == 1


def test_params_over_a_mesh_are_to_be_gathered_first(tmp_path):
    params = {"w": torch.ones(2, 2)}
    mesh = sharding.mesh(data=1)
    try:
        sharded = sharding.shard(params, sharding.plan(params, mesh))
        with pytest.raises(TypeError, match=r"got .* at w\. Gather it first, with sharding.gather"):
            checkpoint.save(tmp_path / "a", sharded)
        checkpoint.save(tmp_path / "a", sharding.gather(sharded))
    finally:
        torch.distributed.destroy_process_group()

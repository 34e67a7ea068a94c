"""More devices, the same numbers; what does not fit is said."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import communication
import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, Replicate, Shard

import sharded
import sharded_training
from tinyfn import (
    attention,
    init_attention,
    init_encoder_layer,
    init_feed_forward,
    random,
    sharding,
    tree,
)
from tinyfn.__main__ import main
from tinyfn.pronunciation import data, parallel, train

TESTS = Path(__file__).parent
PLAN = dataclasses.replace(sharded_training.PLAN, dtype="float32")


@pytest.fixture
def one():
    """A mesh of this process alone, along any axes."""
    before = torch.get_float32_matmul_precision()  # the command line sets it
    yield lambda *names: sharding.mesh(**dict.fromkeys(names, 1))
    torch.set_float32_matmul_precision(before)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def many():
    """A mesh along any axes, of processes that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def mesh(**sizes):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
        return sharding.mesh(**sizes)

    yield mesh
    dist.destroy_process_group()


def ran(world, script, *arguments):
    """What so many processes of a script come to."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--nproc-per-node", str(world), str(TESTS / script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )


def printed(world, script, *arguments):
    done = ran(world, script, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nan_is_no_small_difference_and_other_shapes_are_none():
    one = [torch.zeros(2), torch.zeros(3)]
    assert sharded.difference(one, [torch.zeros(2), torch.tensor([0.0, -2.0, 1.0])]) == 2
    assert math.isnan(sharded.difference(one, [torch.zeros(2), torch.tensor([0.0, math.nan, 1])]))
    assert math.isnan(sharded.difference(one, [torch.full((2,), math.nan), torch.zeros(3)]))
    with pytest.raises(AssertionError):
        sharded.difference(one, [torch.zeros(2), torch.zeros(())])


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: random.bits(key, (5,), dtype=torch.int16),
        lambda key: random.split(key, 3),
        lambda key: random.fold_in(key, 3),
        lambda key: random.uniform(key, (5,)),
        lambda key: random.normal(key, (5,)),
        lambda key: random.bernoulli(key, 0.3, (9,)),
        lambda key: random.permutation(key, 9),
    ],
)
def test_a_key_that_is_placed_draws_the_same(one, draw):
    mesh = one("data")
    key = random.key(5)
    placed = DTensor.from_local(key, mesh, [Replicate()])
    with sharding.on_mesh():
        drawn = draw(placed)
    assert torch.equal(sharding.gather(drawn), draw(key))


REFUSED = "sharding.on_mesh: derivatives of DTensors must"
LACKING = "got forward mode (jvp, jacfwd or hessian), which torch lacks"


@pytest.mark.parametrize("world", [2, 4])
def test_many_processes_find_what_one_does_keep_placements_and_refuse_forward_mode(world):
    found = printed(world, "sharded.py")
    adapters = found.pop("adapter")
    assert adapters.keys() == sharded.ADAPTERS.keys()
    far = {name: distance for name, distance in adapters.items() if not distance < 1e-10}
    assert found.keys() == sharded.PLANS[world].keys()
    for plan, results in found.items():
        refused = [results.pop(name) for name in list(results) if " jvp by " in name]
        kept = [results.pop(name) for name in list(results) if name.endswith(" keeps placements")]
        assert sorted(results) == sorted(sharded.wanted(world, plan))
        far |= {
            f"{plan} {case}": distance for case, distance in results.items() if not distance < 1e-10
        }
        assert len(refused) == 4
        assert all(said.startswith(REFUSED) and LACKING in said for said in refused)
        steps = [case for case in results if case.endswith(" sgd_steps")]
        assert kept == [True] * len(steps)
    assert not far


def assert_trained(results, kinds):
    assert set(results) == set(kinds)
    for params, losses, *steps in results.values():
        assert params < 1e-10
        assert losses < 1e-10
        assert steps == [4, 4]


def test_four_processes_train_what_one_does_and_fewer_go_on_from_there(tmp_path):
    folder = str(tmp_path)
    assert_trained(
        printed(4, "sharded_training.py", "interrupted", folder), ["data", "full", "tensor"]
    )
    assert_trained(printed(2, "sharded_training.py", "resumed", folder), ["tensor"])


def test_a_killed_process_ends_the_run_in_one_sentence_and_another_goes_on(
    tmp_path, capsys, monkeypatch, one
):
    done = ran(2, "sharded_training.py", "killed", str(tmp_path / "run"))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "train: all processes must" in line]
    assert "got one lost after step 3" in line
    assert "Start them again with --resume: they go on from the last checkpoint." in line
    (whole,) = (tmp_path / "run" / "checkpoint").glob("step-*/.metadata")
    assert whole.parent.name == "step-000000002-001"
    part = whole.parents[1] / "step-000000003-001"  # as of one who was killed while writing
    part.mkdir()
    (part / "training.json").write_text("{}")
    monkeypatch.setattr(data, "load", lambda: sharded_training.DICTIONARY)
    again = ["train", "--resume", "--parallel", "data", "--out", str(tmp_path / "run")]
    assert main(again) == 0
    assert not dist.is_initialized()
    capsys.readouterr()
    found = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert (found["steps"], len(found["mean_losses"])) == (5, 5)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_every_process_touches_its_own_device_and_no_other(monkeypatch, capsys, name):
    touched = []

    def zeros(*sizes, device):
        touched.append(device)
        raise RuntimeError("this is as far as a machine without one goes")

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.accelerator, "set_device_index", touched.append)
    monkeypatch.setattr(torch, "zeros", zeros)
    assert main(["train", "--device", name, "--parallel", "data"]) == 2
    assert touched == [3, torch.device("cuda", 3)]
    assert "DEVICE must be one that is here" in capsys.readouterr().err


def test_processes_without_devices_share_the_cpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert parallel.device(torch.device("cpu")) == torch.device("cpu")


@pytest.fixture
def begun(one):
    """A run of this process alone, over a mesh."""
    return train.start(PLAN, mesh=one("data"))


def assert_resumes(path, state):
    again, plan = train.resume(path, mesh=state.mesh)
    assert plan == PLAN
    assert again.step == state.step
    pairs = zip(tree.leaves(again.params), tree.leaves(state.params), strict=True)
    assert all(torch.equal(a.to_local(), b.to_local()) for a, b in pairs)


def test_a_step_saved_again_is_whole_at_every_moment(tmp_path, begun, monkeypatch):
    train.save(tmp_path, begun, PLAN)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parallel.state_dict_saver, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train.save(tmp_path, begun, PLAN)
    assert_resumes(tmp_path, begun)
    train.save(tmp_path, begun, PLAN)
    assert len(list(tmp_path.iterdir())) == 1
    assert_resumes(tmp_path, begun)


def test_a_run_saved_over_another_at_the_same_step_is_the_one_that_is_found(tmp_path, begun):
    train.save(tmp_path, begun, PLAN)
    other = train.start(dataclasses.replace(PLAN, seed=1), mesh=begun.mesh)
    train.save(tmp_path, other, PLAN)
    assert_resumes(tmp_path, other)


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL communicator was aborted"),
        dist.DistNetworkError("no route"),
        dist.DistStoreError(),
        RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1234\nmore"),
        RuntimeError("Read error [127.0.0.1]:1234: Connection reset by peer"),
        RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
    ],
)
def test_a_lost_process_is_said(begun, error):
    said = r"^train: all processes must live to the end, got one lost after step 0 \(.+\)\. Start"
    with pytest.raises(ConnectionError, match=said), parallel.together(begun):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        NotImplementedError("no such operator"),
        RuntimeError("shape '[3]' is invalid for input of size 4"),
        RuntimeError(),
    ],
)
def test_other_errors_come_through_as_they_are(begun, error):
    with pytest.raises(type(error)) as raised, parallel.together(begun):
        raise error
    assert raised.value is error


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path, begun, monkeypatch):
    def full(*arguments, **options):
        raise CheckpointException("", {0: (OSError("No space left on device"), None)})

    monkeypatch.setattr(parallel.state_dict_saver, "save", full)
    said = r"^train: all processes must write .* of step 0, got No space left on device\. See to"
    with pytest.raises(OSError, match=said), parallel.together(begun):
        train.save(tmp_path, begun, PLAN)


@pytest.mark.parametrize("file", [".metadata", "training.json", "__0_0.distcp"])
@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:9]), None])
def test_a_damaged_checkpoint_is_said_in_one_line(tmp_path, begun, capsys, file, damage):
    train.save(tmp_path / train.SHARDED_CHECKPOINT, begun, PLAN)
    (found,) = tmp_path.glob(f"*/*/{file}")
    (damage or Path.unlink)(found)
    assert main(["train", "--resume", "--parallel", "data", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    whole = "a whole checkpoint" if damage is None and file == ".metadata" else "a checkpoint whose"
    assert line.startswith(f"train: --resume must find {whole}")


def placements(layouts):
    return {name: layout.placements for name, layout in tree.flatten(layouts).items()}


def test_heads_and_hidden_are_cut_once_and_norms_are_not(many):
    params = init_encoder_layer(random.key(0), 8, 4, 16)
    whole, heads, hidden = (Replicate(),), (Shard(0),), (Shard(0),)
    assert placements(sharding.plan(params, many(tensor=4))) == {
        "self_attention.q_proj.weight": heads,
        "self_attention.q_proj.bias": heads,
        "self_attention.k_proj.weight": heads,
        "self_attention.k_proj.bias": heads,
        "self_attention.v_proj.weight": heads,
        "self_attention.v_proj.bias": heads,
        "self_attention.out_proj.weight": (Shard(1),),
        "self_attention.out_proj.bias": whole,
        "self_attention_norm.weight": whole,
        "self_attention_norm.bias": whole,
        "feed_forward.up_proj.weight": hidden,
        "feed_forward.up_proj.bias": hidden,
        "feed_forward.down_proj.weight": (Shard(1),),
        "feed_forward.down_proj.bias": whole,
        "feed_forward_norm.weight": whole,
        "feed_forward_norm.bias": whole,
    }


def test_two_axes_cut_different_axes(many):
    params = {**init_attention(random.key(0), 8, 4), "odd": torch.ones(3, 5)}
    found = placements(sharding.plan(params, many(full=2, tensor=2)))
    assert found["q_proj.weight"] == (Shard(1), Shard(0))
    assert found["q_proj.bias"] == (Replicate(), Shard(0))
    assert found["out_proj.weight"] == (Shard(0), Shard(1))
    assert found["out_proj.bias"] == found["odd"] == (Replicate(), Replicate())


def test_stacked_models_are_cut_where_one_is(many):
    params = tree.stack([init_feed_forward(random.key(seed), 4, 8) for seed in (0, 1, 2)])
    found = placements(sharding.plan(params, many(tensor=4)))
    assert found["up_proj.weight"] == found["up_proj.bias"] == (Shard(1),)
    assert found["down_proj.weight"] == (Shard(2),)


@pytest.mark.parametrize("axis", ["data", "sequence"])
def test_params_are_whole_where_inputs_are_cut(many, axis):
    found = placements(sharding.plan(init_feed_forward(random.key(0), 4, 8), many(**{axis: 4})))
    assert set(found.values()) == {(Replicate(),)}


def test_a_batch_is_cut_along_its_axes(many):
    placed = sharding.place({"x": torch.ones(4, 6), "n": torch.ones(2)}, many(full=2, sequence=2))
    assert placed["x"].placements == (Shard(0), Shard(1))
    assert placed["x"].to_local().shape == (2, 3)
    assert placed["n"].placements == (Shard(0), Replicate())


def test_an_axis_of_length_one_stays_whole(one):
    mesh = one("data", "tensor")
    params = init_attention(random.key(0), 8, 1)
    assert placements(sharding.plan(params, mesh))["q_proj.weight"] == (Replicate(), Replicate())
    x = sharding.place(torch.ones(1, 3, 8), mesh)
    assert x.placements == (Replicate(), Replicate())
    with sharding.on_mesh():
        found = attention(sharding.shard(params, sharding.plan(params, mesh)), x, x, x)
        assert found.flatten(0, 1).shape == (3, 8)


def test_on_mesh_within_itself_ends_only_itself(one):
    mesh = one("data")
    params = {"weight": torch.ones(2, 2)}
    weight = sharding.shard(params, sharding.plan(params, mesh))["weight"]

    def product():
        return sharding.gather(weight @ torch.ones(2, 2)).sum()

    with sharding.on_mesh():
        with sharding.on_mesh():
            assert product() == 8
        assert product() == 8
        with pytest.raises(ZeroDivisionError), sharding.on_mesh():
            raise ZeroDivisionError
        assert product() == 8
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        product()


def test_sharding_and_gathering_gives_the_params_again(one):
    params = init_encoder_layer(random.key(0), 8, 4, 16)
    params["feed_forward"]["up_proj"]["bias"].requires_grad_()
    there = sharding.shard(params, sharding.plan(params, one("full", "tensor")))
    assert all(isinstance(leaf, DTensor) and leaf.is_leaf for leaf in tree.leaves(there))
    assert [leaf.requires_grad for leaf in tree.leaves(there)] == [
        leaf.requires_grad for leaf in tree.leaves(params)
    ]
    back = sharding.gather({**there, "plain": torch.ones(1)})
    pairs = zip(tree.leaves({**params, "plain": torch.ones(1)}), tree.leaves(back), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            init_attention(random.key(0), 12, 6, num_kv_heads=6),
            "sharding.plan: heads of q_proj.weight must divide among the 4 processes of the axis "
            "'tensor', got 6. Choose a multiple of 4 heads, or one of [1, 2, 3, 6] processes.",
        ),
        (
            init_attention(random.key(0), 8, 4, num_kv_heads=2),
            "sharding.plan: heads of k_proj.weight must divide among the 4 processes of the axis "
            "'tensor', got 2. Choose a multiple of 4 heads, or one of [1, 2] processes.",
        ),
        (
            init_feed_forward(random.key(0), 8, 9),
            "sharding.plan: hidden of up_proj.weight must divide among the 4 processes of the axis "
            "'tensor', got 9. Choose a multiple of 4 hidden, or one of [1, 3, 9] processes.",
        ),
    ],
)
def test_what_does_not_divide_is_said_with_sizes_that_do(many, params, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sharding.plan(params, many(tensor=4))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3, 2), "sharding.place: batch must divide among 2 processes, got 3. Pad it to"),
        (torch.ones(2, 3), "sharding.place: seq must divide among 2 processes, got 3. Pad it to a"),
    ],
)
def test_inputs_that_do_not_divide_are_said(many, x, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sharding.place(x, many(data=2, sequence=2))


def test_meshes_that_make_no_sense_are_said(many):
    with pytest.raises(
        ValueError, match=r"^sharding\.mesh: the mesh must have axes named data, .*'model'"
    ):
        sharding.mesh(model=2)
    with pytest.raises(
        ValueError, match=r"^sharding\.mesh: the mesh must have axes named .*, got none. Name each"
    ):
        sharding.mesh()
    with pytest.raises(ValueError, match=r"^sharding\.mesh: data must be at least 1, got 0"):
        sharding.mesh(data=0)
    many(data=2, tensor=2)
    with pytest.raises(
        ValueError, match=r"^sharding\.mesh: sizes must multiply to the number of processes"
    ):
        sharding.mesh(data=3)
    unnamed = dist.device_mesh.init_device_mesh("cpu", (4,))
    with pytest.raises(ValueError, match=r"^sharding\.plan: the mesh must have axes named"):
        sharding.plan({"w": torch.ones(4)}, unnamed)
    with pytest.raises(ValueError, match=r"^sharding\.place: the mesh must have axes named"):
        sharding.place(torch.ones(4), unnamed)


@pytest.mark.parametrize(
    ("plan", "least", "most"),
    [("data", 1, 1), ("full", 0.98, 1), ("tensor", 1, 1.5), ("sequence", 0, 2)],
)
def test_one_layer_more_sends_about_what_the_textbook_says(many, plan, least, most):
    many(**{plan: 4})
    two, three = (communication.counted(plan, 4, 4, 16, 32, layers) for layers in (2, 3))
    sent, book = (b - a for a, b in zip(two, three, strict=True))
    assert least <= sent / book <= most


@pytest.mark.parametrize(
    ("collective", "part", "sent"),
    [("all_reduce", 8, 48), ("all_gather_into_tensor", 2, 24), ("reduce_scatter_tensor", 8, 24)],
)
def test_bytes_over_a_ring(collective, part, sent):
    assert communication.passed_on(collective, torch.zeros(part), 4) == sent

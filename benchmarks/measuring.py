"""What every benchmark does: interleaved rounds, medians, ratios in a round, a table, a plot."""

import argparse
import ctypes
import inspect
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

Calls: TypeAlias = dict[str, Callable[[], object]]
Questions: TypeAlias = dict[str, Calls]

COMPILED = ", compiled"
"""How the names of candidates end that take minutes to compile; measured where asked for."""


class Result(NamedTuple):
    """What a candidate took, and the median ratio to the first candidate of its question."""

    question: str
    candidate: str
    milliseconds: float
    ratio: float


def run(
    doc: str | None, candidates: Callable[..., Questions], rounds: int, sizes: list[str]
) -> None:
    """Measure at each size what `candidates(*size)` asks, print the tables, and plot if asked to.

    The first candidate of a question is what the others are multiples of.
    """
    title = (doc or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--rounds", type=positive, default=rounds)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="SIZE", help="such as 4x32")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="candidates whose names begin so, and the first"
    )
    parser.add_argument("--compiled", action="store_true", help="measure compiled candidates too")
    parser.add_argument("--keep-freed", action="store_true", help=keep_freed.__doc__)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the ratios")
    given = parser.parse_args()
    for size in given.sizes:
        try:
            inspect.signature(candidates).bind(*numbers(size))
        except (TypeError, argparse.ArgumentTypeError):
            parser.error(f"a size must be numbers joined by x, such as {sizes[0]}, got {size}")
    if given.keep_freed:
        keep_freed()
    torch.set_num_threads(given.threads)
    if hasattr(os, "sched_setaffinity"):  # JAX has no other way to say how many threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    machine = f"torch {torch.__version__}, {platform.machine()}, {given.threads} thread(s)"
    freed = ", freed memory kept" if given.keep_freed else ""
    print(f"{machine}, float32 products: {torch.get_float32_matmul_precision()}{freed}")
    results: list[Result] = []
    for size in given.sizes:
        for question, calls in candidates(*numbers(size)).items():
            asked = f"{size}, {question}" if question else size
            calls = chosen(calls, given.only, given.compiled)
            if len(calls) == 1:
                print(f"{asked}: nothing to compare with {next(iter(calls))}\n", flush=True)
                continue
            found = measured(asked, calls, given.rounds)
            print(table(found, given.rounds), flush=True)
            results += found
    if given.plot:
        plot(title, results).savefig(given.plot, dpi=150, bbox_inches="tight")


def keep_freed() -> None:
    """Have glibc keep what is freed, up to 32 MiB in one piece, as caching allocators do."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        raise SystemExit("--keep-freed needs glibc") from None
    # malloc.h's M_MMAP_THRESHOLD (at its most), M_TRIM_THRESHOLD, M_TOP_PAD.
    for option, number in ((-3, 2**25), (-1, 2**31 - 1), (-2, 2**28)):
        if not mallopt(option, number):
            raise SystemExit(f"--keep-freed: mallopt({option}, {number}) was refused")


def positive(text: str) -> int:
    """A number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return int(text)


def numbers(size: str) -> list[int]:
    """Those of a size such as 4x32."""
    return [positive(number) for number in size.split("x")]


def chosen(calls: Calls, beginnings: list[str] | None = None, compiled: bool = False) -> Calls:
    """The candidates whose names begin in one of these ways, and the first, which is the base."""
    base, ways = next(iter(calls)), tuple(beginnings or [""])
    return {
        name: call
        for name, call in calls.items()
        if name == base or (name.startswith(ways) and (compiled or not name.endswith(COMPILED)))
    }


def measured(question: str, calls: Calls, rounds: int) -> list[Result]:
    """Every candidate's time; each round has an order of its own, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    names, orders = list(calls), random.Random(0)
    for _ in range(rounds):
        for name in orders.sample(names, len(names)):
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return [
        Result(
            question,
            name,
            1000 * statistics.median(times),
            statistics.median(a / b for a, b in zip(times, seconds[names[0]], strict=True)),
        )
        for name, times in seconds.items()
    ]


def table(results: list[Result], rounds: int) -> str:
    """The results on one question, in Markdown."""
    question, base, *_ = results[0]
    head = f"| {question} ({rounds} rounds) | median ms | × {base} |\n|---|---|---|\n"
    rows = (f"| {r.candidate} | {r.milliseconds:.2f} | {r.ratio:.2f} |\n" for r in results)
    return head + "".join(rows)


def plot(title: str, results: list[Result]):
    """A group of bars for each question, tinyfn's in colour, with a line at 1."""
    from matplotlib.figure import Figure

    questions = list(dict.fromkeys(result.question for result in results))
    figure = Figure(figsize=(7, 0.28 * (len(results) + 2 * len(questions)) + 0.6))
    axes = figure.add_subplot()
    row, labels = 0, {}
    for question in questions:
        axes.text(0, row, f" {question}", va="center", weight="bold", color="#333333")
        for result in (r for r in results if r.question == question):
            row += 1
            own = result.candidate.startswith(("tinyfn", "TinyTransformer"))
            axes.barh(row, result.ratio, color="#1f5fa8" if own else "#c9d3df")
            axes.text(result.ratio, row, f" {result.ratio:.2f}", va="center", color="#333333")
            labels[row] = result.candidate
        row += 2
    axes.axvline(1, color="#333333", linewidth=0.8, linestyle=":")
    axes.set_yticks(list(labels), list(labels.values()))
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.tick_params(length=0, labelbottom=False)
    axes.set_title(title, loc="left", fontsize=10, color="#333333", pad=14)
    return figure

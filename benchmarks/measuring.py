"""What every benchmark does: interleaved rounds, medians, and ratios within a round."""

import statistics
import time
from collections.abc import Callable

Calls = dict[str, Callable[[], object]]
Seconds = dict[str, list[float]]


def measure(calls: Calls, rounds: int) -> Seconds:
    """Seconds of every candidate in every round; each round begins with another candidate."""
    for call in calls.values():
        call()
    seconds: Seconds = {name: [] for name in calls}
    for turn in range(rounds):
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(question: str, base: str, seconds: Seconds) -> None:
    """Print a row for each candidate: the median, and the median ratio to `base` in its round."""
    print(f"| {question} | median ms | × {base} |\n|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[base], strict=True))
        median = 1000 * statistics.median(times)
        print(f"| {name} | {median:.2f} | {ratio:.2f} |", flush=True)
    print()

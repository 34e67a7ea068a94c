"""The benchmarks' own judgement: what they call right is, and what is not they say."""

import platform
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measuring
import pytest
import subjects
import torch
import transform_table
from torch.nn import functional as F


def cubic(t):
    return float((t**3).sum() + t[0] * t[1] * t[2])


@pytest.mark.parametrize(
    ("axes", "expected"), [((1,), 3 * 0.4**2 + 0.3 * 0.5), ((0, 0), 6 * 0.3), ((0, 1, 2), 1.0)]
)
def test_differences_are_derivatives(axes, expected):
    point = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    basis = torch.eye(3, dtype=torch.float64)
    found = transform_table.difference(lambda step: cubic(point + step), [basis[i] for i in axes])
    assert found == pytest.approx(expected, rel=1e-7)


def subject(f):
    return subjects._pure(f, lambda: {"weight": subjects.normal(0, subjects.FEATURES)})("eager")


def slow(params, x):
    warnings.warn("There is a performance drop because of something", stacklevel=1)
    return (params["weight"] * x).sin()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    ("f", "transform", "verdict"),
    [
        (lambda params, x: (params["weight"] * x).sin(), "third order", "right"),
        (lambda params, x: (params["weight"] * x).sin().detach(), "grad", "wrong"),
        (lambda params, x: (params["weight"] / 0).sin() + x, "forward", "wrong"),
        (lambda params, x: F.layer_norm(x, (8,), params["weight"]).sin(), "jvp(jvp)", "wrong"),
        (lambda params, x: [].pop(), "vmap", "raises"),
        (slow, "vmap(grad)", "loops"),
    ],
)
def test_verdicts(f, transform, verdict):
    assert transform_table.judge(subject(f), transform)[0] == verdict


def test_the_table_says_of_each_cell_what_came_of_it(tmp_path):
    verdicts = {
        ("f", "grad"): ("right", ""),
        ("f", "jvp"): ("wrong", "off"),
        ("g", "grad"): ("raises", "error"),
        ("g", "jvp"): ("dies", ""),
    }
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- transform table: g, f -->\nold\n<!-- end of table -->\nb\n")
    transform_table.write(page, verdicts)
    assert page.read_text().splitlines() == [
        "a",
        "<!-- transform table: g, f -->",
        "| | g | f |",
        "|---|:---:|:---:|",
        "| grad | raises | ✓ |",
        "| jvp | dies | **wrong** |",
        "<!-- end of table -->",
        "b",
    ]
    page.write_text("<!-- transform table: g, h -->\n<!-- end of table -->\n")
    with pytest.raises(SystemExit, match="ask for what was tried, got h"):
        transform_table.write(page, verdicts)
    page.write_text("no place")
    with pytest.raises(SystemExit, match="must have a place"):
        transform_table.write(page, verdicts)


def test_ratios_are_within_a_round(monkeypatch):
    clock, calls = [0.0], []
    # A machine that slows tenfold: the median of ratios is 2, the ratio of medians is not.
    seconds = {"quick": [1.0, 10.0, 100.0], "late": [2.0, 10.0, 300.0]}
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def call(name):
        if calls.count(name):  # the first does not count
            clock[0] += seconds[name][calls.count(name) - 1]
        calls.append(name)

    quick, late = (lambda name=name: call(name) for name in seconds)
    results = measuring.measured("which", {"quick": quick, "late": late}, 3)
    assert calls[:2] == ["quick", "late"]
    orders = {tuple(calls[start : start + 2]) for start in (2, 4, 6)}
    assert orders == {("quick", "late"), ("late", "quick")}  # nobody always follows the same one
    assert results == [("which", "quick", 10_000.0, 1.0), ("which", "late", 10_000.0, 2.0)]
    assert measuring.table(results, 3).splitlines()[-1] == "| late | 10000.00 | 2.00 |"


def test_candidates_are_chosen_beside_the_first():
    calls = {name: lambda: None for name in ("nn", "nn, compiled", "ours", "ours, compiled", "jax")}
    assert list(measuring.chosen(calls)) == ["nn", "ours", "jax"]
    assert list(measuring.chosen(calls, ["ou", "x"])) == ["nn", "ours"]
    assert list(measuring.chosen(calls, ["ou"], compiled=True)) == ["nn", "ours", "ours, compiled"]


def test_a_plot_has_a_bar_for_each_candidate_and_ours_stands_out():
    pytest.importorskip("matplotlib")
    results = [
        measuring.Result("a", "nn", 1.0, 1.0),
        measuring.Result("a", "tinyfn.layer", 2.0, 2.0),
        measuring.Result("b", "nn", 3.0, 1.0),
    ]
    (axes,) = measuring.plot("which is faster", results).axes
    assert axes.get_title(loc="left") == "which is faster"
    bars: list[Any] = list(axes.patches)
    assert [bar.get_width() for bar in bars] == [1.0, 2.0, 1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["nn", "tinyfn.layer", "nn"]
    ours = [bar.get_facecolor() for bar in bars]
    assert ours[0] == ours[2] != ours[1]


FAULTS = """
import ctypes, resource, sys, torch
sys.path.insert(0, sys.argv[1])
import measuring

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(2**22) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ctypes.CDLL(None).mallopt(-3, 2**17)  # all large memory is given back, as it is by chance else
print(pages())
measuring.keep_freed()
for _ in range(5): pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_is_freed_is_kept_where_asked_for(fresh_python):
    folder = str(Path(measuring.__file__).parent)
    given_back, kept = map(int, fresh_python("-c", FAULTS, folder).split())
    assert given_back > 1000 > 10 > kept


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "0"],
        ["--threads", "0"],
        ["--sizes", "3y4"],
        ["--sizes", "3x4x5"],
        ["--sizes", "0x4"],
    ],
)
def test_what_a_benchmark_cannot_measure_ends_in_a_usage(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["it", *words])
    with pytest.raises(SystemExit, match="2"):
        measuring.run("What?", lambda batch, seq: {}, rounds=1, sizes=["1x2"])
    assert "got " in capsys.readouterr().err

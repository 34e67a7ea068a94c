"""The benchmarks' own judgement: what they call right is, and what is not they say."""

import warnings

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
    page.write_text("no place")
    with pytest.raises(SystemExit, match="must have a place"):
        transform_table.write(page, verdicts)


def test_ratios_are_within_a_round():
    calls = []
    quick, late = (lambda name=name: calls.append(name) for name in ("quick", "late"))
    results = measuring.measured("which", {"quick": quick, "late": late}, 3)
    assert calls == ["quick", "late", "quick", "late", "late", "quick", "quick", "late"]
    assert [r.candidate for r in results] == ["quick", "late"]
    assert results[0].ratio == 1.0
    text = measuring.table([measuring.Result("q", "a", 2.0, 1.0)], 3)
    assert text.splitlines()[-1] == "| a | 2.00 | 1.00 |"

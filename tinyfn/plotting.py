"""Pictures of attention, masks, positions and training, each a matplotlib `Figure`.

`figure.savefig("name.png")` writes one, and a notebook shows one that is a cell's last value. No
window is opened and no global state of matplotlib is touched. It needs the package `matplotlib`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tinyfn import _checks, masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Labels = Sequence[str] | None
Numbers = Sequence[int | float]

_INK, _PALE, _ACCENT = "#333333", "#c9d3df", "#1f5fa8"
_CELL, _MARGIN = 0.32, 1.1  # inches


def attention_map(
    weights: Float[Tensor, "q_seq kv_seq"],
    row_labels: Labels = None,
    column_labels: Labels = None,
    *,
    title: str = "",
) -> "Figure":
    """Where each query looks: a row of cells each, the darker the more.

    Args:
        weights: From `attention_weights`, of one head or a mean of heads.
        row_labels: What the queries are.
        column_labels: What the keys are.
        title: Above it.

    Raises:
        ValueError: `weights` is not a matrix, or has not as many rows or columns as labels.

    Example:
        >>> attention_map(torch.eye(2), ["K", "AE"], ["c", "a"], title="ca")
        <Figure size ... with 2 Axes>
    """
    _check_matrix("attention_map", weights, row_labels, column_labels)
    rows, columns = weights.shape
    figure = _figure(columns * _CELL + _MARGIN + 0.6, rows * _CELL + _MARGIN)
    axes = figure.add_subplot()
    image = _draw(axes, weights, row_labels, column_labels)
    axes.set_title(title, color=_INK)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    return figure


def attention_maps(
    weights: Sequence[Float[Tensor, "_heads q_seq kv_seq"]],
    row_labels: Labels = None,
    column_labels: Labels = None,
    *,
    title: str = "",
) -> "Figure":
    """Where every head of every layer looks: a row of maps for each layer.

    Args:
        weights: Of each layer, as from `encoder_attention_weights`.
        row_labels: What the queries are.
        column_labels: What the keys are.
        title: Above all.

    Raises:
        ValueError: There is no layer or no head, or the labels do not fit.

    Example:
        >>> attention_maps([torch.ones(3, 5, 4), torch.ones(3, 5, 4)])
        <Figure size ... with 6 Axes>
    """
    if not weights or any(w.ndim != 3 or not len(w) for w in weights):
        raise _checks.fail(
            ValueError,
            "plotting.attention_maps",
            "weights",
            "be a list of tensors (heads, q_seq, kv_seq)",
            [tuple(w.shape) for w in weights],
            "Take one example of a batch",
        )
    most = max(len(heads) for heads in weights)
    rows, columns = weights[0].shape[-2:]
    width, height = columns * _CELL * 0.7 + 0.5, rows * _CELL * 0.7 + 0.6
    figure = _figure(most * width + 0.5, len(weights) * height + 0.5)
    grid = figure.subplots(len(weights), most, squeeze=False)
    for layer, (heads, line) in enumerate(zip(weights, grid, strict=True)):
        for head, axes in enumerate(line):
            if head >= len(heads):
                axes.remove()
                continue
            _check_matrix("attention_maps", heads[head], row_labels, column_labels)
            _draw(axes, heads[head], row_labels, column_labels, fontsize=7)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8, color=_INK)
    figure.suptitle(title, color=_INK)
    return figure


def mask(
    mask: masks.Mask | Bool[Tensor, "q_seq kv_seq"],
    q_seq: int,
    kv_seq: int,
    *,
    row_labels: Labels = None,
    column_labels: Labels = None,
    title: str = "",
) -> "Figure":
    """Which query may look at which key: filled where it may.

    Args:
        mask: Of one example.
        q_seq: How many queries.
        kv_seq: How many keys.
        row_labels: What the queries are; numbers if None.
        column_labels: What the keys are; numbers if None.
        title: Above it.

    Raises:
        ValueError: The mask is of a batch, or has other sizes, or the labels do not fit.

    Example:
        >>> mask(masks.causal(), 5, 5, title="causal")
        <Figure size ... with 1 Axes>
    """
    table = mask if isinstance(mask, Tensor) else mask.dense(q_seq, kv_seq)
    rows = [str(i) for i in range(q_seq)] if row_labels is None else row_labels
    columns = [str(i) for i in range(kv_seq)] if column_labels is None else column_labels
    _check_matrix("mask", table, rows, columns)
    figure = _figure(kv_seq * _CELL + _MARGIN, q_seq * _CELL + _MARGIN)
    axes = figure.add_subplot()
    _draw(axes, table.float() * 0.75, rows, columns)
    axes.set_xlabel("key", color=_INK)
    axes.set_ylabel("query", color=_INK)
    axes.set_title(title, color=_INK)
    return figure


def position_table(table: Float[Tensor, "seq features"], *, title: str = "") -> "Figure":
    """A table of positions: a row for each position, red above zero and blue below.

    Args:
        table: From `positions.sinusoidal` or `positions.learned`.
        title: Above it.

    Raises:
        ValueError: The table is not a matrix.

    Example:
        >>> from tinyfn import positions
        >>> position_table(positions.sinusoidal(20, 16))
        <Figure size ... with 2 Axes>
    """
    _check_matrix("position_table", table, None, None)
    bound = float(table.detach().abs().max()) if table.numel() else 1.0
    figure = _figure(6.4, 3.6)
    axes = figure.add_subplot()
    options = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound, "interpolation": "nearest"}
    image = axes.imshow(_array(table), aspect="auto", **options)
    _plain(axes)
    axes.set_xlabel("feature", color=_INK)
    axes.set_ylabel("position", color=_INK)
    axes.set_title(title, color=_INK)
    figure.colorbar(image, ax=axes, fraction=0.05).outline.set_visible(False)
    return figure


def loss_curve(
    losses: Numbers,
    steps: Numbers | None = None,
    *,
    others: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    title: str = "",
) -> "Figure":
    """The loss of each step, pale, and its running mean.

    Args:
        losses: One for each step.
        steps: Where each loss is, if not at 1, 2, 3, ...
        others: Shares in [0, 1] by name, as (steps, values), such as held-out errors; they are
            drawn below.
        title: Above it.

    Example:
        >>> loss_curve([3.0, 2.0, 1.5], others={"word error": ([2], [0.8])})
        <Figure size ... with 2 Axes>
    """
    panels = 2 if others else 1
    figure = _figure(6.4, 2.0 + 1.8 * panels)
    above, *below = figure.subplots(panels, 1, squeeze=False, sharex=True)[:, 0]
    steps = range(1, len(losses) + 1) if steps is None else steps
    above.plot(steps, list(losses), color=_PALE, linewidth=0.8)
    above.plot(steps, _running_mean(losses), color=_ACCENT, linewidth=1.8)
    above.set_ylabel("loss", color=_INK)
    above.set_title(title, color=_INK)
    for axes in below:
        for name, (where, values) in (others or {}).items():
            axes.plot(where, [100 * value for value in values], marker="o", ms=4, label=name)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("percent", color=_INK)
        axes.legend(frameon=False, labelcolor=_INK)
    for axes in (above, *below):
        _plain(axes)
        axes.grid(axis="y", color=_PALE, linewidth=0.5)
    (above, *below)[-1].set_xlabel("step", color=_INK)
    return figure


def _running_mean(losses: Numbers) -> list[float]:
    """The mean of each loss and those before it, over a fiftieth of the run."""
    span = max(1, math.ceil(len(losses) / 50))
    sums = torch.tensor([0.0, *losses], dtype=torch.float64).cumsum(0)
    ends = torch.arange(1, len(losses) + 1)
    starts = (ends - span).clamp(min=0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(max(width, 1.8), max(height, 1.6)), layout="constrained", dpi=150)


def _draw(
    axes: Any, weights: Tensor, row_labels: Labels, column_labels: Labels, fontsize: int = 9
) -> Any:
    image = axes.imshow(_array(weights), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    rows, columns = weights.shape
    axes.set_xticks(range(columns) if column_labels else [], column_labels or [])
    axes.set_yticks(range(rows) if row_labels else [], row_labels or [])
    axes.set_xticks([i - 0.5 for i in range(1, columns)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(labelsize=fontsize)
    _plain(axes)
    return image


def _plain(axes: Any) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=_INK)


def _array(x: Tensor) -> Any:
    return x.detach().to("cpu", torch.float32).numpy()


def _check_matrix(
    function: str, weights: Tensor, row_labels: Labels, column_labels: Labels
) -> None:
    argument = "mask" if function == "mask" else "table" if "table" in function else "weights"
    if weights.ndim != 2:
        raise _checks.fail(
            ValueError,
            f"plotting.{function}",
            argument,
            "be a matrix",
            _checks.shape(weights),
            "Take one head of one example",
        )
    for axis, name, labels in ((0, "row", row_labels), (1, "column", column_labels)):
        if labels is not None and len(labels) != weights.shape[axis]:
            raise _checks.fail(
                ValueError,
                f"plotting.{function}",
                argument,
                f"have a {name} for each of {len(labels)} labels",
                _checks.shape(weights),
                "Give every row and column a label, or None to all",
            )

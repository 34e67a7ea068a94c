"""Pictures: each holds what it was given, can be written, and leaves matplotlib as it was."""

import sys

import numpy as np
import pytest
import torch

from tinyfn import masks, plotting, positions

WEIGHTS = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])


def image(axes):
    return torch.as_tensor(axes.images[0].get_array().data)


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_map_shows_weights_and_labels():
    axes = plotting.attention_map(WEIGHTS, ["K", "AE"], list("cat"), title="cat").axes[0]
    assert torch.equal(image(axes), WEIGHTS)
    assert ticks(axes.yaxis) == ["K", "AE"]
    assert ticks(axes.xaxis) == list("cat")
    assert axes.get_title() == "cat"


def test_maps_stand_in_a_row_for_each_layer():
    layers = [torch.rand(2, 4, 3), torch.rand(3, 4, 3)]
    axes = plotting.attention_maps(layers, list("abcd"), title="all").axes
    titles = ["layer 1, head 1", "layer 1, head 2", *(f"layer 2, head {i}" for i in (1, 2, 3))]
    assert [a.get_title() for a in axes] == titles
    shown = [image(a) for a in axes]
    assert all(torch.equal(x, y) for x, y in zip(shown, [*layers[0], *layers[1]], strict=True))


def test_weights_with_a_graph_and_in_half_precision_are_drawn():
    weights = WEIGHTS.to(torch.bfloat16).requires_grad_()
    assert torch.equal(image(plotting.attention_map(weights).axes[0]), WEIGHTS)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_mask_is_filled_where_a_query_may_look(as_tensor):
    mask = masks.causal(1)
    shown = image(
        plotting.mask(mask.dense(3, 4) if as_tensor else mask, 3, 4, title="causal").axes[0]
    )
    assert torch.equal(shown > 0, mask.dense(3, 4))


def test_a_table_is_shown_about_zero():
    table = positions.sinusoidal(10, 6)
    (drawn,) = plotting.position_table(table).axes[0].images
    assert torch.allclose(torch.as_tensor(np.asarray(drawn.get_array())), table.float())
    low, high = drawn.get_clim()
    assert (low, high) == (-max(low, high), max(low, high))


def test_a_curve_has_its_losses_and_their_running_mean():
    losses = [float(i % 7) for i in range(200)]
    above, below = plotting.loss_curve(losses, others={"error": ([100, 200], [0.5, 0.25])}).axes
    raw, mean = above.lines
    assert list(raw.get_ydata()) == losses
    assert list(raw.get_xdata()) == list(range(1, 201))
    slow = [sum(losses[max(0, i - 3) : i + 1]) / min(4, i + 1) for i in range(200)]
    assert mean.get_ydata() == pytest.approx(slow)
    assert list(below.lines[0].get_ydata()) == [50.0, 25.0]
    assert len(plotting.loss_curve([3.0, 1.0], [10, 20]).axes) == 1


def test_figures_are_written_without_pyplot(tmp_path):
    figures = [
        plotting.attention_map(WEIGHTS),
        plotting.attention_maps([WEIGHTS.expand(2, 2, 3)]),
        plotting.mask(masks.full(), 2, 3),
        plotting.position_table(positions.sinusoidal(5, 4)),
        plotting.loss_curve([2.0, 1.0]),
        plotting.loss_curve([]),
    ]
    before = "matplotlib.pyplot" in sys.modules
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plotting.attention_map(torch.ones(4, 2, 3)),
            r"plotting\.attention_map: weights must be a matrix, got shape \(4, 2, 3\)\. Take one",
        ),
        (
            lambda: plotting.attention_map(WEIGHTS, ["K"]),
            r"weights must have a row for each of 1 labels, got shape \(2, 3\)",
        ),
        (
            lambda: plotting.attention_map(WEIGHTS, None, ["c", "a"]),
            r"weights must have a column for each of 2 labels, got shape \(2, 3\)",
        ),
        (
            lambda: plotting.attention_maps([WEIGHTS]),
            r"plotting\.attention_maps: weights must be a list of tensors \(heads, q_seq, kv_seq\)",
        ),
        (lambda: plotting.attention_maps([]), r"weights must be a list of tensors .*, got \[\]"),
        (
            lambda: plotting.mask(masks.padding(torch.tensor([1, 2])), 3, 3),
            r"plotting\.mask: mask must be a matrix, got shape \(2, ",
        ),
        (
            lambda: plotting.mask(torch.ones(2, 2, dtype=torch.bool), 3, 3),
            r"plotting\.mask: mask must have a row for each of 3 labels, got shape \(2, 2\)",
        ),
        (
            lambda: plotting.position_table(torch.ones(3)),
            r"plotting\.position_table: table must be a matrix, got shape \(3,\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(draw, message, unchecked):
    with pytest.raises(ValueError, match=message):
        draw()

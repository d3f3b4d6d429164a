"""The figures show what the specs and costs say, and say where their numbers come from."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import FancyArrowPatch

from g4lab.errors import BadInput
from g4lab.gemma4 import costs, draw, draw_costs, draw_modes, spec
from g4lab.gemma4.specs import CHECKPOINTS, FULL, SLIDING


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize(
    "figure",
    [
        *(draw.layer_pattern, draw.projections, draw.kv_growth, draw_costs.step_breakdown, draw_costs.experts_touched),
        *(draw_modes.mode_map, draw_modes.unneeded_rows),
    ],
)
def test_every_figure_is_stamped_and_its_axes_are_named(figure):
    fig = figure()
    fig.canvas.draw()
    assert fig.get_supxlabel().startswith("published · ")
    assert fig.axes[-1].get_xlabel()
    assert any(ax.get_title(loc="left") for ax in fig.axes)


def test_layer_pattern_has_a_bar_per_layer_and_an_arrow_per_sharing_layer():
    for ax, name in zip(draw.layer_pattern().axes, CHECKPOINTS, strict=True):
        layers = spec(name).layers
        bars = [bar for container in ax.containers for bar in container]
        assert [bar.get_height() for bar in bars] == [layer.head_dim for layer in layers]
        arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
        assert len(arrows) == spec(name).num_kv_shared_layers


def test_mode_map_fills_what_a_layer_projects():
    for ax, name in zip(draw_modes.mode_map().axes, CHECKPOINTS, strict=True):
        layers = spec(name).layers
        assert len(ax.patches) == 3 * len(layers)
        filled = sum(cell.get_fc()[3] > 0 for cell in ax.patches)
        assert filled == sum(len(layer.qkv_mode.value) for layer in layers)  # "QKV" has three projections, "Q" one
        hatched = sum(bool(cell.get_hatch()) for cell in ax.patches)
        assert hatched == sum(layer.qkv_mode == "QK" for layer in layers)


def test_projections_are_as_wide_as_the_weights():
    ax = draw.projections().axes[0]
    assert len(ax.get_yticklabels()) == 12
    bars = [bar for container in ax.containers for bar in container]
    total = sum(bar.get_width() for bar in bars)
    sorts = {(name, layer.kind, layer.qkv_mode): layer for name in CHECKPOINTS for layer in spec(name).layers}
    expected = sum(
        layer.head_dim * (layer.num_q_heads + layer.num_kv_heads * (len(layer.qkv_mode.value) - 1))
        for layer in sorts.values()
    )
    assert total == expected


def test_step_breakdown_shares_add_up_to_the_whole():
    fig = draw_costs.step_breakdown(prompt=100, context=50, batch=3)
    for ax in fig.axes:
        ends = [0.0] * len(CHECKPOINTS)
        for container in ax.containers:
            ends = [end + bar.get_width() for end, bar in zip(ends, container, strict=True)]
        assert ends == pytest.approx([100] * len(CHECKPOINTS))
    experts = next(c for c in fig.axes[2].containers if c.get_label() == "router and experts")
    step = costs.step_cost(spec("26b-a4b"), context=50, batch=3)
    share = 100 * next(c.bytes for c in step if c.part == "router and experts") / sum(c.bytes for c in step)
    assert experts[0].get_width() == pytest.approx(share)
    assert experts[1].get_width() == 0  # 31b has none
    with pytest.raises(BadInput, match="context: got"):
        draw_costs.step_breakdown(context=262_144)


def test_kv_growth_bends_at_the_window():
    ax = draw.kv_growth().axes[0]
    line = ax.get_lines()[0]
    s = spec(CHECKPOINTS[0])
    contexts, kept = line.get_xdata(), line.get_ydata()
    slope = (kept[-1] - kept[-2]) / (contexts[-1] - contexts[-2]) * 2**20
    assert slope == pytest.approx(s.kv_bytes_per_token(FULL))
    start = (kept[1] - kept[0]) / (contexts[1] - contexts[0]) * 2**20
    assert start == pytest.approx(s.kv_bytes_per_token(FULL) + s.kv_bytes_per_token(SLIDING))


def test_experts_need_a_model_with_experts():
    with pytest.raises(BadInput, match="spec: got '31b', expected a model with experts"):
        draw_costs.experts_touched("31b")


def test_ink_is_legible_on_every_colour():
    assert draw.ink_on("#FFFFFF") != "white"
    assert draw.ink_on("#000000") == "white"

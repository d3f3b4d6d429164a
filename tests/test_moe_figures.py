"""Figures of the expert layer: what they show is what shapes, ids and files say."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from g4lab.bench import ceilings, draw_moe, moe, moe_floors
from g4lab.errors import BadInput, Unavailable
from g4lab.quality import draw_extend_grid
from g4lab.tuning import draw_expert_load, draw_moe_flow, draw_moe_keys, expert_load, moe_keys, moe_shapes


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_flow_has_the_bytes_of_every_tensor():
    one = moe_shapes.of(sizes=(1,))[0]
    assert draw_moe_flow.written(one, "pairs", "2 I") == 8 * 2 * 704 * 2
    weights = [draw_moe_flow.weight_bytes(one, product) for product in ("gate_up", "down")]
    assert weights == pytest.approx([8 * 2 * 704 * 2816 * 2, 8 * 704 * 2816 * 2])
    assert sum(weights) + 2 * draw_moe_flow.written(one, "tokens", "H") == pytest.approx(one.bytes)
    theirs, ours = draw_moe_flow.draw(moe_shapes.of(sizes=(1, 4096)), "here").axes
    assert "[pairs, 2 I]" in texts(theirs)
    assert "[pairs, 2 I]" not in texts(ours)
    assert any("63  |  1,015" in text for text in texts(ours))
    with pytest.raises(BadInput, match="shapes"):
        draw_moe_flow.draw((), "here")


def test_the_spread_names_the_busiest_and_the_idle():
    fig = draw_expert_load.draw_spread({"by hand": torch.tensor([[0, 1], [0, 2]])}, {"by hand": 5}, "here")
    assert texts(fig.axes[0]) == ["busiest 2, mean 1, idle 2"]
    assert [bar.get_height() for bar in fig.axes[0].patches] == [2, 1, 1, 0, 0]
    with pytest.raises(BadInput, match="ids"):
        draw_expert_load.draw_spread({}, {}, "here")


def test_padding_shows_what_was_counted_on_the_line_expected():
    ids = [torch.from_numpy(moe_shapes.routing("uniform", tokens, 8, 2)[0]) for tokens in (1, 64)]
    table = expert_load.table({"uniform": ids}, 8, (16,))
    fig = draw_expert_load.draw_padding(table, {"uniform": None}, 8, 2, "here")
    line, dots = fig.axes[1].lines
    assert list(dots.get_ydata()) == list(table.wasted_pct)
    assert line.get_ydata()[0] == dots.get_ydata()[0] == pytest.approx(100 * 30 / 32)
    assert list(fig.axes[0].lines[1].get_ydata()) == [2, 8]


def test_a_grid_s_cell_that_was_not_run_is_empty():
    rows = [{"config": c, "case": "a", "dtype": "bf16", "ratio": 0.4} for c in ("x", "y")]
    frame = pd.DataFrame([*rows, {"config": "x", "case": "b", "dtype": "bf16", "ratio": 0.2}])
    ax = draw_extend_grid.draw(frame, "here", "config").axes[0]
    assert texts(ax) == ["40", "40", "20"]
    assert not ax.patches


def test_upstream_s_files_key_by_key():
    configs = moe_keys.upstream()
    frame = moe_keys.by_key(configs, moe_shapes.of()[0], [1, 64, 8192]).set_index(["tokens", "product"])
    assert list(frame.key) == [1, 1, 64, 64, 1024, 1024]
    for (tokens, product), row in frame.iterrows():
        tile = getattr(configs[row.key], product)
        inner, outer = {"gate_up": (2816, 1408), "down": (704, 2816)}[product]
        assert (row.steps - 1) * tile.block_k < inner <= row.steps * tile.block_k
        assert row.programs == pytest.approx(row.blocks * -(-outer // tile.block_n))
        if tokens == 1:
            assert row.blocks == pytest.approx(8)
    ax = draw_moe_keys.draw(frame.reset_index(), max(configs), "published", "files").axes[0]
    assert [bar.get_height() for bar in ax.patches][:3] == list(frame.xs("gate_up", level=1).steps)


def test_gate_and_up_in_one_program():
    config, shape = moe_keys.upstream()[64], moe_shapes.of(sizes=(64,))[0]
    apart, paired = (moe_keys.launches(config, shape, paired=paired).loc["gate_up"] for paired in (False, True))
    assert paired.programs == apart.programs / 2
    assert paired.in_flight_kib > apart.in_flight_kib


def test_upstream_without_a_file():
    with pytest.raises(Unavailable, match="has no E=3,N=704"):
        moe_keys.upstream(num_experts=3)


def test_floors_and_what_was_measured():
    shapes, most = moe_shapes.of(sizes=(1, 8192)), ceilings.named("H200 SXM")
    left, right = draw_moe.draw(shapes, most, pd.DataFrame()).axes
    assert "not measured yet" in texts(right)
    floors = moe_floors.table(shapes, most)
    layer = floors[floors["product"] == "layer"]
    assert [list(line.get_ydata()) for line in left.lines][6] == list(layer.floor_us)
    row = {"provider": moe.OURS, "tokens": 1, "tp": 1, "routing": "uniform", "reading": "cold", "speedup": 1.5}
    measured = pd.DataFrame([row, row | {"tp": 2, "speedup": 9.0}, row | {"reading": "warm", "speedup": 9.0}])
    right = draw_moe.draw(shapes, most, measured, "recorded", "NVIDIA H200").axes[1]
    assert not texts(right)
    assert list(right.lines[0].get_ydata()) == [1.5]


def test_pruning_adds_up():
    rows = [{"product": p, "tokens": 8, "warps": 3, "rows": 2, "left": 4} for p in ("gate_up", "down")]
    ax = draw_moe_keys.draw_pruning(pd.DataFrame(rows), {"warps": "", "rows": "", "work": ""}, "live", "here").axes[0]
    assert [bar.get_height() for bar in ax.patches] == [4, 3, 2]
    assert ax.patches[-1].get_y() + ax.patches[-1].get_height() == 9
    assert texts(ax) == ["4"]

"""Figures of extend attention: what they show is what rules, compile facts, the grid and the published table say."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from g4lab.bench import draw_extend
from g4lab.bench.extend_goals import PUBLISHED_TFLOPS
from g4lab.errors import BadInput
from g4lab.kernels.extend_tiles import ExtendTile
from g4lab.quality import draw_extend_grid
from g4lab.tuning import draw_regimes, draw_tiles
from g4lab.tuning.extend_blocks import MASKED
from g4lab.tuning.extend_shapes import PUBLISHED
from g4lab.tuning.facts import compile_many
from g4lab.tuning.machine_code import parse


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_regimes_show_every_block_and_its_count():
    fig = draw_regimes.draw("rules")
    for column, regime in zip(range(4), draw_regimes.REGIMES, strict=True):
        for row, kernel in enumerate(("sglang", "ours")):
            ax, blocks = fig.axes[4 * row + column], regime.blocks(kernel)
            assert texts(ax)[0].startswith(f"{blocks.count()} visited")
            masked = matplotlib.colors.to_rgba(draw_regimes.COLOUR[MASKED])
            assert sum(patch.get_facecolor() == masked for patch in ax.patches) == blocks.count(MASKED)


@pytest.fixture(scope="module")
def facts():
    """Small tiles, which compile in a second: SGLang's kernel and ours at two stages under a window."""
    names = {"sglang_extend_attention": ExtendTile(16, 16, 4, 2), "extend_attention": ExtendTile(16, 16, 4, 2)}
    requests = [(name, "sm_90", {"head_dim": 64, "window": 1023, "tile": tile}) for name, tile in names.items()]
    return compile_many(requests)


def test_the_branch_costs_the_copies(facts):
    theirs, ours = facts
    assert not any(loop.copies for loop in theirs.loops)
    assert all(loop.copies for loop in ours.loops)


def test_tiles_and_loops(facts):
    fig = draw_tiles.draw_tiles({"window": facts}, ["theirs", "ours"], "here")
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["theirs", "ours"]
    assert [f"{f.shared / 1024:.0f}" for f in facts] == texts(fig.axes[3])
    fig = draw_tiles.draw_loops({"ours": facts[1]}, "here")
    assert len(texts(fig.axes[0])) == 1 + len(facts[1].loops)
    with pytest.raises(BadInput, match="got 2, expected 1 facts, one for each label"):
        draw_tiles.draw_tiles({"window": facts}, ["theirs"], "here")


def test_kinds_of_instructions(facts):
    code, loop = parse(facts[1].sass), facts[1].loops[0]
    body = [draw_tiles.kind_of(step) for step in code if loop.start <= step.address <= loop.end]
    assert (body.count("matrix"), body.count("asynchronous copy")) == (loop.matrix, loop.copies)


def test_the_grid_frames_what_breaks_its_budget():
    rows = [{"case": c, "head_dim": d, "dtype": "bf16", "ratio": 0.4} for c in "ab" for d in (64, 128)]
    frame = pd.DataFrame(rows)
    assert not draw_extend_grid.draw(frame, "here").axes[0].patches
    frame.loc[3, "ratio"] = float("inf")
    assert len(draw_extend_grid.draw(frame, "here").axes[0].patches) == 1


def test_the_published_table():
    table = draw_extend.published_frame()
    assert list(table.index) == [shape.name for shape in PUBLISHED]
    assert table.loc["prefill long", "tile_tflops"] == pytest.approx(PUBLISHED_TFLOPS)
    assert table.loc["verify summarization", "speedup"] == pytest.approx(1075.79 / 191.49)
    assert (table.floor_share < 1).all()
    assert "g4lab: not measured yet" in texts(draw_extend.draw(pd.DataFrame()).axes[0])


def test_what_was_measured_stands_beside_it():
    us = {"SGLang, legacy tile": 300.0, "SGLang, seed tile": 200.0, "g4lab": 100.0, "PyTorch SDPA": 1.0}
    rows = [{"shape": "verify chat", "provider": p, "reading": "cold", "p50_us": t} for p, t in us.items()]
    assert draw_extend.measured_frame(pd.DataFrame(rows)).shape == (1, 3)
    left = draw_extend.draw(pd.DataFrame(rows), "recorded", "NVIDIA H200").axes[0]
    assert texts(left).count("3.00x") == 1
    assert not any("not measured" in text for text in texts(left))

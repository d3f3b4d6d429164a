"""pyc96/sglang#4's table of extend attention's tiles, with floors, and beside it what this lab has measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from g4lab.bench import ceilings
from g4lab.bench.extend import OURS, TILES
from g4lab.figures import GRID, INK, MUTED, PALETTE, house_style, stamp
from g4lab.published import citation, published
from g4lab.tuning.extend_shapes import PUBLISHED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, CHIP = "extend_attention_microbench", "H100 SXM"
LEGACY, SEED = "legacy tile 128x64", "pyc96's tile"
_NAMES = {TILES["legacy"]: LEGACY, TILES["seed"]: SEED, OURS: OURS}  # of the benchmark's providers


def published_frame() -> pd.DataFrame:
    """The eight published shapes, one row each: tile, legacy_us, tile_us, speedup, TFLOP/s of both, floor_us and what
    binds it ("bandwidth" or "matrix"), floor_share (floor over the new tile's time).

    TFLOP/s count the visible pairs of the shape; the floor is the data sheet's of an H100 SXM, which the pull request
    does not say it is.
    """
    peak, table, rows = ceilings.named(CHIP), published(TABLE), []
    for each in PUBLISHED:
        (_, legacy), (tile, new) = table[table.case == each.name][["variant", "value"]].itertuples(index=False)
        memory, matrix = each.bytes / peak.copy_gbps / 1e3, each.flops / peak.matmul_tflops / 1e6
        rows.append(
            {
                "shape": each.name,
                "tile": tile.removeprefix("tile ").replace(",", "x").replace("warps ", "w").replace("stages ", "s"),
                "legacy_us": legacy,
                "tile_us": new,
                "speedup": legacy / new,
                "legacy_tflops": each.flops / legacy / 1e6,
                "tile_tflops": each.flops / new / 1e6,
                "floor_us": max(memory, matrix),
                "bound": "bandwidth" if memory > matrix else "matrix",
                "floor_share": max(memory, matrix) / new,
            }
        )
    return pd.DataFrame(rows).set_index("shape")


def measured_frame(times: pd.DataFrame, reading: str = "cold") -> pd.DataFrame:
    """µs of the legacy tile, pyc96's tile and ours on the published shapes, from `g4lab.bench.extend.measure`'s frame
    or its records; empty where none was timed."""
    if "p50_us" not in times:
        return pd.DataFrame()
    rows = times[times.provider.isin(_NAMES) & (times.reading == reading) & times.p50_us.notna()]
    rows = rows[rows["shape"].isin([each.name for each in PUBLISHED])]
    rows = rows.drop_duplicates(["shape", "provider"], keep="last").assign(provider=rows.provider.map(_NAMES))
    return rows.pivot(index="shape", columns="provider", values="p50_us")


def draw(times: pd.DataFrame, kind: str = "", source: str = "") -> Figure:
    """Speed-up over the legacy tile, and TFLOP/s, of the published tiles; and of ours, where `times` has it.

    kind, source: of `times` ("live" or "recorded"), for the badge.
    """
    import matplotlib.pyplot as plt

    house_style()
    table, ours = published_frame(), measured_frame(times)
    flops = pd.Series({each.name: each.flops for each in PUBLISHED})
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    bars = {SEED: (table.speedup, table.tile_tflops, PALETTE[0])}
    if OURS in ours and LEGACY in ours:
        mine = ours.reindex(table.index)
        bars[f"{OURS}, {kind}"] = (mine[LEGACY] / mine[OURS], flops[table.index] / mine[OURS] / 1e6, PALETTE[2])
    height, places = 0.8 / (1 + len(bars)), range(len(table))
    sides = {f"{LEGACY}, published": (None, table.legacy_tflops, MUTED)}
    sides |= {f"{name}, published" if name == SEED else name: values for name, values in bars.items()}
    for row, (name, (speedup, tflops, colour)) in enumerate(sides.items()):
        at = [place + (row - len(bars) / 2) * height for place in places]
        for ax, values, form in ((left, speedup, "{:.2f}x"), (right, tflops, "{:.1f}")):
            if values is None:
                continue
            drawn = ax.barh(at, values, height=0.9 * height, color=colour, label=name)
            labels = ["" if pd.isna(value) else form.format(value) for value in values]
            ax.bar_label(drawn, labels=labels, padding=3, fontsize=8, color=INK)
    left.axvline(1, color=INK, linewidth=1)
    left.set(xlabel="speed-up over the legacy tile", xlim=(0, 1.15 * left.get_xlim()[1]), title="Speed-up")
    right.set(xlabel="TFLOP/s of the visible pairs (log)", xscale="log", title="Rate")
    right.set_xlim(right=2000)
    peak = ceilings.named(CHIP).matmul_tflops
    right.axvline(peak, color=PALETTE[3], linewidth=1.2, linestyle="--", label=f"{CHIP}, data sheet: {peak:g}")
    labels = [f"{name}\n{row.tile}" for name, row in table.iterrows()]
    left.set_yticks(list(places), labels, fontsize=8.5)
    left.tick_params(axis="y", length=0)
    left.invert_yaxis()
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
    fig.legend(*right.get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=9)
    if len(bars) == 1:
        text = f"{OURS}: not measured yet"
        box = {"facecolor": "white", "edgecolor": GRID, "boxstyle": "round,pad=0.5"}
        left.text(0.97, 0.06, text, transform=left.transAxes, ha="right", fontsize=9.5, bbox=box)
    cited = f"{citation(published(TABLE))}, H100, TP=2 heads"
    stamp(fig, "published", f"{cited}; {OURS}: {kind}, {source}" if len(bars) > 1 else cited)
    return fig

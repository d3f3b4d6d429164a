"""Figure of the expert layer's floors over the number of tokens, and beside them what this lab has measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from g4lab.bench import moe_floors
from g4lab.bench.moe import BASELINE, FILES, OURS
from g4lab.bench.roofline import COPY
from g4lab.figures import GRID, INK, PALETTE, house_style, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from g4lab.bench.ceilings import Ceilings
    from g4lab.tuning.moe_shapes import MoEShape

COLOURS = {"gate_up": PALETTE[0], "down": PALETTE[1], moe_floors.LAYER: INK}


def draw(
    shapes: Iterable[MoEShape], most: Ceilings, times: pd.DataFrame, kind: str = "", source: str = "",
    reading: str = "cold",
) -> Figure:  # fmt: skip
    """Floors of both products and the layer; and the speed-up of g4lab's files and kernel over upstream's files.

    times: of `g4lab.bench.moe.measure`, or its records as a frame; may be empty. kind, source: where they are from.
    """
    import matplotlib.pyplot as plt

    house_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.2))
    table = moe_floors.table(shapes, most)
    sizes = sorted(set(table.tokens))
    for product, colour in COLOURS.items():
        rows = table[table["product"] == product]
        left.plot(rows.tokens, rows.floor_us, color=colour, label=product, linewidth=1.4)
        for bound, face in ((True, colour), (False, "white")):
            part = rows[(rows.binds == COPY) == bound]
            left.plot(part.tokens, part.floor_us, linestyle="", marker="o", markersize=5, color=colour, mfc=face)
    left.plot([], [], linestyle="", marker="o", color=INK, label="bandwidth binds")
    left.plot([], [], linestyle="", marker="o", color=INK, mfc="white", label="matrix rate binds")
    left.set(title=f"Floors, {most.chip}", ylabel="µs at least (log)", yscale="log")
    left.legend(fontsize=8.5, loc="upper left")
    found = _speedups(times, reading)
    for provider, colour in ((FILES, PALETTE[1]), (OURS, PALETTE[2])):
        if provider in found:
            row = found[provider].dropna()
            right.plot(row.index, row, marker="o", markersize=4, color=colour, label=provider)
    right.axhline(1, color=INK, linewidth=1)
    right.set(title=f"Speed-up over {BASELINE}", ylabel="times", ylim=(0, None if len(found) else 2))
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=8.5)
    else:
        box = {"facecolor": "white", "edgecolor": GRID, "boxstyle": "round,pad=0.5"}
        right.text(0.5, 0.6, "not measured yet", transform=right.transAxes, ha="center", fontsize=10, bbox=box)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set(xlabel="tokens (log)", xlim=(0.8 * sizes[0], 1.25 * sizes[-1]))
        ax.set_xticks(sizes[::2], [f"{tokens:,}" for tokens in sizes[::2]])
    floors = f"floors: {most.source}"
    stamp(fig, most.kind, f"{floors}; speed-ups: {kind}, {source}" if len(found) else floors)
    return fig


def _speedups(times: pd.DataFrame, reading: str) -> pd.DataFrame:
    """Over BASELINE under uniform routing on one rank, a row for each number of tokens, a column for each provider."""
    if "speedup" not in times:
        return times.iloc[:0]
    rows = times[(times.reading == reading) & (times.tp == 1) & (times.routing == "uniform") & times.speedup.notna()]
    rows = rows.drop_duplicates(["tokens", "provider"], keep="last")
    return rows.pivot(index="tokens", columns="provider", values="speedup")

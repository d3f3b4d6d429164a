"""Figures of configs: what a file's entries make of both products, and what pruning leaves of the tiles to choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.figures import GRID, INK, PALETTE, house_style, stamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.figure import Figure

PRODUCTS = {"gate_up": PALETTE[0], "down": PALETTE[1]}
_REMOVED = (GRID, "#B8C0C8", "#8FA3B5", *PALETTE[4:], *PALETTE[1:4])


def draw(frame: pd.DataFrame, last_key: int, kind: str, source: str) -> Figure:
    """`moe_keys.by_key`'s frame over the numbers of tokens: steps of the inner loop and how many of them the prologue
    is, matrix work that is padding, programs for each SM, reads of weights."""
    import matplotlib.pyplot as plt

    house_style()
    fig, axes = plt.subplots(1, 4, figsize=(13.5, 3.9))
    sizes = sorted(set(frame.tokens))
    places = range(len(sizes))
    steps, slack, programs, reads = axes
    for side, (product, colour) in enumerate(PRODUCTS.items()):
        rows = frame[frame["product"] == product].set_index("tokens").loc[sizes]
        at = [place + (side - 0.5) * 0.4 for place in places]
        steps.bar(at, rows.steps, width=0.38, color=colour, label=f"{product}: steps")
        steps.bar(at, rows.prologue, width=0.38, facecolor="none", edgecolor=INK, hatch="////", linewidth=0.5,
                  label="of which prologue" if side else None)  # fmt: skip
        slack.bar(at, rows.slack_pct, width=0.38, color=colour, label=product)
        programs.plot(places, rows.per_sm, color=colour, marker="o", markersize=4, label=product)
    down = frame[frame["product"] == "down"].set_index("tokens").loc[sizes]
    slack.plot(places, down.empty_pct, color=PALETTE[3], marker="s", markersize=4, label="empty rows, both")
    reads.plot(places, down.reads, color=PALETTE[2], marker="o", markersize=4)
    steps.set(title="Steps of the inner loop", ylabel="steps of block_k")
    slack.set(title="Padding", ylabel="% added in block_k; % of rows empty", ylim=(0, 100))
    programs.set(title="Programs for each SM", ylabel="programs (log)", yscale="log")
    reads.set(title="Asked for weights", ylabel="times, per touched expert", ylim=(0, None))
    beyond = next((i for i, tokens in enumerate(sizes) if tokens > last_key), None)
    for ax in axes:
        ax.set_xticks(places, [f"{tokens:,}" for tokens in sizes], rotation=90, fontsize=7.5)
        ax.set_xlabel("tokens (grey: no key)")
        ax.grid(axis="x", visible=False)
        if beyond is not None:
            ax.axvspan(beyond - 0.5, len(sizes) - 0.5, color=GRID, alpha=0.6, zorder=0)
        if ax is not reads:
            ax.legend(fontsize=7.5, loc="upper left" if ax is programs else "upper right")
    steps.set_ylim(0, 1.35 * frame.steps.max())
    stamp(fig, kind, source)
    return fig


def draw_pruning(frame: pd.DataFrame, rules: Mapping[str, str], kind: str, source: str) -> Figure:
    """What each rule takes out of the tiles: a bar for each number of tokens, a panel for each product.

    frame: columns product, tokens, left, and one for each of `rules` that took a tile out. rules: in the order in which
    they apply.
    """
    import matplotlib.pyplot as plt

    house_style()
    fig, axes = plt.subplots(1, len(PRODUCTS), figsize=(12.5, 3.8), sharey=True)
    parts = {"left": PALETTE[0]} | dict(zip([rule for rule in rules if rule in frame], _REMOVED, strict=False))
    for ax, product in zip(axes, PRODUCTS, strict=True):
        rows = frame[frame["product"] == product]
        below = [0] * len(rows)
        for name, colour in parts.items():
            bars = ax.bar(range(len(rows)), rows[name], bottom=below, width=0.8, color=colour,
                          label="left, to be timed or ranked" if name == "left" else f"removed: {name}")  # fmt: skip
            if name == "left":
                ax.bar_label(bars, label_type="center", fontsize=8, color="white")
            below = [a + b for a, b in zip(below, rows[name], strict=True)]
        ax.set_xticks(range(len(rows)), [f"{tokens:,}" for tokens in rows.tokens], rotation=60, fontsize=8)
        ax.set(title=product, xlabel="tokens")
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("tiles")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=9)
    stamp(fig, kind, source)
    return fig

"""The published profile that started the extend-attention work: shares of GPU time in prefill and decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.figures import MUTED, PALETTE, house_style, stamp
from g4lab.published import citation, published

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def shares() -> pd.DataFrame:
    """Percent of a phase's GPU time: a row for each phase and kernel, a column for each variant of the server."""
    table = published("extend_attention_profile")
    table = table[table["metric"] == "share of GPU time"]
    split = table["case"].str.split(": ", n=1, expand=True)
    return table.assign(phase=split[0], kernel=split[1]).pivot(
        index=["phase", "kernel"], columns="variant", values="value"
    )


def draw() -> Figure:
    """A panel for each phase, a pair of bars for each kernel: before and after the new tiles."""
    import matplotlib.pyplot as plt

    house_style()
    table, cited = shares(), citation(published("extend_attention_profile"))
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharex=True)
    for ax, phase in zip(axes, ("prefill", "decode"), strict=True):
        rows = table.loc[phase].sort_values(table.columns[0])
        for side, variant in enumerate(table.columns):
            places = [place + 0.2 - 0.4 * side for place in range(len(rows))]
            ax.barh(places, rows[variant], height=0.38, color=PALETTE[side], label=variant)
            for place, value in zip(places, rows[variant], strict=True):
                ax.annotate(
                    f"{value:.1f} %", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8
                )
        ax.set_yticks(range(len(rows)), [name.replace(" (", "\n(") for name in rows.index], fontsize=8.5)
        ax.set_title(phase)
        ax.set_xlabel("share of GPU time, %")
        ax.set_xlim(0, 75)
        ax.tick_params(axis="y", length=0, labelcolor=MUTED)
        ax.grid(axis="y", visible=False)
    axes[0].legend(loc="lower right", fontsize=8)  # where the bars are short
    stamp(fig, "published", f"{cited}, 26B-A4B, 2x H100, TP=2")
    return fig

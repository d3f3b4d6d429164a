"""Figures of the rounding lesson: where each chain rounds, flips layer by layer, and flips and drift against noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from g4lab.figures import INK, MUTED, PALETTE, house_style, stamp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR = {"transformers": PALETTE[2], "two_step": PALETTE[1], "sglang": PALETTE[3], "fp32": PALETTE[0]}
# The router norm's operators from left to right; True: the result is rounded to the model's dtype there.
# g4lab.kernels.router_norm has the chains as code.
CHAINS = {
    "transformers": (("norm(x)", True), ("× scale", True), ("× H^-½", True)),
    "two_step": (("norm(x)", True), ("× folded", True)),
    "sglang": (("norm(x)", False), ("× folded", True)),
    "fp32": (("norm(x)", False), ("× scale", False), ("× H^-½", True)),
}
WHO = {
    "transformers": "transformers 5.12",
    "two_step": "SGLang without PR #26588's fusion",
    "sglang": "SGLang with it, and 0.5.21",
    "fp32": "as late as can be",
}


def draw_chains() -> Figure:
    """The four roundings of the router's norm as chains of operators; a bar behind an operator is a rounding."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    house_style()
    fig, ax = plt.subplots(figsize=(9.6, 2.7))
    for row, (name, steps) in enumerate(CHAINS.items()):
        ax.text(-0.15, row - 0.16, name, ha="right", va="center", fontsize=9.5, color=INK)
        ax.text(-0.15, row + 0.18, WHO[name], ha="right", va="center", fontsize=8, color=MUTED)
        for column, (operator, rounded) in enumerate(steps):
            x, colour = 1.9 * column, COLOUR[name]
            box = FancyBboxPatch((x, row - 0.27), 1.35, 0.54, boxstyle="round,pad=0.02,rounding_size=0.1")
            box.set(facecolor="none", edgecolor=colour, linewidth=1.2)
            ax.add_patch(box)
            ax.text(x + 0.675, row, operator, ha="center", va="center", fontsize=9, color=INK)
            ax.plot([x + 1.37, x + 1.88], [row, row], color=MUTED, linewidth=1)
            if rounded:
                ax.plot([x + 1.62, x + 1.62], [row - 0.27, row + 0.27], color=colour, linewidth=5)
    ax.text(5.8, 1.5, "folded = round(scale × round(H^-½))", fontsize=8.5, color=MUTED, ha="right", va="center")
    ax.set(xlim=(-2.6, 6), ylim=(3.45, -0.55), title="A bar is a rounding to the model's dtype")
    ax.axis("off")
    stamp(fig, "published", "transformers 5.12, SGLang 0.5.21, SGLang PR #26588")
    return fig


def draw_layers(frame: pd.DataFrame, source: str) -> Figure:
    """routing_run.study's frame: flips made in each layer and flips seen there, a line for each change."""
    import matplotlib.pyplot as plt

    house_style()
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.3), sharey=True)
    titles = {"direct_pct": "Flips this layer's bits make", "seen_pct": "Flips seen with those passed on"}
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        for i, (change, rows) in enumerate(frame.groupby("change", sort=False)):
            ax.plot(rows.layer, rows[column], "o-", markersize=4, label=change, color=COLOUR.get(change, PALETTE[i]))
        ax.set(xlabel="layer", title=title)
        ax.set_xticks(sorted(frame.layer.unique()))
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("% of tokens with another\nset of experts")
    axes[1].legend(fontsize=8.5)
    stamp(fig, "live", source)
    return fig


def draw_noise(noise: pd.DataFrame, marks: Mapping[str, pd.DataFrame], source: str) -> Figure:
    """Flips and drift against the size of the noise, the range over seeds as a band.

    noise: routing_run.noise_study's frame. marks: by label, the rows of routing_run.study of one change that is no
    noise (a rounding); it is a horizontal line, and where it crosses the curve is what it is worth in noise.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    house_style()
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.5))
    titles = {
        "direct_pct": "Flips a layer's own bits make",
        "seen_pct": "Flips seen, mean of the layers",
        "kl": "Drift of the logits",
    }
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        of_size = noise[noise.mean_ulps > 0].groupby("mean_ulps")[column]
        mean, low, high = of_size.mean(), of_size.min(), of_size.max()
        ax.plot(mean.index, mean, "o-", color=INK, markersize=4, label="noise")
        ax.fill_between(mean.index, low, high, color=INK, alpha=0.12, linewidth=0)
        for name, frame in marks.items():
            ax.axhline(frame[column].mean(), color=COLOUR.get(name, MUTED), linewidth=1.2, linestyle="--", label=name)
        ax.set(xscale="log", yscale="log", title=title, xlabel="mean noise (ulp)")
        ax.set_xticks(list(mean.index), [f"{u:g}" for u in mean.index], fontsize=8)
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("% of tokens")
    axes[1].set_ylabel("% of tokens")
    axes[2].set_ylabel("KL divergence (nats a token)")
    axes[0].legend(fontsize=8)
    stamp(fig, "live", source)
    return fig

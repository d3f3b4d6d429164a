"""The figure of a bisection: how far each configuration lies from none, and which layers route otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from g4lab.figures import INK, MUTED, PALETTE, house_style, stamp
from g4lab.quality.bisection import MARGIN, Bisection, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEYOND, _WITHIN = PALETTE[3], PALETTE[2]


def draw_bisection(found: Bisection, source: str, kind: str = "live") -> Figure:
    """Left, a dot for each configuration's mean KL divergence over the band of the noise; right, where the model has
    experts, the share of tokens that each layer routes otherwise. `source`: what measured it, for the badge."""
    import matplotlib.pyplot as plt

    house_style()
    layers = found.by_layer()
    rows = [row for row in found.rows if not row.noise]
    panels = 1 if layers.empty else 2
    size = 5 + 4.6 * (panels - 1), 1.5 + 0.32 * sum(len(row.patches) for row in rows)
    fig, axes = plt.subplots(1, panels, figsize=size, sharey=True, squeeze=False)
    _draw_divergence(axes[0, 0], rows, [row for row in found.rows if row.noise])
    if panels == 2:
        _draw_layers(fig, axes[0, 1], rows, layers.shape[1])
    axes[0, 0].set_yticks(range(len(rows)), [row.name.replace(",", "\n+ ") for row in rows])
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    fig.suptitle(f"{found.model}: each configuration against none", x=0.01, ha="left", weight="bold", fontsize=11.5)
    stamp(fig, kind, source)
    return fig


def _draw_divergence(ax, rows: list[Row], noise: list[Row]) -> None:
    """KL on a logarithmic axis. Zero has no place there: it stands at the left, in the band of the noise."""
    known = [row.kl_mean for row in (*rows, *noise) if row.kl_mean and np.isfinite(row.kl_mean)]
    low, high = min(known, default=1e-6) / 10, max(known, default=1e-6) * 30
    floor = MARGIN * max(row.kl_mean for row in noise)
    ax.axvspan(low / 3, max(floor, low), color=MUTED, alpha=0.18, linewidth=0)
    ax.annotate(f"noise {floor:.1g}", (low / 3, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
    for y, row in enumerate(rows):
        value = np.inf if row.kl_mean is None else row.kl_mean
        number = f"{value:.1g}" if row.drift_max else f"equal{row.problem and f' ({row.problem})'}"
        text = number if np.isfinite(value) else "no answer" if row.problem else "not a number"
        x = min(value, high) or low / 3**0.5
        ax.plot(x, y, "o", color=_BEYOND if row.beyond else _WITHIN, markersize=8)
        ax.annotate(text, (x, y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    ax.set(xscale="log", xlim=(low / 3, high * 10), xlabel="mean KL divergence from none (nats a position)")
    ax.grid(axis="y", visible=False)


def _draw_layers(fig: Figure, ax, rows: list[Row], layers: int) -> None:
    shares = np.array([row.flips_by_layer or (np.nan,) * layers for row in rows])
    image = ax.imshow(shares, aspect="auto", cmap="Oranges", vmin=0, vmax=max(np.nanmax(shares, initial=0), 1e-9))
    for (y, x), share in np.ndenumerate(shares):
        if layers <= 12 and share == share:
            dark = share > 0.6 * image.norm.vmax
            ax.annotate(f"{share:.1f}" if share else "0", (x, y), ha="center", va="center", fontsize=8,
                        color="white" if dark else INK)  # fmt: skip
    ax.set(xlabel="layer", xticks=range(0, layers, 1 if layers <= 12 else 5))
    ax.tick_params(axis="y", length=0)
    ax.set_title("tokens routed otherwise, %", fontsize=10)
    ax.grid(visible=False)
    if layers > 12:
        fig.colorbar(image, ax=ax, shrink=0.9)

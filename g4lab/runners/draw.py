"""Figures of serving comparisons."""

from typing import TYPE_CHECKING

import numpy as np

from g4lab.errors import bad
from g4lab.figures import PALETTE, house_style, stamp
from g4lab.runners.comparison import FASTER, LATENCIES, SLOWER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from g4lab.runners.comparison import Comparison

_NAMES = {"output_tokens_per_s": "output tokens/s", "requests_per_s": "requests/s"}
_COLOURS = {FASTER: PALETTE[2], SLOWER: PALETTE[3]}
_SIDES = {"A": PALETTE[0], "B": PALETTE[1]}


def effects(comparison: "Comparison", kind: str = "live", source: str = "this machine") -> "Figure":
    """A forest plot: each metric's ratio B/A with its interval, over the band of the same harness's A/A interval."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    house_style()
    rows = comparison.effects
    figure, axes = plt.subplots(figsize=(8.4, 1.7 + 0.32 * len(rows)))
    for y, effect in enumerate(rows):
        colour = _COLOURS.get(effect.verdict, PALETTE[7])
        axes.barh(y, effect.aa.high - effect.aa.low, left=effect.aa.low, height=0.62, color=PALETTE[4], alpha=0.35)
        axes.plot([effect.ratio.low, effect.ratio.high], [y, y], color=colour, solid_capstyle="round")
        axes.plot(effect.ratio.ratio, y, "o", color=colour, markersize=6)
        axes.annotate(
            effect.verdict, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=colour
        )
    axes.axvline(1, color=PALETTE[7], linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7.5)
    axes.set_yticks(range(len(rows)), [_name(effect.metric) for effect in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("B / A (log scale; 95 % interval over rounds)")
    axes.set_title(f"{comparison.model}: B, {comparison.b}\nagainst A, {comparison.a}")
    figure.legend(
        handles=[
            Patch(color=PALETTE[4], alpha=0.35, label="A/A: what the harness gives for no change"),
            Line2D([], [], color=PALETTE[7], marker="o", label="B/A"),
        ],
        loc="outside lower left",
        fontsize=8,
        ncols=2,
    )
    stamp(figure, kind, source)
    return figure


def request_ecdf(
    comparison: "Comparison", latency: str = "ttft", kind: str = "live", source: str = "this machine"
) -> "Figure":
    """The share of requests that a latency lies below, for A and for B: all rounds as a thick line, each as a thin one.

    Raises:
        BadInput: `latency` is none of "ttft", "tpot", "e2e" (one value a request).
    """
    import matplotlib.pyplot as plt

    if latency not in LATENCIES or latency == "itl":
        raise bad("latency", latency, "ttft, tpot or e2e")
    house_style()
    requests = comparison.requests()
    figure, axes = plt.subplots(figsize=(7.6, 4.0))
    for side, colour in _SIDES.items():
        mine = requests[requests["side"] == side]
        for _, rows in mine.groupby("round"):
            axes.step(*_ecdf(rows[f"{latency}_ms"]), where="post", color=colour, linewidth=0.8, alpha=0.55)
        label = f"{side}: {(comparison.a, comparison.b)[side == 'B']}"
        axes.step(*_ecdf(mine[f"{latency}_ms"]), where="post", color=colour, linewidth=2.2, label=label)
    for percent in (50, 90, 99):
        axes.axhline(percent / 100, color=PALETTE[7], linewidth=0.6, linestyle=":")
        axes.annotate(f"p{percent}", (1.01, percent / 100), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.set(xlabel=f"{latency.upper()} (ms)", ylabel="share of requests", ylim=(0, 1.02))
    axes.set_xlim(left=0)
    axes.set_title(f"{comparison.model}: every request's {latency.upper()}, rounds as thin lines")
    axes.legend(loc="lower right", fontsize=8.5)
    stamp(figure, kind, source)
    return figure


def _ecdf(values) -> tuple[np.ndarray, np.ndarray]:
    found = np.sort(np.asarray(values, dtype=float))
    return np.concatenate([[0], found]), np.linspace(0, 1, len(found) + 1)


def _name(metric: str) -> str:
    if metric in _NAMES:
        return _NAMES[metric]
    percentile, latency, _ = metric.split("_")
    return f"{latency.upper()} {percentile}"

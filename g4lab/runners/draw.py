"""Figures of serving comparisons."""

from typing import TYPE_CHECKING

from g4lab.figures import PALETTE, house_style, stamp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from g4lab.runners.comparison import Comparison

_NAMES = {
    "output_tokens_per_s": "output tokens/s",
    "requests_per_s": "requests/s",
    "median_ttft_ms": "median TTFT",
    "median_tpot_ms": "median TPOT",
    "median_itl_ms": "median ITL",
    "median_e2e_ms": "median E2E latency",
}


def effects(comparison: "Comparison", kind: str = "live", source: str = "this machine") -> "Figure":
    """A forest plot: each metric's ratio B/A with its interval, over the band of the same harness's A/A interval."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    house_style()
    rows = comparison.effects
    figure, axes = plt.subplots(figsize=(7.6, 1.5 + 0.5 * len(rows)))
    for y, effect in enumerate(rows):
        outside = effect.verdict.startswith("outside")
        colour = PALETTE[3] if outside and effect.verdict.endswith("worse") else PALETTE[2] if outside else PALETTE[7]
        axes.barh(y, effect.aa.high - effect.aa.low, left=effect.aa.low, height=0.62, color=PALETTE[4], alpha=0.35)
        axes.plot([effect.ratio.low, effect.ratio.high], [y, y], color=colour, solid_capstyle="round")
        axes.plot(effect.ratio.ratio, y, "o", color=colour, markersize=7)
        axes.annotate(
            effect.verdict, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=colour
        )
    axes.axvline(1, color=PALETTE[7], linewidth=1)
    axes.set_yticks(range(len(rows)), [_NAMES[effect.metric] for effect in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("B / A (ratio of medians, 95 % bootstrap interval)")
    axes.set_title(f"{comparison.model}: patches {comparison.b!r} (B) against {comparison.a!r} (A)")
    figure.legend(
        handles=[
            Patch(color=PALETTE[4], alpha=0.35, label="A/A: what the harness gives for no change"),
            Line2D([], [], color=PALETTE[7], marker="o", label="B/A"),
        ],
        loc="outside upper right",
        fontsize=8,
        ncols=2,
    )
    stamp(figure, kind, source)
    return figure

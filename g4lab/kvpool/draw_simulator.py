"""Figures of the simulator: both pools over time, and the latencies of requests, simulated or measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from g4lab.figures import PALETTE, house_style, stamp
from g4lab.kvpool.simulation import Simulation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_pools(simulations: Sequence[Simulation], source: str, kind: str = "live") -> Figure:
    """What requests hold of each pool over time, a panel a simulation, with retractions and the queue's length.

    kind, source: as `figures.stamp` takes them; say in `source` that it is simulated, and with which costs.
    """
    import matplotlib.pyplot as plt

    house_style()
    fig, panels = plt.subplots(len(simulations), 1, figsize=(9, 2.6 * len(simulations)), sharex=True, squeeze=False)
    for ax, found in zip(panels[:, 0], simulations, strict=True):
        steps, made = found.table(), found.plan
        for used, size, name, colour in (
            ("full_used", made.full_tokens, "full pool", PALETTE[0]),
            ("swa_used", made.swa_tokens, "sliding pool", PALETTE[1]),
        ):
            ax.step(steps["end_s"], 100 * steps[used] / size, where="post", color=colour, linewidth=1.4,
                    label=f"{name}, {size:,} tokens")  # fmt: skip
        back = steps[steps["retracted"] > 0]
        again = f"{found.retractions} retractions: {100 * found.reprefilled_share:.0f} % of prefill again"
        ax.plot(back["start_s"], [102] * len(back), "v", color=PALETTE[3], markersize=6, clip_on=False, label=again)
        queue = ax.twinx()
        queue.fill_between(steps["end_s"], steps["waiting"], step="post", color=PALETTE[7], alpha=0.15, linewidth=0)
        queue.set(ylabel="waiting (grey)", ylim=(0, max(4, 2 * steps["waiting"].max())))
        queue.grid(visible=False)
        ax.set(ylabel="held by requests (%)", ylim=(0, 108), xlim=(0, None))
        ax.set_title(f"ratio {made.ratio:g}")
        legend = ax.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8, columnspacing=1.2, handlelength=1.2
        )
        legend.set_in_layout(False)  # it stands in the title's line, which has room already
    panels[-1, 0].set_xlabel("time (s)")
    stamp(fig, kind, source)
    return fig


def draw_latencies(
    simulated: Mapping[str, Sequence[float]],
    what: str,
    source: str,
    kind: str = "live",
    measured: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """The share of requests that were served within a time: a dashed curve for each of `simulated`, solid `measured`.

    Args:
        simulated, measured: name, such as "ratio 0.8", -> milliseconds, one value a request; same name, same colour.
        what: the latency's name, such as "TTFT".
    """
    import matplotlib.pyplot as plt
    import numpy as np

    house_style()
    measured = measured or {}
    fig, ax = plt.subplots(figsize=(8, 3.6))
    colours = dict(zip(dict.fromkeys((*simulated, *measured)), PALETTE, strict=False))
    for samples, word, line in ((measured, "measured", "-"), (simulated, "simulated", "--")):
        for name, values in samples.items():
            ordered = np.sort(values)
            share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
            ax.step(ordered, share, line, where="post", label=f"{name}, {word}", color=colours[name])
    ax.set(xlabel=f"{what} (ms)", ylabel="requests within it (%)", ylim=(0, 101), xlim=(0, None))
    ax.set_title(f"{what} of each request")
    ax.legend(loc="lower right")
    stamp(fig, kind, source)
    return fig

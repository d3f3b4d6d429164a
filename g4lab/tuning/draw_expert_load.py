"""Figures of expert load: how pairs spread over experts, how many experts a batch touches, what padding wastes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from g4lab.errors import bad
from g4lab.figures import INK, MUTED, PALETTE, house_style, stamp
from g4lab.tuning import expert_load

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw_spread(ids: Mapping[str, torch.Tensor], num_experts: Mapping[str, int], source: str) -> Figure:
    """A panel for each routing: pairs of each expert, the busiest first, against the mean.

    ids: [T, K] by routing. num_experts: by the same keys.

    Raises:
        BadInput: no batch.
    """
    import matplotlib.pyplot as plt

    if not ids:
        raise bad("ids", dict(ids), "one batch or more")
    house_style()
    fig, axes = plt.subplots(1, len(ids), figsize=(13, 3.4), squeeze=False)
    for ax, colour, (name, chosen) in zip(axes[0], PALETTE, ids.items(), strict=False):
        pairs = expert_load.counts(chosen, num_experts[name]).sort(descending=True).values
        ax.bar(range(len(pairs)), pairs.tolist(), width=0.9, color=colour)
        mean = pairs.double().mean().item()
        ax.axhline(mean, color=INK, linewidth=1, linestyle="--")
        text = f"busiest {int(pairs[0])}, mean {mean:.0f}, idle {int((pairs == 0).sum())}"
        ax.text(0.98, 0.94, text, transform=ax.transAxes, ha="right", va="top", fontsize=9, color=MUTED)
        ax.set(title=name, xlabel=f"expert, busiest first (of {len(pairs)})", ylim=(0, 1.2 * float(pairs[0])))
        ax.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("pairs of the expert")
    stamp(fig, "live", source)
    return fig


def draw_padding(
    table: pd.DataFrame, chances: Mapping[str, Sequence[float] | None], num_experts: int, top_k: int, source: str
) -> Figure:
    """Experts touched, empty rows and reads of weights against tokens: dots counted, lines expected.

    table: of `expert_load.table`. chances: for each of its routings (three at most), `expert_load.expected`'s
    probabilities.
    """
    import matplotlib.pyplot as plt

    house_style()
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2))
    sizes, block_ms = sorted(set(table.tokens)), sorted(set(table.block_m))
    styles = dict(zip(chances, ("-", "--", ":"), strict=False))
    markers = dict(zip(chances, "osD", strict=False))
    for routing, probabilities in chances.items():
        mine = table[table.routing == routing]
        look = {"linestyle": styles[routing], "linewidth": 1.4}
        dots = {"linestyle": "", "marker": markers[routing], "markersize": 4.5}
        for block_m, colour in zip(block_ms, PALETTE, strict=False):
            line = [expert_load.expected(tokens, num_experts, top_k, block_m, probabilities) for tokens in sizes]
            rows = mine[mine.block_m == block_m]
            name = f"block_m {block_m}, {routing}"
            middle.plot(sizes, [100 * load.wasted for load in line], color=colour, **look)
            middle.plot(rows.tokens, rows.wasted_pct, color=colour, **dots)
            right.plot(sizes, [load.reads for load in line], color=colour, label=name, **look)
            right.plot(rows.tokens, rows.reads, color=colour, **dots)
        first = mine[mine.block_m == block_ms[0]]
        left.plot(sizes, [expert_load.expected(n, num_experts, top_k, 1, probabilities).touched for n in sizes],
                  color=INK, label=f"{routing}, expected", **look)  # fmt: skip
        left.plot(first.tokens, first.touched, color=INK, label=f"{routing}, counted", **dots)
    left.set(title="Experts touched", ylabel=f"experts of {num_experts}", ylim=(0, 1.05 * num_experts))
    left.legend(loc="lower right", fontsize=8.5)
    middle.set(title="Empty rows", ylabel="% of the rows multiplied", ylim=(0, 100))
    right.set(title="Asked for weights", ylabel="times, per touched expert (log)", yscale="log")
    right.legend(loc="upper left", fontsize=8)
    for ax in (left, middle, right):
        ax.set_xlabel("tokens (log)")
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes[::2], [f"{tokens:,}" for tokens in sizes[::2]], fontsize=8.5)
    right.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    right.minorticks_off()
    stamp(fig, "live", source)
    return fig

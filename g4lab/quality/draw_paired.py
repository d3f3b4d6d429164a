"""Figures of the quality notebook: published claims with their intervals, sample sizes, subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from g4lab.errors import bad
from g4lab.figures import GRID, INK, MUTED, PALETTE, house_style, stamp
from g4lab.quality.intervals import paired_difference
from g4lab.quality.power import questions_paired
from g4lab.quality.published_quality import MMLU

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from g4lab.quality.paired import Paired

BLUE, ORANGE, GREEN, RED = PALETTE[:4]
SIGN = {"win": GREEN, "loss": RED, "tie": MUTED}


def draw_claims(claims: pd.DataFrame, discordance: float = 0.1) -> Figure:
    """published_quality.claims' frame: each claimed difference with its unpaired interval, and with the one that pairs
    would give if the share `discordance` of the answers differed."""
    import matplotlib.pyplot as plt

    house_style()
    rows = claims[claims["n"].notna()]
    fig, ax = plt.subplots(figsize=(9.6, 0.37 * len(rows) + 1.3))
    ax.axvspan(-1, 1, color=GRID, zorder=0, label="within one point")
    ax.axvline(0, color=MUTED, linewidth=1)
    for y, row in enumerate(rows.itertuples()):
        n, net = int(row.n), int(row.net)
        if row.low == row.low:
            ax.plot([100 * row.low, 100 * row.high], [y + 0.13] * 2, color=ORANGE, linewidth=2.5,
                    label="95 % interval, unpaired" if not y else None)  # fmt: skip
        worse = max(round((discordance * n - net) / 2), 0)
        paired = paired_difference(worse, max(worse + net, 0), n)
        ax.plot([100 * paired.low, 100 * paired.high], [y - 0.13] * 2, color=BLUE, linewidth=2.5,
                label=f"95 % interval, if {100 * discordance:g} % of answers differ" if not y else None)  # fmt: skip
        ax.plot(100 * row.difference, y, "o", color=INK, markersize=5, label=None if y else "claimed")
    names = [f"{row.claim} · N={row.n}\n{row.pr}" for row in rows.itertuples()]
    ax.set_yticks(range(len(rows)), names, fontsize=7.5)
    ax.set(xlabel="accuracy of B less accuracy of A (points)", ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    ax.set_title("What the published numbers of questions can tell")
    fig.legend(loc="outside upper right", ncols=2, fontsize=8)
    stamp(fig, "published", "the pull requests at the rows; intervals recomputed")
    return fig


def draw_chi2(counts: pd.DataFrame, chi2: float, n: int = MMLU) -> Figure:
    """published_quality.counts_giving's frame: the differences, either way, that one chi2 may stand for."""
    import matplotlib.pyplot as plt

    house_style()
    fig, ax = plt.subplots(figsize=(8.2, 3.5))
    rows = counts[counts["share"] <= 0.2]
    share, difference, half = 100 * rows["share"], 100 * rows["difference"], 100 * rows["half"]
    for sign, colour, name in ((1, GREEN, "fused better"), (-1, RED, "fused worse")):
        ax.fill_between(
            share, sign * difference - half, sign * difference + half, color=colour, alpha=0.15, linewidth=0
        )
        ax.plot(share, sign * difference, color=colour, label=f"{name}: difference and its 95 % interval")
    ax.axhline(0, color=MUTED, linewidth=1)
    ax.set(xlabel=f"discordant questions (% of {n:,})", ylabel="difference of accuracy\n(points)", xlim=(0, 20))
    ax.set_title(f"One χ² of {chi2:g}, and what it may stand for")
    ax.legend(fontsize=8, loc="upper left")
    stamp(fig, "published", "χ² and N of pyc96/sglang#1; counts and intervals recomputed")
    return fig


def draw_questions(discordances: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)) -> Figure:
    """Questions that find a difference with 80 % power, one line a discordance; the numbers in use as marks."""
    import matplotlib.pyplot as plt

    house_style()
    fig, ax = plt.subplots(figsize=(8.2, 3.9))
    for colour, discordance in zip(PALETTE, discordances, strict=False):
        differences = np.geomspace(0.001, min(0.1, 0.999 * discordance), 80)
        needed = [questions_paired(d, discordance) for d in differences]
        ax.plot(100 * differences, needed, color=colour, label=f"{100 * discordance:g} %")
    for n, name in ((200, "GSM8K test in CI, 200"), (500, "MMLU sample, 500"), (MMLU, "whole MMLU, 14,042")):
        ax.axhline(n, color=MUTED, linewidth=1, linestyle=":")
        ax.text(0.102, n * 1.08, name, fontsize=8, color=MUTED)
    ax.axvspan(2, 3.5, color=GRID, zorder=0)
    ax.text(2.65, 2.2e5, "drop of SGLang\nPR #26588", fontsize=8, color=MUTED, ha="center", va="top")
    ax.set(xscale="log", yscale="log", xlim=(0.1, 10), ylim=(30, 3e5), ylabel="questions, same for both",
           xlabel="true difference of accuracy (points)")  # fmt: skip
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks([100, 1000, 10_000, 100_000], ["100", "1,000", "10,000", "100,000"])
    ax.minorticks_off()
    ax.set_title("Questions that find a difference (80 % power, α 5 %)")
    fig.legend(title="answers that\ndiffer", loc="outside right center", fontsize=8.5, title_fontsize=8.5)
    stamp(fig, "published", "marks: pyc96/sglang#1, SGLang PR #26588; curves: formula of Connor 1987")
    return fig


def draw_subjects(found: Paired, kind: str, source: str) -> Figure:
    """A bar for each subject: questions that B wins of A and loses to it; the net result as a mark.

    Raises:
        BadInput: there is no subject with a name.
    """
    import matplotlib.pyplot as plt

    rows = found.subjects.assign(net=lambda f: f["correct_b"] - f["correct_a"]).sort_values(["net", "subject"])
    if rows.empty:
        raise bad("found", "no subjects", "a comparison with at least one")
    house_style()
    fig, ax = plt.subplots(figsize=(7.6, 0.3 * len(rows) + 1.5))
    ax.barh(rows["subject"], 100 * rows["difference"], color=[SIGN[r] for r in rows["result"]], height=0.6)
    ax.axvline(0, color=INK, linewidth=1)
    reach = 130 * max(rows["difference"].abs().max(), 0.01)
    for y, row in enumerate(rows.itertuples()):
        side = 1 if row.net >= 0 else -1
        ax.annotate(f"{row.net:+d} of {row.n}", (100 * row.difference, y), xytext=(5 * side, 0), va="center",
                    textcoords="offset points", ha="left" if side > 0 else "right", fontsize=8)  # fmt: skip
    ax.set(xlabel=f"accuracy of {found.name_b} less that of {found.name_a} (points)", xlim=(-reach, reach))
    ax.grid(axis="y", visible=False)
    results = found.subject_results()
    said = f"{results['win']} subjects won, {results['loss']} lost, {results['tie']} tied"
    ax.set_title(f"{said} (sign test p {found.subjects_p:.2g})")
    stamp(fig, kind, source)
    return fig


def draw_signals(frame: pd.DataFrame, source: str) -> Figure:
    """What each signal says of each change, a panel a signal, a row a change; the first row is the noise.

    frame: change; difference, low, high (accuracy, fractions); answers_pct, flips_pct (percent), kl (nats a position).
    """
    import matplotlib.pyplot as plt

    house_style()
    fig, axes = plt.subplots(1, 4, figsize=(11, 0.5 * len(frame) + 1.5), sharey=True)
    y = np.arange(len(frame))
    first, *others = axes
    reach = 100 * np.array([frame["difference"] - frame["low"], frame["high"] - frame["difference"]])
    first.errorbar(100 * frame["difference"], y, xerr=reach, color=INK, fmt="o", markersize=5, linewidth=2)
    first.axvline(0, color=MUTED, linewidth=1)
    first.set(title="Accuracy", xlabel="difference (points)")
    first.set_yticks(y, frame["change"])
    panels = (("answers_pct", "Letters", "% of answers changed"), ("flips_pct", "Experts", "% of tokens and layers"),
              ("kl", "Logits", "KL divergence (nats a position)"))  # fmt: skip
    colours = [MUTED, *PALETTE]
    for ax, (column, title, label) in zip(others, panels, strict=True):
        values = frame[column].astype(float)
        bars = ax.barh(y, values, color=colours[: len(frame)], height=0.55)
        ax.bar_label(bars, [f"{v:.2g}" if v else "0" for v in values], padding=4, fontsize=8.5)
        ax.set(title=title, xlabel=label, xlim=(0, 1.3 * max(values.max(), 1e-9)))
        ax.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    stamp(fig, "live", source)
    return fig

"""Figures of the report: every claim as a square, and what a campaign's steps cost and settle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.claims.model import SAME, Book, Claim
from g4lab.errors import bad
from g4lab.figures import INK, MUTED, PALETTE, PAPER, house_style, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# state -> face, edge; hollow is what is still open
LOOKS = {
    "proven": (PALETTE[2], PALETTE[2]),
    "the same as on a CPU": ("#B9E3D4", PALETTE[2]),
    "refuted": (PALETTE[3], PALETTE[3]),
    "not measured": (PAPER, MUTED),
    "cannot be said": ("#E3E6EA", "#E3E6EA"),
}


def looks(claim: Claim) -> tuple[str, str]:
    """A claim's state on a CPU and on a GPU, as LOOKS names them."""
    cpu = claim.cpu.state if claim.cpu else "cannot be said"
    return cpu, "the same as on a CPU" if claim.gpu == SAME else claim.gpu.state


def groups(book: Book, by: str) -> dict[str, list[Claim]]:
    """Claims by "room" or by "pull"; a claim of several pull requests stands in each.

    Raises:
        BadInput: `by` is neither.
    """
    if by not in ("room", "pull"):
        raise bad("by", by, "room or pull")
    found: dict[str, list[Claim]] = {} if by == "room" else {feature.pull: [] for feature in book.features}
    for claim in book.claims:
        for name in [claim.room] if by == "room" else book.pulls_of(claim):
            found.setdefault(name, []).append(claim)
    return found


def draw_claims(book: Book, by: str, source: str) -> Figure:
    """One square for each claim: left what a CPU says, right what an H200 says; `by` as groups() takes it."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch, Rectangle

    house_style()
    found = groups(book, by)
    widest = max(map(len, found.values()))
    fig, axes = plt.subplots(1, 2, figsize=(10, 0.36 * len(found) + 1.7), sharey=True)
    for place, ax in enumerate(axes):
        for y, claims in enumerate(found.values()):
            for x, claim in enumerate(claims):
                face, edge = LOOKS[looks(claim)[place]]
                ax.add_patch(Rectangle((x + 0.1, y - 0.4), 0.8, 0.8, facecolor=face, edgecolor=edge, linewidth=1.2))
        ax.set(xlim=(0, widest), ylim=(len(found) - 0.4, -0.6), xlabel="claims")
        ax.grid(visible=False)
        ax.set_title(("on a CPU, in CI", "on an H200")[place])
    axes[0].set_yticks(range(len(found)), [f"{name} ({len(claims)})" for name, claims in found.items()])
    shown = {state for claim in book.claims for state in looks(claim)}
    handles = [Patch(facecolor=f, edgecolor=e, label=state) for state, (f, e) in LOOKS.items() if state in shown]
    fig.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8.5)
    stamp(fig, "live", source)
    return fig


def draw_steps(steps: pd.DataFrame, budget_s: float, source: str) -> Figure:
    """A campaign's steps one after the other, most worth first: estimated minutes, and how many claims each settles.

    steps: step, stage, seconds, claims (ids); budget_s: where a line says that the time is spent.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    house_style()
    stages = dict.fromkeys(steps["stage"])
    colours = dict(zip(stages, PALETTE, strict=False))
    starts = (steps["seconds"].cumsum() - steps["seconds"]) / 60
    fig, ax = plt.subplots(figsize=(10, 0.24 * len(steps) + 1.5))
    for y, (start, row) in enumerate(zip(starts, steps.itertuples(), strict=True)):
        minutes = row.seconds / 60
        ax.barh(y, minutes, left=start, color=colours[row.stage], height=0.72)
        settled = ", ".join(row.claims) if len(row.claims) < 3 else f"{len(row.claims)} claims"
        ax.annotate(f"{minutes:.1f} min  {settled}", (start + minutes, y), xytext=(4, 0), textcoords="offset points",
                    va="center", fontsize=7.5, color=INK, bbox={"color": PAPER, "pad": 0.8})  # fmt: skip
    ax.axvline(budget_s / 60, color=PALETTE[3], linewidth=1.2, linestyle="--", zorder=0,
               label=f"{budget_s / 60:.0f} minutes")  # fmt: skip
    ax.set_yticks(range(len(steps)), steps["step"], fontsize=7.5)
    ax.set(xlabel="minutes, one step after the other (estimates)", ylim=(len(steps) - 0.4, -0.7))
    ax.set_xlim(0, 1.3 * (steps["seconds"].sum() / 60))
    ax.grid(axis="y", visible=False)
    ax.set_title("What the next minutes on an H200 settle")
    handles = [Patch(color=colour, label=stage) for stage, colour in colours.items()]
    ax.legend(handles=[*ax.get_legend_handles_labels()[0], *handles], fontsize=8, loc="upper right")
    stamp(fig, "live", source)
    return fig

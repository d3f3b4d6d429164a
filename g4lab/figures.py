"""The house's look for figures, and the badge that says where a figure's numbers come from.

Figures keep a paper-white ground of their own, so they read the same on JupyterLab's light and dark themes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.errors import bad

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe-Ito: eight colours that stay apart for colour-blind readers.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6D1F", "#4D4D4D")
INK, MUTED, GRID, PAPER = "#1B1F24", "#5C6670", "#E3E6EA", "#FFFFFF"
KINDS = {"live": "#009E73", "recorded": "#0072B2", "published": "#8C6D1F"}


def house_style() -> None:
    """Set matplotlib's defaults for this process; call once at the top of a notebook or a draw function."""
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "figure.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "text.color": INK,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "axes.titlesize": 11.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "axes.prop_cycle": mpl.cycler(color=PALETTE),
        }
    )


def stamp(fig: Figure, kind: str, source: str) -> None:
    """Write the provenance badge into the figure's lower right corner.

    Args:
        kind: "live" (measured in this run), "recorded" (from data/records) or "published" (a cited source).
        source: machine, record or citation the numbers come from.

    Raises:
        BadInput: `kind` is none of the three, or `source` is empty.
    """
    if kind not in KINDS:
        raise bad("kind", kind, "one of " + ", ".join(KINDS))
    if not source:
        raise bad("source", source, "where the numbers come from")
    # A figure-level label below the axes: constrained layout makes room for it.
    fig.supxlabel(f"{kind} · {source}", x=0.995, ha="right", fontsize=7.5, color=KINDS[kind])

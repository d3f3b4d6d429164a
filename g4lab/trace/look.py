"""Colours, units and titles that the trace room's figures share."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from g4lab.figures import MUTED, PALETTE, stamp
from g4lab.trace.families import OTHER
from g4lab.trace.model import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from g4lab.trace.result import Result

# What the notebooks attack stands out; what surrounds it is pale.
FAMILY_COLOUR = {
    "extend attention": "#0072B2",
    "decode attention": "#56B4E9",
    "MoE GEMM": "#D55E00",
    "dense GEMM": "#E69F00",
    "routing": "#CC79A7",
    "norm": "#009E73",
    "rope": "#7BCCB5",
    "KV write": "#8C6D1F",
    "all-reduce": "#4D4D4D",
    "other collectives": "#7A7A7A",
    "sampling": "#7E57A5",
    "softmax and sort": "#E6BFD6",
    "activation": "#F2CE7A",
    "MoE combine": "#F0A37A",
    "convolution": "#3F6FA0",
    "elementwise": "#A9B4C0",
    "reduction": "#8894A1",
    "copy": "#CDBB93",
    "indexing": "#B7CDBF",
    "views and allocation": "#DDE2E7",
    "scheduling": "#C5CAD0",
    "quantization": "#B6A3D6",
    "optimizer": "#9CC3DD",
    "autograd": "#CBD5DF",
    OTHER: "#FFFFFF",
}
PHASE_COLOUR = dict(zip(PHASES, (*PALETTE[:3], PALETTE[5], "#CDBB93", "#8894A1"), strict=True))


def style(family: str) -> dict:
    """A family's look as keyword arguments of a matplotlib patch; an unknown family looks like "other"."""
    colour = FAMILY_COLOUR.get(family, FAMILY_COLOUR[OTHER])
    white = colour == FAMILY_COLOUR[OTHER]
    return {"facecolor": colour, "edgecolor": MUTED if white else "white", "hatch": "////" if white else None}


def scale(largest_us: float) -> tuple[float, str]:
    """Divisor and unit that keep an axis of times short."""
    return (1000.0, "ms") if largest_us >= 10_000 else (1.0, "µs")


def finish(fig: Figure, result: Result, more: str = "") -> Figure:
    """Title over the whole figure (labels may be long), and the badge. Axes carry their own units."""
    title = textwrap.fill(result.title.replace(", µs", ""), int(10 * fig.get_figwidth()))
    fig.suptitle(title + more, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    stamp(fig, *result.provenance)
    return fig


def family_legend(fig: Figure, families: list[str], **more: dict) -> None:
    """A legend beside the axes; more: label=look for patches that are no family."""
    from matplotlib.patches import Patch

    handles = [Patch(**style(family), label=family) for family in families]
    handles += [Patch(label=label, **look) for label, look in more.items()]
    fig.legend(handles=handles, loc="outside right upper", fontsize=8.5)


def inside(ax: Axes, x: float, y: float, words: str, colour: str) -> None:
    """Small text centred in a bar."""
    ax.text(x, y, words, ha="center", va="center", color=colour, fontsize=8.5, clip_on=True)

"""Figure of a roofline: floors as bars, coloured by the ceiling that binds, measured times as marks beside them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from g4lab.figures import INK, PALETTE, house_style, stamp
from g4lab.trace.result import text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from g4lab.trace.result import Result

_COLOUR = {"copy bandwidth": PALETTE[4], "matmul rate": PALETTE[1]}


def draw(result: Result, rows: int = 12) -> Figure:
    """One bar a family with a floor, and a diamond for its measured time with how many floors that is.

    Families that were measured and have no floor come last, as a diamond alone.
    """
    import matplotlib.pyplot as plt

    house_style()
    shown = result.head(rows)
    measured = shown["measured_us"] if "measured_us" in shown else shown["floor_us"] * float("nan")
    largest = max(shown["floor_us"].max(), measured.max() if measured.notna().any() else 0)
    divisor, unit = (1000, "ms") if largest >= 10_000 else (1, "µs")
    fig, ax = plt.subplots(figsize=(10, 1.5 + 0.38 * max(len(shown), 3)))
    for place, (binds, floor, time) in enumerate(zip(shown["binds"], shown["floor_us"], measured, strict=True)):
        if binds in _COLOUR:
            ax.barh(place, floor / divisor, height=0.66, color=_COLOUR[binds])
        if time == time:
            ax.plot(time / divisor, place, "D", color=INK, markersize=6)
        end = max(value for value in (floor, time) if value == value) / divisor
        ax.annotate(_words(floor, time), (end, place), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
    _legend(fig, set(shown["binds"]), measured.notna().any())
    ax.set_yticks(range(len(shown)), shown.index)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.margins(x=0.45 if measured.notna().any() else 0.15)
    ax.set_xlim(left=0)
    ax.grid(visible=False, axis="y")
    left = f"; {len(result) - len(shown)} smaller ones not shown" if len(result) > len(shown) else ""
    ax.set(xlabel=f"{unit} per step{left}")
    title = textwrap.fill(result.title.replace(": µs per step,", ":"), 100)
    fig.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    stamp(fig, *result.provenance)
    return fig


def _words(floor: float, time: float) -> str:
    if floor != floor:
        return f"{text(time, '')} µs, no floor"
    took = f"; took {text(time, '')} µs, {text(time / floor, '')} times that" if time == time else ""
    return f"{text(floor, '')} µs{took}"


def _legend(fig: Figure, binds: set[str], has_times: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=f"floor: {name} binds") for name, colour in _COLOUR.items() if name in binds]
    if has_times:
        handles.append(Line2D([], [], color=INK, marker="D", linestyle="", label="measured"))
    fig.axes[0].legend(handles=handles, loc="lower right", fontsize=8.5)

"""The figures of the trace room, each drawn from the table that it shows (Result.plot)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.figures import GRID, INK, MUTED, PALETTE, house_style
from g4lab.gemma4.draw import ink_on
from g4lab.trace.families import OTHER
from g4lab.trace.look import FAMILY_COLOUR, PHASE_COLOUR, family_legend, finish, inside, scale, style
from g4lab.trace.model import PHASES
from g4lab.trace.names import short

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from g4lab.trace.result import Result

_STATUS_COLOUR = {"new": "#B3400A", "gone": "#00744F", "common": MUTED}


def bars(result: Result, rows: int = 16) -> Figure:
    """Time by family or kernel, most first, labelled with its share; what does not fit is one bar at the end."""
    import matplotlib.pyplot as plt

    house_style()
    shown, rest = result.iloc[:rows], result.iloc[rows:]
    names = [short(name, 56) for name in shown.index]
    families = list(shown["family"]) if "family" in shown else list(shown.index)
    times, shares = list(shown["total_us"]), list(shown["share"])
    if len(rest):
        names.append(f"{len(rest)} more")
        families.append(OTHER)
        times.append(rest["total_us"].sum())
        shares.append(rest["share"].sum())
    divisor, unit = scale(max(times, default=0))
    fig, ax = plt.subplots(figsize=(10, 1.3 + 0.33 * max(len(names), 3)))
    for place, (family, time, share) in enumerate(zip(families, times, shares, strict=True)):
        ax.barh(place, time / divisor, height=0.72, **style(family))
        ax.annotate(f"{share:.1%}", (time / divisor, place), (5, 0), textcoords="offset points", va="center", color=INK)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.margins(x=0.09)
    ax.grid(visible=False, axis="y")
    ax.set(xlabel=f"time, {unit}")
    if "family" in shown:
        family_legend(fig, list(dict.fromkeys(families)))
    return finish(fig, result)


def phases(result: Result) -> Figure:
    """What each phase spends its time on: one bar of 100 % each."""
    import matplotlib.pyplot as plt

    house_style()
    fig, ax = plt.subplots(figsize=(11, 1.5 + 0.85 * max(result.shape[1], 2)))
    for place, phase in enumerate(result.columns):
        left = 0.0
        for family, share in result[phase].items():
            ax.barh(place, share, left=left, height=0.66, linewidth=0.6, **style(family))
            if share >= 0.07:
                words = family.replace(" ", "\n")
                inside(ax, left + share / 2, place, f"{words}\n{share:.0%}", ink_on(FAMILY_COLOUR[family]))
            left += share
    ax.set_yticks(range(result.shape[1]), [phase.removeprefix("share_") for phase in result.columns])
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set(xlim=(0, 1), xlabel="share of the phase's time")
    ax.grid(visible=False)
    family_legend(fig, list(result.index))
    return finish(fig, result)


def steps(result: Result) -> Figure:
    """Every step's time stacked by family, a panel for each phase; idle time stands white on top."""
    import matplotlib.pyplot as plt

    house_style()
    families = [name for name in result.columns if name in FAMILY_COLOUR]
    phases = [phase for phase in PHASES if (result["phase"] == phase).any()]
    widths = [max((result["phase"] == phase).sum(), 3) for phase in phases]
    widths = [max(width, sum(widths) / 6) for width in widths]
    fig, axes = plt.subplots(1, max(len(phases), 1), figsize=(11, 4.2), width_ratios=widths or None, squeeze=False)
    for ax, phase in zip(axes[0], phases, strict=False):
        _draw_steps(ax, result[result["phase"] == phase], families, phase)
    idle = {"idle": {"facecolor": "none", "edgecolor": MUTED, "linestyle": ":"}}
    family_legend(fig, families, **idle)
    return finish(fig, result)


def _draw_steps(ax: Axes, rows: Result, families: list[str], phase: str) -> None:
    import numpy as np

    places = np.arange(len(rows))
    divisor, unit = scale((rows["busy_us"] + rows["idle_us"]).max())
    top = np.zeros(len(rows))
    for family in families:
        height = rows[family].to_numpy() / divisor
        ax.bar(places, height, bottom=top, width=0.86, linewidth=0.3, **style(family))
        top += height
    idle = rows["idle_us"].to_numpy() / divisor
    ax.bar(places, idle, bottom=top, width=0.86, facecolor="none", edgecolor=MUTED, linestyle=":", linewidth=0.8)
    ax.set_facecolor(PHASE_COLOUR[phase] + "14")  # a tint
    ax.grid(visible=False, axis="x")
    every = -(-len(rows) // 12)
    ax.set_xticks(places[::every], rows.index[::every])
    tokens = rows["tokens"][rows["tokens"] >= 0]
    more = f", {tokens.median():,.0f} tokens" if len(tokens) else ""
    known = "phase unknown" if phase == "unknown" else phase
    ax.set(
        xlabel="step", ylabel=f"time per step, {unit}", title=f"{known}: {len(rows)} step{'s' * (len(rows) > 1)}{more}"
    )


def gaps(result: Result) -> Figure:
    """How much time gaps of each length took, by phase."""
    import matplotlib.pyplot as plt
    import numpy as np

    house_style()
    fig, ax = plt.subplots(figsize=(10, 4))
    lengths = result["gap_us"].to_numpy()
    if len(lengths):
        edges = np.geomspace(lengths.min(), max(lengths.max(), lengths.min() * 1.01), 41)
        edges[0], edges[-1] = lengths.min(), np.nextafter(lengths.max(), np.inf)
        divisor, unit = scale(lengths.sum())
        phases = [phase for phase in PHASES if (result["phase"] == phase).any()]
        colours = [PHASE_COLOUR[phase] for phase in phases]
        parts = [lengths[(result["phase"] == phase).to_numpy()] for phase in phases]
        weights = [part / divisor for part in parts]
        ax.hist(parts, edges, weights=weights, stacked=True, label=phases, color=colours, rwidth=0.92)
        half = lengths[np.searchsorted(lengths.cumsum(), lengths.sum() / 2)]  # longest first
        ax.axvline(half, color=INK, linewidth=1, linestyle="--")
        note = f"half of the {lengths.sum() / divisor:,.3g} {unit}\nin {len(lengths):,} gaps: {half:,.3g} µs or longer"
        ax.annotate(note, (half, 1), (6, -4), xycoords=("data", "axes fraction"), textcoords="offset points", va="top")
        ax.set(xscale="log", ylabel=f"time in gaps of this length, {unit}")
        ax.margins(y=0.25)
        ax.legend(loc="upper left")
    ax.set(xlabel="length of the gap, µs")
    return finish(fig, result)


def changes(result: Result, rows: int = 24) -> Figure:
    """What changed from a (ring) to b (dot), new and vanished kernels first; per step where both traces have steps."""
    import matplotlib.pyplot as plt

    house_style()
    stepped = result["change_per_step_us"].notna().any()
    column = "per_step_us" if stepped else "total_us"
    shown = result.head(rows)
    fig, ax = plt.subplots(figsize=(10.5, 1.6 + 0.31 * max(len(shown), 3)))
    for place, row in enumerate(shown.itertuples()):
        _draw_change(ax, place, row.status, getattr(row, f"{column}_a"), getattr(row, f"{column}_b"))
    ax.set_yticks(range(len(shown)), [f"{short(row.name, 52)}  ({row.family})" for row in shown.itertuples()])
    for label, status in zip(ax.get_yticklabels(), shown["status"], strict=True):
        label.set_color(INK if status == "common" else _STATUS_COLOUR[status])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.margins(x=0.12)
    ax.grid(visible=False, axis="y")
    left = f"; {len(result) - len(shown)} smaller changes not shown" if len(result) > len(shown) else ""
    ax.set(xscale="log", xlabel="µs per step" if stepped else "µs in total")
    return finish(fig, result, f"\n○ before   ● after{left}")


def _draw_change(ax: Axes, place: int, status: str, before: float, after: float) -> None:
    colour = _STATUS_COLOUR[status]
    if before > 0 and after > 0:
        ax.plot([before, after], [place, place], color=GRID, linewidth=4, solid_capstyle="round", zorder=1)
    if before > 0:
        ax.scatter(before, place, s=46, facecolor="white", edgecolor=colour, linewidth=1.6, zorder=2)
    if after > 0:
        ax.scatter(after, place, s=46, color=colour, zorder=3)
    words = status
    if status == "common":
        words = f"{after / before - 1:+.0%}" if before > 0 else ""
    ax.annotate(
        words, (max(before, after), place), (9, 0), textcoords="offset points", va="center", fontsize=8.5, color=colour
    )


def breakdown(result: Result) -> Figure:
    """Each device's span as busy and idle, with the unions of the kinds of work, which may overlap, below."""
    import matplotlib.pyplot as plt

    house_style()
    divisor, unit = scale(result["span"].max())
    fig, ax = plt.subplots(figsize=(10, 1.2 + 1.25 * max(len(result), 1)))
    kinds = [("compute", PALETTE[2]), ("communication", PALETTE[7]), ("memory", PALETTE[6])]
    for place, (_, row) in enumerate(result.iterrows()):
        busy, idle = row["busy"] / divisor, row["idle"] / divisor
        ax.barh(place, busy, height=0.34, color=PALETTE[0], label="busy" if place == 0 else None)
        ax.barh(place, idle, left=busy, height=0.34, color="#F1F3F5", edgecolor=MUTED, linewidth=0.6)
        inside(ax, busy / 2, place, _portion("busy", row), "white")
        inside(ax, busy + idle / 2, place, _portion("idle", row), INK)
        for line, (kind, colour) in enumerate(kinds):
            if row[kind] != row[kind]:
                continue
            height = place + 0.26 + 0.15 * line
            ax.barh(height, row[kind] / divisor, height=0.11, color=colour)
            words = f"{kind} {row[kind] / divisor:,.4g} {unit}"
            ax.annotate(
                words, (row[kind] / divisor, height), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
    ax.set_yticks(range(len(result)), [_device(label) for label in result.index])
    ax.set_ylim(len(result) - 0.3, -0.35)
    ax.grid(visible=False, axis="y")
    ax.set(xlabel=f"time, {unit}")
    return finish(fig, result)


def _portion(what: str, row: pd.Series) -> str:
    return f"{what} {row[what] / row['span']:.1%}" if row["span"] > 0 else ""


def _device(label: object) -> str:
    if isinstance(label, tuple):
        return f"rank {label[0]}, GPU {label[1]}"
    return f"GPU {label}" if isinstance(label, int) else str(label)


def launches(result: Result) -> Figure:
    """Launches, graph replays and kernels per step and per token, by phase."""
    import matplotlib.pyplot as plt
    import numpy as np

    house_style()
    counts = [
        name for name in ("launches", "graph_launches", "kernels", "operators") if name in result and result[name].any()
    ]
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for ax, per in zip(axes, ("step", "token"), strict=True):
        for place, what in enumerate(counts):
            values = result[f"{what}_per_{per}"].to_numpy(float)
            where = np.arange(len(result)) + (place - (len(counts) - 1) / 2) * 0.26
            drawn = ax.bar(where, np.nan_to_num(values), width=0.24, label=what.replace("_", " "))
            ax.bar_label(drawn, [_number(v) for v in values], fontsize=8, padding=2)
        ax.set_xticks(range(len(result)), result.index)
        ax.grid(visible=False, axis="x")
        ax.margins(y=0.15)
        ax.set(ylabel=f"per {per}", title=f"per {per}")
    if result["tokens"].isna().all():
        axes[1].set(yticks=[], title="per token: the trace does not say how many")
    if len(counts) > 1:
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return finish(fig, result)


def _number(value: float) -> str:
    if value != value:
        return "unknown"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def coverage(result: Result) -> Figure:
    """The share of the time that a family's rule names, and what is left."""
    import matplotlib.pyplot as plt

    house_style()
    fig, ax = plt.subplots(figsize=(10, 1.2 + 0.6 * max(len(result), 1)))
    for place, (_, row) in enumerate(result.iterrows()):
        ax.barh(place, row["coverage"], height=0.5, color=PALETTE[2])
        ax.barh(place, 1 - row["coverage"], left=row["coverage"], height=0.5, **style(OTHER))
        inside(ax, 0.5, place, f"{row['coverage']:.2%} named; unnamed: {row['unmatched_us']:,.1f} µs", INK)
    ax.set_yticks(range(len(result)), result.index)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set(xlim=(0, 1), xlabel="share of the time")
    ax.grid(visible=False, axis="y")
    return finish(fig, result)

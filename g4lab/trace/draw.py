"""The figures of the trace room, each drawn from the table that it shows (Result.plot)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.figures import GRID, INK, MUTED, PALETTE, house_style, stamp
from g4lab.trace.families import OTHER
from g4lab.trace.names import short

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
_PHASE_TINT = {"prefill": "#0072B214", "decode": "#E69F0018", "verify": "#009E7318", "draft": "#CC79A718"}
_STATUS_COLOUR = {"new": "#B3400A", "gone": "#00744F", "common": MUTED}


def _style(family: str) -> dict:
    colour = FAMILY_COLOUR.get(family, FAMILY_COLOUR[OTHER])
    white = colour == FAMILY_COLOUR[OTHER]
    return {"facecolor": colour, "edgecolor": MUTED if white else "white", "hatch": "////" if white else None}


def _ink(family: str) -> str:
    """White on a family's dark colour, the house's ink on a light one."""
    red, green, blue = (int(FAMILY_COLOUR.get(family, "#FFFFFF")[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _scale(largest_us: float) -> tuple[float, str]:
    """Divisor and unit that keep an axis of times short."""
    return (1000.0, "ms") if largest_us >= 10_000 else (1.0, "µs")


def _finish(fig: Figure, result: Result, more: str = "") -> Figure:
    """Title over the whole figure (labels may be long), and the badge. Axes carry their own units."""
    title = result.title.replace(", µs", "") + more
    fig.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    stamp(fig, *result.provenance)
    return fig


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
    divisor, unit = _scale(max(times, default=0))
    fig, ax = plt.subplots(figsize=(10, 1.3 + 0.33 * max(len(names), 3)))
    for place, (family, time, share) in enumerate(zip(families, times, shares, strict=True)):
        ax.barh(place, time / divisor, height=0.72, **_style(family))
        ax.annotate(f"{share:.1%}", (time / divisor, place), (5, 0), textcoords="offset points", va="center", color=INK)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.margins(x=0.09)
    ax.grid(visible=False, axis="y")
    ax.set(xlabel=f"time, {unit}")
    if "family" in shown:
        _family_legend(fig, list(dict.fromkeys(families)))
    return _finish(fig, result)


def _family_legend(fig: Figure, families: list[str], **more) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(**_style(family), label=family) for family in families]
    handles += [Patch(label=name, **style) for name, style in more.items()]
    fig.legend(handles=handles, loc="outside right upper", fontsize=8.5)


def phases(result: Result) -> Figure:
    """What each phase spends its time on: one bar of 100 % each."""
    import matplotlib.pyplot as plt

    house_style()
    fig, ax = plt.subplots(figsize=(11, 1.5 + 0.7 * max(result.shape[1], 2)))
    for place, phase in enumerate(result.columns):
        left = 0.0
        for family, share in result[phase].items():
            ax.barh(place, share, left=left, height=0.66, linewidth=0.6, **_style(family))
            if share >= 0.06:
                _inside(ax, left + share / 2, place, f"{family}\n{share:.0%}", _ink(family))
            left += share
    ax.set_yticks(range(result.shape[1]), [phase.removeprefix("share_") for phase in result.columns])
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set(xlim=(0, 1), xlabel="share of the phase's time")
    ax.grid(visible=False)
    _family_legend(fig, list(result.index))
    return _finish(fig, result)


def steps(result: Result) -> Figure:
    """Every step's time stacked by family, a panel for each phase; idle time stands white on top."""
    import matplotlib.pyplot as plt

    house_style()
    families = [name for name in result.columns if name in FAMILY_COLOUR]
    phases = list(dict.fromkeys(result["phase"].astype(str)))
    widths = [max((result["phase"] == phase).sum(), 3) for phase in phases]
    widths = [max(width, sum(widths) / 6) for width in widths]
    fig, axes = plt.subplots(1, max(len(phases), 1), figsize=(11, 4.2), width_ratios=widths or None, squeeze=False)
    for ax, phase in zip(axes[0], phases, strict=False):
        _draw_steps(ax, result[result["phase"] == phase], families, phase)
    idle = {"idle": {"facecolor": "none", "edgecolor": MUTED, "linestyle": ":"}}
    _family_legend(fig, families, **idle)
    return _finish(fig, result)


def _draw_steps(ax: Axes, rows: Result, families: list[str], phase: str) -> None:
    import numpy as np

    places = np.arange(len(rows))
    divisor, unit = _scale((rows["busy_us"] + rows["idle_us"]).max())
    top = np.zeros(len(rows))
    for family in families:
        height = rows[family].to_numpy() / divisor
        ax.bar(places, height, bottom=top, width=0.86, linewidth=0.3, **_style(family))
        top += height
    idle = rows["idle_us"].to_numpy() / divisor
    ax.bar(places, idle, bottom=top, width=0.86, facecolor="none", edgecolor=MUTED, linestyle=":", linewidth=0.8)
    ax.set_facecolor(_PHASE_TINT.get(phase, "#FFFFFF"))
    ax.grid(visible=False, axis="x")
    ax.xaxis.get_major_locator().set_params(integer=True)
    tokens = rows["tokens"][rows["tokens"] >= 0]
    more = f", {tokens.median():,.0f} tokens" if len(tokens) else ""
    known = "phase unknown" if phase == "unknown" else phase
    ax.set(xlabel="step", ylabel=f"time per step, {unit}", title=f"{known}: {len(rows)} steps{more}")


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
        divisor, unit = _scale(lengths.sum())
        phases = list(dict.fromkeys(result["phase"].astype(str)))
        parts = [lengths[(result["phase"] == phase).to_numpy()] for phase in phases]
        ax.hist(parts, edges, weights=[part / divisor for part in parts], stacked=True, label=phases, rwidth=0.92)
        half = lengths[np.searchsorted(lengths.cumsum(), lengths.sum() / 2)]  # longest first
        ax.axvline(half, color=INK, linewidth=1, linestyle="--")
        note = f"half of the {lengths.sum() / divisor:,.3g} {unit}\nin {len(lengths):,} gaps: {half:,.3g} µs or longer"
        ax.annotate(note, (half, 1), (6, -4), xycoords=("data", "axes fraction"), textcoords="offset points", va="top")
        ax.set(xscale="log", ylabel=f"time in gaps of this length, {unit}")
        ax.margins(y=0.25)
        ax.legend(loc="upper left")
    ax.set(xlabel="length of the gap, µs")
    return _finish(fig, result)


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
    return _finish(fig, result, f"\n○ before   ● after{left}")


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
    divisor, unit = _scale(result["span"].max())
    fig, ax = plt.subplots(figsize=(10, 1.2 + 1.25 * max(len(result), 1)))
    kinds = [("compute", PALETTE[2]), ("communication", PALETTE[7]), ("memory", PALETTE[6])]
    for place, (_, row) in enumerate(result.iterrows()):
        busy, idle = row["busy"] / divisor, row["idle"] / divisor
        ax.barh(place, busy, height=0.34, color=PALETTE[0], label="busy" if place == 0 else None)
        ax.barh(place, idle, left=busy, height=0.34, color="#F1F3F5", edgecolor=MUTED, linewidth=0.6)
        _inside(ax, busy / 2, place, f"busy {row['busy'] / row['span']:.1%}" if row["span"] else "", "white")
        _inside(ax, busy + idle / 2, place, f"idle {row['idle'] / row['span']:.1%}" if row["span"] else "", INK)
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
    return _finish(fig, result)


def _inside(ax: Axes, x: float, y: float, words: str, colour: str) -> None:
    ax.text(x, y, words, ha="center", va="center", color=colour, fontsize=8.5, clip_on=True)


def _device(label: object) -> str:
    if isinstance(label, tuple):
        return f"rank {label[0]}, GPU {label[1]}"
    return f"GPU {label}" if isinstance(label, int) else str(label)


def launches(result: Result) -> Figure:
    """Launches, graph replays and kernels per step and per token, by phase."""
    import matplotlib.pyplot as plt
    import numpy as np

    house_style()
    counts = [name for name in ("launches", "graph_launches", "kernels", "operators") if name in result]
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
    axes[0].legend(loc="upper right")
    return _finish(fig, result)


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
        ax.barh(place, 1 - row["coverage"], left=row["coverage"], height=0.5, **_style(OTHER))
        _inside(ax, 0.5, place, f"{row['coverage']:.2%} named; unnamed: {row['unmatched_us']:,.1f} µs", INK)
    ax.set_yticks(range(len(result)), result.index)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set(xlim=(0, 1), xlabel="share of the time")
    ax.grid(visible=False, axis="y")
    return _finish(fig, result)

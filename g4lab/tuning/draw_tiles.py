"""Figures from compile facts: what tiles cost an SM, and what one iteration of each loop is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.figures import GRID, INK, MUTED, PALETTE, house_style, stamp
from g4lab.tuning.machine_code import Instruction, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from g4lab.tuning.facts import CompileFacts

# Kinds of instructions by the beginning of their opcode, in the order in which they are looked for.
_KINDS = {
    "matrix": ("HMMA", "HGMMA", "UTCHMMA"),
    "asynchronous copy": ("LDGSTS",),
    "wait for copies or for the matrix unit": ("DEPBAR", "LDGDEPBAR", "WARPGROUP", "SYNCS"),
    "load into registers": ("LDG",),
    "spill": ("STL", "LDL"),
}
OTHER = "other"
KIND_COLOUR = {
    "matrix": PALETTE[0],
    "asynchronous copy": PALETTE[2],
    "wait for copies or for the matrix unit": INK,
    "load into registers": PALETTE[1],
    "spill": PALETTE[3],
    OTHER: GRID,
}


def kind_of(step: Instruction) -> str:
    """Which of the figure's kinds an instruction is."""
    for kind, beginnings in _KINDS.items():
        if step.opcode.split(".")[0] in beginnings:
            return kind
    return OTHER


def overlapped_pct(facts: CompileFacts) -> float:
    """Of the matrix instructions of all loops together, how many run while a copy is in flight."""
    return 100 * sum(loop.overlapped for loop in facts.loops) / max(1, sum(loop.matrix for loop in facts.loops))


def draw_tiles(columns: Mapping[str, Sequence[CompileFacts]], labels: Sequence[str], source: str) -> Figure:
    """Bars for each label: spills in loops and outside, work under copies, shared memory, blocks on an SM.

    columns: for each kind of layer ("no window", ...) its facts, one for each label.

    Raises:
        BadInput: a column of another length than labels.
    """
    import matplotlib.pyplot as plt

    for name, facts in columns.items():
        if len(facts) != len(labels):
            raise bad(f"columns[{name!r}]", len(facts), f"{len(labels)} facts, one for each label")
    panels = {
        "Spilled in one\niteration of a loop": ("bytes a thread", lambda f: f.loop_spills, "{:,.0f}"),
        "Spilled outside\nof loops": ("bytes a thread", lambda f: f.spills_outside, "{:,.0f}"),
        "Matrix work while\na copy is in flight": ("% of instructions", overlapped_pct, "{:.0f}"),
        "Shared memory\nof a block": ("KiB", lambda f: f.shared / 1024, "{:.0f}"),
        "Blocks on\nan SM": ("blocks", lambda f: f.blocks_per_sm, "{:.0f}"),
    }
    house_style()
    fig, axes = plt.subplots(1, len(panels), figsize=(13, 0.62 * len(labels) + 1.6), sharey=True)
    height = 0.8 / len(columns)
    for ax, (title, (unit, value, form)) in zip(axes, panels.items(), strict=True):
        most = 0.0
        for side, (name, facts) in enumerate(columns.items()):
            places = [i + (side - (len(columns) - 1) / 2) * height for i in range(len(labels))]
            values = [value(each) for each in facts]
            bars = ax.barh(places, values, height=0.92 * height, color=PALETTE[side], label=name)
            ax.bar_label(bars, labels=[form.format(v) for v in values], padding=3, fontsize=8, color=INK)
            most = max(most, *values)
        ax.set(xlim=(0, 1.35 * most or 1), xlabel=unit)
        ax.set_title(title, fontsize=10)
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=9)
    axes[0].tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(columns), fontsize=9.5)
    stamp(fig, "live", source)
    return fig


def draw_loops(compiled: Mapping[str, CompileFacts], source: str) -> Figure:
    """Every loop with matrix work as a strip of its instructions, from first to last, coloured by kind.

    Raises:
        BadInput: none of the kernels has such a loop.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    strips = [(name, facts, loop) for name, facts in compiled.items() for loop in facts.loops]
    if not strips:
        raise bad("compiled", ", ".join(compiled), "a kernel with a loop that has matrix instructions")
    house_style()
    fig, ax = plt.subplots(figsize=(13, 0.42 * (len(strips) + 0.7 * len(compiled)) + 1.4))
    place, longest = 0.0, max(loop.instructions for *_, loop in strips)
    for name, facts in compiled.items():
        ax.text(0, place + 0.35, name, fontsize=10, fontweight="bold")
        place += 0.75
        code = parse(facts.sass)
        for loop in facts.loops:
            _strip(ax, place, [step for step in code if loop.start <= step.address <= loop.end])
            ax.text(1.015 * longest, place + 0.35, _summary(loop), fontsize=8.5, color=MUTED, va="center")
            place += 1.0
    ax.set(xlim=(0, 1.6 * longest), ylim=(place, -0.1), yticks=(), xlabel="instruction of the loop, in order")
    ax.set_xticks(range(0, longest + 1, 250))
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False)
    handles = [Patch(facecolor=colour, label=kind) for kind, colour in KIND_COLOUR.items()]
    fig.legend(handles=handles, loc="outside upper left", ncols=6, fontsize=9)
    stamp(fig, "live", source)
    return fig


def _strip(ax: Axes, place: float, body: Sequence[Instruction]) -> None:
    ax.broken_barh([(0, len(body))], (place, 0.7), facecolor=GRID)
    for kind, colour in KIND_COLOUR.items():
        spans = [(i, 1) for i, step in enumerate(body) if kind_of(step) == kind]
        if spans and kind != OTHER:
            ax.broken_barh(spans, (place, 0.7), facecolor=colour, linewidth=0.6, edgecolor=colour)


def _summary(loop) -> str:
    return (
        f"{loop.instructions:,} instructions, {loop.matrix} matrix ({loop.overlapped} under a copy), "
        f"{loop.copies} copies, {loop.spills} B spilled"
    )

"""Figure of the expert layer as data flow: its stages, and what goes through memory between them, SGLang's and ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.figures import INK, MUTED, PALETTE, PAPER, house_style, stamp
from g4lab.tuning.moe_shapes import BYTES, MoEShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stages from left to right, and the tensor that each one writes, rows by columns.
STAGES = {
    "SGLang": (
        ("align\npairs by expert,\npadded to blocks", "", ""),
        ("gate_up\ngrouped GEMM", "pairs", "2 I"),
        ("activation\nGELU\nand multiply", "pairs", "I"),
        ("down\ngrouped GEMM, then\ntimes routing weight", "pairs", "H"),
        ("sum\nover the K pairs\nof a token", "tokens", "H"),
    ),
    "g4lab": (
        ("place\npairs by expert,\nin whole blocks", "", ""),
        ("gate_up\ngrouped GEMM, then\nGELU-tanh and multiply", "pairs", "I"),
        ("down\ngrouped GEMM, then\ntimes routing weight", "pairs", "H"),
        ("sum\nover the K pairs\nof a token", "tokens", "H"),
    ),
}
WEIGHTS = {"gate_up": 2, "down": 1}  # times I times H for an expert
BOX, GAP = 2.7, 1.55


def written(shape: MoEShape, rows: str, columns: str) -> int:
    """Bytes of a tensor of STAGES, each written by one stage and read by the next."""
    size = {"pairs": shape.pairs, "tokens": shape.tokens, "2 I": 2 * shape.width, "I": shape.width, "H": shape.hidden}
    return size[rows] * size[columns] * BYTES[shape.dtype]


def weight_bytes(shape: MoEShape, product: str) -> float:
    """Bytes of the touched experts' weights for one product, "gate_up" or "down"."""
    return WEIGHTS[product] * shape.touched * shape.width * shape.hidden * BYTES[shape.dtype]


def draw(shapes: Sequence[MoEShape], source: str) -> Figure:
    """A lane for each of STAGES; at every arrow MB (10^6 bytes), a line for each shape.

    Raises:
        BadInput: no shape.
    """
    import matplotlib.pyplot as plt

    if not shapes:
        raise bad("shapes", shapes, "one or more")
    house_style()
    fig, axes = plt.subplots(len(STAGES), 1, figsize=(13, 4.2 + 0.3 * len(shapes)))
    longest = max(map(len, STAGES.values()))
    for ax, (whose, stages) in zip(axes, STAGES.items(), strict=True):
        _lane(ax, stages, shapes)
        ax.set(
            xlim=(-GAP - 0.2, longest * (BOX + GAP) + 0.1), ylim=(0.1 - 0.24 * len(shapes), 2.1), xticks=(), yticks=()
        )
        ax.set_title(whose)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    legend = (
        "MB: " + ", ".join(f"{each.tokens:,}" for each in shapes) + " tokens; touched weights of " + shapes[0].routing
    )
    fig.text(0.995, 0.985, legend + " routing", ha="right", va="top", fontsize=9, color=MUTED)
    stamp(fig, "live", source)
    return fig


def _lane(ax: Axes, stages, shapes: Sequence[MoEShape]) -> None:
    x = 0.0
    _arrow(ax, (-GAP, 0.5), (0, 0.5))
    _label(ax, -GAP / 2, "x [tokens, H]", [written(each, "tokens", "H") for each in shapes])
    for name, rows, columns in stages:
        _box(ax, x, name)
        product = name.split("\n", maxsplit=1)[0]
        if product in WEIGHTS:
            _arrow(ax, (x + BOX / 2, 1.55), (x + BOX / 2, 1.02))
            text = _mb([weight_bytes(each, product) for each in shapes], separator="  |  ")
            what = f"weights [E, {'2 I, H' if product == 'gate_up' else 'H, I'}]"
            ax.text(x + BOX / 2, 1.62, f"{what}\n{text}", ha="center", va="bottom", fontsize=8.5, color=PALETTE[0])
        _arrow(ax, (x + BOX, 0.5), (x + BOX + GAP, 0.5))
        if rows:
            sizes = [written(each, rows, columns) for each in shapes]
            _label(ax, x + BOX + GAP / 2, f"[{rows}, {columns}]", sizes, extra=columns == "2 I")
        else:
            ax.text(x + BOX + GAP / 2, 0.58, "order of pairs", ha="center", fontsize=8.5, color=MUTED)
        x += BOX + GAP


def _box(ax: Axes, x: float, name: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = {"facecolor": PAPER, "edgecolor": INK, "linewidth": 1.2, "boxstyle": "round,pad=0,rounding_size=0.1"}
    ax.add_patch(FancyBboxPatch((x, 0), BOX, 1, **style))
    head, *rest = name.split("\n")
    ax.text(x + BOX / 2, 0.78, head, ha="center", va="center", fontsize=10, fontweight="bold")
    ax.text(x + BOX / 2, 0.34, "\n".join(rest), ha="center", va="center", fontsize=8, color=MUTED)


def _arrow(ax: Axes, start, end) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0})


def _label(ax: Axes, x: float, what: str, sizes: Sequence[float], *, extra: bool = False) -> None:
    """The tensor's name above the arrow, its MB for each shape below; `extra`: one that ours does not have."""
    colour = PALETTE[3] if extra else INK
    ax.text(x, 0.58, what, ha="center", fontsize=8.5, color=colour)
    ax.text(x, 0.4, _mb(sizes), ha="center", va="top", fontsize=8.5, color=colour)


def _mb(sizes: Sequence[float], separator: str = "\n") -> str:
    return separator.join(f"{size / 1e6:,.0f}" if size >= 1e7 else f"{size / 1e6:.2g}" for size in sizes)

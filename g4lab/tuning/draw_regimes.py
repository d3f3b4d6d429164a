"""Figure of extend attention's regimes: which blocks of keys SGLang's loop and ours go through, in small sketches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from g4lab.figures import GRID, INK, MUTED, PALETTE, PAPER, house_style, stamp
from g4lab.kernels.extend_tiles import pick_tile
from g4lab.tuning import extend_blocks
from g4lab.tuning.extend_blocks import INTERIOR, MASKED, SKIPPED, Blocks
from g4lab.tuning.extend_shapes import shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR = {SKIPPED: PAPER, MASKED: PALETTE[1], INTERIOR: PALETTE[0]}
HATCH = "////"
TABLE = {"sglang": "sglang", "ours": "g4lab"}  # of extend_tiles


@dataclass(frozen=True)
class Regime:
    """`extend` new tokens after `prefix` cached ones, two query heads on one KV head; the tiles are those that `real`,
    a shape of extend_shapes, gets on sm_90."""

    name: str
    extend: int
    prefix: int
    window: int | None
    real: str

    def blocks(self, kernel: str) -> Blocks:
        """Those of `kernel` ("ours" or "sglang") with its tile."""
        real = shape(self.real)
        launch = {"batch": real.batch, "max_len_extend": real.extend, "max_prefix": real.prefix, "group": real.group}
        tile = pick_tile(arch="sm_90", head_dim=real.head_dim, window=real.window, table=TABLE[kernel], **launch)
        return extend_blocks.KERNELS[kernel](self.extend, self.prefix, self.window, 2, tile)


REGIMES = (
    Regime("prefill", 512, 0, None, "prefill long"),
    Regime("prefill, window 127", 512, 0, 127, "prefill long sliding tp1"),
    Regime("chunk after 800, window 255", 256, 800, 255, "chunk after 24k sliding tp1"),
    Regime("verify of 4, window 255", 4, 800, 255, "verify summarization sliding tp1"),
)


def draw(source: str, regimes: Sequence[Regime] = REGIMES) -> Figure:
    """A column for each regime, SGLang's kernel above ours: rows of query tiles against key positions."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    house_style()
    fig, axes = plt.subplots(2, len(regimes), figsize=(13, 5.6), sharex="col", squeeze=False)
    for column, regime in zip(axes.T, regimes, strict=True):
        for ax, kernel in zip(column, ("sglang", "ours"), strict=True):
            _map(ax, regime, regime.blocks(kernel))
        column[0].set_title(regime.name, pad=22)
        column[1].set_xlabel("key position (dashed: first new token)" if regime.prefix else "key position")
    for ax, whose in zip(axes[:, 0], ("SGLang 0.5.21", "g4lab"), strict=True):
        ax.set_ylabel(f"{whose}\nrow of a query tile")
    handles = [
        Patch(facecolor=PAPER, edgecolor=MUTED, hatch=HATCH, label="visited, and skipped by the branch"),
        Patch(facecolor=COLOUR[MASKED], label="computed under masks"),
        Patch(facecolor=COLOUR[INTERIOR], label="computed without masks"),
        Patch(facecolor=GRID, label="tile rows without a query"),
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=9.5)
    stamp(fig, "live", source)
    return fig


def _map(ax: Axes, regime: Regime, blocks: Blocks) -> None:
    keys, row = regime.prefix + regime.extend, 0
    group = 2 // blocks.copies  # query heads in one tile
    for _ in range(blocks.copies):
        for tile in blocks.tiles:
            filled = min(blocks.block_m, regime.extend * group - tile.first * group)
            _box(ax, 0, row + filled, keys, blocks.block_m - filled, facecolor=GRID, edgecolor="none")
            for run in tile.runs:
                for i in range(run.count):
                    first = run.first + i * blocks.block_n
                    width = min(first + blocks.block_n, run.end) - first
                    hatch = HATCH if run.kind == SKIPPED else None
                    _box(ax, first, row, width, filled, facecolor=COLOUR[run.kind], edgecolor=MUTED, hatch=hatch)
            _box(ax, 0, row, keys, blocks.block_m, facecolor="none", edgecolor=INK)
            row += blocks.block_m
        ax.axhline(row, color=INK, linewidth=2.5)  # the next query head
    if regime.prefix:
        ax.axvline(regime.prefix, color=INK, linestyle="--", linewidth=1)
    visited, computed = blocks.count(), blocks.count(MASKED, INTERIOR)
    text = f"{visited} visited, {computed} computed, {blocks.count(MASKED)} masked"
    ax.text(0, 1.02, text, transform=ax.transAxes, fontsize=8.5, color=MUTED)
    ax.set(xlim=(0, keys), ylim=(row, 0), yticks=range(0, row + 1, max(row // 4, 16)))
    ax.grid(visible=False)


def _box(ax: Axes, x: float, y: float, width: float, height: float, **style) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, linewidth=0.5, **style))

"""Figure of the correctness grid: for each case and head dim or config, how much of its budget the error takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from g4lab.figures import INK, PALETTE, house_style, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def draw(frame: pd.DataFrame, source: str, across: str = "head_dim") -> Figure:
    """A grid's frame (`extend_grid.grid`, `moe_grid.grid`) as a heat map for each dtype; a cell beyond its budget is
    framed, one that was not run is empty. across: the frame's column whose values stand side by side."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    house_style()
    dtypes = list(dict.fromkeys(frame.dtype))
    cases = list(dict.fromkeys(frame.case))
    columns = list(dict.fromkeys(frame[across]))
    size = (3.4 + 4.2 * len(dtypes), 0.29 * len(cases) + 1.5)
    fig, axes = plt.subplots(1, len(dtypes), figsize=size, sharey=True, squeeze=False)
    shades = LinearSegmentedColormap.from_list("budget", ["#FFFFFF", PALETTE[4], PALETTE[0]])
    for ax, dtype in zip(axes[0], dtypes, strict=True):
        rows = frame[frame["dtype"] == dtype]
        table = rows.pivot(index="case", columns=across, values="ratio").loc[cases, columns]
        image = ax.imshow(100 * table.clip(upper=1), cmap=shades, vmin=0, vmax=100, aspect="auto")
        for y, case in enumerate(cases):
            for x, column in enumerate(columns):
                ratio = table.loc[case, column]
                if math.isnan(ratio):
                    continue
                ink = "white" if ratio > 0.7 else INK
                ax.text(x, y, f"{100 * ratio:.0f}", ha="center", va="center", fontsize=8, color=ink)
                if not ratio <= 1:
                    box = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=PALETTE[3], linewidth=2.5)
                    ax.add_patch(box)
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(cases)), cases, fontsize=9)
        ax.set(xlabel=across.replace("_", " "), title=dtype)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    fig.colorbar(image, ax=axes[0].tolist(), label="largest error, % of its row's budget", pad=0.02)
    stamp(fig, "live", source)
    return fig

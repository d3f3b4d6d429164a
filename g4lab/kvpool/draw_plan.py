"""Figures of the plan: what each pool holds against the ratio, and where memory for KV goes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from g4lab.errors import BadInput
from g4lab.figures import MUTED, PALETTE, house_style, stamp
from g4lab.kvpool.plan import DEFAULT_RATIO, Plan, plan
from g4lab.kvpool.ratio import best_ratio
from g4lab.kvpool.workload import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FULL_COLOUR, SWA_COLOUR, DRAFT_COLOUR, BEST_COLOUR = PALETTE[0], PALETTE[1], PALETTE[5], PALETTE[2]
_RATIOS = [step / 200 for step in range(4, 201)]


def draw_crossing(
    cases: Sequence[tuple[str, int, Workload]],
    source: str,
    marked: Sequence[float] = (0.15, DEFAULT_RATIO),
    marked_as: str = "0.15 and SGLang's 0.8",
    kind: str = "live",
    **options,
) -> Figure:
    """A panel for each (model, bytes for KV, workload): requests that each pool holds against the ratio.

    The lower of the two curves is what fits; they cross at the best ratio. `marked`: ratios shown as points on it,
    named `marked_as` in the legend. `options`: of `plan`. `source` and `kind`: for the badge.
    """
    import matplotlib.pyplot as plt

    house_style()
    across = min(2, len(cases))
    down = -(-len(cases) // across)
    fig, axes = plt.subplots(down, across, figsize=(4.9 * across, 3.5 * down + 0.5), squeeze=False)
    for ax in axes.flat[len(cases) :]:
        ax.remove()
    for ax, (model, kv_bytes, workload) in zip(axes.flat, cases, strict=False):
        _crossing(ax, model, kv_bytes, workload, options)
        _mark(ax, model, kv_bytes, workload, marked, marked_as, options)
    for ax in axes[:, 0]:
        ax.set_ylabel("requests held to their end")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=5)
    stamp(fig, kind, source)
    return fig


def _crossing(ax: Axes, model: str, kv_bytes: int, workload: Workload, options: dict) -> None:
    fits = {}
    for ratio in _RATIOS:
        with contextlib.suppress(BadInput):  # below the sliding pool's floor
            fits[ratio] = plan(model, kv_bytes, ratio=ratio, workload=workload, **options).fit
    ax.plot(list(fits), [fit.full for fit in fits.values()], color=FULL_COLOUR, label="full pool")
    ax.plot(list(fits), [fit.swa for fit in fits.values()], color=SWA_COLOUR, label="sliding pool")
    best = best_ratio(model, workload, kv_bytes=kv_bytes, **options)
    most = min(best.fit.full, best.fit.swa)
    ax.plot(best.ratio, most, "*", ms=15, color=BEST_COLOUR, label="best ratio", zorder=3)
    ax.annotate(f"{best.ratio:.2f}: {int(most)}", (best.ratio, most), (8, 8), textcoords="offset points")
    ax.axhline(workload.concurrency, ls=":", lw=1.2, color=MUTED, label="wanted at once")
    ax.set_ylim(0, 2.1 * max(most, workload.concurrency))
    ax.set_xlim(0, 1.02)
    prompt, output = workload.requests[0]
    ax.set_title(f"{model}, {prompt:,}/{output:,}, {kv_bytes / 1e9:.0f} GB")
    ax.set_xlabel("--swa-full-tokens-ratio")


def _mark(ax: Axes, model: str, kv_bytes: int, workload: Workload, ratios, label: str, options: dict) -> None:
    for ratio in ratios:
        fit = plan(model, kv_bytes, ratio=ratio, workload=workload, **options).fit
        ax.plot(ratio, fit.requests, "o", color=MUTED, label=label if ratio == ratios[0] else None)
        ax.annotate(f"{fit.requests}", (ratio, fit.requests), (0, -14), textcoords="offset points", ha="center")


def draw_memory(plans: Sequence[tuple[str, Plan]], source: str, kind: str = "live") -> Figure:
    """A bar for each named plan: KV memory by what it is charged for, in GB, and the tokens of the full pool beside it.

    Memory of layers that write no KV is hatched: held by a pool, never read.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    house_style()
    fig, ax = plt.subplots(figsize=(9.5, 0.6 + 0.55 * len(plans)))
    for row, made in enumerate(made for _, made in plans):
        left = 0.0
        for used, idle, colour in (
            (*_used(made, full=True), FULL_COLOUR),
            (*_used(made, full=False), SWA_COLOUR),
            (0.0, made.draft_bytes, DRAFT_COLOUR),
        ):
            ax.barh(row, used / 1e9, left=left / 1e9, color=colour)
            style = {"color": "none", "edgecolor": colour, "hatch": "////", "linewidth": 0}
            ax.barh(row, idle / 1e9, left=(left + used) / 1e9, **style)
            left += used + idle
        ax.annotate(f"{made.full_tokens:,} tokens", (left / 1e9, row), (6, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(plans)), [name for name, _ in plans])
    ax.invert_yaxis()
    ax.set_xlabel("GB for KV on one rank")
    ax.set_xlim(0, 1.22 * max(made.kv_bytes for _, made in plans) / 1e9)
    ax.grid(axis="y", visible=False)
    hatched = {"facecolor": "none", "hatch": "////", "linewidth": 0}
    handles = [
        Patch(color=FULL_COLOUR, label="full pool"),
        Patch(color=SWA_COLOUR, label="sliding pool"),
        Patch(edgecolor=MUTED, label="layers that share KV: never read", **hatched),
        Patch(edgecolor=DRAFT_COLOUR, label="charged for drafts: never allocated", **hatched),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8.5)
    stamp(fig, kind, source)
    return fig


def _used(made: Plan, full: bool) -> tuple[float, float]:
    """Bytes of one pool that its layers write, and bytes that none does."""
    from g4lab.gemma4.specs import FULL, SLIDING

    layers = made.spec.of_kind(FULL if full else SLIDING)
    total = made.full_bytes if full else made.swa_bytes
    buffers = made.cell.full_layers if full else made.cell.swa_layers
    used = total * sum(layer.owns_kv for layer in layers) / buffers
    return used, total - used

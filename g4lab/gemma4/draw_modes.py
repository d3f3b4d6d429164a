"""What the layers project, drawn: the three QKV modes layer by layer, and what a packed projection wastes on two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.figures import INK, MUTED, PALETTE, house_style, stamp
from g4lab.gemma4.draw import KIND_COLOUR, SOURCE, title
from g4lab.gemma4.qkv_costs import unneeded_frame
from g4lab.gemma4.specs import CHECKPOINTS, FULL, SLIDING, Layer, QKVMode, Spec, spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FROM_TOP = "QKV"
# How a layer's Q, K and V are drawn: "own" projection, "copy" (K's, normed without its weight), "other" layer's.
_STATE = {
    QKVMode.QKV: {"Q": "own", "K": "own", "V": "own"},
    QKVMode.QK: {"Q": "own", "K": "own", "V": "copy"},
    QKVMode.Q: {"Q": "own", "K": "other", "V": "other"},
}


def mode_map() -> Figure:
    """Every layer of the four checkpoints as a column of Q, K and V: projected, K's projection, or another layer's."""
    import matplotlib.pyplot as plt

    house_style()
    fig, axes = plt.subplots(len(CHECKPOINTS), 1, figsize=(11, 5.2), sharex=True)
    for ax, name in zip(axes, CHECKPOINTS, strict=True):
        _draw_model(ax, spec(name))
    axes[-1].set_xlabel("layer")
    _legend(fig)
    stamp(fig, "published", SOURCE)
    return fig


def _draw_model(ax: Axes, s: Spec) -> None:
    for layer in s.layers:
        for row, part in enumerate(_FROM_TOP):
            ax.add_patch(_cell(layer, row, _STATE[layer.qkv_mode][part]))
    counts = {mode: sum(layer.qkv_mode == mode for layer in s.layers) for mode in QKVMode}
    facts = ", ".join(f"{count} × {mode.value}" for mode, count in counts.items() if count)
    ax.set_title(title(s.name))
    ax.text(1, 1.06, facts, transform=ax.transAxes, ha="right", fontsize=9, color=MUTED)
    ax.set(xlim=(-0.8, 60), ylim=(3, 0), yticks=(0.5, 1.5, 2.5), yticklabels=_FROM_TOP)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)


def _cell(layer: Layer, row: int, state: str):
    from matplotlib.patches import Rectangle

    colour = KIND_COLOUR[layer.kind]
    at = {"xy": (layer.index - 0.41, row + 0.08), "width": 0.82, "height": 0.84}
    if state == "own":
        return Rectangle(**at, facecolor=colour, edgecolor=colour, linewidth=1)
    hatch = "//////" if state == "copy" else None
    return Rectangle(**at, facecolor="none", edgecolor=colour, linewidth=1, hatch=hatch)


def _legend(fig: Figure) -> None:
    from matplotlib.patches import Patch

    sliding, full = KIND_COLOUR[SLIDING], KIND_COLOUR[FULL]
    handles = [
        Patch(facecolor=sliding, label="sliding attention, projected"),
        Patch(facecolor=full, label="full attention, projected"),
        Patch(facecolor="none", edgecolor=full, hatch="//////", label="K's projection, without K's weight"),
        Patch(facecolor="none", edgecolor=MUTED, label="another layer's, from the cache"),
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=9.5)


def unneeded_rows(*, batches: tuple[int, ...] = (1, 8, 64), context: int = 8192) -> Figure:
    """For each checkpoint the unneeded rows' weights, and their share of the bytes of a decode step by batch size.

    Raises:
        BadInput: more positions than a checkpoint has, or a batch below 1.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    house_style()
    frames = {batch: unneeded_frame(batch=batch, context=context) for batch in batches}
    first = frames[batches[0]]
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.1))
    colours = [PALETTE[0] if mode == "QK" else PALETTE[3] for mode in first["mode"]]
    bars = left.bar(first.index, first["weights_mb"], color=colours, width=0.6)
    labels = [f"{row.weights_mb:.0f} MB\n{row.layers} layers" for row in first.itertuples()]
    left.bar_label(bars, labels=labels, padding=3, fontsize=8.5, color=INK)
    left.set(ylim=(0, 1.35 * first["weights_mb"].max()), ylabel="MB (bf16)")
    left.set_title("Weights kept, read and multiplied in vain")
    whose = {"V: K's rows again": PALETTE[0], "K and V: read by nobody": PALETTE[3]}
    left.legend(handles=[Patch(facecolor=colour, label=label) for label, colour in whose.items()], loc="upper right")
    left.grid(visible=False, axis="x")
    for name, colour, style in zip(first.index, colours, ("-", "--", "-", "--"), strict=True):
        shares = [frame.loc[name, "of_step_bytes_pct"] for frame in frames.values()]
        right.plot(batches, shares, style, marker="o", markersize=5, color=colour, label=name)
    right.set_xscale("log", base=2)
    right.set_xticks(batches, [str(batch) for batch in batches])
    right.set(ylim=(0, None), xlabel=f"sequences in a decode step at {context:,} tokens", ylabel="%")
    right.set_title("Share of the step's bytes")
    right.legend()
    stamp(fig, "published", SOURCE)
    return fig

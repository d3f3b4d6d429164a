"""Gemma-4's anatomy drawn: its layers, the heads they project, the KV they keep. All by arithmetic from the specs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.figures import INK, MUTED, PALETTE, house_style, stamp
from g4lab.gemma4.costs import kv_cache_bytes
from g4lab.gemma4.specs import CHECKPOINTS, FULL, SLIDING, Layer, QKVMode, Spec, spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "dimensions: Hugging Face configs of google/gemma-4-*; derived by arithmetic"
MODEL_COLOUR = dict(zip(CHECKPOINTS, (PALETTE[i] for i in (0, 3, 2, 5)), strict=True))
_TOP = 530  # of the axis of head_dim
KIND_COLOUR = {SLIDING: PALETTE[4], FULL: PALETTE[1]}
_MODE_TEXT = {
    QKVMode.QKV: "own Q, K and V",
    QKVMode.QK: "K serves as V",
    QKVMode.Q: "own Q only, another layer's KV",
}


def ink_on(colour: str) -> str:
    """White or the house's ink, whichever reads better on `colour` ("#RRGGBB")."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def title(name: str) -> str:
    """The checkpoint's public name without its owner: "gemma-4-26B-A4B-it"."""
    return spec(name).repo.split("/")[1]


def layer_pattern() -> Figure:
    """Every layer of the four checkpoints: kind, head_dim (height), what it projects (fill) and whose KV it reads."""
    import matplotlib.pyplot as plt

    house_style()
    heights = [_TOP - _floor(spec(name)) for name in CHECKPOINTS]  # one scale for all rows
    fig, axes = plt.subplots(len(CHECKPOINTS), 1, figsize=(11, 7.4), sharex=True, height_ratios=heights)
    for ax, name in zip(axes, CHECKPOINTS, strict=True):
        _draw_layers(ax, spec(name))
    for ax in axes[:-1]:
        ax.tick_params(bottom=False)
    axes[-1].set_xlabel("layer")
    _pattern_legend(fig)
    stamp(fig, "published", SOURCE)
    return fig


def _floor(s: Spec) -> int:
    """Room below the axis for the arrows of layers that share KV."""
    return -260 if s.num_kv_shared_layers else 0


def _draw_layers(ax: Axes, s: Spec) -> None:
    from matplotlib.patches import FancyArrowPatch

    for layer in s.layers:
        shares, colour = not layer.owns_kv, KIND_COLOUR[layer.kind]
        style = {"facecolor": "none" if shares else colour, "edgecolor": colour, "linewidth": 1.4}
        hatch = "////" if layer.qkv_mode == QKVMode.QK else None
        ax.bar(
            layer.index, layer.head_dim, width=0.76, hatch=hatch, **style | ({"edgecolor": "white"} if hatch else {})
        )
        if shares:
            ends = (layer.index, -12), (layer.kv_source, -12)
            bend = "arc3,rad=-0.16" if layer.kind == SLIDING else "arc3,rad=-0.24"
            arrow = FancyArrowPatch(*ends, connectionstyle=bend, arrowstyle="-|>", mutation_scale=6, clip_on=False)
            arrow.set(color=colour, linewidth=0.8, alpha=0.75, zorder=0)
            ax.add_patch(arrow)
    kv = "{} | {}".format(*(s.of_kind(kind)[0].num_kv_heads for kind in (SLIDING, FULL)))
    facts = f"{s.num_attention_heads} query heads, {kv} KV heads, window {s.sliding_window:,}"
    ax.set_title(title(s.name))
    ax.text(1, 1.06, facts, transform=ax.transAxes, ha="right", fontsize=9, color=MUTED)
    ax.set(ylim=(_floor(s), _TOP), yticks=(256, 512), ylabel="head_dim", xlim=(-0.8, 60))
    ax.grid(visible=False, axis="x")
    ax.spines["bottom"].set_visible(False)


def _pattern_legend(fig: Figure) -> None:
    from matplotlib.patches import Patch

    sliding, full = KIND_COLOUR[SLIDING], KIND_COLOUR[FULL]
    handles = [
        Patch(facecolor=sliding, label="sliding attention"),
        Patch(facecolor=full, label="full attention"),
        Patch(facecolor=full, edgecolor="white", hatch="////", label="full, K serves as V"),
        Patch(facecolor="none", edgecolor=MUTED, label="owns no KV: arrow to the layer it reads"),
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=9.5)


def projections() -> Figure:
    """Width of what one attention layer projects per token, for each sort of layer a checkpoint has."""
    import matplotlib.pyplot as plt

    house_style()
    rows = [(name, layer) for name in CHECKPOINTS for layer in _sorts(spec(name))]
    fig, ax = plt.subplots(figsize=(11, 0.42 * len(rows) + 1.6))
    places, place, last = [], 0.0, rows[0][0]
    for name, layer in rows:
        place += 1.0 if name == last else 1.6
        last = name
        places.append(place)
        _draw_projection(ax, place, layer)
    labels = [f"{name} · {layer.kind.split('_')[0]}\n{_MODE_TEXT[layer.qkv_mode]}" for name, layer in rows]
    ax.set_yticks(places, labels, fontsize=8.5)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("features per token (heads x head_dim)")
    ax.set_title("What an attention layer projects from the hidden state")
    ax.legend(*_once(ax), loc="lower right", ncols=3)
    stamp(fig, "published", SOURCE)
    return fig


def _sorts(s: Spec) -> list[Layer]:
    """The first layer of each sort (kind and projections), in the order they appear."""
    found: dict[tuple, Layer] = {}
    for layer in s.layers:
        found.setdefault((layer.kind, layer.qkv_mode), layer)
    return list(found.values())


def _draw_projection(ax: Axes, place: float, layer: Layer) -> None:
    left = 0
    for part in layer.qkv_mode.value:
        heads = layer.num_q_heads if part == "Q" else layer.num_kv_heads
        width, colour = heads * layer.head_dim, PALETTE["QKV".index(part)]
        ax.barh(place, width, left=left, height=0.74, color=colour, label=part, edgecolor="white")
        if width >= 1000:
            middle = left + width / 2
            text = f"{heads} x {layer.head_dim}"
            ax.text(middle, place, text, ha="center", va="center", color=ink_on(colour), fontsize=8)
        left += width


def kv_growth() -> Figure:
    """KV that one sequence keeps against its context, beside what it would keep if no layer had a window."""
    import matplotlib.pyplot as plt
    import numpy as np

    house_style()
    fig, ax = plt.subplots(figsize=(9.5, 5.2))
    for name in CHECKPOINTS:
        s = spec(name)
        contexts = np.unique(np.geomspace(64, s.max_position_embeddings, 240).astype(int))
        kept = [sum(kv_cache_bytes(s, int(n)).values()) / 2**20 for n in contexts]
        per_token = sum(s.kv_bytes_per_token(kind) for kind in (SLIDING, FULL)) / 2**20
        ax.plot(contexts, kept, color=MODEL_COLOUR[name])
        ax.plot(contexts, per_token * contexts, color=MODEL_COLOUR[name], linewidth=1, linestyle=(0, (2, 3)))
        ax.plot(s.sliding_window, per_token * s.sliding_window, "o", color=MODEL_COLOUR[name], markersize=5)
        ax.annotate(
            f"{name}  {kept[-1] / 1024:.2f} GiB",
            (contexts[-1], kept[-1]),
            textcoords="offset points",
            xytext=(6, -3),
            color=MODEL_COLOUR[name],
            weight="bold",
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x < 1024 else f"{x / 1024:g}K")
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g} MiB" if y < 1024 else f"{y / 1024:g} GiB")
    ax.set(xlim=(64, 2**19.8), xlabel="context (tokens)", ylabel="KV of one sequence (bf16)")
    ax.set_title("Past the window only the full layers' KV grows")
    ax.text(
        0.02,
        0.95,
        "dotted: the same layers without windows\ndot: the window is full",
        transform=ax.transAxes,
        va="top",
        color=MUTED,
        fontsize=9,
    )
    stamp(fig, "published", SOURCE)
    return fig


def _once(ax: Axes) -> tuple[list, list]:
    """The axes' legend entries, each label once."""
    by_label = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    return list(by_label.values()), list(by_label)

"""Figures of the router notebook. Each takes a frame or facts and returns a stamped matplotlib figure."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from g4lab.figures import INK, MUTED, PALETTE, house_style, stamp

BLUE, ORANGE, GREEN, RED = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[3]

# What eager PyTorch launched in the trace of SGLang fork pyc96/sglang PR #1: (operator, kernel, what it writes).
EAGER_LAUNCHES = (
    ("topk", "gatherTopK", "8 logits, 8 ids"),
    ("sorted", "bitonicSortKVInPlace", "8 logits, 8 ids"),
    ("softmax", "cunn_SoftMaxForward", "bf16 [T, 8]"),
    ("scale[ids]", "index_elementwise", "bf16 [T, 8]"),
    ("×", "MulFunctor", "bf16 [T, 8]"),
    ("casts", "copy ×2", "fp32, int32"),
)


def draw_launches():
    """The eager chain's kernels, each with its trip through memory, above the one launch that replaces them."""
    house_style()
    fig, ax = plt.subplots(figsize=(9.6, 2.9))
    ax.set(xlim=(0, 12.6), ylim=(-0.1, 3.25), title="One routing step: the eager chain, and one launch")
    ax.axis("off")
    for i, (operator, kernel, writes) in enumerate(EAGER_LAUNCHES):
        x = 0.1 + 2.08 * i
        _box(ax, x, 2.25, 1.72, 0.8, ORANGE)
        ax.text(x + 0.86, 2.74, kernel, ha="center", va="center", fontsize=7.2, color=INK)
        ax.text(x + 0.86, 2.45, operator, ha="center", va="center", fontsize=8, color=MUTED, style="italic")
        ax.text(x + 0.86, 1.98, writes, ha="center", va="center", fontsize=7.2, color=MUTED)
        if i:
            ax.add_patch(
                FancyArrowPatch((x - 0.34, 2.65), (x - 0.02, 2.65), arrowstyle="-|>", mutation_scale=9, color=MUTED)
            )
    _box(ax, 0.1, 0.35, 12.12, 0.85, BLUE)
    ax.text(6.16, 0.93, "_route_kernel", ha="center", va="center", fontsize=10, color=INK, weight="bold")
    steps = "128 logits in registers → 8 integer maxima → exp, butterfly sum, IEEE division → round → × scale → round"
    ax.text(6.16, 0.6, steps, ha="center", va="center", fontsize=8, color=INK)
    ax.text(6.16, 0.12, "writes fp32 weights and int32 ids once", ha="center", va="center", fontsize=7.2, color=MUTED)
    stamp(fig, "published", "kernel names from a B200 trace, SGLang fork pyc96/sglang PR #1")
    return fig


def draw_published_share():
    """Share of decode GPU time spent routing: the split kernels and a fused one."""
    house_style()
    fig, ax = plt.subplots(figsize=(7.4, 2.0))
    bars = ax.barh(
        ["one launch (vLLM PR #39083)", "split kernels (SGLang)"], [1.1, 5.8], color=[BLUE, ORANGE], height=0.55
    )
    ax.bar_label(bars, labels=["1.1 %", "5.8 %"], padding=4, color=INK)
    ax.set(xlim=(0, 6.6), xlabel="% of decode GPU time", title="Gemma-4 26B-A4B with MTP, bf16, one B200")
    ax.grid(axis="y", visible=False)
    stamp(fig, "published", "SGLang fork pyc96/sglang PR #1")
    return fig


def draw_ladder(frame, source: str):
    """Share of weights that differ from eager on each rung of `ladder`'s frame, on a logarithmic axis."""
    house_style()
    rows = frame.iloc[::-1]
    floor = 100 / frame.weights.iloc[0] / 3  # zero has no place on a log axis: a tick left of one weight in all
    fig, ax = plt.subplots(figsize=(8.6, 3.0))
    for y, row in enumerate(rows.itertuples()):
        same = row.weights_unequal == 0
        share = max(row.weights_unequal_pct, floor)
        ax.plot(
            [floor, share], [y, y], color=GREEN if same else ORANGE, linewidth=5, solid_capstyle="round", alpha=0.35
        )
        ax.plot(share, y, "o", color=GREEN if same else RED, markersize=8)
        text = "none in this sample" if same else f"{row.weights_unequal_pct:.3g} %, up to {row.max_ulp:.2g} ulp"
        ax.annotate(text, (share, y), xytext=(9, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    ax.set(
        xscale="log", xlim=(floor * 0.7, 2000), ylim=(-0.6, len(rows) - 0.4), xlabel="weights that are not eager's, %"
    )
    ax.set_xticks([10.0**i for i in range(-3, 3)], ["0.001", "0.01", "0.1", "1", "10", "100"])
    ax.minorticks_off()
    ax.set_title(f"Leave out one step of eager: {frame.weights.iloc[0]:,} weights")
    ax.set_yticks(range(len(rows)), rows.rung)
    ax.grid(axis="y", visible=False)
    stamp(fig, "live", source)
    return fig


def draw_ties(ties, transformers_pct: dict[str, float], source: str):
    """Rows with ties among the chosen, for the last place, and where transformers' chain picks another set.

    transformers_pct: by dtype, of rows of an undecided router (logits of standard deviation 1/4).
    """
    house_style()
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 2.5), sharey=True)
    columns = {
        "equal logits among the chosen": ties.tie_among_chosen_pct,
        "a tie for the last place": ties.tie_for_last_place_pct,
        "undecided router, softmax first: another set": ties.dtype.map(transformers_pct),
    }
    for ax, (title, values), color in zip(axes, columns.items(), (PALETTE[4], BLUE, RED), strict=True):
        bars = ax.barh(ties.dtype, values, color=color, height=0.6)
        ax.bar_label(bars, labels=[f"{v:.2g} %" if v else "none" for v in values], padding=3, color=INK, fontsize=8.5)
        ax.set_title(title, fontsize=9.5)
        ax.set(xlim=(0, 1.3 * max(values.max(), 0.1)), xlabel="% of rows")
        ax.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    stamp(fig, "live", source)
    return fig


def draw_compiled(ours, peer, source: str):
    """Two CompileFacts side by side: instructions, exchanges between lanes, registers."""
    house_style()
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 1.9), sharey=True)
    measures = {
        "PTX instructions": lambda f: sum(f.instructions.values()),
        "exchanges between lanes": lambda f: f.count("shfl") + f.count("redux"),
        "registers per thread": lambda f: f.registers,
    }
    for ax, (title, measure) in zip(axes, measures.items(), strict=True):
        values = [measure(ours), measure(peer)]
        bars = ax.barh(["g4lab", "SGLang"], values, color=[BLUE, ORANGE], height=0.6)
        ax.bar_label(bars, padding=3, color=INK)
        ax.set(xlim=(0, 1.2 * max(values)), title=title)
        ax.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    stamp(fig, "live", source)
    return fig


def _box(ax, x, y, width, height, color):
    ax.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", fc=color, alpha=0.16, ec="none"
        )
    )
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", fc="none", ec=color, lw=1.2)
    )

"""Where a step's bytes and FLOPs go, drawn for the four checkpoints. All by arithmetic from the specs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.figures import INK, MUTED, PALETTE, house_style, stamp
from g4lab.gemma4.costs import STEP_PARTS, Cost, distinct_experts, expert_bytes, step_cost, zipf_routing
from g4lab.gemma4.draw import SOURCE, ink_on
from g4lab.gemma4.specs import CHECKPOINTS, spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOUR = dict(zip(STEP_PARTS, (PALETTE[i] for i in (0, 4, 1, 2, 3, 5, 6, 7)), strict=True))
_UNITS = {
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")),
    "flops": ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")),
}


def step_breakdown(*, prompt: int = 8192, context: int = 8192, batch: int = 16) -> Figure:
    """Shares of bytes and FLOPs by part: one prefill of `prompt` tokens, one decode step of `batch` sequences.

    Raises:
        BadInput: more positions than a checkpoint has.
    """
    import matplotlib.pyplot as plt

    house_style()
    stages = {
        f"Prefill, {prompt:,} tokens": {name: step_cost(spec(name), new_tokens=prompt) for name in CHECKPOINTS},
        f"Decode, {batch} sequences at {context:,} tokens": {
            name: step_cost(spec(name), context=context, batch=batch) for name in CHECKPOINTS
        },
    }
    fig, axes = plt.subplots(2, 2, figsize=(12, 5.8), sharex=True, sharey=True)
    for row, (stage, steps) in zip(axes, stages.items(), strict=True):
        for ax, measure in zip(row, ("bytes", "flops"), strict=True):
            _draw_shares(ax, steps, measure)
            ax.set_title(f"{stage}: {'bytes moved' if measure == 'bytes' else 'FLOPs done'}")
    axes[0, 0].invert_yaxis()
    for ax in axes[-1]:
        ax.set_xlabel("share of the step (%)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=9.5)
    stamp(fig, "published", SOURCE)
    return fig


def _draw_shares(ax: Axes, steps: dict[str, list[Cost]], measure: str) -> None:
    totals = {name: sum(getattr(cost, measure) for cost in step) for name, step in steps.items()}
    left = dict.fromkeys(steps, 0.0)
    for index, part in enumerate(STEP_PARTS):
        colour = _COLOUR[part]
        shares = [100 * getattr(step[index], measure) / totals[name] for name, step in steps.items()]
        ax.barh(list(steps), shares, left=list(left.values()), height=0.7, color=colour, label=part, edgecolor="white")
        for name, share in zip(steps, shares, strict=True):
            if share >= 6:
                centre = {"ha": "center", "va": "center", "fontsize": 8.5, "color": ink_on(colour)}
                ax.text(left[name] + share / 2, name, f"{share:.0f}", **centre)
            left[name] += share
    for name, total in totals.items():
        intensity = sum(cost.flops for cost in steps[name]) / sum(cost.bytes for cost in steps[name])
        note = f"\n{intensity:,.0f} FLOP/B" if measure == "flops" else ""
        ax.text(101.5, name, _readable(total, measure) + note, va="center", fontsize=8.5, color=INK)
    ax.set(xlim=(0, 118), xticks=range(0, 101, 25))
    ax.grid(visible=False, axis="y")


def _readable(value: float, measure: str) -> str:
    size, unit = next((u for u in _UNITS[measure] if value >= u[0]), _UNITS[measure][-1])
    return f"{value / size:.3g} {unit}"


def experts_touched(name: str = "26b-a4b") -> Figure:
    """Distinct experts, and bytes of expert weights read, against the tokens of a step: uniform and skewed routing.

    Raises:
        BadInput: a model without experts.
    """
    import matplotlib.pyplot as plt

    s = spec(name)
    expert = expert_bytes(s, 1) / s.top_k_experts / 1e9  # GB of one expert in every layer
    house_style()
    tokens = sorted({round(2 ** (i / 8)) for i in range(8 * 12 + 1)})
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6))
    fig.get_layout_engine().set(wspace=0.06)
    for exponent, colour in ((0.0, PALETTE[0]), (0.5, PALETTE[2]), (1.0, PALETTE[1]), (2.0, PALETTE[3])):
        routing = zipf_routing(s.num_experts, s.top_k_experts, exponent)
        label = "uniform" if exponent == 0 else f"Zipf, exponent {exponent:g}"
        touched = [distinct_experts(s.num_experts, s.top_k_experts, t, routing) for t in tokens]
        per_token = [expert_bytes(s, t, probabilities=routing) / t / 1e9 for t in tokens]
        left.plot(tokens, touched, color=colour, label=label)
        right.plot(tokens, per_token, color=colour)
    left.axhline(s.num_experts, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    left.text(1, s.num_experts - 2, f"all {s.num_experts}", color=MUTED, fontsize=9, va="top")
    gb = left.secondary_yaxis("right", functions=(lambda n: n * expert, lambda gb: gb / expert))
    gb.set_ylabel("expert weights read in a step (GB, bf16)")
    left.set(ylabel="distinct experts in a layer", title="A batch soon touches every expert")
    right.set(ylabel="expert weights read per token (GB, bf16)", title="and then shares their cost", yscale="log")
    right.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        ax.set_xlabel("tokens in the step")
    left.legend(loc="lower right", title="routing", alignment="left")
    stamp(fig, "published", SOURCE)
    return fig

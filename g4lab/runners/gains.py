"""What single changes were worth in serving, as their authors published it: output throughput after over before."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from g4lab.errors import bad
from g4lab.figures import PALETTE, house_style, stamp
from g4lab.published import citation, published

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METRIC = "output throughput"


class Change(NamedTuple):
    """Where to find one change's two values: the table, and the start of the `variant` before and after it."""

    label: str
    table: str
    before: str
    after: str


CHANGES = (
    Change("extend-attention tiles", "extend_attention_serving", "SGLang patch B", "SGLang patch C"),
    Change("frozen-KV window state", "frozen_kv_mtp", "page indices clamped", "sliding-window state"),
    Change("text-only load", "mm_disabled", "SGLang baseline (MTP", "SGLang, multimodal disabled (MTP"),
    Change("fused router", "router_serving", "baseline", "fused router"),
    Change("fused Q and K=V norm", "qkv_norm", "baseline (main and fix)", "fused Q and K=V norm"),
    Change("custom all-reduce", "custom_all_reduce", "custom all-reduce off", "custom all-reduce on"),
    Change("window pool ratio 0.15", "swa_ratio", "fused router", "and ratio 0.15"),
)


def gains() -> pd.DataFrame:
    """One row for each change and workload: change, case, hardware, pr, before, after (tokens/s) and gain (percent).

    Raises:
        BadInput: a change's variants are not in its table, so the tables and CHANGES have drifted apart.
    """
    import pandas as pd

    rows = []
    for change in CHANGES:
        table = published(change.table)
        table = table[table["metric"] == METRIC]
        before, after = (table[table["variant"].str.startswith(start)] for start in (change.before, change.after))
        pairs = before.merge(after, on=["case", "condition", "hardware", "pr"], suffixes=("_before", "_after"))
        if pairs.empty:
            raise bad("change", change.label, f"{METRIC} of {change.before!r} and {change.after!r} in {change.table}")
        for pair in pairs.itertuples():
            gain = 100 * (pair.value_after / pair.value_before - 1)
            rows.append((change.label, pair.case, pair.condition.split(",")[0].split(" ")[0], pair.hardware, pair.pr,
                         pair.value_before, pair.value_after, gain))  # fmt: skip
    columns = ["change", "case", "model", "hardware", "pr", "before", "after", "gain"]
    return pd.DataFrame(rows, columns=columns)


def draw_gains() -> Figure:
    """Every published gain as a bar, grouped by change, with model, workload and hardware beside it."""
    import matplotlib.pyplot as plt

    house_style()
    found = gains()
    fig, ax = plt.subplots(figsize=(9.5, 0.36 * len(found) + 1.4))
    colours = dict(zip(dict.fromkeys(found["change"]), PALETTE, strict=False))
    ax.barh(range(len(found)), found["gain"], color=[colours[change] for change in found["change"]], height=0.7)
    ax.axvline(0, color=PALETTE[7], linewidth=1)
    for y, row in enumerate(found.itertuples()):
        ax.annotate(f"{row.gain:+.1f} %  {row.model} {row.case} · {row.hardware}", (max(row.gain, 0), y),
                    xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    first = found.drop_duplicates("change").index
    ax.set_yticks(first, found["change"][first])
    ax.set(xlabel="change of output throughput (%)", xlim=(min(found["gain"]) - 3, max(found["gain"]) * 2))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_title("Published serving gains, none with an interval")
    stamp(fig, "published", citation(found))
    return fig

"""Published serving gains, and what was measured here beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from g4lab.figures import INK, KINDS, MUTED, PALETTE, house_style, stamp
from g4lab.published import citation
from g4lab.runners.gains import gains

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from g4lab.records import Record

THROUGHPUT = "output_tokens_per_s"
# published change (g4lab.runners.gains) -> the patch that stands for it
PATCH_OF = {
    "extend-attention tiles": "extend_tiles",
    "frozen-KV window state": "frozen_kv_swa",
    "text-only load": "text_only",
    "fused router": "router",
    "fused Q and K=V norm": "qkv_norm",
    "window pool ratio 0.15": "swa_ratio",
}


def measured_gains(records: Iterable[Record]) -> pd.DataFrame:
    """Serving A/B records of machines with a GPU whose sides differ in one patch that a pull request stands behind.

    One row each: change (as g4lab.runners.gains calls it), patch, model, machine, gain, low, high, aa_low and aa_high
    (percent of output throughput; the interval over rounds, and that of no change), verdict.
    """
    import pandas as pd

    change_of = {patch: change for change, patch in PATCH_OF.items()}
    rows = []
    for record in records:
        if record.name != "serving.ab" or not record.machine["gpus"]:
            continue
        sides = [set(str(record.parameters[side]).split(",")) for side in "ab"]
        differ = sides[0] ^ sides[1]
        patch = next(iter(differ), "").removeprefix("-")
        effects = [effect for effect in record.values["effects"] if effect["metric"] == THROUGHPUT]
        if len(differ) == 1 and patch in change_of and effects:
            (effect,) = effects
            percent = {name: 100 * (effect[name] - 1) for name in ("ratio", "low", "high", "aa_low", "aa_high")}
            where = {"patch": patch, "model": record.parameters.get("model"), "machine": record.where}
            said = {"gain": percent.pop("ratio"), **percent, "verdict": effect["verdict"]}
            rows.append({"change": change_of[patch], **where, **said})
    columns = ["change", "patch", "model", "machine", "gain", "low", "high", "aa_low", "aa_high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def draw_beside(measured: pd.DataFrame, kind: str = "recorded") -> Figure:
    """Published gains of output throughput as bars, and below each change what was measured here, or that nothing was.

    measured: as measured_gains gives it; kind: "recorded" or "live".
    """
    import matplotlib.pyplot as plt

    house_style()
    published = gains()
    published = published[published["change"].isin(PATCH_OF)]
    fig, ax = plt.subplots(figsize=(10, 0.34 * (len(published) + max(len(measured), len(PATCH_OF))) + 1.6))
    y, ticks = 0, []
    for change, rows in published.groupby("change", sort=False):
        ticks.append((y, f"{change}\n`{PATCH_OF[change]}`".replace("`", "")))
        for row in rows.itertuples():
            ax.barh(y, row.gain, color=KINDS["published"], height=0.6)
            _beside(ax, max(row.gain, 0), y, f"{row.gain:+.1f} %  {row.model} {row.case} · {row.hardware}", INK)
            y += 1
        ours = measured[measured["change"] == change]
        for row in ours.itertuples():
            ax.barh(y, row.aa_high - row.aa_low, left=row.aa_low, color="#D5E4F1", height=0.6)
            ax.plot([row.low, row.high], [y, y], color=KINDS[kind], linewidth=2.5)
            ax.plot(row.gain, y, "o", color=KINDS[kind], markersize=5)
            _beside(
                ax, max(row.high, row.aa_high, 0), y, f"{row.gain:+.1f} %  {row.model} · {row.machine}", KINDS[kind]
            )
            y += 1
        if ours.empty:
            _beside(ax, 0, y, "not measured here yet", MUTED)
            y += 1
        y += 0.4
    ax.axvline(0, color=PALETTE[7], linewidth=1)
    ax.set_yticks(*zip(*ticks, strict=True), fontsize=8.5)
    ax.set(xlabel="change of output throughput (%)", ylim=(y - 0.6, -0.7), xlim=(-4, 1.9 * published["gain"].max()))
    ax.grid(axis="y", visible=False)
    ax.set_title("Published serving gains, none with an interval; ours beside them")
    stamp(fig, "published", citation(published))
    return fig


def _beside(ax, x: float, y: float, text: str, colour: str) -> None:
    ax.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8, color=colour)

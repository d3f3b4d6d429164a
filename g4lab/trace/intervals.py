"""Time as unions of intervals: what a GPU was doing, over all its streams, and the gaps between.

Everything is microseconds, exactly as in the file: nothing is rounded and no step is left out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from g4lab.trace import draw
from g4lab.trace.model import KINDS, Trace
from g4lab.trace.result import Result, of_trace
from g4lab.trace.selection import select

COLUMNS = ("span", "busy", *KINDS, "idle")


def exposed_us(ts_us: np.ndarray, dur_us: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each interval adds to the union of its group, and the gap before it.

    Args:
        ts_us, dur_us: float64 [n], in any order; a negative duration counts as none.
        group: int [n]; only intervals of one group share time.

    Returns:
        (adds, gap): float64 [n] each, in the order given. The sum of `adds` over a group is the length of its union.
        gap is the time since everything earlier in the group had ended, 0 where that is not over or nothing was.
    """
    order = np.lexsort((ts_us, group))
    start, sorted_group = ts_us[order], group[order]
    end = start + np.maximum(dur_us[order], 0)
    reached = pd.Series(end).groupby(sorted_group).cummax().to_numpy()
    first = np.append(True, sorted_group[1:] != sorted_group[:-1])[: len(order)]
    before = np.where(first, start, np.append(np.nan, reached[:-1])[: len(order)])
    adds, gap = np.empty(len(order)), np.empty(len(order))
    adds[order] = np.maximum(end - np.maximum(start, before), 0)
    gap[order] = np.maximum(start - before, 0)
    return adds, gap


def union_us(rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """Length of the union of the rows' intervals (columns ts_us, dur_us), for each combination of the columns `by`."""
    grouped = rows.groupby(by, observed=True)
    adds, _ = exposed_us(rows["ts_us"].to_numpy(), rows["dur_us"].to_numpy(), grouped.ngroup().to_numpy())
    return pd.Series(adds, rows.index).groupby([rows[column] for column in by], observed=True).sum(min_count=1)


def span_us(rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """From the first start to the last end, for each combination of the columns `by`."""
    ends = rows["ts_us"] + rows["dur_us"].clip(lower=0)
    keys = [rows[column] for column in by]
    return ends.groupby(keys, observed=True).max() - rows["ts_us"].groupby(keys, observed=True).min()


def breakdown(trace: Trace) -> Result:
    """Where each device's time went, in microseconds; captures of one device are added up.

    Returns:
        A row for each device (for each rank and device, where a trace holds several ranks):
        span: from the first start to the last end of GPU activity.
        busy: union of all activity. compute, communication, memory: union of that kind, so they may add up to more.
        idle: span - busy.

        All NaN where the trace has durations but no timeline (Nsight Compute), and the title says so.
        Without GPU activity: one row "CPU" with the span and union of the CPU operators over all threads; the kinds
        are NaN, and the title says so.
    """
    if not trace.has_gpu:
        rows = trace.operators.assign(device="CPU")
        table = _totals(rows, ["device"]).reindex(columns=list(COLUMNS))
        title = select(trace).title("No GPU activity in this trace: all threads, µs", None)
        return of_trace(trace, table, title=title, drawer=draw.breakdown)
    rows = trace.kernels
    by = ["device"]
    if trace.captures["rank"].nunique() > 1:
        rows = rows.assign(rank=rows["capture"].map(trace.captures["rank"]))
        by = ["rank", "device"]
    table = _totals(rows, by)
    for kind in KINDS:
        table[kind] = _over_captures(union_us(rows[rows["kind"] == kind], [*by, "capture"]), by)
    known = table["busy"].notna()
    table[list(KINDS)] = table[list(KINDS)].fillna(0.0).where(known)
    title = "GPU time by device, µs" if known.any() else "GPU time by device: no timeline in this trace"
    return of_trace(trace, table[list(COLUMNS)], title=title, drawer=draw.breakdown)


def _totals(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    keys = [*by, "capture"]
    table = pd.DataFrame(
        {"span": _over_captures(span_us(rows, keys), by), "busy": _over_captures(union_us(rows, keys), by)}
    )
    table["idle"] = table["span"] - table["busy"]
    return table


def _over_captures(values: pd.Series, by: list[str]) -> pd.Series:
    return values.groupby(level=by, observed=True).sum(min_count=1)


def launch_gaps(trace: Trace, phase: str | None = None) -> Result:
    """The moments at which a device stood still, longest first: how long, and which kernels were around.

    Args:
        phase: only gaps before kernels of this phase (one of model.PHASES); None: all.

    Returns:
        gap_us: time in which no stream of the device did anything. before: the kernel that ended the gap. op: the CPU
        operator that launched it. queue_us: from the end of its launch to its start. phase, step.

        Without GPU activity: gaps between the CPU operators of one thread (op and queue_us are NaN), and the title says
        so.

    Raises:
        BadInput: `phase` is no phase, or none of this trace.
    """
    chosen, everything = select(trace, phase), select(trace).rows
    keys = ["capture", "device"] if trace.has_gpu else ["capture", "pid", "tid"]
    group = everything.groupby(keys).ngroup().to_numpy()
    _, gap = exposed_us(everything["ts_us"].to_numpy(), everything["dur_us"].to_numpy(), group)
    table = everything.assign(gap_us=gap).rename(columns={"name": "before"}).loc[chosen.rows.index]
    table = table[table["gap_us"] > 0].sort_values("gap_us", ascending=False, kind="stable", ignore_index=True)
    table = table.reindex(columns=["gap_us", "before", "op", "queue_us", "phase", "step"])
    return of_trace(trace, table, title=chosen.title(f"Gaps between {chosen.of}", phase), drawer=draw.gaps)

"""The tables to read a trace by: time by family or kernel, step by step, launches per token, and what no rule names."""

from __future__ import annotations

import numpy as np
import pandas as pd

from g4lab.errors import bad
from g4lab.trace import draw, graphs
from g4lab.trace.families import OTHER
from g4lab.trace.intervals import span_us, union_us
from g4lab.trace.model import PHASES, Trace
from g4lab.trace.names import short
from g4lab.trace.result import Result, of_trace
from g4lab.trace.selection import OF, Selection, select, steps_of

BY = ("family", "name")


def kernel_table(trace: Trace, by: str = "family", phase: str | None = None, of: str | None = None) -> Result:
    """Where the time went, most first.

    Args:
        by: "family" (families.csv) or "name".
        phase: only this phase (one of model.PHASES); None: everything.
        of: "kernels" or "operators" (their own time, without operators inside them); None: kernels if there are any.

    Returns:
        Indexed by family or name (then with a column family): calls, total_us, share (of the summed time of the rows
        chosen; streams that overlap count each), mean_us, median_us, p99_us, and per_step_us: the time inside steps by
        the number of steps (every rank's count), NaN in a trace without any.

    Raises:
        BadInput: `by`, `phase` or `of` is not one of the above, or the trace has nothing of that phase.
    """
    if by not in BY:
        raise bad("by", by, "one of " + ", ".join(BY))
    chosen = select(trace, phase, of)
    rows, time = chosen.rows, chosen.time
    grouped = rows.groupby(by, observed=True)[time]
    table = grouped.agg(calls="count", total_us="sum", mean_us="mean", median_us="median")
    table["p99_us"] = grouped.quantile(0.99)
    table["share"] = table["total_us"] / max(table["total_us"].sum(), np.finfo(float).tiny)
    table["per_step_us"] = _per_step(trace, chosen, by, phase)
    table.index = table.index.astype(str)
    columns = ["calls", "total_us", "share", "mean_us", "median_us", "p99_us", "per_step_us"]
    if by == "name":
        table["family"] = rows.groupby("name", observed=True)["family"].first().astype(str)
        columns.insert(0, "family")
    table = table[columns].sort_values("total_us", ascending=False, kind="stable")
    title = chosen.title(f"{chosen.of.capitalize()} by {by}", phase)
    return of_trace(trace, table, title=title, drawer=draw.bars)


def _per_step(trace: Trace, chosen: Selection, by: str, phase: str | None) -> pd.Series | float:
    steps = len(steps_of(trace, phase))
    inside = chosen.rows[chosen.rows["step"] >= 0]
    if not steps:
        return np.nan
    sums = inside.groupby(by, observed=True)[chosen.time].sum() / steps
    return sums.reindex(chosen.rows[by].cat.categories, fill_value=0.0)


def top(trace: Trace, n: int = 20, phase: str | None = None, of: str | None = None) -> Result:
    """The first n rows of kernel_table(by="name"); the title says how much of the time they cover.

    Raises BadInput as kernel_table does, or for an `n` below 1.
    """
    if n < 1:
        raise bad("n", n, "at least 1")
    table = kernel_table(trace, "name", phase, of)
    shown = table.head(n)
    what, _, rest = table.title.partition(" by name")
    title = f"Top {len(shown)} of {len(table)} {what.lower()}, {shown['share'].sum():.1%} of their time{rest}"
    return of_trace(trace, shown, title=title, drawer=draw.bars)


def by_phase(trace: Trace, of: str | None = None) -> Result:
    """What prefill and decode differ in: each family's share of the time of each phase, a column share_PHASE for each.

    Indexed by family, largest first. Raises BadInput where `of` is neither "kernels" nor "operators".
    """
    chosen = select(trace, None, of)
    sums = chosen.rows.groupby(["family", "phase"], observed=True)[chosen.time].sum().unstack(fill_value=0.0)
    shares = sums / sums.sum()
    shares = shares[[phase for phase in PHASES if phase in shares]].add_prefix("share_")
    shares.columns, shares.index = shares.columns.astype(str), shares.index.astype(str)
    shares = shares.loc[shares.sum(axis=1).sort_values(ascending=False).index]
    title = chosen.title(f"{chosen.of.capitalize()}: what each phase spends its time on", None)
    return of_trace(trace, shares, title=title, drawer=draw.phases)


def per_step(trace: Trace, of: str | None = None) -> Result:
    """One row for each step, in order of time within a capture: what it computed and what it took.

    Returns:
        phase, batch, tokens (-1 unknown), busy_us (union of its activity, over all streams of a device), idle_us (from
        its first start to its last end, less busy_us), launches and graph_launches (calls), kernels (or operators), and
        the summed time in µs of every family that occurs in steps.

    Raises:
        BadInput: `of` is neither "kernels" nor "operators".
    """
    chosen = select(trace, None, of)
    rows = chosen.rows[chosen.rows["step"] >= 0]
    keys = ["step", "device"] if chosen.of == "kernels" else ["step"]
    index = trace.steps.index
    table = trace.steps[["phase", "batch", "tokens"]].copy()
    busy = _by_step(union_us(rows, keys), index)
    table["busy_us"] = busy
    table["idle_us"] = _by_step(span_us(rows, keys), index) - busy
    launches = trace.launches
    for column, pattern in (("launches", graphs.LAUNCH), ("graph_launches", graphs.REPLAY)):
        table[column] = _count(launches[graphs.matching(launches["name"], pattern)], index)
    table[chosen.of] = _count(rows, index)
    families = rows.groupby(["step", "family"], observed=True)[chosen.time].sum().unstack(fill_value=0.0)
    families = families.reindex(index, fill_value=0.0)
    families.columns = families.columns.astype(str)
    table = table.join(families[families.sum().sort_values(ascending=False).index])
    table.index.name = "step"
    return of_trace(trace, table, title=chosen.title("Time of each step, µs", None), drawer=draw.steps)


def _by_step(values: pd.Series, index: pd.Index) -> pd.Series:
    return values.groupby(level="step").sum().reindex(index, fill_value=0.0)


def _count(rows: pd.DataFrame, index: pd.Index) -> pd.Series:
    return rows["step"].value_counts().reindex(index, fill_value=0)


def launches_per_token(trace: Trace) -> Result:
    """How many launches a token costs, by phase.

    Returns:
        Indexed by phase: steps, tokens (NaN where the trace does not say), launches (calls that launch a kernel, a copy
        or a fill), graph_launches (replays of CUDA graphs), kernels, and each of the three per step and per token. Only
        what lies inside steps counts. Without GPU activity the kernels are CPU operators, and the title says so.
    """
    table = per_step(trace)
    of = "kernels" if "kernels" in table else "operators"
    counts = ["launches", "graph_launches", of]
    known = table["tokens"].where(table["tokens"] >= 0)
    grouped = table.assign(tokens=known, steps=1).groupby("phase", observed=True)
    summed = grouped[["steps", *counts]].sum()
    summed.insert(1, "tokens", grouped["tokens"].sum(min_count=1))
    complete = grouped["tokens"].count() == summed["steps"]
    summed["tokens"] = summed["tokens"].where(complete)
    for what in counts:
        summed[f"{what}_per_step"] = summed[what] / summed["steps"]
        summed[f"{what}_per_token"] = summed[what] / summed["tokens"]
    summed = summed.loc[[phase for phase in PHASES if phase in summed.index]]
    summed.index = summed.index.astype(str)
    title = select(trace).title(f"Launches and {of} per step and per token", None)
    return of_trace(trace, summed, title=title, drawer=draw.launches)


def coverage(trace: Trace) -> Result:
    """How much of the time the rules of families.csv name, and what they leave.

    Returns:
        A row for "kernels" and for "operators" where the trace has them: total_us, matched_us, unmatched_us, coverage
        (a fraction), unmatched_names (how many) and top_unmatched (the five that took longest, with their µs).
    """
    table = {}
    for of in OF:
        rows, _, time = select(trace, None, of)
        if rows.empty:
            continue
        total = rows[time].sum()
        left = rows[rows["family"] == OTHER].groupby("name", observed=True)[time].sum().sort_values(ascending=False)
        table[of] = {
            "total_us": total,
            "matched_us": total - left.sum(),
            "unmatched_us": left.sum(),
            "coverage": 1 - left.sum() / total if total else np.nan,
            "unmatched_names": len(left),
            "top_unmatched": "; ".join(f"{short(name)} {us:,.1f}" for name, us in left.head(5).items()),
        }
    data = pd.DataFrame.from_dict(table, orient="index")
    data.index.name = "of"
    return of_trace(trace, data, title="Time that a family's rule names", drawer=draw.coverage)

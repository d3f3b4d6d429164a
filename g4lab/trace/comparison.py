"""Two traces side by side: which kernels came, which went, and what that did to a step."""

from __future__ import annotations

import pandas as pd

from g4lab.errors import bad
from g4lab.trace import draw
from g4lab.trace.model import Trace
from g4lab.trace.names import same
from g4lab.trace.result import Result, provenance
from g4lab.trace.selection import Selection, select, steps_of

STATUS = ("new", "gone", "common")


def diff(a: Trace, b: Trace, phase: str | None = None, of: str | None = None) -> Result:
    """What b has and does otherwise than a, kernel by kernel.

    Rows are matched by family and name; names.same says which differences between two builds' names do not count.

    Args:
        a: before. b: after.
        phase: only this phase of both; None: everything.
        of: "kernels" or "operators"; None: kernels if both have any, operators if neither has.

    Returns:
        family, name, status ("new" in b, "gone" from a, or "common"), and for a and b: calls, total_us, share (of all
        time compared), per_step_us (NaN without steps); change_us (total) and change_per_step_us, b - a. New ones
        first, then gone ones, then common ones, each by the size of the change: per step where both have steps.

    Raises:
        BadInput: `phase` or `of` is not one of the above, or one trace has nothing of that phase or of GPU activity.
    """
    if of is None and a.has_gpu != b.has_gpu:
        raise bad("of", of, f"'operators', for {(a if b.has_gpu else b).source} has no GPU activity")
    chosen = select(a, phase, of)
    left = _side(a, chosen, phase).add_suffix("_a")
    table = left.join(_side(b, select(b, phase, of), phase).add_suffix("_b"), how="outer")
    table["status"] = "common"
    table.loc[table["calls_a"].isna(), "status"] = "new"
    table.loc[table["calls_b"].isna(), "status"] = "gone"
    stepped = all(len(steps_of(trace, phase)) for trace in (a, b))
    missing = [column for column in table if stepped or not column.startswith("per_step")]
    table[missing] = table[missing].fillna(0)
    table[["calls_a", "calls_b"]] = table[["calls_a", "calls_b"]].astype("int64")
    table["change_us"] = table["total_us_b"] - table["total_us_a"]
    table["change_per_step_us"] = table["per_step_us_b"] - table["per_step_us_a"]
    size = table["change_per_step_us" if stepped else "change_us"].abs()
    table = table.assign(_size=size, _rank=table["status"].map(STATUS.index))
    table = table.sort_values(["_rank", "_size"], ascending=[True, False], kind="stable")
    pairs = [f"{what}_{side}" for what in ("calls", "total_us", "per_step_us", "share") for side in "ab"]
    table = table.reset_index()[["family", "name", "status", *pairs, "change_us", "change_per_step_us"]]
    kinds, sources = zip(provenance(a), provenance(b), strict=True)
    ways = chosen.title(f"{chosen.of.capitalize()}: {' → '.join(sources)}", phase)
    kind = kinds[0] if kinds[0] == kinds[1] else "recorded"
    return Result(table, title=ways, provenance=(kind, " and ".join(sources)), drawer=draw.changes)


def _side(trace: Trace, chosen: Selection, phase: str | None) -> pd.DataFrame:
    """calls, total_us, share and per_step_us by (family, name), names reduced to what builds share."""
    rows, _, time = chosen
    inside = rows[time].where(rows["step"] >= 0, 0.0)
    rows = rows[["family", "name"]].assign(calls=1, total_us=rows[time], per_step_us=inside)
    side = rows.groupby(["family", "name"], observed=True).sum().reset_index()
    side = side.assign(family=side["family"].astype(str), name=[same(name) for name in side["name"]])
    side = side.groupby(["family", "name"]).sum()
    side["share"] = side["total_us"] / (side["total_us"].sum() or 1.0)
    side["per_step_us"] /= len(steps_of(trace, phase)) or float("nan")
    return side

"""A suite's goals as data, and how a table of times is judged by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from g4lab.bench.suite import INCOMPLETE, MET, MISSED, NOT_MEASURED
from g4lab.bench.timing import READINGS


@dataclass(frozen=True)
class Goal:
    """`column` of the rows that `provider` has for `cases`; `hold` says whether they keep it, `value` what is shown."""

    text: str
    provider: str
    column: str
    cases: tuple
    hold: Callable[[pd.DataFrame], bool]
    value: Callable[[pd.Series], float] = min


def geometric_mean(values: pd.Series) -> float:
    """Of positive numbers."""
    return float(np.exp(np.log(values).mean()))


def not_slower(rows: pd.DataFrame, ratio: str) -> bool:
    """In no row is the interval of the column `ratio` below both 1 and the A/A interval."""
    return bool((rows[f"{ratio}_high"] >= rows.aa_low.clip(upper=1).fillna(1)).all())


def judge(goals: Sequence[Goal], times: pd.DataFrame, case: str, needed: Sequence[str] = ()) -> pd.DataFrame:
    """One row per goal and reading: verdict, measured ("26 of 26"), the value judged, and the case that is furthest
    from the goal.

    times: a table of times, live or records as a frame (one machine's; of repeated runs the last counts). case: the
    column whose values `Goal.cases` are. needed: columns that `hold` reads beside the goal's own.

    The verdict is "met" only where every case was measured. "missed" as soon as one case misses; a mean is judged only
    when it is complete.
    """
    numbers = list(dict.fromkeys([*(goal.column for goal in goals), *needed]))
    columns = [case, "provider", "reading", *numbers]
    times = times.reindex(columns=list(dict.fromkeys([*times.columns, *columns])))
    times = times.drop_duplicates([case, "provider", "reading"], keep="last").astype(dict.fromkeys(numbers, float))
    return pd.DataFrame([_judged(goal, times, case, reading) for goal in goals for reading in READINGS])


def _judged(goal: Goal, times: pd.DataFrame, case: str, reading: str) -> dict:
    rows = times[(times.provider == goal.provider) & (times.reading == reading)]
    rows = rows[rows[case].isin(goal.cases) & rows[goal.column].notna()]
    row = {"goal": goal.text, "reading": reading, "verdict": NOT_MEASURED,
           "measured": f"{len(rows)} of {len(goal.cases)}", "value": None, "worst": ""}  # fmt: skip
    if rows.empty:
        return row
    complete = len(rows) == len(goal.cases)
    verdict = INCOMPLETE
    if not goal.hold(rows) and (complete or goal.value is min):
        verdict = MISSED
    elif complete:
        verdict = MET
    worst = rows.loc[rows[goal.column].idxmin(), case]
    return row | {"verdict": verdict, "value": round(float(goal.value(rows[goal.column])), 3), "worst": worst}

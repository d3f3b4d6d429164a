"""Are the norm kernels' goals met? Judged on a table of times, live or recorded; without one they are not measured.

SGLang    no size slower than SGLang's kernel: the interval of the ratio is not below both 1 and the A/A interval
copy      from 2048 tokens on at least 85 % of the bandwidth that a copy of the same bytes reaches, with a cold L2
          (with a warm one a norm in place finds half of its bytes in the cache and the copy does not)
launches  qkv_norm_rope_kv at least twice as fast as the three SGLang launches it replaces, up to 64 tokens
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from g4lab.bench.norms import KEYS, OURS, PROVIDERS
from g4lab.bench.norms_cases import OPERATIONS, cases
from g4lab.bench.suite import INCOMPLETE, MET, MISSED, NOT_MEASURED
from g4lab.bench.timing import READINGS


@dataclass(frozen=True)
class Goal:
    """`column` of our rows must `hold` for every case that it is `about`; the smallest value is the worst."""

    text: str
    column: str
    about: Callable[[object, str], bool]  # of a case and a reading
    hold: Callable[[pd.DataFrame], pd.Series]


GOALS = (
    Goal(
        "no size slower than SGLang's beyond A/A",
        "over_sglang",
        lambda case, reading: True,
        lambda rows: rows.over_sglang_high >= rows.aa_low.clip(upper=1).fillna(1),
    ),
    Goal(
        "from 2048 tokens at least 85 % of the copy's bandwidth",
        "copy_share",
        lambda case, reading: case.tokens >= 2048 and reading == "cold",
        lambda rows: rows.copy_share >= 0.85,
    ),
    Goal(
        "up to 64 tokens at least 2x the three SGLang launches",
        "over_sglang",
        lambda case, reading: case.operation == "qkv_norm_rope_kv" and case.mode != "Q" and case.tokens <= 64,
        lambda rows: rows.over_sglang >= 2,
    ),
)
_NEEDED = ("over_sglang", "over_sglang_high", "aa_low", "copy_share")


def goals(times: pd.DataFrame) -> pd.DataFrame:
    """One row per goal, operation and reading: verdict, measured ("22 of 22"), the worst value and where it is.

    times: what `norms.measure` returns, or its records as a frame (one machine's; of repeated runs the last counts).
    The verdict is "met" only where every case was measured; "missed" as soon as one case misses.
    """
    ours = _ours(times)
    found = []
    for goal in GOALS:
        for operation in OPERATIONS:
            for reading in READINGS:
                wanted = [case for case in cases(operations=[operation]) if goal.about(case, reading)]
                if wanted:
                    found.append(_judge(goal, operation, reading, wanted, ours))
    return pd.DataFrame(found)


def _ours(times: pd.DataFrame) -> pd.DataFrame:
    times = times.reindex(columns=list(dict.fromkeys([*times.columns, *KEYS, *_NEEDED])))
    times = times[times.provider.astype(str).str.startswith(OURS)]
    times = times.drop_duplicates(KEYS, keep="last")
    return times.astype(dict.fromkeys(_NEEDED, float))


def _judge(goal: Goal, operation: str, reading: str, wanted: list, ours: pd.DataFrame) -> dict:
    rows = ours[(ours.operation == operation) & (ours.reading == reading) & ours[goal.column].notna()]
    names = {tuple(vars(case).items()) for case in wanted}
    fields = list(vars(wanted[0]))
    rows = rows[[tuple((f, row[f]) for f in fields) in names for row in rows[fields].to_dict("records")]]
    providers = sum(provider.name.startswith(OURS) for provider in PROVIDERS[operation])
    row = {
        "goal": goal.text, "operation": operation, "reading": reading, "verdict": NOT_MEASURED,
        "measured": f"{len(rows)} of {providers * len(wanted)}", "worst": None, "where": "",
    }  # fmt: skip
    if rows.empty:
        return row
    worst = rows.loc[rows[goal.column].idxmin()]
    missed = rows[~goal.hold(rows)]
    verdict = MISSED if len(missed) else MET if len(rows) == providers * len(wanted) else INCOMPLETE
    where = " ".join(str(worst[f]) for f in fields[1:]) + f" ({worst.provider})"
    return row | {"verdict": verdict, "worst": round(float(worst[goal.column]), 3), "where": where}

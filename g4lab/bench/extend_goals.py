"""Are extend attention's goals met? Judged on a table of times, live or recorded; without one they are not measured.

tiles    every shape at least as fast as the best of SGLang's kernel with its own, the legacy and the seed tile: the
         interval of the ratio is not below both 1 and the A/A interval
mean     the geometric mean over all shapes of the speed-up over SGLang's kernel with its own tile is at least 1.5
prefill  "prefill long" (1 x 8192, head_dim 256, no window) reaches at least 350 TFLOP/s. The best published for it, by
         pyc96/sglang#4 on an H100, is `PUBLISHED_TFLOPS`: computed from its time in data/published.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from g4lab.bench.extend import KEYS, OURS
from g4lab.bench.suite import INCOMPLETE, MET, MISSED, NOT_MEASURED
from g4lab.bench.timing import READINGS
from g4lab.tuning.extend_shapes import SHAPES, shape

PREFILL = "prefill long"
PUBLISHED_US = 1907.64  # pyc96/sglang#4, tile 32x64, 4 warps, 2 stages
PUBLISHED_TFLOPS = shape(PREFILL).flops / PUBLISHED_US / 1e6


@dataclass(frozen=True)
class Goal:
    """`column` of our rows of `shapes`; `hold` says which shapes keep it, `value` what is shown, and of which shape."""

    text: str
    column: str
    shapes: tuple[str, ...]
    hold: Callable[[pd.DataFrame], bool]
    value: Callable[[pd.Series], float] = min


def _geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


ALL = tuple(each.name for each in SHAPES)
GOALS = (
    Goal(
        "every shape at least as fast as the best of SGLang's tiles, beyond A/A",
        "over_best",
        ALL,
        lambda rows: bool((rows.over_best_high >= rows.aa_low.clip(upper=1).fillna(1)).all()),
    ),
    Goal(
        "geometric mean at least 1.5x SGLang's own tile",
        "speedup",
        ALL,
        lambda rows: _geometric_mean(rows.speedup) >= 1.5,
        _geometric_mean,
    ),
    Goal(
        f"{PREFILL}: at least 350 TFLOP/s (published best: {PUBLISHED_TFLOPS:.0f})",
        "tflops",
        (PREFILL,),
        lambda rows: bool((rows.tflops >= 350).all()),
    ),
)
_NEEDED = ("over_best", "over_best_high", "aa_low", "speedup", "tflops")


def goals(times: pd.DataFrame) -> pd.DataFrame:
    """One row per goal and reading: verdict, measured ("26 of 26"), the value judged, and the shape that is furthest
    from the goal.

    times: what `extend.measure` returns, or its records as a frame (one machine's; of repeated runs the last counts).
    The verdict is "met" only where every shape was measured. "missed" as soon as one shape misses; a mean is judged
    only when it is complete.
    """
    times = times.reindex(columns=list(dict.fromkeys([*times.columns, *KEYS, *_NEEDED])))
    times = times[times.provider == OURS].drop_duplicates(["shape", "reading"], keep="last")
    times = times.astype(dict.fromkeys(_NEEDED, float))
    return pd.DataFrame([_judge(goal, times, reading) for goal in GOALS for reading in READINGS])


def _judge(goal: Goal, times: pd.DataFrame, reading: str) -> dict:
    rows = times[(times.reading == reading) & times["shape"].isin(goal.shapes) & times[goal.column].notna()]
    row = {"goal": goal.text, "reading": reading, "verdict": NOT_MEASURED,
           "measured": f"{len(rows)} of {len(goal.shapes)}", "value": None, "worst": ""}  # fmt: skip
    if rows.empty:
        return row
    complete = len(rows) == len(goal.shapes)
    verdict = INCOMPLETE
    if not goal.hold(rows) and (complete or goal.value is min):
        verdict = MISSED
    elif complete:
        verdict = MET
    worst = rows.loc[rows[goal.column].idxmin(), "shape"]
    return row | {"verdict": verdict, "value": round(float(goal.value(rows[goal.column])), 3), "worst": worst}

"""Are the expert layer's goals met? Judged on a table of times, live or recorded; without one they are not measured.

All are about 26B-A4B on one rank under uniform routing (H 2816, I 704, 128 experts, 8 a token), against SGLang's
`fused_experts` with upstream's files.

files       g4lab's files in SGLang: no number of tokens slower, the interval of the ratio is not below both 1 and the
            A/A interval; the geometric mean of the speed-up at least 1.10
kernel      the same of g4lab's kernel; the geometric mean at least 1.20
bandwidth   g4lab's kernel, up to 16 tokens: the touched experts' weights at 80 % of the measured copy bandwidth or more

Each is judged in both readings. Weights come from memory in both; a call alone also pays for starting its graph, calls
back to back, as in a captured decode step, do not.
"""

from __future__ import annotations

import pandas as pd

from g4lab.bench.goals import Goal, geometric_mean, judge, not_slower
from g4lab.bench.moe import FILES, OURS
from g4lab.tuning.moe_shapes import SIZES

STREAMING = tuple(size for size in SIZES if size <= 16)


def _no_slower(provider: str) -> Goal:
    text = f"{provider}: no size slower than upstream's files beyond A/A"
    return Goal(text, provider, "speedup", SIZES, lambda rows: not_slower(rows, "speedup"))


def _mean(provider: str, least: float) -> Goal:
    text = f"{provider}: geometric mean at least {least:.2f}x upstream's files"
    return Goal(text, provider, "speedup", SIZES, lambda rows: geometric_mean(rows.speedup) >= least, geometric_mean)


GOALS = (
    _no_slower(FILES),
    _mean(FILES, 1.10),
    _no_slower(OURS),
    _mean(OURS, 1.20),
    Goal(
        f"{OURS}: up to 16 tokens at least 80 % of the copy bandwidth",
        OURS,
        "bandwidth_share",
        STREAMING,
        lambda rows: bool((rows.bandwidth_share >= 0.8).all()),
    ),
)


def goals(times: pd.DataFrame) -> pd.DataFrame:
    """`g4lab.bench.goals.judge` of GOALS on what `moe.measure` returns, or its records as a frame."""
    times = times.reindex(columns=list(dict.fromkeys([*times.columns, "tokens", "tp", "routing"])))
    about = times[(times.tp == 1) & (times.routing == "uniform")]
    return judge(GOALS, about, "tokens", ("speedup_high", "aa_low"))

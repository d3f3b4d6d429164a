"""Are extend attention's goals met? Judged on a table of times, live or recorded; without one they are not measured.

tiles    every shape at least as fast as the best of SGLang's kernel with its own, the legacy and the seed tile: the
         interval of the ratio is not below both 1 and the A/A interval
mean     the geometric mean over all shapes of the speed-up over SGLang's kernel with its own tile is at least 1.5
prefill  "prefill long" (1 x 8192, head_dim 256, no window) reaches at least 350 TFLOP/s. The best published for it, by
         pyc96/sglang#4 on an H100, is `PUBLISHED_TFLOPS`: computed from its time in data/published.
"""

import pandas as pd

from g4lab.bench.extend import OURS
from g4lab.bench.goals import Goal, geometric_mean, judge, not_slower
from g4lab.tuning.extend_shapes import SHAPES, shape

PREFILL = "prefill long"
PUBLISHED_US = 1907.64  # pyc96/sglang#4, tile 32x64, 4 warps, 2 stages
PUBLISHED_TFLOPS = shape(PREFILL).flops / PUBLISHED_US / 1e6
ALL = tuple(each.name for each in SHAPES)
GOALS = (
    Goal(
        "every shape at least as fast as the best of SGLang's tiles, beyond A/A",
        OURS,
        "over_best",
        ALL,
        lambda rows: not_slower(rows, "over_best"),
    ),
    Goal(
        "geometric mean at least 1.5x SGLang's own tile",
        OURS,
        "speedup",
        ALL,
        lambda rows: geometric_mean(rows.speedup) >= 1.5,
        geometric_mean,
    ),
    Goal(
        f"{PREFILL}: at least 350 TFLOP/s (published best: {PUBLISHED_TFLOPS:.0f})",
        OURS,
        "tflops",
        (PREFILL,),
        lambda rows: bool((rows.tflops >= 350).all()),
    ),
)


def goals(times: pd.DataFrame) -> pd.DataFrame:
    """`g4lab.bench.goals.judge` of GOALS on what `extend.measure` returns, or its records as a frame."""
    return judge(GOALS, times, "shape", ("over_best_high", "aa_low"))

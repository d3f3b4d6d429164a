"""The noise of an evaluation: what two runs of one variant disagree about, and what is left of a difference after it.

pyc96/sglang#1 ran each of two variants twice and set the disagreement within a variant against that between them; its
numbers are not in the text, its design is the one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from g4lab.errors import bad
from g4lab.quality.intervals import Interval, wilson
from g4lab.quality.paired import McNemar, mcnemar


class NoiseFloor(NamedTuple):
    """Two runs of one variant on n questions. rate: share of questions that one run got right and the other wrong, with
    Wilson's interval; test: McNemar's, which should find nothing: runs that differ to one side are no repetition."""

    n: int
    rate: Interval
    test: McNemar

    def __str__(self) -> str:
        runs = f"{self.test.only_a + self.test.only_b} of {self.n:,} questions"
        if not self.test.only_a + self.test.only_b:
            return (
                f"two runs of one variant agree on all {self.n:,} questions (noise below {100 * self.rate.high:.2g} %)"
            )
        return f"two runs of one variant disagree on {runs}: {self.rate}"


def noise_floor(first: Sequence[bool], second: Sequence[bool]) -> NoiseFloor:
    """Disagreement of two runs of the same variant on the same questions, in the same order.

    Args:
        first, second: whether each question was answered right, [N].

    Raises:
        BadInput: no questions, lengths that differ, or a value that is neither true nor false.
    """
    a, b = _runs(first=first, second=second)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return NoiseFloor(len(a), wilson(only_a + only_b, len(a)), mcnemar(only_a, only_b))


class Decomposition(NamedTuple):
    """Disagreement of two variants, taken apart into noise and change.

    within_a, within_b: share of questions on which a variant's two runs disagree. between: that of A against B, mean of
    the four pairs of runs. change: between less the mean of the two within. For answers drawn independently, with
    chances p_a and p_b that hold for a question, its expectation is the mean over questions of (p_a - p_b)**2: zero
    only where nothing changed for any question, even if the accuracies are equal. difference: accuracy of B less A,
    both runs. p: exact one-sided test that the change is zero.
    """

    n: int
    within_a: float
    within_b: float
    between: float
    change: float
    difference: float
    p: float

    def verdict(self, alpha: float = 0.05) -> str:
        """Noise and change in a sentence."""
        noise = 100 * (self.within_a + self.within_b) / 2
        found = f"{100 * self.between:.2g} % between the variants, {noise:.2g} % within one, p {self.p:.2g}"
        if self.p < alpha:
            return f"the change moves answers beyond the run-to-run noise: {found}"
        return f"no more than the run-to-run noise is seen: {found}"


def decompose(a_runs: Sequence[Sequence[bool]], b_runs: Sequence[Sequence[bool]]) -> Decomposition:
    """Take the disagreement of variants A and B apart, from two runs of each on the same questions.

    The test looks at questions that exactly two of the four runs got right. If the variants do not differ, the four are
    exchangeable, and the two right ones belong to the same variant in 2 of 6 cases: a binomial count.

    Args:
        a_runs, b_runs: two runs each, whether each question was answered right, [2][N].

    Raises:
        BadInput: not two runs each, or as noise_floor.
    """
    for name, runs in (("a_runs", a_runs), ("b_runs", b_runs)):
        if len(runs) != 2:
            raise bad(name, f"{len(runs)} runs", "two runs of the variant")
    a1, a2, b1, b2 = _runs(a_1=a_runs[0], a_2=a_runs[1], b_1=b_runs[0], b_2=b_runs[1])
    n = len(a1)
    within_a, within_b = float((a1 != a2).mean()), float((b1 != b2).mean())
    between = float(np.mean([a != b for a in (a1, a2) for b in (b1, b2)]))
    right_a, right_b = a1.astype(int) + a2, b1.astype(int) + b2
    split = right_a + right_b == 2
    apart = int((split & (right_a != 1)).sum())
    p = float(stats.binomtest(apart, int(split.sum()), 1 / 3, "greater").pvalue) if split.any() else 1.0
    change = between - (within_a + within_b) / 2
    return Decomposition(n, within_a, within_b, between, change, float((right_b - right_a).mean() / 2), p)


def _runs(**runs: Sequence[bool]) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for name, run in runs.items():
        values = np.asarray(run)
        if values.ndim != 1 or not len(values):
            raise bad(name, f"shape {values.shape}", "one result for each question")
        if found and len(values) != len(found[0]):
            raise bad(name, f"{len(values)} results", f"as many as the other run has questions, {len(found[0])}")
        if not np.isin(values, (0, 1)).all():
            raise bad(name, values[~np.isin(values, (0, 1))].tolist()[0], "true or false for every question")
        found.append(values.astype(bool))
    return found

"""Intervals of accuracies and of their differences. All are fractions of questions, not percent."""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

from scipy import stats

from g4lab.errors import bad


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval at `level`."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{100 * self.estimate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def points(self) -> str:
        """A difference in percentage points, signed: "-2.0 points [-4.1, +0.1]"."""
        estimate, low, high = (f"{100 * x:+.2g}" if abs(x) < 0.0995 else f"{100 * x:+.0f}" for x in self[:3])
        return f"{estimate} points [{low}, {high}]"


def count(name: str, value: int, low: int = 0, high: int | None = None) -> int:
    """`value` as an int. Raises BadInput where it is no whole number from `low` to `high`."""
    expected = f"a whole number from {low} to {high}" if high is not None else f"a whole number, at least {low}"
    try:
        whole = operator.index(value)
    except TypeError:
        raise bad(name, value, expected) from None
    if isinstance(value, bool) or whole < low or (high is not None and whole > high):
        raise bad(name, value, expected)
    return whole


def share(name: str, value: float) -> float:
    """`value` as a float. Raises BadInput where it does not lie strictly between 0 and 1."""
    if not 0 < value < 1:
        raise bad(name, value, "a fraction between 0 and 1")
    return float(value)


def normal_quantile(level: float) -> float:
    """Half width, in standard errors, of a two-sided interval at `level`."""
    return float(stats.norm.ppf(0.5 + share("level", level) / 2))


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of an accuracy: `correct` of `n` questions.

    Raises:
        BadInput: n < 1, correct outside 0 to n, or level outside (0, 1).
    """
    n = count("n", n, 1)
    correct = count("correct", correct, 0, n)
    found = stats.binomtest(correct, n).proportion_ci(share("level", level), method="wilson")
    return Interval(correct / n, float(found.low), float(found.high), level)


def paired_difference(only_a: int, only_b: int, n: int, level: float = 0.95) -> Interval:
    """Accuracy of B minus accuracy of A on the same `n` questions, by Agresti and Min's adjusted Wald interval.

    Half a question is added to each of the four cells (both right, only A, only B, neither), so that the interval has a
    width even where no answer differs (Agresti and Min, Statistics in Medicine 24:729, 2005). The estimate is the plain
    difference. It needs no more than the discordant counts.

    Raises:
        BadInput: a negative count, or more discordant questions than n.
    """
    only_a, only_b, n = _discordant(only_a, only_b, n)
    c, b, total = only_a + 0.5, only_b + 0.5, n + 2
    middle = (b - c) / total
    half = normal_quantile(level) * math.sqrt((b + c) / total - middle**2) / math.sqrt(total)
    return Interval((only_b - only_a) / n, max(middle - half, -1.0), min(middle + half, 1.0), level)


def unpaired_difference(
    correct_a: int, correct_b: int, n_a: int, n_b: int | None = None, level: float = 0.95
) -> Interval:
    """Accuracy of B minus accuracy of A on independent questions, by Newcombe's hybrid of two Wilson intervals.

    Statistics in Medicine 17:873, 1998, method 10. n_b: default n_a. For two runs of the *same* questions whose pairs
    were not published it stands in for the paired interval, and is the wider of the two wherever right answers go
    together.

    Raises:
        BadInput: as wilson.
    """
    a, b = wilson(correct_a, n_a, level), wilson(correct_b, n_a if n_b is None else n_b, level)
    low = math.hypot(b.estimate - b.low, a.high - a.estimate)
    high = math.hypot(b.high - b.estimate, a.estimate - a.low)
    difference = b.estimate - a.estimate
    return Interval(difference, difference - low, difference + high, level)


def _discordant(only_a: int, only_b: int, n: int) -> tuple[int, int, int]:
    n = count("n", n, 1)
    only_a = count("only_a", only_a, 0, n)
    return only_a, count("only_b", only_b, 0, n - only_a), n

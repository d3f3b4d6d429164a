"""Two variants on the same questions. Only questions that one gets right and the other wrong say which is better.

McNemar's test asks whether such discordant questions fall to either side alike. Equal accuracy is another claim, and
needs a margin: `Paired.not_worse` tests it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from scipy import stats

from g4lab.errors import bad
from g4lab.quality.intervals import Interval, count, paired_difference, wilson
from g4lab.quality.power import detectable_paired

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05


class McNemar(NamedTuple):
    """chi2 with Edwards' continuity correction (one degree of freedom), its p, and the exact two-sided binomial p."""

    only_a: int
    only_b: int
    chi2: float
    p: float
    exact_p: float


def mcnemar(only_a: int, only_b: int) -> McNemar:
    """McNemar's test of two variants on the same questions.

    The correction never makes chi2 of equal counts more than 0, and without discordant questions both p are 1.

    Args:
        only_a: questions that only A answers right. only_b: that only B does.

    Raises:
        BadInput: a negative count or no whole number.
    """
    only_a, only_b = count("only_a", only_a), count("only_b", only_b)
    discordant = only_a + only_b
    if not discordant:
        return McNemar(0, 0, 0.0, 1.0, 1.0)
    chi2 = max(abs(only_a - only_b) - 1, 0) ** 2 / discordant
    return McNemar(only_a, only_b, chi2, float(stats.chi2.sf(chi2, 1)), sign_test(only_a, only_b))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of a sign test: a fair coin's chance of a split at least as uneven; ties are left out before."""
    wins, losses = count("wins", wins), count("losses", losses)
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


class NotWorse(NamedTuple):
    """Is B's accuracy less than `margin` (a fraction) below A's? `not_worse`: the one-sided test at `alpha` says so;
    `equivalent`: it lies less than `margin` on either side (two one-sided tests, TOST). interval: at 1 - 2 alpha."""

    margin: float
    alpha: float
    interval: Interval
    not_worse: bool
    equivalent: bool

    def __str__(self) -> str:
        found = "shown" if self.not_worse else "not shown"
        return f"{found} to be less than {100 * self.margin:g} points worse (one-sided alpha {self.alpha:g})"


@dataclass(frozen=True)
class Paired:
    """Two variants' right answers to the same n questions. subjects: a row each: subject, n, correct_a, correct_b,
    difference (B - A, a fraction), result ("win", "loss" or "tie" of B)."""

    n: int
    both: int
    only_a: int
    only_b: int
    subjects: pd.DataFrame
    name_a: str = "A"
    name_b: str = "B"
    level: float = 1 - ALPHA

    @cached_property
    def accuracy_a(self) -> Interval:
        return wilson(self.both + self.only_a, self.n, self.level)

    @cached_property
    def accuracy_b(self) -> Interval:
        return wilson(self.both + self.only_b, self.n, self.level)

    @cached_property
    def difference(self) -> Interval:
        """B - A."""
        return paired_difference(self.only_a, self.only_b, self.n, self.level)

    @cached_property
    def mcnemar(self) -> McNemar:
        return mcnemar(self.only_a, self.only_b)

    @property
    def discordance(self) -> float:
        """Share of the questions that exactly one of the two answers right."""
        return (self.only_a + self.only_b) / self.n

    def subject_results(self) -> dict[str, int]:
        """How many subjects B wins, loses and ties."""
        return {result: int((self.subjects["result"] == result).sum()) for result in ("win", "loss", "tie")}

    @cached_property
    def subjects_p(self) -> float:
        """Sign test over subjects: each counts alike, however many questions it has."""
        found = self.subject_results()
        return sign_test(found["win"], found["loss"])

    def not_worse(self, margin: float, alpha: float = ALPHA) -> NotWorse:
        """Test that B is less than `margin` (a fraction) worse than A."""
        return not_worse(self.only_a, self.only_b, self.n, margin, alpha)

    def verdict(self, margin: float | None = None) -> str:
        """What these questions allow to say, in a sentence; with a margin, whether B is not worse by that much."""
        a, b, test = self.name_a, self.name_b, self.mcnemar
        found = f"{self.difference.points()}, McNemar exact p {test.exact_p:.2g}, {self.n:,} questions"
        if test.exact_p < 1 - self.level:
            said = f"{b} is {'better' if self.only_b > self.only_a else 'worse'} than {a}: {found}"
        else:
            said = f"{b} cannot be told from {a}: {found}; {self._blind()}"
        return said if margin is None else f"{said}; {self.not_worse(margin)}"

    def _blind(self) -> str:
        if not self.discordance:
            return "no answer differs"
        least = detectable_paired(self.n, self.discordance, 1 - self.level)
        if least > self.discordance:
            return "no difference would have been found with 80 % power at this discordance"
        return f"found with 80 % power: {100 * least:.2g} points or more"


def not_worse(only_a: int, only_b: int, n: int, margin: float, alpha: float = ALPHA) -> NotWorse:
    """Non-inferiority and equivalence of B on the same n questions, by the Agresti-Min interval at 1 - 2 alpha.

    Raises:
        BadInput: margin is no fraction between 0 and 1, alpha is not between 0 and 0.5, or a count is impossible.
    """
    if not 0 < margin < 1:
        raise bad("margin", margin, "a fraction of the questions between 0 and 1 (one point is 0.01)")
    if not 0 < alpha < 0.5:
        raise bad("alpha", alpha, "between 0 and 0.5")
    interval = paired_difference(only_a, only_b, n, 1 - 2 * alpha)
    above = interval.low > -margin
    return NotWorse(margin, alpha, interval, above, above and interval.high < margin)


def compare(frame: pd.DataFrame, name_a: str = "A", name_b: str = "B", level: float = 1 - ALPHA) -> Paired:
    """Compare two variants' per-question results.

    Args:
        frame: a row each question, with columns question (id), subject, correct_a, correct_b (true or false).

    Raises:
        BadInput: a column is missing, there is no row, a question stands twice, or a result is neither true nor false
            (one that a variant never answered must be counted as wrong, or left out for both).
    """
    for name in ("question", "subject", "correct_a", "correct_b"):
        if name not in frame.columns:
            raise bad("frame", list(frame.columns), f"a column {name!r}")
    if frame.empty:
        raise bad("frame", "no rows", "a row for each question")
    if frame["question"].duplicated().any():
        raise bad("question", frame["question"][frame["question"].duplicated()].tolist()[0], "every question once")
    for name in ("correct_a", "correct_b"):
        odd = ~frame[name].isin([True, False])
        if odd.any():
            raise bad(name, frame[name][odd].tolist()[0], "true or false for every question")
    results = frame.astype({"correct_a": bool, "correct_b": bool})
    a, b = results["correct_a"], results["correct_b"]
    counts = {"both": int((a & b).sum()), "only_a": int((a & ~b).sum()), "only_b": int((b & ~a).sum())}
    return Paired(len(frame), subjects=_by_subject(results), name_a=name_a, name_b=name_b, level=level, **counts)


def _by_subject(results: pd.DataFrame) -> pd.DataFrame:
    groups = results.groupby("subject", sort=True)
    found = groups[["correct_a", "correct_b"]].sum()
    found.insert(0, "n", groups.size())
    net = found["correct_b"] - found["correct_a"]
    found["difference"] = net / found["n"]
    found["result"] = net.map(lambda x: "win" if x > 0 else "loss" if x < 0 else "tie")
    return found.reset_index()

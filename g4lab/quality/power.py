"""How many questions a claim needs, and what a number of questions can show. All rates are fractions."""

from __future__ import annotations

import math

from scipy import optimize, stats

from g4lab.errors import bad
from g4lab.quality.intervals import count, normal_quantile, share

POWER = 0.8


def power_paired(n: int, difference: float, discordance: float, alpha: float = 0.05) -> float:
    """Chance that McNemar's test finds a true `difference` on n questions of which `discordance` fall to either side.

    Connor, Biometrics 43:207, 1987, of the test without correction: the corrected and exact ones find a little less.

    Raises:
        BadInput: discordance outside (0, 1], or less than the difference (it cannot be: net of the two sides).
    """
    n, difference = count("n", n, 1), abs(difference)
    _check(difference, discordance)
    spread = math.sqrt(discordance - difference**2)
    reach = normal_quantile(1 - alpha) * math.sqrt(discordance)
    if not spread:  # every question is discordant, and all to one side
        return float(math.sqrt(n) * difference > reach)
    sides = ((sign * math.sqrt(n) * difference - reach) / spread for sign in (1, -1))
    return float(sum(stats.norm.cdf(side) for side in sides))


def questions_paired(difference: float, discordance: float, alpha: float = 0.05, power: float = POWER) -> int:
    """Questions that find a true `difference` with `power`, both variants answering each (Connor 1987).

    Raises:
        BadInput: a difference of 0, or as power_paired.
    """
    difference = abs(difference)
    _check(difference, discordance)
    if not difference:
        raise bad("difference", difference, "not 0 (no number of questions finds it; choose a margin instead)")
    z = normal_quantile(1 - alpha) * math.sqrt(discordance)
    z += stats.norm.ppf(share("power", power)) * math.sqrt(discordance - difference**2)
    return math.ceil((z / difference) ** 2)


def detectable_paired(n: int, discordance: float, alpha: float = 0.05, power: float = POWER) -> float:
    """The least true difference that n questions find with `power`; infinite where not even all discordant questions
    on one side would be found."""
    n = count("n", n, 1)
    _check(0.0, discordance)
    reach = normal_quantile(1 - alpha) * math.sqrt(discordance)
    z = stats.norm.ppf(share("power", power))

    def excess(difference: float) -> float:
        return math.sqrt(n) * difference - reach - z * math.sqrt(max(discordance - difference**2, 0.0))

    return float(optimize.brentq(excess, 0.0, discordance)) if excess(discordance) >= 0 else math.inf


def questions_unpaired(accuracy_a: float, accuracy_b: float, alpha: float = 0.05, power: float = POWER) -> int:
    """Questions for each variant, drawn independently, that find the difference of these two accuracies.

    Two proportions, pooled variance under no difference (Fleiss, Levin and Paik, Statistical Methods for Rates and
    Proportions, 2003, chapter 4), without continuity correction.

    Raises:
        BadInput: an accuracy outside (0, 1), or equal ones.
    """
    a, b = share("accuracy_a", accuracy_a), share("accuracy_b", accuracy_b)
    if a == b:
        raise bad("accuracy_b", accuracy_b, "another one than accuracy_a (no number of questions tells equals apart)")
    mean = (a + b) / 2
    z = normal_quantile(1 - alpha) * math.sqrt(2 * mean * (1 - mean))
    z += stats.norm.ppf(share("power", power)) * math.sqrt(a * (1 - a) + b * (1 - b))
    return math.ceil((z / (a - b)) ** 2)


def questions_not_worse(margin: float, discordance: float, alpha: float = 0.05, power: float = POWER) -> int:
    """Questions that show "less than `margin` worse" (one-sided) with `power` where the truth is no difference.

    Raises:
        BadInput: margin or discordance outside (0, 1).
    """
    z = stats.norm.ppf(1 - share("alpha", alpha)) + stats.norm.ppf(share("power", power))
    _check(0.0, discordance)
    return math.ceil(discordance * (z / share("margin", margin)) ** 2)


def _check(difference: float, discordance: float) -> None:
    if not 0 < discordance <= 1:
        raise bad("discordance", discordance, "a fraction above 0, at most 1")
    if difference > discordance:
        raise bad("difference", difference, f"at most the discordance, {discordance:g}")

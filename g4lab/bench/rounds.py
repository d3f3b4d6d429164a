"""Statistics of measurements made in rounds: intervals whose unit is the round, and how many rounds would settle one.

What lies within a round shares its prompts, its server processes and its minute, so thousands of requests of three
rounds are three observations, not thousands. A bootstrap that draws requests would give intervals far too narrow.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from g4lab.bench.stats import Ratio
from g4lab.errors import bad

POWER = 0.8  # of the what-ifs: how often the verdict should be reached
MOST_ROUNDS = 1000
_REPEATS = 4000


def round_ratios(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Ratio]:
    """statistic(b) / statistic(a) with intervals from a bootstrap over rounds (cluster bootstrap, rounds drawn whole).

    The bootstrap gives the standard error of the ratio's logarithm. The interval is that error times Student's t of one
    less than the rounds, and times sqrt(n / (n - 1)): percentiles of a bootstrap over three rounds would cover the
    truth in 3 of 4 cases at the best (the truth outside all three values), not in 19 of 20. One round gives no
    interval: from 0 to infinity.

    Args:
        a, b: each round's values of one side, positive and finite; both sides of a round are drawn together.
        statistic: of the pooled values of any rounds, to one or more positive numbers.

    Raises:
        BadInput: no round, another number of rounds in b, a round without values, or a value that is not positive.
    """
    if len(a) == 0 or len(a) != len(b):
        raise bad("b", f"{len(b)} rounds", f"as many rounds as a, which has {len(a)}, and at least one")
    a, b = _checked("a", a), _checked("b", b)
    count = len(a)

    def logs(rounds: np.ndarray) -> np.ndarray:
        after, before = (np.atleast_1d(statistic(np.concatenate([side[i] for i in rounds]))) for side in (b, a))
        return np.log(after) - np.log(before)

    centre, half = logs(np.arange(count)), np.inf
    if count > 1:
        draws = np.sort(np.random.default_rng(seed).integers(count, size=(resamples, count)), axis=1)
        distinct, times = np.unique(draws, axis=0, return_counts=True)  # ten of a thousand where there are three rounds
        drawn = np.array([logs(rounds) for rounds in distinct])
        mean = np.average(drawn, axis=0, weights=times)
        error = np.sqrt(np.average((drawn - mean) ** 2, axis=0, weights=times))
        half = stats.t.ppf((1 + level) / 2, count - 1) * error * np.sqrt(count / (count - 1))
    low, high = np.exp(centre - half), np.exp(centre + half)
    ends = zip(np.exp(centre), np.broadcast_to(low, centre.shape), np.broadcast_to(high, centre.shape), strict=True)
    return [Ratio(*map(float, three), level) for three in ends]


def spread(ratio: Ratio, rounds: int) -> float:
    """Standard deviation, from round to round, of the logarithm of a ratio that `round_ratios` found."""
    return float(np.log(ratio.high / ratio.ratio) * np.sqrt(rounds) / stats.t.ppf((1 + ratio.level) / 2, rounds - 1))


def settled_share(rounds: int, effect: float, of_rounds: float, of_noise: float, level: float = 0.95) -> float:
    """Share of simulated experiments in which Ratio.beyond holds: the interval excludes 1 and lies outside the A/A one.

    Assumed: the logarithm of a round's ratio is normal around log(effect) with the standard deviation `of_rounds`, that
    of A/A around 0 with `of_noise`, and all are independent.
    """
    if rounds < 2:
        return 0.0
    random = np.random.default_rng(rounds)
    width = stats.t.ppf((1 + level) / 2, rounds - 1) / np.sqrt(rounds)

    def ends(centre: float, deviation: float) -> tuple[np.ndarray, np.ndarray]:
        mean = centre + deviation / np.sqrt(rounds) * random.standard_normal(_REPEATS)
        half = width * deviation * np.sqrt(random.chisquare(rounds - 1, _REPEATS) / (rounds - 1))
        return mean - half, mean + half

    (low, high), (noise_low, noise_high) = ends(np.log(effect), of_rounds), ends(0.0, of_noise)
    return float(np.mean((high < np.minimum(0, noise_low)) | (low > np.maximum(0, noise_high))))


def rounds_to_settle(effect: float, of_rounds: float, of_noise: float, *, at_least: int = 3) -> int | None:
    """The fewest rounds whose settled_share reaches POWER; None where MOST_ROUNDS do not (or there is no effect)."""
    return _first(lambda rounds: settled_share(rounds, effect, of_rounds, of_noise) >= POWER, at_least)


def smallest_effect(rounds: int, of_rounds: float, of_noise: float) -> float | None:
    """The smallest ratio above 1 that `rounds` rounds settle with POWER; None where not even a hundredfold is."""
    low, high = 0.0, np.log(100.0)
    if settled_share(rounds, np.exp(high), of_rounds, of_noise) < POWER:
        return None
    for _ in range(24):
        middle = (low + high) / 2
        enough = settled_share(rounds, np.exp(middle), of_rounds, of_noise) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return float(np.exp(high))


def _first(holds: Callable[[int], bool], low: int) -> int | None:
    """The smallest number from `low` to MOST_ROUNDS for which `holds`, which then holds for all larger ones."""
    if not holds(MOST_ROUNDS):
        return None
    high = MOST_ROUNDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _checked(name: str, rounds: Sequence[np.ndarray]) -> list[np.ndarray]:
    made = [np.asarray(values, dtype=float).ravel() for values in rounds]
    for values in made:
        if not values.size or not (np.isfinite(values).all() and (values > 0).all()):
            raise bad(name, values.tolist()[:4] or "a round without values", "positive, finite numbers in every round")
    return made

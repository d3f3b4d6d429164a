"""Intervals over rounds: that they cover what they promise, and that the what-if says what then happens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from g4lab.bench.rounds import (
    MOST_ROUNDS,
    POWER,
    round_ratios,
    rounds_to_settle,
    settled_share,
    smallest_effect,
    spread,
)
from g4lab.errors import BadInput

NOISE = 0.02  # of a visit


def geometric_mean(values):
    return np.exp(np.log(values).mean())


def experiment(random, rounds, effect=1.0, noise=NOISE):
    """The B/A and A/A ratios of `rounds` rounds of A B B A; a round shifts all of its visits."""
    shift = random.normal(0, 0.2, (rounds, 1))
    visits = np.exp(random.normal(0, noise, (rounds, 4)) + shift) * np.array([1, effect, effect, 1])
    (ratio,) = round_ratios(visits[:, [0, 3]], visits[:, [1, 2]], geometric_mean, resamples=300)
    (aa,) = round_ratios(visits[:, :1], visits[:, 3:], geometric_mean, resamples=300)
    return ratio, aa


def test_the_interval_covers_and_the_verdict_keeps_its_promise():
    """300 experiments: 285 intervals should cover 1, with binomial noise of 4; a verdict of an effect that is not there
    may come once in 20; and one ten times the noise of a visit is found, in its direction."""
    random = np.random.default_rng(0)
    made = [experiment(random, 3) for _ in range(300)]
    covered = sum(ratio.low <= 1 <= ratio.high for ratio, _ in made)
    assert stats.binom.ppf(0.001, 300, 0.95) <= covered <= stats.binom.ppf(0.999, 300, 0.95)
    assert sum(ratio.beyond(aa) for ratio, aa in made) <= 15
    found = [experiment(random, 3, effect=np.exp(10 * NOISE)) for _ in range(100)]
    assert all(ratio.ratio > 1 for ratio, _ in found)
    assert sum(ratio.beyond(aa) for ratio, aa in found) >= 80


def test_the_interval_is_students_where_the_statistic_is_a_mean_of_rounds():
    logs = np.log(np.array([1.01, 1.04, 0.99, 1.02]))
    ones, many = np.ones((4, 1)), np.exp(logs)[:, None]
    (ratio,) = round_ratios(ones, many, geometric_mean, resamples=20000)
    half = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    assert np.log(ratio.high / ratio.ratio) == pytest.approx(half, rel=0.02)  # 20,000 draws: an error of 0.5 %
    assert spread(ratio, 4) == pytest.approx(logs.std(ddof=1), rel=0.02)


def test_requests_of_a_round_are_not_independent():
    """A thousand requests in each of three rounds that differ: as wide as three values, not as three thousand."""
    random = np.random.default_rng(1)
    a = [random.lognormal(0, 0.1, 1000) for _ in range(3)]
    b = [random.lognormal(shift, 0.1, 1000) for shift in (-0.2, 0.0, 0.2)]
    (ratio,) = round_ratios(a, b, lambda values: np.percentile(values, [50]))
    assert ratio.low < np.exp(-0.2) < np.exp(0.2) < ratio.high


def test_one_round_has_no_interval_and_bad_input():
    (ratio,) = round_ratios([[1.0]], [[2.0]], geometric_mean)
    assert (ratio.ratio, ratio.low, ratio.high) == (2, 0, np.inf)
    for a, b, reason in (
        ([], [], "b: got '0 rounds'"),
        ([[1.0]], [[1.0], [1.0]], "b: got '2 rounds', expected as many rounds as a, which has 1"),
        ([[1.0]], [[]], "b: got 'a round without values'"),
        ([[0.0]], [[1.0]], r"a: got \[0.0\]"),
        ([[np.nan]], [[1.0]], r"a: got \[nan\]"),
    ):
        with pytest.raises(BadInput, match=reason):
            round_ratios(a, b, geometric_mean)


def test_the_what_if_comes_true():
    """An effect that needs n rounds is found with about POWER in n simulated rounds of A B B A, and not in half."""
    effect, of_rounds, of_noise = 1.04, NOISE, NOISE * np.sqrt(2)  # two visits a side; one against one
    needed = rounds_to_settle(effect, of_rounds, of_noise)
    random = np.random.default_rng(2)

    def share(rounds):
        return np.mean([ratio.beyond(aa) for ratio, aa in (experiment(random, rounds, effect) for _ in range(60))])

    assert POWER - 0.2 <= share(needed) <= 1.0  # 60 experiments: a standard error of 0.05
    assert share(max(needed // 2, 2)) < POWER
    assert smallest_effect(needed, of_rounds, of_noise) <= effect
    assert smallest_effect(needed - 1, of_rounds, of_noise) > effect


@settings(max_examples=15, deadline=None)
@given(st.floats(0.005, 0.3), st.floats(0.005, 0.3), st.floats(1.01, 2.0))
def test_the_what_if_is_monotone_and_has_no_direction(of_rounds, of_noise, effect):
    share = settled_share(6, effect, of_rounds, of_noise)
    assert settled_share(6, effect**2, of_rounds, of_noise) >= share
    assert settled_share(6, 1 / effect, of_rounds, of_noise) == pytest.approx(share, abs=0.06)  # 4000 experiments each
    needed = rounds_to_settle(effect, of_rounds, of_noise)
    if needed and needed < MOST_ROUNDS:
        again = rounds_to_settle(effect, of_rounds / 2, of_noise / 2)
        assert again <= needed
        assert smallest_effect(needed, of_rounds, of_noise) <= effect * 1.001


def test_what_no_number_of_rounds_settles():
    assert rounds_to_settle(1.0, 0.01, 0.01) is None
    assert smallest_effect(2, 5.0, 5.0) is None
    assert settled_share(1, 2.0, 0.01, 0.01) == 0
    assert rounds_to_settle(1.5, 0.0, 0.0) == 3

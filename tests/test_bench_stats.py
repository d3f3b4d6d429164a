"""Intervals that mean something: they hold the truth as often as they say, and noise is told from gain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab.bench.stats import Ratio, median_ratio, quantiles
from g4lab.errors import BadInput


def test_quantiles():
    assert quantiles(range(1, 102)) == {"p20": 21.0, "p50": 51.0, "p80": 81.0, "n": 101}


def test_ratio_of_known_medians():
    found = median_ratio([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    assert (found.ratio, found.low, found.high) == (2.0, 2.0, 2.0)


def test_same_seed_same_interval():
    sample = np.random.default_rng(0).lognormal(size=50)
    assert median_ratio(sample, sample[::-1], seed=3) == median_ratio(sample, sample[::-1], seed=3)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """200 experiments with a true ratio of 1.2. At 95 % the misses are binomial: mean 10, standard deviation 3.1."""
    random = np.random.default_rng(1)
    misses = 0
    for i in range(200):
        found = median_ratio(1.2 * random.lognormal(0, 0.1, 60), random.lognormal(0, 0.1, 60), resamples=400, seed=i)
        misses += not found.low <= 1.2 <= found.high
    assert misses <= 10 + 4 * 3.1


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=30), st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_scaling_one_side_scales_the_ratio(values, factor):
    plain, scaled = (
        median_ratio(values, values, resamples=50),
        median_ratio(np.multiply(values, factor), values, resamples=50),
    )
    assert plain.ratio == 1
    assert plain.low <= 1 <= plain.high
    assert np.allclose(
        [scaled.ratio, scaled.low, scaled.high], np.multiply([plain.ratio, plain.low, plain.high], factor)
    )


@pytest.mark.parametrize(
    ("gain", "noise", "beyond"),
    [
        ((1.2, 1.1, 1.3), (0.98, 1.02), True),
        ((1.2, 0.9, 1.3), (0.98, 1.02), False),
        ((0.8, 0.7, 0.9), (0.98, 1.02), True),
        ((1.05, 1.02, 1.08), (0.95, 1.06), False),
        ((1.01, 1.005, 1.02), (1.0, 1.0), True),
    ],
)
def test_a_gain_must_leave_the_noise_behind(gain, noise, beyond):
    assert Ratio(*gain, 0.95).beyond(Ratio(1.0, *noise, 0.95)) is beyond


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0], [float("nan")], [float("inf")]])
def test_samples_that_are_none(bad):
    with pytest.raises(BadInput, match=r"a: got .* expected a non-empty sample of positive, finite numbers"):
        median_ratio(bad, [1.0])


def test_level_out_of_range():
    with pytest.raises(BadInput, match=r"level: got 1\.5"):
        median_ratio([1.0], [1.0], level=1.5)

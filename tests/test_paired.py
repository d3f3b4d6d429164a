"""Paired statistics: against statsmodels, worked examples of the literature, exact enumeration and simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import contingency_tables, proportion

from g4lab.errors import BadInput
from g4lab.quality import compare, decompose, mcnemar, noise_floor
from g4lab.quality.intervals import paired_difference, unpaired_difference, wilson
from g4lab.quality.paired import not_worse, sign_test
from g4lab.quality.power import (
    detectable_paired,
    power_paired,
    questions_not_worse,
    questions_paired,
    questions_unpaired,
)

counts = st.integers(0, 400)


@given(counts, counts)
def test_mcnemar_is_statsmodels(only_a, only_b):
    found = mcnemar(only_a, only_b)
    table = [[7, only_a], [only_b, 9]]
    if only_a + only_b:
        exact = contingency_tables.mcnemar(table, exact=True).pvalue
        assert found.exact_p == pytest.approx(min(exact, 1.0), rel=1e-9)
    if only_a != only_b:  # for equal counts statsmodels corrects beyond zero, to 1 / n
        theirs = contingency_tables.mcnemar(table, exact=False, correction=True)
        assert (found.chi2, found.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
    assert found[2:] == mcnemar(only_b, only_a)[2:]


def test_mcnemar_of_a_worked_example_and_its_edges():
    # Armitage and Berry: two culture media, 12 and 2 discordant specimens
    found = mcnemar(12, 2)
    assert found.chi2 == pytest.approx(5.785714, abs=1e-6)
    assert round(found.p, 4) == 0.0162
    assert round(found.exact_p, 4) == 0.0129
    assert mcnemar(0, 0)[2:] == (0.0, 1.0, 1.0)
    assert mcnemar(5, 5)[2:] == (0.0, 1.0, 1.0)
    assert mcnemar(1, 0).exact_p == 1.0


@pytest.mark.parametrize("wrong", [-1, 2.5, float("nan"), "3", True, None])
def test_counts_are_checked(wrong):
    with pytest.raises(BadInput, match=r"only_b: got .*, expected a whole number"):
        mcnemar(3, wrong)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_intervals_of_proportions_are_statsmodels(case):
    a, b, n = case
    ours = wilson(a, n)
    assert (ours.low, ours.high) == pytest.approx(proportion.proportion_confint(a, n, method="wilson"), abs=1e-12)
    ours = unpaired_difference(a, b, n)
    theirs = proportion.confint_proportions_2indep(b, n, a, n, compare="diff", method="newcomb")
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-9)
    assert ours.low <= ours.estimate <= ours.high


@pytest.mark.parametrize(("p_a", "p_b"), [(0.05, 0.05), (0.1, 0.05), (0.02, 0.01), (0.2, 0.3)])
@pytest.mark.parametrize("n", [50, 100])
def test_the_paired_interval_covers_the_truth(p_a, p_b, n):
    """Summed over every outcome, no luck: Agresti and Min report coverage within about two points of 95 %."""
    covered = 0.0
    for only_a in range(n + 1):
        chance_a = stats.binom.pmf(only_a, n, p_a)
        if chance_a < 1e-9:
            continue
        only_b = np.arange(n - only_a + 1)
        chance = chance_a * stats.binom.pmf(only_b, n - only_a, p_b / (1 - p_a))
        for b, c in zip(only_b[chance > 1e-9], chance[chance > 1e-9], strict=True):
            low, high = paired_difference(only_a, int(b), n)[1:3]
            covered += c * (low <= p_b - p_a <= high)
    assert 0.93 <= covered <= 1.0


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n // 2), st.integers(0, n // 2), st.just(n))))
def test_the_paired_interval_is_mirrored_and_has_a_width(case):
    only_a, only_b, n = case
    found, mirror = paired_difference(only_a, only_b, n), paired_difference(only_b, only_a, n)
    assert found.low == pytest.approx(-mirror.high)
    assert -1 <= found.low < found.high <= 1
    assert found.estimate == (only_b - only_a) / n


def frame(rows):
    return pd.DataFrame(rows, columns=["question", "subject", "correct_a", "correct_b"])


@pytest.fixture
def answers():
    """Subject x: one lost; y: one lost and one won; z: two won; all other answers alike."""
    return frame([(1, "x", 1, 0), (2, "x", 1, 1), (3, "y", 1, 0), (4, "y", 0, 1), (5, "z", 0, 1), (6, "z", 0, 1),
                  (7, "z", 0, 0)])  # fmt: skip


def test_compare(answers):
    found = compare(answers, "eager", "fused")
    assert (found.n, found.both, found.only_a, found.only_b) == (7, 1, 2, 3)
    assert (found.accuracy_a.estimate, found.accuracy_b.estimate) == (3 / 7, 4 / 7)
    assert found.mcnemar == mcnemar(2, 3)
    assert found.subjects[["subject", "n", "result"]].to_numpy().tolist() == [
        ["x", 2, "loss"], ["y", 2, "tie"], ["z", 3, "win"]]  # fmt: skip
    assert found.subject_results() == {"win": 1, "loss": 1, "tie": 1}
    assert found.subjects_p == 1.0
    assert "fused cannot be told from eager: +14 points" in found.verdict()
    assert "not shown to be less than 1 points worse" in found.verdict(margin=0.01)


def test_the_verdict_follows_the_test():
    def verdict(only_a, only_b, same):
        rows = [(1, 0)] * only_a + [(0, 1)] * only_b + [(1, 1)] * same
        return compare(frame([(i, "s", *row) for i, row in enumerate(rows)])).verdict(margin=0.05)

    assert verdict(20, 4, 976).startswith("B is worse than A: -1.6 points")
    assert verdict(4, 20, 976).startswith("B is better than A")
    assert verdict(3, 3, 994).endswith("; shown to be less than 5 points worse (one-sided alpha 0.05)")
    assert "no answer differs" in verdict(0, 0, 1)
    assert "no difference would have been found" in verdict(1, 1, 8)
    # the detectable difference it quotes is the one of power.py
    assert f"{100 * detectable_paired(1000, 0.04):.2g} points or more" in verdict(20, 20, 960)


def test_bad_frames(answers):
    for column in answers.columns:
        with pytest.raises(BadInput, match=f"a column '{column}'"):
            compare(answers.drop(columns=column))
    with pytest.raises(BadInput, match="a row for each question"):
        compare(answers.iloc[:0])
    with pytest.raises(BadInput, match="every question once"):
        compare(pd.concat([answers, answers]))
    with pytest.raises(BadInput, match="correct_b: got nan, expected true or false"):
        compare(answers.assign(correct_b=[1.0, np.nan, 0, 0, 1, 1, 1]))


def test_not_worse_is_not_the_same_as_not_different():
    few, many = not_worse(2, 2, 100, 0.01), not_worse(200, 200, 10_000, 0.01)
    assert mcnemar(2, 2).exact_p == mcnemar(200, 200).exact_p == 1
    assert not few.not_worse
    assert many.not_worse
    assert many.equivalent
    gain = not_worse(0, 300, 10_000, 0.01)
    assert gain.not_worse
    assert not gain.equivalent
    for margin in (0, 1, -0.1, 5):
        with pytest.raises(BadInput, match="margin"):
            not_worse(2, 2, 100, margin)


def test_not_worse_errs_as_seldom_as_it_says():
    """Truth: B worse by exactly the margin. 4,000 evaluations, claims at alpha 5 %: binomial, deviation 13.8."""
    draws = np.random.default_rng(0).multinomial(1000, [0.05, 0.03, 0.92], 4000)
    claims = sum(not_worse(int(a), int(b), 1000, 0.02).not_worse for a, b, _ in draws)
    assert abs(claims - 200) < 4 * 13.8


@pytest.mark.parametrize(("difference", "discordance"), [(0.03, 0.1), (0.05, 0.15), (0.01, 0.04)])
def test_the_sample_size_has_the_power_it_promises(difference, discordance):
    """20,000 simulated evaluations; deviation 0.0028. The normal approximation is worth a point beside that, where
    there are 50 discordant questions or more."""
    n = questions_paired(difference, discordance)
    cells = [(discordance - difference) / 2, (discordance + difference) / 2, 1 - discordance]
    a, b, _ = np.random.default_rng(1).multinomial(n, cells, 20_000).T
    found = ((b - a) ** 2 / np.maximum(a + b, 1) > stats.chi2.isf(0.05, 1)).mean()
    assert found == pytest.approx(0.8, abs=0.01 + 4 * 0.0028)
    assert power_paired(n, difference, discordance) == pytest.approx(0.8, abs=0.005)


def test_sample_sizes_of_worked_examples():
    assert questions_paired(0.4, 0.5) == 23  # Connor's formula on 0.45 against 0.05
    theirs = proportion.samplesize_proportions_2indep_onetail(0.05, 0.4, power=0.8)
    assert questions_unpaired(0.45, 0.4) == pytest.approx(theirs, abs=1.5)


@given(st.integers(20, 20_000), st.floats(0.01, 1))
def test_the_detectable_difference_is_the_sample_sizes_inverse(n, discordance):
    least = detectable_paired(n, discordance)
    if math.isinf(least):
        assert questions_paired(discordance, discordance) > n
    else:
        assert questions_paired(least, discordance) == pytest.approx(n, abs=1)


def test_questions_not_worse_keep_their_promise():
    """2,000 simulated evaluations without a difference; power 0.8, deviation 0.009."""
    n = questions_not_worse(0.02, 0.08)
    draws = np.random.default_rng(2).multinomial(n, [0.04, 0.04, 0.92], 2000)
    shown = np.mean([not_worse(int(a), int(b), n, 0.02).not_worse for a, b, _ in draws])
    assert shown == pytest.approx(0.8, abs=0.02 + 4 * 0.009)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: questions_paired(0.0, 0.1), "difference"),
        (lambda: questions_paired(0.2, 0.1), "difference"),
        (lambda: questions_paired(0.1, 0.0), "discordance"),
        (lambda: detectable_paired(0, 0.1), "n"),
        (lambda: questions_unpaired(0.5, 0.5), "accuracy_b"),
        (lambda: questions_unpaired(0.0, 0.5), "accuracy_a"),
        (lambda: questions_not_worse(0.0, 0.5), "margin"),
        (lambda: wilson(3, 2), "correct"),
        (lambda: paired_difference(3, 3, 5), "only_b"),
        (lambda: paired_difference(3, 3, 8, level=95), "level"),
    ],
)
def test_impossible_rates(call, name):
    with pytest.raises(BadInput, match=f"^{name}: got"):
        call()


def test_noise_floor():
    found = noise_floor([True, True, False, False], [True, False, True, True])
    assert found.test == mcnemar(1, 2)
    assert found.rate == wilson(3, 4)
    assert "agree on all 3 questions" in str(noise_floor([1, 0, 1], [1, 0, 1]))
    for first, second, name in (([], [], "first"), ([1, 0], [1], "second"), ([1, 0], [1, np.nan], "second")):
        with pytest.raises(BadInput, match=f"^{name}: got"):
            noise_floor(first, second)


def simulated(p_a, p_b, seed):
    random = np.random.default_rng(seed)
    return [random.random(len(p_a)) < p_a for _ in range(2)], [random.random(len(p_b)) < p_b for _ in range(2)]


def test_the_decomposition_finds_a_change_that_accuracy_cannot():
    """Half of the questions gain 0.3, the others lose it: equal accuracy, change (p_a - p_b)**2 = 0.09."""
    p_a = np.full(4000, 0.5)
    p_b = p_a + np.tile([0.3, -0.3], 2000)
    found = decompose(*simulated(p_a, p_b, 0))
    # a question's part lies between -1/2 and 1, so the mean of 4,000 has a deviation below 0.012
    assert found.change == pytest.approx(0.09, abs=4 * 0.012)
    assert abs(found.difference) < 4 * 0.011
    assert found.within_a == pytest.approx(0.5, abs=4 * 0.008)
    assert found.p < 1e-6
    assert found.verdict().startswith("the change moves answers beyond")


def test_the_decomposition_finds_nothing_in_noise():
    """200 evaluations in which nothing changed: at 5 % at most 10 find something, deviation 3.1."""
    p = np.random.default_rng(5).random(300)
    assert sum(decompose(*simulated(p, p, seed)).p < 0.05 for seed in range(200)) <= 10 + 4 * 3.1


def test_the_decomposition_of_servers_without_noise():
    a, b = np.array([1, 1, 0, 1, 0, 0]), np.array([0, 1, 0, 1, 1, 0])
    found = decompose([a, a], [b, b])
    assert (found.within_a, found.within_b, found.between, found.difference) == (0, 0, 2 / 6, 0)
    assert found.p == pytest.approx(1 / 9)
    assert decompose([a, a], [a, a])[3:] == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(BadInput, match="b_runs: got '3 runs', expected two runs"):
        decompose([a, a], [b, b, b])


def test_sign_test_leaves_ties_out():
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(2 / 32)

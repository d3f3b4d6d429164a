"""The pull requests' quality claims: each recomputed from its counts, and the figures that show them."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats import contingency_tables, proportion

from g4lab.errors import BadInput
from g4lab.published import published
from g4lab.quality import compare, mcnemar
from g4lab.quality import published_quality as pq
from g4lab.quality.draw_paired import draw_chi2, draw_claims, draw_questions, draw_signals, draw_subjects


@pytest.fixture(scope="module")
def claims():
    return pq.claims().set_index("claim")


def test_every_claim_rests_on_its_table(claims):
    assert len(claims) == len(pq.CLAIMS) + len(pq.DROPS)
    for claim in pq.CLAIMS:
        cases = published(claim.table)["case"]
        text = " ".join(cases[cases.str.startswith(claim.case)].unique())
        assert (claim.n is None) == (re.search(r"\d{3,}", text) is None), claim
        assert claim.n is None or str(claim.n) in text, claim
    assert claims.loc["text-only load, against vLLM", ["a", "b", "net"]].tolist() == [0.778, 0.780, 1]
    stated = published("mm_disabled").query("metric == 'correct'")["value"].tolist()
    assert sorted(pq.correct(x, 500) for x in (0.778, 0.780)) == sorted(stated)


def test_what_the_numbers_of_questions_allow(claims):
    row = claims.loc["fused router, against vLLM"]
    theirs = proportion.confint_proportions_2indep(354, 500, 355, 500, compare="diff", method="newcomb")
    assert (row.low, row.high) == pytest.approx(theirs)
    assert row.questions_needed == 196220
    assert pd.isna(row.settled_up_to)  # one question more or less never settles anything
    # 0.680 against 0.660: ten questions net; 15 to 5 is significant, 16 to 6 is not
    assert claims.loc["31B, against vLLM", "settled_up_to"] == 20
    assert (
        contingency_tables.mcnemar([[0, 5], [15, 0]]).pvalue
        < 0.05
        < contingency_tables.mcnemar([[0, 6], [16, 0]]).pvalue
    )
    # no claim of SGLang PR #26588 can be told from no change, its drop only with hardly another answer changed
    assert pd.isna(claims.loc["one router change, least drop", "settled_up_to"])
    assert claims.loc["one router change, most", "settled_up_to"] == 9
    # nor does any comparison of two variants at these N rule out a drop of that size
    known = claims[claims["low"].notna() & ~claims.index.str.startswith("A/A")]
    assert (known["low"] < -0.035).all()
    assert (known["high"] > 0).all()
    assert claims.loc["31B, fused norms", "allows"].startswith("nothing: the number of questions")


def test_counts_that_give_the_published_chi2():
    found = pq.counts_giving(1.97)
    for row in found.iloc[::50].itertuples():
        test = mcnemar((row.discordant - row.net) // 2, (row.discordant + row.net) // 2)
        assert round(test.chi2, 2) == 1.97
        assert round(test.p, 2) == 0.16
    every = [(d, k) for d in range(1, 400) for k in range(d % 2, d + 1, 2)
             if 1.965 <= max(k - 1, 0) ** 2 / d <= 1.975]  # fmt: skip
    assert found[found["discordant"] < 400][["discordant", "net"]].to_numpy().tolist() == [list(pair) for pair in every]
    assert (found["difference"] - found["half"] < 0).all()
    coarse = pq.counts_giving(2, 300, decimals=0)
    nets = coarse.loc[coarse["discordant"] == 300, "net"].tolist()
    assert nets == [k for k in range(0, 301, 2) if 1.5 <= (k - 1) ** 2 / 300 <= 2.5]
    with pytest.raises(BadInput, match="chi2: got -1"):
        pq.counts_giving(-1)


def test_subjects_and_gates():
    found = pq.subjects()
    assert (found["wins"], found["losses"], found["ties"], found["p"]) == (28, 27, 2, 1.0)
    assert found["wins_needed"] == 36
    gates = pq.gates()
    assert gates["score"].tolist() == [0.725, 0.735]
    assert (gates["threshold"] == 0.65).all()
    theirs = proportion.proportion_confint(np.array([145, 147]), 200, method="wilson")
    np.testing.assert_allclose(gates[["low", "high"]].to_numpy().T, theirs)
    draws = np.random.default_rng(0).binomial(200, 0.69, 20_000)
    assert gates["passes"][0] == pytest.approx((draws >= 130).mean(), abs=4 * 0.0025)


def test_most_discordant():
    for net in (6, 7, 10, 17):
        most = pq.most_discordant(net)
        assert mcnemar((most - net) // 2, (most + net) // 2).exact_p < 0.05
        assert mcnemar((most - net) // 2 + 1, (most + net) // 2 + 1).exact_p >= 0.05
        assert pq.most_discordant(-net) == most
    assert pq.most_discordant(5) is None


def test_counts_of_accuracies():
    assert pq.correct(0.495, 200) == 99
    assert pq.correct(0.666, 500) == 333
    with pytest.raises(BadInput, match=r"accuracy: got 0\.47, expected a fraction that a number of 33"):
        pq.correct(0.47, 33)


def test_figures(claims):
    figure = draw_claims(claims.reset_index())
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(rows) == claims["n"].notna().sum()
    chi2 = draw_chi2(pq.counts_giving(1.97), 1.97)
    assert len(chi2.axes[0].lines) == 3
    power = draw_questions()
    ends = [line.get_ydata()[-1] for line in power.axes[0].lines[:4]]
    assert all(math.isfinite(end) for end in ends)
    results = pd.DataFrame({"question": [1, 2], "subject": ["x", "y"], "correct_a": [1, 1], "correct_b": [0, 1]})
    bars = draw_subjects(compare(results), "live", "two answers").axes[0].patches
    assert sorted(bar.get_width() for bar in bars) == [-100, 0]
    for each in (figure, chi2, power):
        assert each.get_supxlabel().startswith("published")


def test_figure_of_signals():
    rows = [("A again", 0.0, -0.02, 0.02, 0.0, 0.0, 0.0), ("scale lost", 0.02, -0.05, 0.08, 31.0, 33.0, 0.01)]
    frame = pd.DataFrame(rows, columns=["change", "difference", "low", "high", "answers_pct", "flips_pct", "kl"])
    accuracy, letters, experts, logits = draw_signals(frame, "made up").axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["A again", "scale lost"]
    widths = [[bar.get_width() for bar in ax.patches] for ax in (letters, experts, logits)]
    assert widths == [[0, 31], [0, 33], [0, 0.01]]

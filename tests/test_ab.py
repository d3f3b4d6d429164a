"""The A/B: its statistics on made-up visits with known effects, and its figure; for real it runs in 30_serving."""

import numpy as np
import pytest

from g4lab.errors import BadInput
from g4lab.runners import ab
from g4lab.runners.comparison import HIGHER_IS_BETTER, ROUND, Visit, compare
from g4lab.runners.draw import effects
from g4lab.runners.results import BenchResult


def visits(rounds=5, *, b_factor=1.0, noise=0.01, drift=0.0, calls=None, seed=0, **fixed):
    """Visits whose throughput is 100 (B: times b_factor) and whose latencies are 10 ms (B: divided by it)."""
    random, made, step = np.random.default_rng(seed), [], 0
    for number in range(rounds):
        for position, side in enumerate(ROUND):
            speed = (b_factor if side == "B" else 1.0) * (1 + drift * step) * random.lognormal(0, noise)
            values = {m: 100 * speed if higher else 10 / speed for m, higher in HIGHER_IS_BETTER.items()}
            result = BenchResult(client="sglang.bench_serving", **(values | fixed))
            ran = {"router": 12} if side == "B" and calls is None else (calls or {})
            made.append(Visit(side, number, position, result, ran))
            step += 1
    return made


def judge(made, a="none", b="none,router", fresh=True):
    return compare(made, model="m", a=a, b=b, fresh=fresh)


def test_a_real_effect_is_outside_the_noise_in_the_right_direction():
    for factor, word in ((1.2, "better"), (0.8, "worse")):
        found = judge(visits(b_factor=factor))
        assert {effect.verdict for effect in found.effects} == {f"outside A/A noise: B is {word}"}
        by_name = {effect.metric: effect for effect in found.effects}
        assert by_name["output_tokens_per_s"].ratio.ratio == pytest.approx(factor, rel=0.03)
        assert by_name["median_ttft_ms"].ratio.ratio == pytest.approx(1 / factor, rel=0.03)
        assert found.silent == ()


def test_no_effect_is_inside_the_noise_nearly_always():
    verdicts = [judge(visits(seed=seed)).effects[0].verdict for seed in range(40)]
    assert sum(verdict == "inside A/A noise" for verdict in verdicts) >= 36  # level 0.95, of two conditions


def test_a_linear_drift_is_no_effect():
    found = judge(visits(rounds=3, noise=0.0, drift=0.01))
    assert found.effects[0].ratio.ratio == pytest.approx(1, abs=1e-3)
    assert found.effects[0].aa.ratio > 1.02  # the harness shows the drift as its noise
    assert found.effects[0].verdict == "inside A/A noise"


def test_a_patch_that_never_ran_gives_no_verdict():
    found = judge(visits(b_factor=1.5, calls={}))
    assert found.silent == ("router",)
    assert {effect.verdict for effect in found.effects} == {"no verdict: no patch that differs ran"}
    assert "router never ran" in found.notes
    partly = judge(visits(b_factor=1.5), b="none,router,mtp_pp_proxy")
    assert partly.silent == ("mtp_pp_proxy",)
    assert partly.effects[0].verdict.startswith("outside")
    assert judge(visits(calls={}), a="none", b="none").silent == ()


def test_too_few_rounds_give_no_verdict():
    found = judge(visits(rounds=2, b_factor=2.0), fresh=False)
    assert found.effects[0].verdict == "no verdict: fewer than 3 rounds"
    assert "does not hold the variance between processes" in found.notes[0]


def test_a_metric_without_values_is_left_out_and_said():
    found = judge(visits(median_ttft_ms=0.0, warnings=["mean ttft is 0.0"]))
    assert "median_ttft_ms" not in {effect.metric for effect in found.effects}
    assert "median_ttft_ms is left out: not every visit has it" in found.notes
    assert "B: mean ttft is 0.0" in found.notes


def test_table_values_and_figure():
    found = judge(visits())
    table = found.table()
    assert table["metric"].tolist() == list(HIGHER_IS_BETTER)
    assert (table["low"] <= table["ratio"]).all()
    assert (table["ratio"] <= table["high"]).all()
    assert len(found.values()["visits"]) == 20
    figure = effects(found, "live", "made-up visits")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["output tokens/s", "requests/s"]
    assert axes.lines[1].get_xdata()[0] == table["ratio"][0]


def test_bad_input():
    with pytest.raises(BadInput, match="rounds: got 0"):
        ab("tiny-moe", rounds=0)
    with pytest.raises(BadInput, match="nope"):
        ab("tiny-moe", b="nope")
    with pytest.raises(BadInput, match=r"visits: got .*whole rounds"):
        judge([visit for visit in visits() if visit.position != 3])

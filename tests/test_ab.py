"""The A/B: its statistics on made-up visits with known effects, and its figures; for real it runs in 30_serving."""

import numpy as np
import pandas as pd
import pytest

from g4lab.errors import BadInput
from g4lab.quality.acceptance import Acceptance
from g4lab.runners import ab
from g4lab.runners.comparison import FASTER, METRICS, OPEN, ROUND, SLOWER, THROUGHPUTS, Visit, compare
from g4lab.runners.draw import effects, request_ecdf
from g4lab.runners.request_log import COLUMNS, Request, requests_of, save
from g4lab.runners.results import BenchResult


def visits(rounds=5, *, b_factor=1.0, noise=0.01, drift=0.0, calls=None, seed=0, prompts=6, drafts=(), **fixed):
    """Visits whose throughput is 100 (B: times b_factor) and whose latencies are near 10 ms (B: divided by it)."""
    random, made, step = np.random.default_rng(seed), [], 0
    for number in range(rounds):
        shared = random.lognormal(0, 0.3, prompts)  # the prompts of a round: both sides answer the same
        for position, side in enumerate(ROUND):
            speed = (b_factor if side == "B" else 1.0) * (1 + drift * step) * random.lognormal(0, noise)
            answers = [Request(64, 3, 10 * each / speed, (1 / speed, 2 / speed)) for each in shared]
            values = dict.fromkeys(THROUGHPUTS, 100 * speed) | {"requests": answers} | fixed
            result = BenchResult(client="sglang.bench_serving", **values)
            ran = {"router": 12} if side == "B" and calls is None else (calls or {})
            made.append(Visit(side, number, position, result, ran, {}, Acceptance(*drafts)))
            step += 1
    return made


def judge(made, a="none", b="none,router", fresh=True, **more):
    return compare(made, model="m", a=a, b=b, fresh=fresh, **more)


def test_a_real_effect_is_settled_in_the_right_direction():
    for factor, words in ((1.2, FASTER), (0.8, SLOWER)):
        found = judge(visits(b_factor=factor))
        assert found.verdict == f"{words}, in all {len(METRICS)} metrics"
        by_name = {effect.metric: effect for effect in found.effects}
        assert tuple(by_name) == METRICS
        assert by_name["output_tokens_per_s"].ratio.ratio == pytest.approx(factor, rel=0.03)
        assert by_name["p50_ttft_ms"].ratio.ratio == pytest.approx(1 / factor, rel=0.03)
        assert by_name["p99_e2e_ms"].a == pytest.approx(by_name["p99_ttft_ms"].a + 3, rel=0.03)
        assert by_name["p50_tpot_ms"].a == pytest.approx(1.5, rel=0.03)
        assert all(effect.rounds_needed <= 5 and effect.smallest < 1.2 for effect in found.effects)
        assert found.silent == ()


def test_no_effect_is_not_distinguishable():
    for seed in range(3):
        assert judge(visits(rounds=3, seed=seed, prompts=2)).verdict.startswith(f"{OPEN} at 3 rounds, in all ")


def test_a_linear_drift_is_no_effect():
    found = judge(visits(rounds=3, noise=0.0, drift=0.01))
    assert found.effects[0].ratio.ratio == pytest.approx(1, abs=1e-3)
    assert found.effects[0].aa.ratio > 1.02  # the harness shows the drift as its noise
    assert found.effects[0].verdict == f"{OPEN} at 3 rounds"


def test_a_patch_that_never_ran_gives_no_verdict():
    found = judge(visits(b_factor=1.5, calls={}))
    assert found.silent == ("router",)
    assert found.verdict.startswith("no verdict: no patch that differs ran, in all")
    assert "router never ran" in found.notes
    partly = judge(visits(b_factor=1.5), b="none,router,mtp_pp_proxy")
    assert partly.silent == ("mtp_pp_proxy",)
    assert partly.effects[0].verdict == FASTER
    assert judge(visits(calls={}), a="none", b="none").silent == ()
    # Where the sides differ in flags or drafts too, a silent patch does not void the comparison, and is still said.
    flags = judge(visits(b_factor=1.5, calls={}), labels=("none", "none,router, --page-size 1"))
    assert flags.effects[0].verdict == FASTER
    assert flags.silent == ("router",)
    assert flags.b == "none,router, --page-size 1"


def test_too_few_rounds_give_no_verdict():
    found = judge(visits(rounds=2, b_factor=2.0), fresh=False)
    assert found.effects[0].verdict == "no verdict: fewer than 3 rounds"
    assert "does not hold the variance between processes" in found.notes[0]
    alone = judge(visits(rounds=1)).effects[0]
    assert (alone.ratio.low, alone.ratio.high) == (0, np.inf)
    assert alone.rounds_needed is alone.smallest is None


def test_a_metric_without_values_is_left_out_and_said():
    found = judge(visits(requests_per_s=None, requests=[Request(64, 1, 10.0)], warnings=["mean itl is 0.0"]))
    assert [effect.metric for effect in found.effects if "itl" in effect.metric or "tpot" in effect.metric] == []
    assert {"itl is left out: not every visit has it", "requests_per_s is left out: not every visit has it"} <= {
        *found.notes
    }
    assert "B: mean itl is 0.0" in found.notes


def test_requests_that_failed_are_no_latency():
    details = {"input_lens": [4, 4], "output_lens": [3, 0], "ttfts": [0.5, 0.0], "itls": [[0.1, 0.2], []],
               "errors": ["", "refused"]}  # fmt: skip
    (request,) = requests_of(details)
    assert request == (4, 3, 500, (100, 200))
    assert (request.e2e_ms, request.tpot_ms) == (800, 150)
    assert requests_of({}) == ()


def test_acceptance_of_the_sides_that_draft():
    found = judge(visits(drafts=(10, 30, 6, 18)))
    rows = found.acceptance()
    assert rows["side"].tolist() == ["A", "B"]
    assert rows["verify_steps"].tolist() == [100, 100]
    assert rows["accepted_per_verify"].tolist() == [0.6, 0.6]
    assert rows["accept_length"].tolist() == [1.8, 1.8]  # SGLang's: 1.2 of it are not drafts
    assert found.values()["acceptance"][1]["rate"] == pytest.approx(0.2)
    assert judge(visits()).acceptance().empty


def test_table_values_requests_and_figures(tmp_path):
    found = judge(visits())
    table = found.table()
    assert table["metric"].tolist() == list(METRICS)
    assert (table["low"] <= table["ratio"]).all()
    assert (table["ratio"] <= table["high"]).all()
    assert len(found.values()["visits"]) == 20
    kept = pd.read_parquet(save(found.requests(), tmp_path / "requests.parquet"))
    assert tuple(kept) == COLUMNS
    assert len(kept) == 20 * 6
    assert kept.loc[0, "itl_ms"].sum() + kept.loc[0, "ttft_ms"] == pytest.approx(kept.loc[0, "e2e_ms"])
    figure = effects(found, "live", "made-up visits")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["output tokens/s", "requests/s", "TTFT p50"]
    assert axes.lines[1].get_xdata()[0] == table["ratio"][0]
    (axes,) = request_ecdf(found, "ttft", "live", "made-up visits").axes
    whole = [line for line in axes.lines if line.get_linewidth() > 1.5]
    assert [len(line.get_xdata()) for line in whole] == [61, 61]  # 5 rounds of 2 visits of 6 requests, and the origin
    assert len(axes.lines) == 2 + 2 * 5 + 3  # and a line at each percentile


def test_bad_input():
    with pytest.raises(BadInput, match="rounds: got 0"):
        ab("tiny-moe", rounds=0)
    with pytest.raises(BadInput, match="nope"):
        ab("tiny-moe", b="nope")
    with pytest.raises(BadInput, match=r"visits: got .*whole rounds"):
        judge([visit for visit in visits() if visit.position != 3])

"""The router benchmark: without a GPU it refuses in one line and says what it could not run; with one, it measures."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from g4lab import env
from g4lab.bench import router as bench
from g4lab.bench import suite, timing
from g4lab.bench.draw_router import draw_latency
from g4lab.bench.timing import Provider, Timed
from g4lab.errors import BadInput, Unavailable

no_gpu = pytest.mark.skipif(env.has_gpu(), reason="about machines without a GPU")


@no_gpu
@pytest.mark.parametrize("work", [bench.prove, bench.measure, lambda: timing.time_providers([], None)])
def test_no_times_without_a_gpu(work):
    with pytest.raises(Unavailable, match="no kernel time here"):
        work()


@no_gpu
def test_every_provider_says_why_it_cannot_run():
    frame = bench.availability()
    assert list(frame.provider) == [p.name for p in bench.PROVIDERS]
    assert not frame.runs.any()
    assert frame.reason.str.contains("no kernel time here").all()


def test_a_missing_package_is_named():
    assert Provider("x", lambda case: None, "no_such_package").missing() == "no_such_package is not installed"
    assert Provider("x", lambda case: None, "torch").missing() == ""


@no_gpu
def test_command_prints_the_table_and_fails_in_one_line(tmp_path):
    from g4lab.commands.bench import app

    done = CliRunner().invoke(app, ["router", "--records", str(tmp_path)])
    assert isinstance(done.exception, Unavailable)
    assert "empty kernel" in done.output
    assert "\n" not in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_rows_carry_quantiles_gain_and_noise():
    """From samples to the table: a baseline at 10 µs, twice, and a provider at 5 µs; another that could not run."""
    spread = np.linspace(0.9, 1.1, 41)
    timed = {
        bench.BASELINE: Timed({"cold": 10 * spread, "warm": 10 * spread}),
        bench.AGAIN: Timed({"cold": 10 * spread[::-1], "warm": 10 * spread[::-1]}),
        "fast": Timed({"cold": 5 * spread, "warm": 4 * spread}),
        "absent": Timed({}, "not installed"),
    }
    cold, warm = suite.rows(bench.Case(64), "fast", timed)
    assert (cold["tokens"], cold["reading"], cold["p50_us"], cold["n"]) == (64, "cold", 5.0, 41)
    assert (cold["speedup"], warm["speedup"]) == (2.0, 2.5)
    assert cold["aa_low"] <= 1 <= cold["aa_high"] < cold["speedup_low"]
    assert cold["beyond_noise"]
    again, _ = suite.rows(bench.Case(64), bench.AGAIN, timed)
    assert not again["beyond_noise"]
    absent, _ = suite.rows(bench.Case(64), "absent", timed)
    assert absent["reason"] == "not installed"
    assert "p50_us" not in absent


def test_figure_of_times_needs_times():
    spread = np.linspace(0.9, 1.1, 11)
    samples = Timed({"cold": 5 * spread, "warm": 4 * spread})
    timed = dict.fromkeys((bench.BASELINE, bench.AGAIN), samples) | {"absent": Timed({}, "not installed")}
    rows = [row for t in (1, 64) for name in timed for row in suite.rows(bench.Case(t), name, timed)]
    figure = draw_latency(pd.DataFrame(rows), "recorded", "made for a test")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["cold L2", "warm L2"]
    assert figure.get_supxlabel() == "recorded · made for a test"
    with pytest.raises(BadInput, match="at least one provider with times"):
        draw_latency(bench.availability(), "live", "nothing")


def test_reason_is_one_line():
    assert timing.reason_of(RuntimeError("first\nsecond")) == "first"
    assert timing.reason_of(AssertionError()) == "AssertionError"


@pytest.mark.gpu
def test_measures_on_the_gpu():
    frame = bench.measure(tokens=(1, 64), rounds=20)
    ran = frame[frame.reason == ""]
    assert {"eager PyTorch", "g4lab, eager rounding", "empty kernel (launch floor)"} <= set(ran.provider)
    assert (ran.n == 20).all()
    medians = ran[ran.reading == "warm"].pivot(index="tokens", columns="provider", values="p50_us")
    assert (medians["empty kernel (launch floor)"] < medians["eager PyTorch"]).all()

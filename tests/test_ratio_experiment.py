"""Two ratios on real servers: what the scheduler does must be what the simulator says, and the wait must follow."""

import numpy as np
import pytest

from g4lab import env
from g4lab.errors import BadInput
from g4lab.kvpool import Scheduling, plan
from g4lab.kvpool.simulation import Request
from g4lab.kvpool.simulator import StepCosts, simulate
from g4lab.runners import sglang_server
from g4lab.runners.ratio_experiment import ratio_experiment
from g4lab.runners.scheduler_log import LOG_ARGS, LogReader, fit_costs, steps


def on_cpu_servers(test):
    return pytest.mark.server(pytest.mark.skipif(env.has_gpu(), reason="CPU servers, of a machine without a GPU")(test))


LOG = """\
[2026-11-21 21:49:14] Prefill batch, #new-seq: 1, #new-token: 600, #cached-token: 0, full token usage: 0.15, \
swa token usage: 0.02, #running-req: 0, #queue-req: 0, #pending-token: 0, cpu graph: False, \
input throughput (token/s): 22.89
[2026-11-21 21:49:40] Cache flushed successfully!
[2026-11-21 21:49:49] Prefill batch, #new-seq: 4, #new-token: 2048, #cached-token: 10, full token usage: 0.66, \
swa token usage: 0.16, #running-req: 1, #queue-req: 19, #pending-token: 11752, cpu graph: False, \
input throughput (token/s): 360.89
[2026-11-21 21:49:56] Prefill batch, #new-seq: 3, #new-token: 953, #cached-token: 599, full token usage: 0.90, \
swa token usage: 0.12, #running-req: 4, #queue-req: 17, #pending-token: 10200, cpu graph: False, \
input throughput (token/s): 953.00
[2026-11-21 21:50:36] KV cache pool is full. Retract requests. #retracted_reqs: 2, #new_tokens_gained: 120, \
#new_token_ratio: 0.6428 -> 1.0000
[2026-11-21 21:51:44] Decode batch, #running-req: 6, #full token: 3966, full token usage: 0.99, #swa token: 744, \
swa token usage: 0.23, cpu graph: False, gen throughput (token/s): 11.08, #queue-req: 3
[2026-11-21 21:51:44] Decode batch, #running-req: 6, #full token: 3972, full token usage: 0.99, #swa token: 750, \
swa token usage: 0.24, cpu graph: False, gen throughput (token/s): 60.00, #queue-req: 3
"""


def test_the_log_is_read_from_its_last_flush():
    first, second, third, fourth = steps(LOG)
    assert first[:7] == ("prefill", 4, 2048, 10, 0.66, 0.16, 19)
    assert first.seconds is None  # counted from whatever was before
    assert second.seconds == pytest.approx(1.0)
    assert third == ("decode", 6, 6, 0, 0.99, 0.23, 3, 2, 3966, 744, None)
    assert (fourth.retracted, fourth.seconds) == (0, pytest.approx(0.1))
    assert steps("") == []


def test_a_growing_log_is_read_once(tmp_path):
    path = tmp_path / "server.log"
    path.write_text("one\n")
    read = LogReader(path)
    assert read() == "one\n"
    with path.open("a") as file:
        file.write("two\n")
    assert [read(), read()] == ["two\n", ""]


def test_costs_are_found_again():
    true, step = StepCosts(0.01, 1e-4, 0.005, 1e-3, 1e-6), steps(LOG)[1]
    rng = np.random.default_rng(0)
    logged = []
    for _ in range(20):
        tokens, requests, kv = rng.integers(1, 500), rng.integers(1, 30), rng.integers(100, 9000)
        logged.append(step._replace(tokens=int(tokens), seconds=true.prefill(tokens)))
        logged.append(step._replace(phase="decode", requests=int(requests), kv_tokens=int(kv),
                                    seconds=true.decode(requests, kv)))  # fmt: skip
    found = fit_costs(logged)
    assert vars(found) == pytest.approx(vars(true), rel=1e-6)
    with pytest.raises(BadInput, match="logged: got '0 timed decode steps'"):
        fit_costs([one for one in logged if one.phase == "prefill"])


def test_bad_input_starts_no_server():
    with pytest.raises(BadInput, match="not one request fits"):
        ratio_experiment(kv_bytes=1_000_000, input_len=600)
    with pytest.raises(BadInput, match="ratio: got 2"):
        ratio_experiment(kv_bytes=10_000_000, ratio_b=2)


@pytest.fixture(scope="module")
def experiment():
    # At 0.8 four are admitted, one too many; at 0.25 the same bytes hold all eight to their ends.
    scheduling = Scheduling(chunked_prefill_size=512, overlap=False)
    kv_bytes = plan("tiny-moe", max_total_tokens=2220, ratio=0.8, dtype_bytes=4, scheduling=scheduling).kv_bytes
    return ratio_experiment(
        ratio_b=0.25,
        kv_bytes=kv_bytes,
        num_prompts=8,
        input_len=500,
        output_len=64,
        rounds=1,
        server={"device": "cpu"},
    )


@on_cpu_servers
def test_one_request_holds_what_the_simulator_says():
    """Both pools at every decode step, token for token; the prompt's last window stays while the next one slides."""
    scheduling = Scheduling(chunked_prefill_size=128, eviction_interval=32, overlap=False)
    made = plan("tiny-moe", max_total_tokens=600, ratio=0.5, scheduling=scheduling)
    args = ["--max-total-tokens", "600", "--swa-full-tokens-ratio", "0.5", "--chunked-prefill-size", "128", *LOG_ARGS]
    variables = {"SGLANG_SWA_EVICTION_INTERVAL": "32", "OMP_NUM_THREADS": "1"}
    with sglang_server("tiny-moe", "default", args, device="cpu", env=variables) as server:
        server.generate(range(5, 205), 180, ignore_eos=True)
        logged = [step for step in steps(server.log_path.read_text()) if step.phase == "decode"]
    found = simulate(made, [Request(200, 180)], StepCosts(0.01, 1e-4, 0.01))
    simulated = [(step.full_used, step.swa_used) for step in found.steps if step.phase == "decode"]
    # The server logs the last step after the request has gone, the simulator before.
    assert [(step.kv_tokens, step.swa_tokens) for step in logged[-179:-1]] == simulated[:-1]
    assert max(swa for _, swa in simulated) == 2 * 63 + 32


@on_cpu_servers
def test_the_scheduler_does_what_the_simulator_says(experiment):
    counts = experiment.scheduling()
    a, b = (counts[counts["side"] == side] for side in "AB")
    simulated = [found.summary() for found in experiment.simulated()]
    for rows, summary in zip((a, b), simulated, strict=True):
        assert set(rows["peak_running"]) == {summary["peak_running"]}
        assert set(rows["retractions"]) == {summary["retractions"]}
    assert simulated[0]["retractions"] > simulated[1]["retractions"] == 0
    assert a["reprefilled_share"].max() > 0.05
    assert b["reprefilled_share"].max() == 0
    assert simulated[1]["peak_running"] == 2 * simulated[0]["peak_running"]
    assert a["peak_full_usage"].min() > 0.95


@on_cpu_servers
def test_the_wait_follows(experiment):
    waits = [np.median([v.result.mean_ttft_ms for v in experiment.comparison.visits if v.side == s]) for s in "AB"]
    simulated = [found.summary()["mean_ttft_ms"] for found in experiment.simulated()]
    assert waits[0] > waits[1]
    assert simulated[0] > simulated[1]  # with step costs fitted on A, whatever this machine's are
    visits = experiment.comparison.visits
    assert [visit.side for visit in visits] == list("ABBA")
    assert {visit.result.completed for visit in visits} == {8}
    assert set(experiment.prediction()["figure"]) >= {"retractions", "peak_running", "median_ttft_ms"}
    assert len(experiment.values()["scheduling"]) == 4

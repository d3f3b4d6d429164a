"""SGLang's real client against the real server: both kinds of endpoint, a bare URL, and a server that is killed."""

import contextlib
import math
import os
import signal
import threading
import time

import psutil
import pytest

from g4lab.errors import BadInput, Unavailable
from g4lab.runners import bench_serving, sglang_server

LOAD = {"num_prompts": 4, "input_len": 24, "output_len": 6}


@pytest.mark.server
def test_a_real_server_measured_and_killed():
    with sglang_server("tiny-moe", patches="none", device="cpu") as server:
        seen = []
        result = bench_serving(server, **LOAD, progress=lambda done, total: seen.append((done, total)))
        assert (result.client, result.engine, result.backend) == ("sglang.bench_serving", "sglang", "sglang")
        assert (result.num_prompts, result.completed) == (4, 4)
        assert (result.input_tokens, result.output_tokens) == (4 * 24, 4 * 6)
        assert result.request_rate_per_s == math.inf
        assert 0 < result.median_ttft_ms < result.median_e2e_ms
        assert 0 < result.median_tpot_ms < result.median_e2e_ms
        assert result.output_tokens_per_s == pytest.approx(24 / result.duration_s, rel=0.01)
        assert result.missing == []
        assert result.warnings == []
        assert result.raw["server_info"]["attention_backend"] == "torch_native"
        assert seen[-1] == (4, 4)

        by_url = bench_serving(
            server.url, **LOAD, backend="vllm", tokenizer=server.launch.checkpoint, max_concurrency=2
        )
        assert (by_url.completed, by_url.max_concurrency, by_url.backend) == (4, 2, "vllm")
        assert by_url.output_tokens == 4 * 6

        killed = []
        timer = threading.Thread(target=_kill_when_busy, args=(server, killed), daemon=True)
        timer.start()
        with pytest.raises(Unavailable, match="the server was lost during the benchmark: the SGLang server ended"):
            bench_serving(server, num_prompts=2000, input_len=24, output_len=6, max_concurrency=2)
        assert killed
        assert time.monotonic() - killed[0] < 10
        assert _clients() == []


def _clients():
    """The command lines of benchmark clients that this process has; one that has ended has none any more."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # nor has one that nobody has waited for yet
            found.append(" ".join(process.cmdline()))
    return [command for command in found if "bench_serving" in command]


def _kill_when_busy(server, killed):
    """SIGKILL the server once it has answered a benchmark's requests for a while."""
    asked = server.log_path.read_text().count("POST /generate")
    while server.log_path.read_text().count("POST /generate") < asked + 20:
        time.sleep(0.1)
    killed.append(time.monotonic())
    os.kill(server.pid, signal.SIGKILL)


def test_nothing_at_the_url():
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"nothing answers at http://127\.0\.0\.1:9 \(Connection refused\)"):
        bench_serving("http://127.0.0.1:9/", **LOAD)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_prompts": 0}, "num_prompts: got 0"),
        ({"input_len": 1.5}, "input_len: got 1.5"),
        ({"output_len": -1}, "output_len: got -1"),
        ({"request_rate": 0}, "request_rate: got 0"),
        ({"request_rate": math.nan}, "request_rate: got nan"),
        ({"max_concurrency": -2}, "max_concurrency: got -2"),
        ({"backend": "tgi"}, "backend: got 'tgi', expected one of sglang, "),
    ],
)
def test_bad_input(change, reason):
    with pytest.raises(BadInput, match=reason):
        bench_serving("http://127.0.0.1:9", **(LOAD | change))


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://host", "http://"])
def test_what_is_no_url(url):
    with pytest.raises(BadInput, match="server_or_url: got"):
        bench_serving(url, **LOAD)

"""parse_bench on real outputs of several versions, on generated ones, and on damage."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab.errors import BadInput
from g4lab.runners.parse import parse_bench
from g4lab.runners.results import LATENCIES, BenchResult

SAMPLES = Path(__file__).parent / "data" / "serving_outputs"


def sample(name: str) -> BenchResult:
    (result,) = parse_bench(SAMPLES / name)
    return result


def test_sglang_jsonl_of_a_run_without_a_stream():
    result = sample("sglang_jsonl_v2025-10_issue12389.jsonl")
    assert (result.client, result.engine, result.dataset) == ("sglang.bench_serving", "sglang", "random")
    assert result.request_rate_per_s == math.inf  # bare Infinity in the file
    assert (result.completed, result.input_tokens, result.output_tokens) == (300, 75_000_000, 300_000)
    assert result.median_e2e_ms == 4825.5520130333025
    assert result.p95_itl_ms == 0.0
    assert result.total_tokens_per_s == pytest.approx(75_300_000 / result.duration_s)
    assert result.accept_length is None
    assert "mean ttft, itl is 0.0 although 300 requests succeeded" in result.warnings[0]
    assert "retokenized is 0" in result.warnings[1]
    assert result.missing == []
    assert result.raw["random_range_ratio"] == 1.0


def test_sglang_text_that_ends_early_with_the_misspelt_concurrency():
    result = sample("sglang_text_v2025-01_typo_issue2805.truncated.txt")
    assert (result.engine, result.request_rate_per_s, result.max_concurrency) == ("sglang", math.inf, None)
    assert (result.completed, result.output_tokens_retokenized, result.mean_ttft_ms) == (1648, 326356, 44294.80)
    assert result.raw["Max reqeuest concurrency"] == "not set"
    assert result.warnings == ["the text ends before the closing line: it is cut"]
    assert result.missing[:2] == ["p99_e2e_ms", "median_ttft_ms"]
    assert "mean_ttft_ms" not in result.missing


def test_sglang_text_against_an_openai_backend_names_no_engine():
    result = sample("sglang_text_v2026-05_pr25461_vllm_chat.txt")
    assert (result.client, result.backend, result.engine) == ("sglang.bench_serving", "vllm-chat", None)
    assert (result.peak_output_tokens_per_s, result.peak_concurrency, result.max_itl_ms) == (656.0, 20, 3059.0)
    assert (result.p90_e2e_ms, result.p95_itl_ms) == (11752.22, 27.47)
    assert (result.missing, result.warnings) == ([], [])


def test_vllm_json():
    result = sample("vllm_result_v2025-05.json")
    assert (result.client, result.engine) == ("vllm bench serve", "vllm")
    assert result.request_rate_per_s == math.inf  # the text "inf"
    assert result.num_prompts == result.completed == 900
    assert result.goodput_requests_per_s is None  # "request_goodput:" is null
    assert result.std_tpot_ms == 7.88600060931539
    assert result.missing == ["mean_e2e_ms", "median_e2e_ms", "p99_e2e_ms"]
    with_goodput = result.raw | {"request_goodput:": 41.5}
    assert parse_bench(json.dumps(with_goodput))[0].goodput_requests_per_s == 41.5


def test_vllm_text_with_settings_before_the_heading():
    result = sample("vllm_text_v2025-05_plus_json_goodput_colon_key.txt")
    assert (result.client, result.request_rate_per_s, result.burstiness) == ("vllm bench serve", 30.0, 1.0)
    assert (result.total_tokens_per_s, result.p99_itl_ms, result.max_concurrency) == (28074.59, 75.82, None)
    assert result.warnings == []


def test_several_results_in_one_source():
    lines = (SAMPLES / "sglang_jsonl_v2025-10_issue12389.jsonl").read_text().strip()
    assert len(parse_bench(lines + "\n\n" + lines + "\n")) == 2
    assert len(parse_bench(f"[{lines}, {lines}]")) == 2
    cut = (SAMPLES / "sglang_text_v2025-01_typo_issue2805.truncated.txt").read_text()
    whole = (SAMPLES / "vllm_text_v2025-05_plus_json_goodput_colon_key.txt").read_text()
    first, second, third = parse_bench(whole + cut + lines)
    assert first.completed == 900
    assert {second.completed, third.completed} == {1648, 300}


POSITIVE = st.floats(0.01, 1e7).map(lambda value: round(value, 2))
COUNT = st.integers(1, 10**9)
RESULTS = st.fixed_dictionaries(
    {
        "completed": COUNT,
        "duration_s": POSITIVE,
        "input_tokens": COUNT,
        "output_tokens": COUNT,
        "requests_per_s": POSITIVE,
        "output_tokens_per_s": POSITIVE,
        "total_tokens_per_s": POSITIVE,
        **{
            f"{stat}_{latency}_ms": POSITIVE
            for latency in LATENCIES
            for stat in ("mean", "median", "p90", "p95", "p99")
        },
    },
    optional={"max_concurrency": COUNT, "request_rate_per_s": POSITIVE | st.just(math.inf), "accept_length": POSITIVE},
)
LABELS = {
    "completed": ["Successful requests:"],
    "duration_s": ["Benchmark duration (s):"],
    "input_tokens": ["Total input tokens:"],
    "output_tokens": ["Total generated tokens:"],
    "requests_per_s": ["Request throughput (req/s):"],
    "output_tokens_per_s": ["Output token throughput (tok/s):"],
    "total_tokens_per_s": ["Total Token throughput (tok/s):", "Total token throughput (tok/s):"],
    "max_concurrency": ["Max reqeuest concurrency:", "Max request concurrency:", "Maximum request concurrency:"],
    "request_rate_per_s": ["Traffic request rate:", "Request rate configured (RPS):"],
    "accept_length": ["Accept length:", "Acceptance length:"],
}
NAMES = {"e2e": ["E2E Latency", "E2EL"], "ttft": ["TTFT"], "tpot": ["TPOT"], "itl": ["ITL"]}


@given(values=RESULTS, data=st.data())
def test_any_text_gives_its_values_back(values, data):
    lines = ["=" * 12 + " Serving Benchmark Result " + "=" * 12]
    for field, value in values.items():
        if field in LABELS:
            label = data.draw(st.sampled_from(LABELS[field]))
        else:
            stat, latency, _ = field.split("_")
            label = f"{stat.capitalize()} {data.draw(st.sampled_from(NAMES[latency]))} (ms):"
        lines.append(f"{label:<40} {value:<10}" + data.draw(st.sampled_from(["", "   ", "\t"])))
        lines += data.draw(st.sampled_from([[], ["", "---------------Inter-token Latency----------------"]]))
    (result,) = parse_bench("\n".join([*lines, "=" * 50]) + "\n")
    assert {field: getattr(result, field) for field in values} == values
    assert result.missing == []
    assert not any("cut" in warning for warning in result.warnings)


@given(values=RESULTS, infinity=st.sampled_from(["inf", math.inf, "Infinity"]))
def test_any_json_gives_its_values_back(values, infinity):
    keys = {
        "duration_s": "duration",
        "input_tokens": "total_input_tokens",
        "output_tokens": "total_output_tokens",
        "requests_per_s": "request_throughput",
        "output_tokens_per_s": "output_throughput",
        "total_tokens_per_s": "total_token_throughput",
        "request_rate_per_s": "request_rate",
    }
    raw = {keys.get(field, field.replace("_e2e_", "_e2el_")): value for field, value in values.items()}
    raw = {key: infinity if value == math.inf else value for key, value in raw.items()}
    (result,) = parse_bench(json.dumps(raw))
    assert {field: getattr(result, field) for field in values} == values
    assert result.missing == []
    assert result.raw == raw


def test_what_casts_doubt_on_a_result():
    def warnings(**raw):
        (result,) = parse_bench(json.dumps({"completed": 8} | raw))
        return " ".join(result.warnings)

    assert "only 8 of 9 requests" in warnings(num_prompts=9)
    assert "no request succeeded" in warnings(completed=0)
    assert "2 requests failed" in warnings(failed=2)
    assert "mean_ttft_ms is nan, not a number" in warnings(mean_ttft_ms=math.nan)
    assert "duration is 'soon', not a number" in warnings(duration="soon")
    assert "completed is 'Infinity', not a number" in warnings(completed="Infinity")
    assert "not output tokens / duration" in warnings(total_output_tokens=100, duration=1.0, output_throughput=50.0)
    assert warnings(total_output_tokens=100, duration=1.0, output_throughput=100.2) == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "this is empty"),
        (b" \n", "this is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "this is binary"),
        (b"\xff\xfe{\x00", "this is binary"),
        (b'{"completed": 3, "dur', "JSON that is cut or broken: Unterminated string"),
        (b'{"completed": 3}\n{"completed"', "cut or broken"),
        (b'{"not": "a result"}', "no result is in it"),
        (b"just\nsome text\n", "no result is in it"),
    ],
)
def test_damage_gives_one_clear_line(tmp_path, content, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        parse_bench(path)
    assert "x.jsonl" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        parse_bench(str(tmp_path / "nope.txt"))

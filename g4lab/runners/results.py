"""One serving benchmark's result, the same whichever client and version wrote it. Units stand in the names."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from g4lab.runners.request_log import Request

STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")
LATENCIES = ("e2e", "ttft", "tpot", "itl")
# What a client measures in every run; what it reports only in some (goodput, accept length) can be absent by right.
MEASURED = (
    "completed",
    "duration_s",
    "input_tokens",
    "output_tokens",
    "requests_per_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    *(f"{statistic}_{latency}_ms" for latency in LATENCIES for statistic in ("mean", "median", "p99")),
)


class BenchResult(BaseModel):
    """What a client of an LLM server measured. None: the source does not say (see `missing`) or says none is set.

    client: "sglang.bench_serving" or "vllm bench serve". engine: "sglang" or "vllm" where the source shows it; an
    OpenAI-compatible backend does not. e2e: whole request; ttft: time to first token; tpot: time per output token after
    the first; itl: inter-token latency. accept_length: tokens per verify step, as the client reports it.
    requests: one each, of a run of ours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    client: str
    engine: str | None = None
    backend: str | None = None
    model: str | None = None
    dataset: str | None = None

    num_prompts: int | None = None
    request_rate_per_s: float | None = None
    burstiness: float | None = None
    max_concurrency: int | None = None
    input_len: int | None = None
    output_len: int | None = None

    completed: int | None = None
    failed: int | None = None
    duration_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    output_tokens_retokenized: int | None = None
    requests_per_s: float | None = None
    goodput_requests_per_s: float | None = None
    input_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    peak_output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    concurrency: float | None = None
    peak_concurrency: float | None = None
    accept_length: float | None = None
    accept_rate_percent: float | None = None

    mean_e2e_ms: float | None = None
    median_e2e_ms: float | None = None
    std_e2e_ms: float | None = None
    p90_e2e_ms: float | None = None
    p95_e2e_ms: float | None = None
    p99_e2e_ms: float | None = None
    mean_ttft_ms: float | None = None
    median_ttft_ms: float | None = None
    std_ttft_ms: float | None = None
    p90_ttft_ms: float | None = None
    p95_ttft_ms: float | None = None
    p99_ttft_ms: float | None = None
    mean_tpot_ms: float | None = None
    median_tpot_ms: float | None = None
    std_tpot_ms: float | None = None
    p90_tpot_ms: float | None = None
    p95_tpot_ms: float | None = None
    p99_tpot_ms: float | None = None
    mean_itl_ms: float | None = None
    median_itl_ms: float | None = None
    std_itl_ms: float | None = None
    p90_itl_ms: float | None = None
    p95_itl_ms: float | None = None
    p99_itl_ms: float | None = None
    max_itl_ms: float | None = None

    missing: list[str] = []
    warnings: list[str] = []
    raw: dict[str, Any] = {}
    requests: tuple[Request, ...] = ()

    def row(self) -> dict[str, Any]:
        """Every field that has a value, without `missing`, `warnings`, `raw` and `requests`: a row for a record."""
        return self.model_dump(exclude={"missing", "warnings", "raw", "requests"}, exclude_none=True)


def doubts(values: dict[str, Any]) -> list[str]:
    """Reasons not to trust a result's normalised values as they stand."""
    found = []
    completed, asked = values.get("completed"), values.get("num_prompts")
    if completed == 0:
        found.append("no request succeeded: the other figures mean nothing")
    if completed and asked and completed < asked:
        found.append(f"only {completed} of {asked} requests succeeded")
    if values.get("failed"):
        found.append(f"{values['failed']} requests failed")
    zero = [latency for latency in LATENCIES if values.get(f"mean_{latency}_ms") == 0.0]
    if completed and zero:
        # SGLang issue #12389
        found.append(f"mean {', '.join(zero)} is 0.0 although {completed} requests succeeded: the client saw no stream")
    if values.get("output_tokens") and values.get("output_tokens_retokenized") == 0:
        found.append("output tokens were counted as requested, not as received: retokenized is 0")
    rate = values.get("output_tokens_per_s")
    if rate and values.get("output_tokens") and values.get("duration_s"):
        implied = values["output_tokens"] / values["duration_s"]
        if abs(implied - rate) > 0.01 * rate + 0.01:
            found.append(f"{rate:.2f} output tokens/s is not output tokens / duration, which is {implied:.2f}")
    return found

"""The router benchmark: cases, providers and the baseline as data; bit-equality first, then time."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import pandas as pd

from g4lab.bench import stats, timing
from g4lab.bench.launch import launch_empty
from g4lab.bench.timing import Provider
from g4lab.errors import Unavailable
from g4lab.kernels import router
from g4lab.quality.router_probe import DTYPES, LOGITS, ProbeResult, in_calls_of, probe

TOKENS = (1, 7, 64, 1024, 16384)
PROOF_ROWS, MAX_CALLS = 1_048_576, 16_384
BASELINE = "eager PyTorch"
AGAIN = BASELINE + " (again)"


@dataclass(frozen=True)
class Case:
    """T tokens routed to top_k of num_experts; defaults are Gemma-4 26B-A4B's."""

    tokens: int
    num_experts: int = 128
    top_k: int = 8
    dtype: str = "bfloat16"

    def inputs(self):
        """Seeded logits [T, E] and scales [E] on the GPU."""
        import torch

        generator = torch.Generator().manual_seed(self.tokens)
        logits = LOGITS["normal"]((self.tokens, self.num_experts), generator)
        scale = torch.rand(self.num_experts, generator=generator) + 0.5
        return logits.to("cuda", DTYPES[self.dtype]), scale.to("cuda", DTYPES[self.dtype])


def _ours(rounding):
    def build(case):
        x, scale = case.inputs()
        return lambda: router.route(x, scale, case.top_k, rounding=rounding)

    return build


def _eager(case):
    x, scale = case.inputs()
    return lambda: router.route_reference(x, scale, case.top_k)


def _sglang(case):
    from sglang.kernels.ops.moe.gemma4_routing import gemma4_fused_routing

    x, scale = case.inputs()
    return lambda: gemma4_fused_routing(x, scale, case.top_k)


def _vllm(case):
    from vllm.model_executor.models.gemma4 import gemma4_fused_routing_kernel_triton

    x, scale = case.inputs()
    return lambda: gemma4_fused_routing_kernel_triton(x, case.top_k, scale)


def _floor(case):
    x, _ = case.inputs()
    return lambda: launch_empty(x, case.tokens)


PROVIDERS = (
    Provider(BASELINE, _eager),
    Provider(AGAIN, _eager),
    Provider("g4lab, eager rounding", _ours("eager")),
    Provider("g4lab, fp32", _ours("fp32")),
    Provider("SGLang gemma4_fused_routing", _sglang, "sglang"),
    Provider("vLLM gemma4 routing", _vllm, "vllm"),
    Provider("empty kernel (launch floor)", _floor),
)


def prove(
    rows: int = PROOF_ROWS, tokens=TOKENS, dtypes=tuple(DTYPES), progress: Callable[[int, int], None] | None = None
) -> list[tuple[int, ProbeResult]]:
    """Bit-equality of `route` with eager on the GPU, as (T, result) for every dtype, kind of logits and T.

    Each is `rows` random rows routed in calls of T; at most MAX_CALLS calls, so small T see fewer rows.

    Raises:
        Unavailable: no GPU, or an interpreted process.
    """
    timing.require_gpu()
    jobs = [(dtype, kind, t) for dtype in dtypes for kind in LOGITS for t in tokens]
    results = []
    for dtype, kind, t in jobs:
        routers = {"router": in_calls_of(t, router.route), "reference": in_calls_of(t, router.route_reference)}
        n = min(rows, MAX_CALLS * t)
        results.append((t, probe(n, dtype=dtype, logits=kind, seed=t, device="cuda", **routers)))
        if progress:
            progress(len(results), len(jobs))
    return results


def measure(
    tokens=TOKENS, providers=PROVIDERS, *, rounds: int = 200, dtype: str = "bfloat16",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One row per (T, provider, reading): p20, p50, p80 (µs per call), n, speed-up over eager and the A/A interval.

    Raises:
        Unavailable: no GPU, or an interpreted process.
    """
    rows = []
    for done, t in enumerate(tokens):
        case = Case(t, dtype=dtype)
        timed = timing.time_providers(list(providers), case, rounds=rounds)
        rows += [row for provider in providers for row in _rows(case, provider.name, timed)]
        if progress:
            progress(done + 1, len(tokens))
    return pd.DataFrame(rows)


def _rows(case: Case, name: str, timed: dict[str, timing.Timed]):
    for reading in timing.READINGS:
        row = {**asdict(case), "provider": name, "reading": reading, "reason": timed[name].reason}
        if not timed[name].reason:
            found = stats.quantiles(timed[name].samples[reading])
            row |= {"n": found.pop("n"), **{f"{key}_us": value for key, value in found.items()}}
            row |= _speedup(timed, name, reading)
        yield row


def _speedup(timed: dict[str, timing.Timed], name: str, reading: str) -> dict:
    if timed[BASELINE].reason or timed[AGAIN].reason:
        return {}
    baseline = timed[BASELINE].samples[reading]
    gain = stats.median_ratio(baseline, timed[name].samples[reading])
    noise = stats.median_ratio(baseline, timed[AGAIN].samples[reading])
    return {
        "speedup": gain.ratio, "speedup_low": gain.low, "speedup_high": gain.high,
        "aa_low": noise.low, "aa_high": noise.high, "beyond_noise": gain.beyond(noise),
    }  # fmt: skip


def availability(providers=PROVIDERS) -> pd.DataFrame:
    """Which providers could be timed here, each with all that stops it; times nothing and needs no GPU."""
    try:
        timing.require_gpu()
        machine = ""
    except Unavailable as error:
        machine = str(error)
    rows = []
    for provider in providers:
        reason = "; ".join(filter(None, (provider.missing(), machine)))
        rows.append({"provider": provider.name, "runs": not reason, "reason": reason})
    return pd.DataFrame(rows)

"""The router benchmark: cases, providers and the baseline as data; bit-equality first, then time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from g4lab import env
from g4lab.bench import suite, timing
from g4lab.bench.floors import launch_empty
from g4lab.bench.suite import AGAIN, BASELINE, EMPTY, Proof
from g4lab.bench.timing import Provider
from g4lab.errors import Unavailable
from g4lab.kernels import router
from g4lab.quality.router_chains import softmax_in_cuda_order
from g4lab.quality.router_probe import DTYPES, LOGITS, in_calls_of, probe

TOKENS = (1, 7, 64, 1024, 16384)
PROOF_ROWS, MAX_CALLS = 1_048_576, 16_384


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


KEYS = suite.keys(Case)


def _ours(rounding):
    def build(case):
        x, scale = case.inputs()
        return lambda: router.route(x, scale, case.top_k, rounding=rounding)

    return build


def _eager(case):
    x, scale = case.inputs()
    return lambda: router.route_reference(x, scale, case.top_k)


def _sglang(case):
    try:
        from sglang.kernels.ops.moe.gemma4_routing import gemma4_fused_routing
    except ImportError:  # where 0.5.17 has it
        from sglang.kernels.ops.layernorm.gemma4_fused_ops import gemma4_fused_routing

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
    Provider(EMPTY, _floor),
)


def prove(
    rows: int = PROOF_ROWS, tokens=TOKENS, dtypes=tuple(DTYPES), progress: Callable[[int, int], None] | None = None,
    device: str = "cuda",
) -> list[Proof]:  # fmt: skip
    """Bit-equality of `route` with eager on the GPU, for every dtype, kind of logits and T.

    Each is `rows` random rows routed in calls of T; at most MAX_CALLS calls, so small T see fewer rows. device: "cpu"
    in Triton's interpreter (choose few rows there).

    Raises:
        Unavailable: no GPU, or an interpreted process; on the CPU, one that does not interpret.
    """
    if device == "cuda":
        timing.require_gpu()
    elif not env.interpreting():
        raise Unavailable("no kernel runs on the CPU: TRITON_INTERPRET is not 1")
    jobs = [(dtype, kind, t) for dtype in dtypes for kind in LOGITS for t in tokens]
    proofs, eager = [], router.route_reference
    if device == "cpu":  # there the eager chain adds in another order
        eager = partial(eager, softmax=softmax_in_cuda_order)
    for dtype, kind, t in jobs:
        routers = {"router": in_calls_of(t, router.route), "reference": in_calls_of(t, eager)}
        found = probe(min(rows, MAX_CALLS * t), dtype=dtype, logits=kind, seed=t, device=device, **routers)
        values = {"ulps": {str(ulp): n for ulp, n in found.ulps.items()}, **found.summary()}
        parameters = {name: values.pop(name) for name in ("dtype", "rounding", "logits")}
        proofs.append(Proof(parameters | {"tokens_per_call": t, "seed": t}, values, found.bit_identical))
        if progress:
            progress(len(proofs), len(jobs))
    return proofs


def measure(
    tokens=TOKENS, providers=PROVIDERS, *, rounds: int = 200, dtype: str = "bfloat16",
    keep: Callable[[pd.DataFrame], None] | None = None, progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """`suite.measure` of every T: µs per call, speed-up over eager and the A/A interval.

    Raises:
        Unavailable: no GPU, or an interpreted process.
    """
    cases = [Case(t, dtype=dtype) for t in tokens]
    return suite.measure(cases, lambda case: providers, rounds=rounds, keep=keep, progress=progress)


def availability(providers=PROVIDERS) -> pd.DataFrame:
    """`suite.availability` of this suite's providers."""
    return suite.availability(providers)

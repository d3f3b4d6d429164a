"""Rooflines: the least time a chip could take for each kernel family of a step, and what the kernels took.

A family must move its bytes and do its FLOPs (g4lab.gemma4.costs), so it cannot take less than
max(bytes / copy bandwidth, FLOPs / matmul rate). The floor leaves out what the costs leave out: activations, launches,
and what ranks send each other. It holds for models that do not fit into the chip's caches: every checkpoint, no twin.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from g4lab.bench import draw_roofline
from g4lab.bench.ceilings import Ceilings
from g4lab.errors import bad
from g4lab.gemma4.costs import Cost, operation_costs
from g4lab.trace.result import Result, provenance

if TYPE_CHECKING:
    from g4lab.gemma4.specs import Spec
    from g4lab.trace.model import Trace

COPY, MATMUL, NO_FLOOR = "copy bandwidth", "matmul rate", "no floor"
PHASES = ("prefill", "decode", "verify")
_EXTEND, _DECODE = "extend attention", "decode attention"
_ATTENTION = ("sliding attention", "full attention")  # an attention family, which one depends on the phase
# Operation of g4lab.gemma4.costs -> family of g4lab.trace.families. The router's projection is a dense GEMM like any
# other; what follows it (routing) reads its logits, and norms, RoPE and activations read activations: no floor.
FAMILY = {
    "attention projections": "dense GEMM",
    "sliding KV write": "KV write",
    "full KV write": "KV write",
    "dense MLP": "dense GEMM",
    "router": "dense GEMM",
    "experts": "MoE GEMM",
    "per-layer input": "dense GEMM",
    "per-layer embedding": "indexing",
    "LM head": "dense GEMM",
}


def roofline(
    measured: Trace | pd.Series | None,
    spec: Spec,
    *,
    phase: str,
    ceilings: Ceilings,
    batch: int = 1,
    new_tokens: int | None = None,
    context: int = 0,
    dtype_bytes: float = 2,
    tp: int = 1,
    probabilities: Sequence[float] | None = None,
) -> Result:
    """Floors of one step by family, largest first, beside the measured time where there is one.

    Args:
        measured: a trace, of which the steps of this phase, batch and number of tokens count; or µs per step by family
            (a table on record); or None. Times of a CPU are no match for a chip's floor and are left out.
        phase: "prefill", "decode" or "verify".
        batch, new_tokens, context: sequences, tokens computed and keys already cached in each. new_tokens is 1 in
            decode, the prompt's length in prefill, the draft's in verify.
        dtype_bytes: bytes of a weight, key or value. tp: ranks; floors and times are one rank's.
        probabilities: the routing distribution that says how many experts are read (costs.distinct_experts); None:
            uniform. Routing that prefers some experts reads fewer, and can undercut this floor.

    Returns:
        Indexed by family: bytes, flops, floor_us, binds (which ceiling, or "no floor" for a family that was measured
        and has no cost model) and, where there are times, measured_us per step and ratio = measured_us / floor_us.
        Both attention families count to the one of the phase: a kernel for prompts may decode as well. The title says
        whose floor it is, and why there are no times.

    Raises:
        BadInput: an unknown phase, a count or `tp` that the model does not allow, a trace without such a step, or
            ceilings of another chip than the trace's.
    """
    if phase not in PHASES:
        raise bad("phase", phase, "one of " + ", ".join(PHASES))
    if phase == "decode":
        new_tokens = 1 if new_tokens is None else new_tokens
    if new_tokens is None:
        raise bad("new_tokens", new_tokens, f"the tokens that one sequence computes in a {phase} step")
    costs = operation_costs(
        spec, new_tokens=new_tokens, context=context, batch=batch, dtype_bytes=dtype_bytes,
        probabilities=probabilities, tp=tp,
    )  # fmt: skip
    table = floors(costs, phase, ceilings)
    times, why = _measured(measured, phase, batch, batch * new_tokens, ceilings)
    if times is not None:
        times = times[times > 0].groupby(lambda family: _of_phase(family, phase)).sum()
        table = table.reindex([*table.index, *times.index.difference(table.index)])
        table["binds"] = table["binds"].fillna(NO_FLOOR)
        table["measured_us"] = times.reindex(table.index)
        table["ratio"] = table["measured_us"] / table["floor_us"]
        table = table.sort_values(["floor_us", "measured_us"], ascending=False)
    table.index.name = "family"
    title = _title(spec, phase, batch, new_tokens, context, tp, ceilings, probabilities)
    where = _provenance(measured if times is not None else None, ceilings)
    return Result(table, title=title + why, provenance=where, drawer=draw_roofline.draw)


def floors(costs: list[Cost], phase: str, ceilings: Ceilings) -> pd.DataFrame:
    """bytes, flops, floor_us and binds by family, largest first; operations without a family are left out."""
    bytes_, flops = defaultdict(float), defaultdict(float)
    for cost in costs:
        family = _of_phase(_EXTEND, phase) if cost.part in _ATTENTION else FAMILY.get(cost.part)
        if family and cost.bytes:
            bytes_[family] += cost.bytes
            flops[family] += cost.flops
    table = pd.DataFrame({"bytes": bytes_, "flops": flops})
    moving = table["bytes"] / (ceilings.copy_gbps * 1e3)
    computing = table["flops"] / (ceilings.matmul_tflops * 1e6)
    table["floor_us"] = moving.where(moving >= computing, computing)
    table["binds"] = (moving >= computing).map({True: COPY, False: MATMUL})
    return table.sort_values("floor_us", ascending=False)


def _of_phase(family: str, phase: str) -> str:
    if family in (_EXTEND, _DECODE):
        return _DECODE if phase == "decode" else _EXTEND
    return family


def _measured(
    measured: Trace | pd.Series | None, phase: str, batch: int, tokens: int, ceilings: Ceilings
) -> tuple[pd.Series | None, str]:
    """µs per step by family, or None and the reason for the title."""
    if measured is None:
        return None, ""
    if isinstance(measured, pd.Series):
        return measured.astype(float), ""
    if not measured.has_gpu:
        return None, "; no times beside it: the trace is of a CPU"
    steps = measured.steps[measured.steps["phase"] == phase]
    if steps.empty:
        return None, f"; no times beside it: the trace marks no {phase} steps"
    _check_chip(measured, ceilings)
    alike = steps[steps["batch"].isin([batch, -1]) & steps["tokens"].isin([tokens, -1])]
    if alike.empty:
        seen = steps.groupby(["batch", "tokens"]).size()
        had = ", ".join(f"{b} sequences with {t} tokens ({n} steps)" for (b, t), n in seen.items())
        raise bad("batch", f"{batch} sequences with {tokens} tokens", f"{phase} steps of the trace: {had}")
    kernels = measured.kernels[measured.kernels["step"].isin(alike.index)]
    return kernels.groupby(kernels["family"].astype(str))["dur_us"].sum() / len(alike), ""


def _check_chip(trace: Trace, ceilings: Ceilings) -> None:
    """A floor of one chip says nothing of times on another. A trace that does not name its GPU passes."""
    gpus = {str(name) for name in trace.meta.get("devices", {}).values() if name}
    if gpus and not any(gpu == ceilings.chip or _model(ceilings.chip) in _words(gpu) for gpu in gpus):
        raise bad("ceilings", ceilings.chip, "those of the trace's GPU: " + ", ".join(sorted(gpus)))


def _model(chip: str) -> str:
    """The word with the model's number: "H200" of "NVIDIA H200" and of "H200 SXM"."""
    return next((word for word in _words(chip) if re.search(r"\d", word)), chip)


def _words(name: str) -> list[str]:
    return re.split(r"[\s-]+", name)


def _title(spec, phase, batch, new_tokens, context, tp, ceilings, probabilities) -> str:
    whose = "floor for" if ceilings.kind == "published" else "floor measured on"
    what = f"{spec.name} {phase}, batch {batch}"
    what += "" if phase == "decode" else f" of {new_tokens:,} tokens"
    what += f", {context:,} cached" if context else ""
    what += f", one of {tp} ranks" if tp > 1 else ""
    routing = ", uniform routing" if spec.is_moe and probabilities is None else ""
    return f"{what}: µs per step, {whose} {ceilings.chip}{routing}"


def _provenance(measured: Trace | pd.Series | None, ceilings: Ceilings) -> tuple[str, str]:
    about = f"ceilings: {ceilings.source}"
    if measured is None:
        return ceilings.kind, about
    if isinstance(measured, pd.Series):
        return "recorded", f"times on record; {about} ({ceilings.kind})"
    kind, source = provenance(measured)
    return kind, f"{source}; {about} ({ceilings.kind})"

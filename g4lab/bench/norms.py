"""The benchmark of the norm kernels: providers as data, timed against eager, SGLang, Liger, an empty launch and a copy.

GB/s and the share of the copy's bandwidth count a case's bytes (its inputs and results once) for every provider, so a
chain that moves more shows as slower, not as busier. The copy moves the same bytes from one buffer to another.
"""

from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch

from g4lab.bench import liger_peers, norms_cases, stats, suite
from g4lab.bench.floors import copying, launch_empty
from g4lab.bench.norms_cases import OPERATIONS, TOKENS, HeadCase, RowCase
from g4lab.bench.suite import AGAIN, BASELINE, EMPTY
from g4lab.bench.timing import Provider, Timed
from g4lab.kernels.qkv_norm import QKVMode, qkv_rmsnorm, qkv_rmsnorm_reference
from g4lab.kernels.qkv_norm_rope_kv import qkv_norm_rope_kv, rope_reference
from g4lab.kernels.residual_norm import (
    dual_residual_norm,
    dual_residual_norm_reference,
    residual_norm,
    residual_norm_reference,
)
from g4lab.kernels.router_norm import ROUNDINGS, router_norm, router_norm_reference

OURS, SGLANG = "g4lab", "SGLang"  # what the providers' names start with
COPY = "copy of the same bytes"
COMPILED = "torch.compile of eager"
KEYS = suite.keys(HeadCase, RowCase)


def qkv_norm(case, x, kernel=qkv_rmsnorm):
    """One call of `qkv_rmsnorm`, or of its reference, on HeadInputs in the case's mode."""
    own_kv = case.mode != QKVMode.Q
    k, v = x.k if own_kv else None, x.v if case.mode == QKVMode.QKV else None
    return kernel(x.q, k, v, x.q_weight, x.k_weight if own_kv else None, **case.heads)


def qkv_norm_rope(case, x, kernel=qkv_norm_rope_kv, **options):
    """One call of `qkv_norm_rope_kv`, or of its reference, on HeadInputs in the case's mode."""
    own_kv = case.mode != QKVMode.Q
    k, v = x.k if own_kv else None, x.v if case.mode == QKVMode.QKV else None
    cache = (x.k_cache, x.v_cache, x.cache_loc) if own_kv else (None, None, None)
    k_weight = x.k_weight if own_kv else None
    return kernel(x.q, k, v, x.q_weight, k_weight, x.positions, x.cos_sin_cache, *cache, **case.heads, **options)


def eager_qkv_norm(case, x):
    """The eager chain of `qkv_norm`."""
    return qkv_norm(case, x, qkv_rmsnorm_reference)


def eager_qkv_norm_rope_kv(case, x):
    """The eager steps as an engine runs them: the reference also skips negative slots, which no CUDA graph can."""
    q, k, v = eager_qkv_norm(case, x)
    q = rope_reference(q, x.positions, x.cos_sin_cache, case.num_q_heads)
    if k is not None:
        k = rope_reference(k, x.positions, x.cos_sin_cache, case.num_kv_heads)
        x.k_cache[x.cache_loc] = k.view(-1, case.num_kv_heads, case.head_dim)
        x.v_cache[x.cache_loc] = v.view(-1, case.num_kv_heads, case.head_dim)
    return q, k, v


def _sglang_norm(case, x):
    from sglang.kernels.ops.layernorm.gemma4_fused_ops import gemma_qkv_rmsnorm

    own_kv = case.mode != QKVMode.Q
    kv = (x.k, x.v) if own_kv else (None, None)
    heads = (case.num_q_heads, case.num_kv_heads, case.head_dim)
    gemma_qkv_rmsnorm(x.q, *kv, x.q_weight, x.k_weight if own_kv else None, *heads)


def _sglang_norm_rope_kv(case, x):
    """The launches of Gemma4Attention.forward in SGLang 0.5.21 before attention (Q: zeros stand in for K)."""
    from sglang.kernels.ops.attention.rope import apply_rope_with_cos_sin_cache_inplace
    from sglang.kernels.ops.kvcache.kvcache import store_cache

    _sglang_norm(case, x)
    k = x.k if case.mode != QKVMode.Q else torch.zeros_like(x.q[:, : x.k.shape[1]])
    by_head = [each.view(case.tokens, -1, case.head_dim) for each in (x.q, k)]
    apply_rope_with_cos_sin_cache_inplace(*by_head, x.cos_sin_cache, x.positions, is_neox=True)
    if case.mode != QKVMode.Q:
        store_cache(x.k, x.v, x.k_cache.flatten(1), x.v_cache.flatten(1), x.cache_loc)


def _sglang_router_norm(case, x):
    from sgl_kernel import rmsnorm

    return rmsnorm(x.x, x.weights[0], 1e-6)  # any weight: SGLang folds the root and the scale into one before


def _sglang_residual_norm(case, x):
    from sglang.kernels.ops.layernorm.gemma4_fused_ops import gemma_rmsnorm_residual_scalar

    return gemma_rmsnorm_residual_scalar(x.x, x.weights[0], x.residual, x.scalar)


def _sglang_dual_residual_norm(case, x):
    from sglang.kernels.ops.layernorm.gemma4_fused_ops import gemma_dual_rmsnorm_residual_scalar

    w1, w2, w3 = x.weights
    return gemma_dual_rmsnorm_residual_scalar(x.x, w1, x.other, w2, w3, x.residual, x.scalar)


def row_norm(kernel, **options):
    """A call (case, x) of a norm of hidden states, or of its reference, on RowInputs."""

    def call(case, x):
        if case.operation == "router_norm":
            return kernel(x.x, x.weights[0], **options)
        if case.operation == "residual_norm":
            return kernel(x.x, x.weights[0], x.residual, x.scalar, **options)
        w1, w2, w3 = x.weights
        return kernel(x.x, w1, x.other, w2, w3, x.residual, x.scalar, **options)

    return call


def _on(call, compiled=False):
    """A provider's build: `call` on inputs of its own."""

    def build(case):
        x = case.inputs()
        if not compiled:
            return lambda: call(case, x)
        torch._dynamo.reset()  # or the ninth shape would run eager, without a word
        compiled_call = torch.compile(call, fullgraph=True, dynamic=False)
        return lambda: compiled_call(case, x)

    return build


def _providers(eager, ours: dict, sglang_name, sglang, liger, package="sglang") -> tuple[Provider, ...]:
    return (
        Provider(BASELINE, _on(eager)),
        Provider(AGAIN, _on(eager)),
        *(Provider(", ".join(filter(None, (OURS, name))), _on(call)) for name, call in ours.items()),
        Provider(f"{SGLANG} {sglang_name}", _on(sglang), package),
        Provider("Liger, a launch a step", _on(liger), liger_peers.PACKAGE),
        Provider(COMPILED, _on(eager, compiled=True)),
        Provider(EMPTY, lambda case: _launching()),
        Provider(COPY, lambda case: copying(case.bytes)),
    )


def _launching():
    tensor = torch.empty(1, device="cuda")
    return lambda: launch_empty(tensor)


PROVIDERS = {
    "qkv_norm": _providers(
        eager_qkv_norm, {"": qkv_norm}, "gemma_qkv_rmsnorm", _sglang_norm, liger_peers.qkv_norm
    ),
    "qkv_norm_rope_kv": _providers(
        eager_qkv_norm_rope_kv, {"": qkv_norm_rope}, "norm, rotary and cache write", _sglang_norm_rope_kv,
        liger_peers.qkv_norm_rope_kv,
    ),
    "router_norm": _providers(
        row_norm(router_norm_reference), {name: row_norm(router_norm, rounding=name) for name in ROUNDINGS},
        "rmsnorm", _sglang_router_norm, liger_peers.router_norm, "sgl_kernel",
    ),
    "residual_norm": _providers(
        row_norm(residual_norm_reference),
        {name: row_norm(residual_norm, rounding=name) for name in ("eager", "fp32")},
        "gemma_rmsnorm_residual_scalar", _sglang_residual_norm, liger_peers.residual_norm,
    ),
    "dual_residual_norm": _providers(
        row_norm(dual_residual_norm_reference),
        {name: row_norm(dual_residual_norm, rounding=name) for name in ("eager", "fp32")},
        "gemma_dual_rmsnorm_residual_scalar", _sglang_dual_residual_norm, liger_peers.dual_residual_norm,
    ),
}  # fmt: skip


def providers_of(operation: str, *, compiled: bool = False) -> list[Provider]:
    """The providers of an operation; torch.compile's only where asked for, since it compiles for every case anew."""
    return [each for each in PROVIDERS[operation] if compiled or each.name != COMPILED]


def measure(
    tokens: Sequence[int] = TOKENS, operations: Sequence[str] = OPERATIONS, *, rounds: int = 200,
    compiled: bool = False, keep: Callable[[pd.DataFrame], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """`suite.measure` of every case, and for each provider that ran also `bytes`, `gbps` (10^9 bytes/s), `copy_share`
    (of the bandwidth that the copy reaches) and `over_sglang` (how many times faster than SGLang's), with intervals.

    Raises:
        Unavailable: no GPU, or an interpreted process.
        BadInput: an unknown operation, or a size below 1.
    """
    chosen = norms_cases.cases(tokens, operations)
    of_case = {name: providers_of(name, compiled=compiled) for name in operations}
    return suite.measure(
        chosen, lambda c: of_case[c.operation], rounds=rounds, more=bandwidth, keep=keep, progress=progress
    )


def bandwidth(case, name: str, reading: str, timed: dict[str, Timed]) -> dict:
    """The columns that `measure` adds to a row."""
    if name == EMPTY:
        return {}
    row = {"bytes": case.bytes, "gbps": case.bytes / stats.quantiles(timed[name].samples[reading])["p50"] / 1e3}
    peer = next((other for other in timed if other.startswith(SGLANG)), "")
    for column, slow in (("copy_share", COPY), ("over_sglang", peer)):
        if found := suite.ratio(timed, slow, name, reading):
            row |= {column: found.ratio, f"{column}_low": found.low, f"{column}_high": found.high}
    return row


def medians(times: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """For each operation and reading a title and a table: a row per case, a column of median µs per provider."""
    times = times[times.reason == ""]
    for (operation, reading), rows in times.groupby(["operation", "reading"], sort=False):
        names = [key for key in KEYS[1:-2] if key in rows and rows[key].notna().any()]
        table = rows.pivot_table(index=names, columns="provider", values="p50_us", sort=False).reset_index()
        yield f"{operation}, {reading} L2: median µs", table


def availability() -> pd.DataFrame:
    """`suite.availability` of every operation's providers."""
    frames = [suite.availability(providers).assign(operation=name) for name, providers in PROVIDERS.items()]
    found = pd.concat(frames, ignore_index=True)
    return found[["operation", *found.columns.drop("operation")]]

"""Before the norm kernels are timed: are their results those of eager PyTorch, bit for bit?

Each is compared with two chains of the same roundings. The one in the kernels' order of additions (g4lab.kernels.rms)
must agree in every bit, and that is what a proof claims. The one as eager PyTorch orders its sums on this device is
counted beside it: a GPU adds in the kernels' order from 16 rows on, and below in another.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from g4lab import env
from g4lab.bench.norms import qkv_norm, qkv_norm_rope, row_norm
from g4lab.bench.norms_cases import DTYPES, ON_HEADS, OPERATIONS, HeadCase, RowCase, cases
from g4lab.bench.suite import Proof
from g4lab.errors import Unavailable
from g4lab.kernels import residual_norm, rms, router_norm
from g4lab.kernels.qkv_norm import qkv_rmsnorm, qkv_rmsnorm_reference
from g4lab.kernels.qkv_norm_rope_kv import ROPE_ROUNDINGS, qkv_norm_rope_kv, qkv_norm_rope_kv_reference
from g4lab.quality.ulps import Difference, difference

PROOF_TOKENS = (1, 17, 256, 2048)
ROWS = ("normal", "adversarial")
CACHES = {"": None, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
ORDERS = {"kernels' order": rms.mean_square_in_warp_order, "eager PyTorch": rms.mean_square}

# (kernel, reference, roundings) of the operations on rows
_ON_ROWS = {
    "router_norm": (router_norm.router_norm, router_norm.router_norm_reference, router_norm.ROUNDINGS),
    "residual_norm": (residual_norm.residual_norm, residual_norm.residual_norm_reference, residual_norm.ROUNDINGS),
    "dual_residual_norm": (
        residual_norm.dual_residual_norm, residual_norm.dual_residual_norm_reference, residual_norm.ROUNDINGS,
    ),
}  # fmt: skip


def prove(
    tokens: Sequence[int] = PROOF_TOKENS, operations: Sequence[str] = OPERATIONS, dtypes: Sequence[str] = tuple(DTYPES),
    progress: Callable[[int, int], None] | None = None,
) -> list[Proof]:  # fmt: skip
    """Counts of unequal values of every case, rounding, cache dtype and kind of rows against both chains.

    Runs on the GPU, or in Triton's interpreter on the CPU (choose few tokens there).

    Raises:
        Unavailable: no GPU, and this process does not interpret Triton.
        BadInput: an unknown operation, or a size below 1.
    """
    if not env.has_gpu() and not env.interpreting():
        raise Unavailable("no kernel runs here: there is no CUDA GPU, and TRITON_INTERPRET is not 1")
    device = "cpu" if env.interpreting() else "cuda"
    jobs = [
        (type(case)(**{**asdict(case), "dtype": dtype}), how, rows)
        for case in cases(tokens, operations) for dtype in dtypes for how in _ways(case) for rows in ROWS
    ]  # fmt: skip
    proofs = []
    for done, (case, how, rows) in enumerate(jobs):
        run = _run_heads if isinstance(case, HeadCase) else _run_rows
        got = run(case, how, rows, device)
        for order, mean_square in ORDERS.items():
            expected = run(case, how, rows, device, mean_square)
            pairs = zip(got, expected, strict=True)
            found = sum((difference(a, b) for a, b in pairs), start=Difference())
            values = asdict(found) | {"ulps": {str(n): count for n, count in found.ulps.items()}}
            parameters = asdict(case) | how | {"rows": rows, "against": order}
            proofs.append(Proof(parameters, values, found.unequal == 0 or order == "eager PyTorch"))
        if progress:
            progress(done + 1, len(jobs))
    return proofs


def _ways(case: HeadCase | RowCase) -> list[dict]:
    """The choices that change an operation's bits."""
    if case.operation == "qkv_norm":
        return [{}]
    if case.operation == "qkv_norm_rope_kv":
        fp8 = [] if case.mode == "Q" else [name for name in CACHES if name]
        return [{"rounding": r, "cache": ""} for r in ROPE_ROUNDINGS] + [{"rounding": "fp32", "cache": c} for c in fp8]
    return [{"rounding": rounding} for rounding in _ON_ROWS[case.operation][2]]


def _run_heads(case: HeadCase, how: dict, rows: str, device: str, mean_square=None) -> list[torch.Tensor]:
    """Results of the kernel, or of its reference with this order of sums: q, k, v and what the cache holds then."""
    x = case.inputs(device, rows, CACHES[how.get("cache", "")])
    if case.operation == ON_HEADS[0]:
        kernel = functools.partial(qkv_rmsnorm_reference, mean_square=mean_square) if mean_square else qkv_rmsnorm
        return [each for each in qkv_norm(case, x, kernel) if each is not None]
    kernel = qkv_norm_rope_kv
    if mean_square:
        kernel = functools.partial(qkv_norm_rope_kv_reference, mean_square=mean_square)
    results = qkv_norm_rope(case, x, kernel, rope_rounding=how["rounding"])
    return [each for each in results if each is not None] + [x.k_cache, x.v_cache]


def _run_rows(case: RowCase, how: dict, rows: str, device: str, mean_square=None) -> list[torch.Tensor]:
    kernel, reference, _ = _ON_ROWS[case.operation]
    options = how | ({"mean_square": mean_square} if mean_square else {})
    return [row_norm(reference if mean_square else kernel, **options)(case, case.inputs(device, rows))]

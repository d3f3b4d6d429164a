"""Equivalence probe for routers: how often, and by how much, two of them disagree on many random tokens.

The measure is that of SGLang fork pyc96/sglang PR #1 (819,200 random tokens), with the differences also in ulps, since
a tolerance of one bf16 step hides what SGLang PR #26588 had to revert.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from g4lab.errors import bad
from g4lab.kernels.router import ROUNDINGS, route, route_reference
from g4lab.quality.ulps import difference

Router = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def _normal(shape, generator):
    return torch.randn(shape, generator=generator)


def _narrow(shape, generator):
    return _normal(shape, generator) / 4


def _tied(shape, generator):
    return (2 * _normal(shape, generator)).round() / 2


def _equal(shape, generator):
    return _normal((shape[0], 1), generator).expand(shape)


def _zeros(shape, generator):
    return torch.tensor([-0.0, 0.0, -1.0])[torch.randint(3, shape, generator=generator)]


def _wide(shape, generator):
    return 60 * _normal(shape, generator)


def _infinite(shape, generator):
    values = torch.tensor([-math.inf, -1.0, 0.5, math.inf])
    return values[torch.bucketize(torch.rand(shape, generator=generator), torch.tensor([0.5, 0.75, 0.998]))]


# What the random logits look like: a plain router, an undecided one, and rows made to catch a router out.
LOGITS = {
    "normal": _normal,
    "narrow": _narrow,
    "tied": _tied,
    "equal": _equal,
    "zeros": _zeros,
    "wide": _wide,
    "infinite": _infinite,
}


@dataclass(frozen=True)
class ProbeResult:
    """Counts over `n_tokens` rows. Weights are compared id by id in the rows whose expert sets agree.

    max_ulp and ulps are in units in the last place of the logits' dtype at the reference weight; ulps counts the
    unequal weights by their difference rounded up to a whole ulp. NaN equals NaN.
    """

    n_tokens: int
    num_experts: int
    top_k: int
    dtype: str
    rounding: str
    logits: str
    seed: int
    set_disagreements: int = 0
    order_disagreements: int = 0
    weights_compared: int = 0
    weights_unequal: int = 0
    nan_disagreements: int = 0
    max_abs: float = 0.0
    max_ulp: float = 0.0
    ulps: dict[int, int] = field(default_factory=dict)

    @property
    def bit_identical(self) -> bool:
        """Same expert set in every row and every weight equal in every bit."""
        return self.set_disagreements == 0 and self.weights_unequal == 0

    def summary(self) -> dict:
        """One flat row for a table: rates in percent."""
        return {
            "tokens": self.n_tokens,
            "dtype": self.dtype,
            "rounding": self.rounding,
            "logits": self.logits,
            "set_disagreement_pct": 100 * self.set_disagreements / max(1, self.n_tokens),
            "order_disagreement_pct": 100 * self.order_disagreements / max(1, self.n_tokens),
            "weights_unequal_pct": 100 * self.weights_unequal / max(1, self.weights_compared),
            "max_abs": self.max_abs,
            "max_ulp": self.max_ulp,
            "bit_identical": self.bit_identical,
        }


def probe(
    n_tokens: int = 819_200,
    num_experts: int = 128,
    top_k: int = 8,
    dtype: str = "bfloat16",
    rounding: str = "eager",
    seed: int = 0,
    chunk: int = 65_536,
    progress: Callable[[int, int], None] | None = None,
    *,
    logits: str = "normal",
    device: str = "cpu",
    router: Router | None = None,
    reference: Router = route_reference,
) -> ProbeResult:
    """Compare `router` with `reference` on seeded random logits, `chunk` rows at a time.

    Args:
        dtype: of logits and scales: "bfloat16", "float16" or "float32". Scales are drawn from 0.5 to 1.5.
        rounding: of `route`, when no other `router` is given; then also only a label.
        progress: called with (rows done, rows in all) after each chunk.
        logits: a key of LOGITS.
        router: callable (logits, per_expert_scale, top_k) -> (weights, ids); default `route` with `rounding`.
        reference: the same; default the eager chain.

    Raises:
        BadInput: unknown dtype, rounding or kind of logits, or a chunk below 1.
    """
    for name, value, known in (("dtype", dtype, DTYPES), ("rounding", rounding, ROUNDINGS), ("logits", logits, LOGITS)):
        if value not in known and (name != "rounding" or router is None):
            raise bad(name, value, "one of " + ", ".join(known))
    if chunk < 1:
        raise bad("chunk", chunk, "at least 1 row")
    router = router or functools.partial(route, rounding=rounding)
    generator = torch.Generator().manual_seed(seed)
    scale = (torch.rand(num_experts, generator=generator) + 0.5).to(device, DTYPES[dtype])
    result = ProbeResult(n_tokens, num_experts, top_k, dtype, rounding, logits, seed)
    for start in range(0, n_tokens, chunk):
        rows = min(chunk, n_tokens - start)
        x = LOGITS[logits]((rows, num_experts), generator).to(device, DTYPES[dtype])
        result = _add(result, compare(router(x, scale, top_k), reference(x, scale, top_k), DTYPES[dtype]))
        if progress:
            progress(start + rows, n_tokens)
    return result


def in_calls_of(tokens: int, router: Router) -> Router:
    """`router` called on `tokens` rows at a time: another launch size, the same rows."""

    def routed(logits, per_expert_scale, top_k):
        parts = [router(rows, per_expert_scale, top_k) for rows in logits.split(tokens)]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    return routed


def compare(got: tuple, expected: tuple, dtype: torch.dtype) -> dict:
    """Differences of two routers' (weights [T, K], ids [T, K]) on the same rows, as ProbeResult's counters."""
    (weights, ids), (expected_weights, expected_ids) = got, expected
    by_id, expected_by_id = ids.long().argsort(dim=1), expected_ids.long().argsort(dim=1)
    same_set = (ids.gather(1, by_id) == expected_ids.gather(1, expected_by_id)).all(dim=1)
    found = difference(weights.gather(1, by_id)[same_set], expected_weights.gather(1, expected_by_id)[same_set], dtype)
    return {
        "set_disagreements": int((~same_set).sum()),
        "order_disagreements": int((ids != expected_ids).any(dim=1).sum()),
        "weights_compared": found.compared,
        "weights_unequal": found.unequal,
        "nan_disagreements": found.nan_disagreements,
        "max_abs": found.max_abs,
        "max_ulp": found.max_ulp,
        "ulps": found.ulps,
    }


def _add(result: ProbeResult, part: dict) -> ProbeResult:
    merged = {}
    for name, value in part.items():
        before = getattr(result, name)
        if name == "ulps":
            merged[name] = {n: before.get(n, 0) + value.get(n, 0) for n in sorted(before.keys() | value.keys())}
        else:
            merged[name] = max(before, value) if name.startswith("max_") else before + value
    return ProbeResult(**{**vars(result), **merged})

"""How far two tensors are apart, in units in the last place of a dtype: a tolerance hides what SGLang PR #26588 had to
revert, a count of unequal values and their ulps does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

EXACT, MOST = 16, 2**20  # the histogram counts whole ulps up to EXACT, then powers of two, the last one with all beyond


@dataclass(frozen=True)
class Difference:
    """Counts over `compared` values. NaN equals NaN, and -0.0 equals +0.0.

    max_ulp and ulps are in units in the last place of the reference value; ulps counts the unequal values by their
    difference rounded up to a whole ulp, above EXACT to a power of two. A difference to or from an infinity or NaN is
    infinite in max_abs and MOST in ulps.
    """

    compared: int = 0
    unequal: int = 0
    nan_disagreements: int = 0
    max_abs: float = 0.0
    max_ulp: float = 0.0
    ulps: dict[int, int] = field(default_factory=dict)

    def __add__(self, other: Difference) -> Difference:
        both = sorted(self.ulps.keys() | other.ulps.keys())
        return Difference(
            compared=self.compared + other.compared,
            unequal=self.unequal + other.unequal,
            nan_disagreements=self.nan_disagreements + other.nan_disagreements,
            max_abs=max(self.max_abs, other.max_abs),
            max_ulp=max(self.max_ulp, other.max_ulp),
            ulps={n: self.ulps.get(n, 0) + other.ulps.get(n, 0) for n in both},
        )


def difference(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> Difference:
    """Differences of two tensors of one shape, value by value; `dtype` gives the ulp (default: the expected one's)."""
    a, b = got.double(), expected.double()
    nan = int((a.isnan() != b.isnan()).sum())
    unequal = (a != b) & ~(a.isnan() & b.isnan())
    apart = (a - b).abs()[unequal].nan_to_num(nan=math.inf, posinf=math.inf)
    ulps = (apart / spacing(b[unequal], dtype or expected.dtype)).nan_to_num(nan=math.inf, posinf=math.inf)
    whole = torch.where(ulps <= EXACT, ulps.ceil(), ulps.log2().ceil().exp2()).clamp(max=MOST)
    whole, counts = whole.long().unique(return_counts=True)
    return Difference(
        compared=a.numel(),
        unequal=int(unequal.sum()),
        nan_disagreements=nan,
        max_abs=float(apart.max()) if apart.numel() else 0.0,
        max_ulp=float(ulps.max()) if ulps.numel() else 0.0,
        ulps=dict(zip(whole.tolist(), counts.tolist(), strict=True)),
    )


def spacing(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Distance between neighbouring values of `dtype` at fp64 `x`; of subnormals near zero, infinite for no number."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp(min=info.smallest_normal)).exponent - 1
    return torch.where(x.isfinite(), torch.ldexp(torch.full_like(x, info.eps), exponent), math.inf)

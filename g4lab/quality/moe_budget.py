"""What each row of an expert layer's output may be off from the truth: derived, for tests, benchmark and notebook."""

from __future__ import annotations

import torch


def row_budget(truth: torch.Tensor, low: torch.Tensor, dtype: torch.dtype, terms: int) -> torch.Tensor:
    """The largest error allowed in each row of [T, H].

        2 x (what the reference is off that rounds every operator to `dtype`)
        + (eps of dtype + eps of fp32 x sqrt(terms)) x (the row's largest value)

    The first term is what eager PyTorch would be allowed. The second is for what no reference shows: one rounding of h,
    of each weighted pair and of the sum, which eager's chain has in other places, and the order of fp32 sums, whose
    roundings have random signs and add up like the square root of their number.

    truth: the reference in fp64. low: the reference in `dtype`. terms: products that an output adds up, hidden +
    width. Returns [T] fp64.
    """
    eps = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * terms**0.5
    return 2 * (low.double() - truth).abs().amax(-1) + eps * truth.abs().amax(-1)

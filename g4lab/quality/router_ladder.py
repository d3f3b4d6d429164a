"""The roundings of the eager router as a ladder: leave one of its steps out and count the weights that change."""

from collections.abc import Callable

import pandas as pd
import torch

from g4lab.kernels.router import route_reference, topk_lowest_id
from g4lab.quality.router_chains import butterfly_sum, softmax_in_cuda_order
from g4lab.quality.router_probe import Router, probe


def stepwise(*, exp: str = "expf", order: str = "butterfly", round_softmax=True, round_product=True) -> Router:
    """The chain with single steps done another way; the defaults are eager's.

    exp: "expf" (correctly rounded here), or "exp2": 2**(x * log2 e) with the product rounded to fp32, which is what
    Triton's `tl.exp` computes before its approximate ex2. order: of the sum, "butterfly" or "sequential". top_k must be
    a power of two.
    """

    def routed(logits, per_expert_scale, top_k):
        values, ids = topk_lowest_id(logits, top_k)
        x = values.float()
        x = x - x[:, :1]
        p = (torch.exp(x.double()) if exp == "expf" else torch.exp2((x * 1.4426950408889634).double())).float()
        weights = p / (butterfly_sum(p) if order == "butterfly" else _sequential_sum(p))
        weights = weights.to(logits.dtype).float() if round_softmax else weights
        weights = weights * per_expert_scale[ids].to(logits.dtype).float()
        weights = weights.to(logits.dtype).float() if round_product else weights
        return weights, ids.to(torch.int32)

    return routed


RUNGS: dict[str, Router] = {
    "nothing rounded: fp32 throughout": stepwise(round_softmax=False, round_product=False),
    "only the softmax rounded": stepwise(round_product=False),
    "only the product rounded": stepwise(round_softmax=False),
    "both rounded, exp as 2^(x·log2 e)": stepwise(exp="exp2"),
    "both rounded, sum left to right": stepwise(order="sequential"),
    "every step as eager": stepwise(),
}


def ladder(
    n_tokens: int = 65_536,
    dtype: str = "bfloat16",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    *,
    device: str = "cpu",
) -> pd.DataFrame:
    """One row a rung: share of weights that are not eager's (in CUDA's order) and the largest difference in ulps.

    progress: called with (rungs done, rungs in all).
    """
    rows = []
    for name, router in RUNGS.items():
        found = probe(
            n_tokens, dtype=dtype, seed=seed, device=device, router=router, rounding=name, reference=eager_in_cuda_order
        )
        rows.append(
            {
                "rung": name,
                "weights_unequal_pct": 100 * found.weights_unequal / found.weights_compared,
                "weights_unequal": found.weights_unequal,
                "max_ulp": found.max_ulp,
                "weights": found.weights_compared,
            }
        )
        if progress:
            progress(len(rows), len(RUNGS))
    return pd.DataFrame(rows)


def eager_in_cuda_order(logits, per_expert_scale, top_k):
    """The eager chain with the softmax as CUDA orders it, on any device."""
    return route_reference(logits, per_expert_scale, top_k, softmax=softmax_in_cuda_order)


def tie_rates(n_tokens: int = 65_536, num_experts: int = 128, top_k: int = 8, seed: int = 0) -> pd.DataFrame:
    """Share of random rows, in percent by dtype, with equal logits among the chosen, and across the last place."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_tokens, num_experts, generator=generator)
    rows = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        values = logits.to(dtype).float().sort(dim=1, descending=True).values
        equal = values[:, :top_k] == values[:, 1 : top_k + 1]
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "tie_among_chosen_pct": 100 * equal[:, :-1].any(dim=1).float().mean().item(),
                "tie_for_last_place_pct": 100 * equal[:, -1].float().mean().item(),
            }
        )
    return pd.DataFrame(rows)


def _sequential_sum(p: torch.Tensor) -> torch.Tensor:
    total = p[:, :1]
    for i in range(1, p.shape[1]):
        total = total + p[:, i : i + 1]
    return total

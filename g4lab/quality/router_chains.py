"""Other ways to compute Gemma-4's routing, to set beside the eager chain and find which step costs which bit."""

import torch

from g4lab.kernels.router import topk_lowest_id


def softmax_in_cuda_order(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax over the last axis (at most 32 values) as eager PyTorch orders it on CUDA, in plain operators.

    fp32 throughout; exp correctly rounded (CUDA's expf is within 2 ulp of it, CUDA C++ Programming Guide); sum in a
    warp's butterfly order, halves first; IEEE division; one rounding to the input's dtype. The torch softmax of the CPU
    has another exp and another order.
    """
    x = values.float()
    x = torch.nn.functional.pad(x, (0, _next_power_of_two(x.shape[dim]) - x.shape[dim]), value=-torch.inf)
    p = torch.exp((x - x.max(dim, keepdim=True).values).double()).float()
    return (p / butterfly_sum(p))[..., : values.shape[dim]].to(values.dtype)


def butterfly_sum(p: torch.Tensor) -> torch.Tensor:
    """Sum over the last axis (a power of two long, kept as 1) in the order of a warp's shuffles, halves first."""
    while p.shape[-1] > 1:
        low, high = p.chunk(2, -1)
        p = low + high
    return p


def transformers_chain(logits: torch.Tensor, per_expert_scale: torch.Tensor, top_k: int):
    """Transformers 5.12's Gemma4TextRouter: softmax over all experts, then the choice, then renormalise and scale.

    In bf16 the choice is made among rounded probabilities, so experts whose logits differ can tie; ties for the last
    place go to the lowest ids, as on CUDA.
    """
    probabilities = torch.softmax(logits, dim=-1)
    weights, ids = topk_lowest_id(probabilities, top_k)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    weights = weights * per_expert_scale[ids].to(weights.dtype)
    return weights.float(), ids.to(torch.int32)


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()

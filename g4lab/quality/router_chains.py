"""Other ways to compute Gemma-4's routing, to set beside the eager chain and find which step costs which bit."""

import torch


def softmax_in_cuda_order(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Softmax over the last axis (at most 32 values) as eager PyTorch orders it on CUDA, in plain operators.

    fp32 throughout; exp correctly rounded (CUDA's expf is within 2 ulp of it, CUDA C++ Programming Guide); sum in a
    warp's butterfly order, halves first; IEEE division; one rounding to the input's dtype. The torch softmax of the CPU
    has another exp and another order.
    """
    x = values.float()
    x = torch.nn.functional.pad(x, (0, _next_power_of_two(x.shape[dim]) - x.shape[dim]), value=-torch.inf)
    p = torch.exp((x - x.max(dim, keepdim=True).values).double()).float()
    total = p
    while total.shape[dim] > 1:
        low, high = total.chunk(2, dim)
        total = low + high
    return (p / total)[..., : values.shape[dim]].to(values.dtype)


def transformers_chain(logits: torch.Tensor, per_expert_scale: torch.Tensor, top_k: int):
    """Transformers 5.12's Gemma4TextRouter: softmax over all experts, then the choice, then renormalise and scale.

    In bf16 the choice is made among rounded probabilities, so experts whose logits differ can tie.
    """
    probabilities = torch.softmax(logits, dim=-1)
    weights, ids = torch.topk(probabilities, top_k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    weights = weights * per_expert_scale[ids].to(weights.dtype)
    return weights.float(), ids.to(torch.int32)


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()

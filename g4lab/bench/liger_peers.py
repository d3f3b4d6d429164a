"""Liger-Kernel's norms, rotary embedding and GEGLU on the benchmarks' inputs: one launch a step, made for training.

It knows neither slices of a packed projection, which it copies first, nor a KV cache, into which PyTorch writes here.
Norms compute in fp32 and round once (its mode "gemma" with an offset of 0, which is Gemma-4's norm).
"""

import torch

from g4lab.bench import moe_peers
from g4lab.kernels.qkv_norm import QKVMode

PACKAGE = "liger_kernel"


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float = 1e-6) -> torch.Tensor:
    """The norm of the last dimension, a new tensor; no weight: no scale."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "gemma", False)


def qkv_norm(case, x):
    """Norms of Q, K and V of HeadInputs, new tensors [T, heads, D]; the last two are None in mode Q."""
    q, k, v = (each.unflatten(1, (-1, case.head_dim)) for each in (x.q, x.k, x.v))
    if case.mode == QKVMode.Q:
        return rms_norm(q, x.q_weight), None, None
    return rms_norm(q, x.q_weight), rms_norm(k, x.k_weight), rms_norm(v if case.mode == QKVMode.QKV else k, None)


def qkv_norm_rope_kv(case, x):
    """The norms, its rotary embedding of Q and K together (in mode Q zeros stand in for K), and the cache's write."""
    from liger_kernel.ops.rope import LigerRopeFunction

    q, k, v = qkv_norm(case, x)
    turned = torch.zeros_like(q[:, : case.num_kv_heads]) if k is None else k
    cos, sin = (half.repeat(1, 2)[None] for half in x.cos_sin_cache[x.positions].chunk(2, dim=1))
    q, turned = LigerRopeFunction.apply(q[None].transpose(1, 2), turned[None].transpose(1, 2), cos, sin)
    if k is not None:
        k = turned[0].transpose(0, 1)
        x.k_cache[x.cache_loc], x.v_cache[x.cache_loc] = k, v
    return q[0].transpose(0, 1), k, v


def router_norm(case, x):
    """The norm with a weight: Gemma-4's root and scale can be folded into one before."""
    return rms_norm(x.x, x.weights[0])


def residual_norm(case, x):
    """The norm, then PyTorch's sum and product."""
    return (x.residual + rms_norm(x.x, x.weights[0])) * x.scalar


def dual_residual_norm(case, x):
    """Three norms, with PyTorch's sums and product."""
    w1, w2, w3 = x.weights
    return (x.residual + rms_norm(rms_norm(x.x, w1) + rms_norm(x.other, w2), w3)) * x.scalar


def experts(shape, device: str = "cuda"):
    """PyTorch's grouped_mm, with its GELU and product by Liger's GEGLU in one launch."""
    from liger_kernel.ops.geglu import LigerGELUMulFunction

    return moe_peers.grouped_mm(shape, device, LigerGELUMulFunction.apply)

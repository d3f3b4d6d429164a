"""The three patches of SGLang's Gemma-4 attention. They share one body (attention_body): each works alone or together.

SGLang 0.5.21 norms q, k and v in one launch on CUDA and by one module each on a CPU, computes K's projection twice on
K=V layers, and takes two further launches to rotate and to write.
"""

from __future__ import annotations

from g4lab.patches.attention_body import mark
from g4lab.patches.choices import needs_interpreter
from g4lab.patches.registry import Hook, Patch

_INIT = "sglang.srt.models.gemma4_causal.Gemma4Attention.__init__"

QKV_NORM = Patch(
    name="qkv_norm",
    effect="norms q, k and v in one launch; on K=V layers K's projection is read once for both",
    source="SGLang PR #25461, PR #26588",
    hooks=(Hook(_INIT, "after", mark("qkv_norm")),),
    requires="a CUDA GPU, or TRITON_INTERPRET=1 on a CPU",
    counts="calls of the norm, one for each layer and step; none where qkv_norm_rope_kv does its work",
    kernel="_qkv_norm_kernel",
    gone={"kernels": ("_gemma_qkv_rmsnorm",)},
    declines=needs_interpreter,
)

KV_SINGLE_GEMM = Patch(
    name="kv_single_gemm",
    effect="leaves out V's projection on K=V layers, K's and V's where another layer's KV is read",
    source="vLLM issue #41944, SGLang PR #25461",
    hooks=(Hook(_INIT, "after", mark("kv_single_gemm")),),
    requires="an unquantised q, k, v projection",
    counts="projections cut short, one for each such layer and step",
)

QKV_NORM_ROPE_KV = Patch(
    name="qkv_norm_rope_kv",
    effect="norms, rotary embedding and KV write in one launch, to where the attention backend reads",
    source="SGLang PR #19107; SGLang 0.5.21 has its own switched off",
    hooks=(Hook(_INIT, "after", mark("qkv_norm_rope_kv")),),
    requires="the Triton or torch_native attention backend and an unscaled KV cache; elsewhere the separate steps run",
    counts="calls of the fused step, one for each layer and step",
    kernel="_qkv_norm_rope_kv_kernel",  # nothing is gone for sure: a prefill in a CUDA graph keeps the separate steps
    declines=needs_interpreter,
)

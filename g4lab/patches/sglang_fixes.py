"""Corrections of SGLang 0.5.21, on by default: each makes the served tokens those of transformers again."""

from __future__ import annotations

from g4lab.patches.counting import count
from g4lab.patches.registry import Hook, Patch


def _let_norm_scale(result, router, *args, **kwargs):
    """After Gemma4Router.fuse_scale folded the router's scale into the norm's weight: let the native norm use it."""
    router.norm.with_scale = True
    count("router_scale")


ROUTER_SCALE = Patch(
    name="router_scale",
    effect="applies the router's learned scale where SGLang's native RMSNorm drops it (CPU, ROCm)",
    source="SGLang PR #32131",
    hooks=(Hook("sglang.srt.models.gemma4_causal.Gemma4Router.fuse_scale", "after", _let_norm_scale),),
    counts="routers corrected, one for each MoE layer",
    default_on=True,
)


def _widened(original, backend, *args, **kwargs):
    """Run `original` with a window one key wider, where it is a target's.

    A decode step's seq_lens counts the token being decoded, but SGLang's window size counts the keys before it. The
    same holds for the CUDA-graph buffer that is sized by it. Draft backends keep SGLang's count: the scheduler frees
    window slots by the target's position, and a frozen-KV draft looks from one token further back.
    """
    if not backend.sliding_window_size or getattr(backend, "is_draft_runner", False):
        return original(backend, *args, **kwargs)
    count("swa_decode_window")
    backend.sliding_window_size += 1
    try:
        return original(backend, *args, **kwargs)
    finally:
        backend.sliding_window_size -= 1


def _eager_step(original, backend, forward_batch, *args, **kwargs):
    if not forward_batch.forward_mode.is_decode_or_idle():
        return original(backend, forward_batch, *args, **kwargs)
    return _widened(original, backend, forward_batch, *args, **kwargs)


_TRITON = "sglang.srt.layers.attention.triton_backend.TritonAttnBackend."

SWA_DECODE_WINDOW = Patch(
    name="swa_decode_window",
    effect="lets sliding-window decode on the Triton backend attend its whole window, not one key less",
    source="SGLang PR #32087",
    hooks=(
        Hook(_TRITON + "init_forward_metadata", "around", _eager_step),
        Hook(_TRITON + "_update_decode_kv_buffers", "around", _widened),
        Hook(_TRITON + "init_cuda_graph_state", "around", _widened),
    ),
    counts="decode steps and graph buffers widened (eager steps, CUDA-graph captures and replays)",
    default_on=True,
)


def _without_empty_proxy(original, *args, **kwargs):
    """The scheduler without overlap passes pp_proxy_tensors=None, which the frozen-KV MTP worker does not take."""
    if kwargs.get("pp_proxy_tensors", ...) is None:
        del kwargs["pp_proxy_tensors"]
        count("mtp_pp_proxy")
    return original(*args, **kwargs)


MTP_PP_PROXY = Patch(
    name="mtp_pp_proxy",
    effect="lets Gemma-4's MTP assistant run with --disable-overlap-schedule",
    source="seen in SGLang 0.5.21",
    hooks=(
        Hook(
            "sglang.srt.speculative.frozen_kv_mtp_worker_v2.FrozenKVMTPWorkerV2.forward_batch_generation",
            "around",
            _without_empty_proxy,
        ),
    ),
    counts="batches freed of the argument",
    default_on=True,
)


def _on_a_gpu_by_tanh(result, moe, *args, **kwargs):
    """After Gemma4MoE.__init__. SGLang's CPU path computes GELU by tanh, and knows it by the name "gelu" alone."""
    if moe.experts.w13_weight.is_cuda:
        by_tanh(moe.experts)


def by_tanh(experts) -> None:
    """Name the checkpoint's activation as the MoE runner triton knows it; other runners, which may not, keep theirs.

    The layer, its quantisation method and its runner share one config.
    """
    runner = getattr(experts.quant_method, "runner", None)
    if runner is not None and runner.runner_backend.is_triton() and experts.moe_runner_config.activation == "gelu":
        experts.moe_runner_config.activation = "gelu_tanh"
        count("moe_activation")


MOE_ACTIVATION = Patch(
    name="moe_activation",
    effect="gives the experts the checkpoint's GELU by tanh, where SGLang's CUDA kernels take the exact one (erf)",
    source="vLLM PR #41574, which corrected the same in vLLM; read in SGLang 0.5.21, not yet run on a GPU",
    hooks=(
        Hook(
            "sglang.srt.models.gemma4_causal.Gemma4MoE.__init__",
            "after",
            _on_a_gpu_by_tanh,
            device="cuda",
            # SGLang 0.5.17's runner refuses the name gelu_tanh.
            needs=("sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe.gelu_tanh_and_mul",),
        ),
    ),
    requires="a GPU and the MoE runner triton, to have something to correct; a newer SGLang than 0.5.17",
    counts="MoE layers corrected",
    default_on=True,
)


def _at_sliding_slots(original, backend, query, output, k, v, req_to_token, requests, seq_lens, *rest, **kwargs):
    """Run one of the torch_native loops; a sliding layer's keys are looked up where the backend has written them.

    Positions that have left the window translate to slot 0, the reserved one: the loop's mask hides them.
    """
    if backend.use_sliding_window_kv_pool and kwargs.get("sliding_window_size") is not None and len(requests):
        import torch

        count("torch_native_swa")
        slots = req_to_token[requests, : int(seq_lens.max())]
        req_to_token = backend.token_to_kv_pool.translate_loc_from_full_to_swa(slots)
        requests = torch.arange(len(requests), device=requests.device)
    return original(backend, query, output, k, v, req_to_token, requests, seq_lens, *rest, **kwargs)


_TORCH_NATIVE = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend."

TORCH_NATIVE_SWA = Patch(
    name="torch_native_swa",
    effect="lets the torch_native backend read the sliding-window pool at the slots where it writes it",
    source="seen in SGLang 0.5.21: right only while a slot has the same number in both pools",
    hooks=(
        Hook(_TORCH_NATIVE + "_run_sdpa_forward_extend", "around", _at_sliding_slots),
        Hook(_TORCH_NATIVE + "_run_sdpa_forward_decode", "around", _at_sliding_slots),
    ),
    requires="the attention backend torch_native, and a sliding-window pool, to have something to correct",
    counts="calls of sliding layers translated",
    default_on=True,
)

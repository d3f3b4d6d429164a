"""Patch `fused_moe`: the experts of Gemma-4's MoE layers by g4lab's kernels: gate_up with its activation, down, sum.

It stands in for what SGLang does between dispatch and combine (FusedMoE.run_moe_core) of Gemma-4's layers alone. What
the kernels do not take (`cannot_take`) goes to SGLang's, and the patch's report counts why. Adapters (LoRA) on the
experts do not pass here; where they do the work, the counter stands still.

The activation is the checkpoint's, GELU by tanh, whatever SGLang 0.5.21 calls it: it asks for "gelu", which is that on
its CPU path but the exact GELU (erf) in its CUDA kernels. The two are up to 4.7e-4 apart; with the default patch
moe_activation SGLang's own kernels compute the checkpoint's, too.
"""

from __future__ import annotations

import functools

from g4lab.patches.choices import needs_interpreter
from g4lab.patches.counting import count, tally
from g4lab.patches.registry import Hook, Patch


def _take_over(result, moe, *args, **kwargs):
    """After Gemma4MoE.__init__: hook this layer's experts, and no other model's."""
    experts = moe.experts
    experts.run_moe_core = functools.partial(_run, experts, experts.run_moe_core)


def _run(experts, original, dispatch_output):
    """Stands around FusedMoE.run_moe_core: what dispatch gave, [T, H] and its routing -> what combine takes."""
    if why_not := cannot_take(experts, dispatch_output):
        tally("fused_moe", "declined", why_not)
        return original(dispatch_output=dispatch_output)
    from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput

    from g4lab.kernels.fused_moe import fused_moe

    count("fused_moe")
    routing = dispatch_output.topk_output
    return StandardCombineInput(
        fused_moe(
            dispatch_output.hidden_states, experts.w13_weight, experts.w2_weight, routing.topk_weights, routing.topk_ids
        )
    )  # fmt: skip


def cannot_take(experts, dispatch_output) -> str | None:
    """Why g4lab's kernels cannot stand in for SGLang's in this call, or None."""
    from sglang.srt.layers.moe.topk import TopKOutputChecker
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
    from sglang.srt.runtime_context import get_exec

    from g4lab.kernels.checks import DTYPES
    from g4lab.kernels.fused_moe import MAX_EXPERTS

    method, config = experts.quant_method, experts.moe_runner_config
    if type(method) is not UnquantizedFusedMoEMethod:
        return f"weights of {type(method).__name__}"
    if not dispatch_output.format.is_standard() or config.num_experts != config.num_local_experts:
        return "experts spread over processes"
    runner, scaling = method.runner.runner_backend, config.routed_scaling_factor
    limits = (config.gemm1_alpha, config.gemm1_clamp_limit, config.swiglu_limit)
    asked = {
        f"the MoE runner {runner.value}": not runner.is_triton(),
        "weights packed for AMX": getattr(experts, "use_intel_amx_backend", False),
        "quantised activations": dispatch_output[1] is not None or dispatch_output[3] is not None,
        "routing of another format": not TopKOutputChecker.format_is_standard(dispatch_output.topk_output),
        f"the activation {config.activation}": config.activation not in ("gelu", "gelu_tanh") or not config.is_gated,
        "an activation with limits": any(limit is not None for limit in limits),
        "biases": method.with_bias,
        "routing weights on the input": config.apply_router_weight_on_input,
        "a scaled sum over experts": scaling not in (None, 1),
        "no sum over experts": config.no_combine,
        "shared experts among the routed": bool(config.num_fused_shared_experts),
        "deterministic mode": get_exec().deterministic.enable_deterministic_inference,
    }
    for what, there in asked.items():
        if there:
            return what
    dtypes = {dispatch_output.hidden_states.dtype, experts.w13_weight.dtype, experts.w2_weight.dtype}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return "dtypes " + ", ".join(sorted(map(str, dtypes)))
    return f"{config.num_experts} experts" if config.num_experts > MAX_EXPERTS else None


PATCH = Patch(
    name="fused_moe",
    effect="computes the experts by g4lab's kernels, with the activation inside of the gate_up product",
    source="SGLang's and vLLM's fused_moe_kernel",
    hooks=(Hook("sglang.srt.models.gemma4_causal.Gemma4MoE.__init__", "after", _take_over),),
    requires="a model with experts, unquantised, on one process or split by tensor parallelism, MoE runner triton",
    counts="calls of the kernels, one for each MoE layer and forward pass",
    kernel="_gate_up_kernel",
    # On the CPU SGLang sorts the pairs by expert with argsort; the dense MLP has the GELU, too.
    gone={
        "kernels": ("^fused_moe_kernel", "moe_align_block_size", "moe_sum_reduce"),
        "operators": ("^aten::argsort$",),
    },
    declines=needs_interpreter,
)

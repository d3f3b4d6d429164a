"""Opt-in patch `routed_experts`: lets SGLang return the experts that each token was routed to, for Gemma-4, too.

SGLang's --enable-return-routed-experts reads the number of experts a token under the name that other models' configs
give it, and so ends at start with an AttributeError for Gemma-4, whose config says top_k_experts. On a CPU it ends at
start for every model, as it registers its host memory with CUDA.
"""

from __future__ import annotations

from g4lab.patches.counting import count
from g4lab.patches.registry import Hook, Patch


def _under_the_usual_name(original, runner, *args, **kwargs):
    """Around ModelRunner.init_routed_experts_capturer."""
    config = runner.model_config.hf_text_config
    if not hasattr(config, "num_experts_per_tok") and getattr(config, "top_k_experts", None):
        config.num_experts_per_tok = config.top_k_experts
        count("routed_experts")
    return original(runner, *args, **kwargs)


def _not_registered(buffer, *args, **kwargs):
    """Stands in for _cuda_host_register where there is no CUDA: plain memory serves a CPU."""


ROUTED_EXPERTS = Patch(
    name="routed_experts",
    effect="lets --enable-return-routed-experts start with Gemma-4: each answer then says its tokens' experts",
    source="seen in SGLang 0.5.21",
    hooks=(
        Hook(
            "sglang.srt.model_executor.model_runner.ModelRunner.init_routed_experts_capturer",
            "around",
            _under_the_usual_name,
        ),
        Hook(
            "sglang.srt.mem_cache.pool_host.common._cuda_host_register",
            "replace",
            _not_registered,
            device="cpu",
            needs=("sglang.srt.state_capturer.base.ALLOC_MEMORY_FUNCS",),  # SGLang 0.5.17 pins by torch itself
        ),
    ),
    requires="--enable-return-routed-experts, and a model with experts; on a CPU a newer SGLang than 0.5.17",
    counts="models whose config was completed",
    opt_in=True,
)

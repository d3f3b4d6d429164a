"""The patches there are."""

from __future__ import annotations

from g4lab.patches import (
    attention,
    dummy_weights,
    extend_attention,
    extend_tiles,
    frozen_kv_swa,
    fused_moe,
    kv_layers,
    kv_sentinel,
    moe_configs,
    residual_norm,
    routed_experts,
    router,
    router_norm,
    sglang_fixes,
    swa_ratio,
    text_only,
)
from g4lab.patches.registry import Patch, build, choose

REGISTRY: dict[str, Patch] = build(
    [
        router.PATCH,
        router_norm.PATCH,
        attention.QKV_NORM,
        attention.KV_SINGLE_GEMM,
        attention.QKV_NORM_ROPE_KV,
        residual_norm.PATCH,
        extend_tiles.PATCH,
        extend_attention.PATCH,  # after extend_tiles: around it, so that what it declines gets our tile
        fused_moe.PATCH,
        moe_configs.PATCH,
        sglang_fixes.ROUTER_SCALE,
        sglang_fixes.SWA_DECODE_WINDOW,
        sglang_fixes.MTP_PP_PROXY,
        sglang_fixes.MOE_ACTIVATION,
        kv_sentinel.PATCH,  # before torch_native_swa: inside it, so that it sees what that has translated
        sglang_fixes.TORCH_NATIVE_SWA,
        frozen_kv_swa.PATCH,
        dummy_weights.SPREAD_DUMMY,
        dummy_weights.EXPERT_LOAD,
        routed_experts.ROUTED_EXPERTS,
        kv_layers.PATCH,
        swa_ratio.PATCH,
        text_only.PATCH,
    ]
)


def parse(text: str | None) -> tuple[str, ...]:
    """Names of the patches that `text` stands for ("default", "none", "all", "router,-router_scale", ...).

    registry.choose gives the grammar. Raises BadInput for an unknown name, with the list of the known ones.
    """
    return choose(REGISTRY, text)

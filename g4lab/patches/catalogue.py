"""The patches there are."""

from __future__ import annotations

from g4lab.patches import dummy_weights, routed_experts, router, sglang_fixes
from g4lab.patches.registry import Patch, build, choose

REGISTRY: dict[str, Patch] = build(
    [
        router.PATCH,
        sglang_fixes.ROUTER_SCALE,
        sglang_fixes.SWA_DECODE_WINDOW,
        sglang_fixes.MTP_PP_PROXY,
        dummy_weights.SPREAD_DUMMY,
        dummy_weights.EXPERT_LOAD,
        routed_experts.ROUTED_EXPERTS,
    ]
)


def parse(text: str | None) -> tuple[str, ...]:
    """Names of the patches that `text` stands for ("default", "none", "all", "router,-router_scale", ...).

    registry.choose gives the grammar. Raises BadInput for an unknown name, with the list of the known ones.
    """
    return choose(REGISTRY, text)

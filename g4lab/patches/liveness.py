"""Is a patch alive in a trace? Call counters count captures under CUDA graphs; what a GPU ran stands in its trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.patches.catalogue import REGISTRY

if TYPE_CHECKING:
    from g4lab.trace import Trace
    from g4lab.trace.liveness import Verdict


def alive_in(trace: Trace, name: str) -> Verdict:
    """Whether the kernel of patch `name` is in the trace and what it replaces is gone from it.

    Where the trace has forward passes of the target model, only they count: a draft's choice of tokens is a top-k, too.

    Raises:
        BadInput: there is no such patch, or it has no kernel of its own (its call counter is its proof).
    """
    from g4lab.trace import expect

    if name not in REGISTRY:
        raise bad("name", name, "a known patch: " + ", ".join(REGISTRY))
    patch = REGISTRY[name]
    if patch.kernel is None:
        seen = ", ".join(each.name for each in REGISTRY.values() if each.kernel)
        raise bad(
            "name", name, f"a patch with a kernel of its own ({seen}); the others are proven by their call counter"
        )
    target = [phase for phase in ("prefill", "decode", "verify") if (trace.steps["phase"] == phase).any()]
    gone = patch.gone.get("kernels" if trace.has_gpu else "operators", ())
    return expect(trace, gone, [patch.kernel], target or None)

"""Opt-in bounds check of what attention reads from the KV pools, and of what the two-pool allocator hands out.

Only the declaration: what runs stands in kv_reads, which needs NumPy and is imported in the engine at the first call.
"""

from __future__ import annotations

from collections.abc import Callable

from g4lab.patches.registry import Hook, Patch


def _of_kv_reads(name: str) -> Callable:
    def hook(*args, **kwargs):
        from g4lab.patches import kv_reads

        return getattr(kv_reads, name)(*args, **kwargs)

    return hook


_BACKENDS = "sglang.srt.layers.attention."
_ALLOCATOR = "sglang.srt.mem_cache.allocator.swa.SWATokenToKVPoolAllocator."

PATCH = Patch(
    name="kv_sentinel",
    effect="raises at the first slot that attention must not read, by layer, request and position, and keeps a dump",
    source="the debug traps of pyc96/sglang#3",
    hooks=(
        Hook("sglang.srt.model_executor.model_runner.ModelRunner.forward", "around", _of_kv_reads("watched_step")),
        Hook(_BACKENDS + "base_attn_backend.AttentionBackend.forward", "around", _of_kv_reads("watched")),
        Hook(
            _BACKENDS + "torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_extend",
            "around",
            _of_kv_reads("watched_loop"),
        ),
        Hook(
            _BACKENDS + "torch_native_backend.TorchNativeAttnBackend._run_sdpa_forward_decode",
            "around",
            _of_kv_reads("watched_loop"),
        ),
        *(
            Hook(_ALLOCATOR + name, "after", _of_kv_reads("watched_allocation"))
            for name in ("alloc", "alloc_extend", "alloc_decode")
        ),
    ),
    requires="--disable-cuda-graph: a captured graph runs no Python. Copies each step's indices to the host",
    counts="reads and allocations checked",
    opt_in=True,
)

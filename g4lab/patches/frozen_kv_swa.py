"""Frozen-KV MTP on attention backends that keep their sliding-window state from the day they were made.

Gemma-4's assistant has no keys of its own: around its metadata and its layers SGLang swaps the backend's
`token_to_kv_pool` for the target's, two pools in one. A backend that noted at construction "my pool has no sliding
part" then looks up sliding layers with slots of the full pool (pyc96/sglang#6, there seen and mended for trtllm_mha).

SGLang 0.5.21, as read: trtllm_mha, FlashInfer and aiter resolve the target's pool at construction and Triton asks the
swapped pool in every step: right. FlashAttention (and MUSA's, which derives from it), XPU and torch_native note their
own pool's kind: mended here. Ascend notes the mapping itself, and AMX's kernels read no mapping at all: not mended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from g4lab.patches.counting import count
from g4lab.patches.registry import Hook, Patch

# By name: the module of one of them may not load where its hardware is missing.
_NOTING = ("FlashAttentionBackend", "XPUAttentionBackend", "TorchNativeAttnBackend")


def mends(backend) -> bool:
    """Whether this backend notes its pool's kind at construction."""
    return any(cls.__name__ in _NOTING for cls in type(backend).__mro__)


@contextlib.contextmanager
def following(backend) -> Iterator[None]:
    """Inside, the backend's sliding-window flag is that of the pool it has now; after, it is what it was."""
    if not mends(backend):
        yield
        return
    noted = backend.use_sliding_window_kv_pool
    backend.use_sliding_window_kv_pool = getattr(backend.token_to_kv_pool, "swa_layer_nums", 0) > 0
    if backend.use_sliding_window_kv_pool != noted:
        count("frozen_kv_swa")
    try:
        yield
    finally:
        backend.use_sliding_window_kv_pool = noted


@contextlib.contextmanager
def _view(original, forward_batch, kv_context, backend) -> Iterator[None]:
    with original(forward_batch, kv_context, backend), following(backend):
        yield


def _with_buffers(original, backend, *args, **kwargs):
    """Around FlashAttention's init_cuda_graph_state, which the draft's graph runner calls outside of any view."""
    target = getattr(backend, "g4lab_target_pool", None)
    if target is None:
        return original(backend, *args, **kwargs)
    own, backend.token_to_kv_pool = backend.token_to_kv_pool, target
    try:
        with following(backend):
            return original(backend, *args, **kwargs)
    finally:
        backend.token_to_kv_pool = own


def _note_target(result, backend, model_runner, *args, **kwargs):
    """After FlashAttention's __init__: a frozen-KV draft shares the target's allocator, and so finds its pool."""
    if model_runner.is_draft_worker and model_runner.spec_algorithm.is_frozen_kv_mtp():
        backend.g4lab_target_pool = model_runner.token_to_kv_pool_allocator.get_kvcache()


_VIEWS = "sglang.srt.speculative.frozen_kv_mtp_utils."
_FLASH = "sglang.srt.layers.attention.flashattention_backend.FlashAttentionBackend."

PATCH = Patch(
    name="frozen_kv_swa",
    effect="lets a frozen-KV draft on FlashAttention (or XPU, torch_native) find the target's sliding-window keys",
    source="pyc96/sglang#6, for the backends that SGLang 0.5.21 leaves; not yet run on a GPU",
    hooks=(
        Hook(_VIEWS + "frozen_kv_target_view", "around", _view),
        Hook(_VIEWS + "target_kv_pool_view", "around", _view),
        Hook(_FLASH + "__init__", "after", _note_target, "cuda"),
        Hook(_FLASH + "init_cuda_graph_state", "around", _with_buffers, "cuda"),
    ),
    requires="Gemma-4's MTP assistant and one of these backends, to have something to correct",
    counts="views in which the state had to follow",
    default_on=True,
)

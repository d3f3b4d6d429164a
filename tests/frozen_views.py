"""Run by test_frozen_kv_swa.py with a CPU server's environment: SGLang's real scheduler with Gemma-4's MTP assistant in
one process, and the draft's attention backends, made from the real draft runner and its real pools.

Arguments: model, assistant, folder. Prints one JSON object with what it saw; the test judges it. FlashAttention's
kernels need a GPU: names stand for them here, and what is looked at is the state around them.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import types
from pathlib import Path

import sgl_kernel
import torch


def _no_kernel(*args, **kwargs):
    raise RuntimeError("a GPU kernel was called")


kernels = types.ModuleType("sgl_kernel.flash_attn")
for name in ("flash_attn_varlen_func", "flash_attn_with_kvcache", "get_scheduler_metadata"):
    setattr(kernels, name, _no_kernel)
sys.modules[kernels.__name__] = sgl_kernel.flash_attn = kernels
sgl_kernel.merge_state_v2 = _no_kernel

from sglang.srt.layers.attention import flashattention_backend  # noqa: E402
from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend  # noqa: E402
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend  # noqa: E402
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend  # noqa: E402
from sglang.srt.layers.attention.trtllm_mha_backend import TRTLLMHAAttnBackend  # noqa: E402
from sglang.srt.layers.radix_attention import RadixAttention  # noqa: E402
from sglang.srt.managers.scheduler import Scheduler  # noqa: E402
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode  # noqa: E402
from sglang.srt.runtime_context import SpawnRanks, publish  # noqa: E402
from sglang.srt.server_args import PortArgs, prepare_server_args  # noqa: E402
from sglang.srt.speculative.frozen_kv_mtp_utils import frozen_kv_target_view, target_kv_pool_view  # noqa: E402

from g4lab.kvpool.sentinel import KVIndexError  # noqa: E402
from g4lab.patches import counting, frozen_kv_swa, kv_reads  # noqa: E402
from g4lab.runners.server_command import server_command  # noqa: E402

LENS = (9, 30)


def start(model, draft, folder):
    """SGLang's draft worker, made by its scheduler as a server's worker process makes it."""
    args = ["--swa-full-tokens-ratio", "0.25", "--max-total-tokens", "1200"]
    launch = server_command(model, "none", args, folder=folder, draft=draft, attention_backend="triton")
    args = prepare_server_args(list(launch.command[3:]))
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    return Scheduler(args, PortArgs.init_new(args)).draft_worker.draft_worker


def batch_of(worker):
    """Two requests whose slots have other numbers in the sliding pool than in the full one, as a decode step."""
    runner = worker.draft_model_runner
    allocator, table = runner.token_to_kv_pool_allocator, runner.req_to_token_pool.req_to_token
    for _ in range(2):  # windows free the sliding pool's slots, while the tokens stay in the full one
        allocator.free_swa(allocator.alloc(250))
    for row, n in enumerate(LENS, start=1):
        table[row, :n] = allocator.alloc(n).to(table.dtype)
    lens = torch.tensor(LENS)
    return ForwardBatch(
        forward_mode=ForwardMode.DECODE, batch_size=len(LENS), input_ids=torch.zeros(len(LENS), dtype=torch.int64),
        req_pool_indices=torch.arange(1, 1 + len(LENS)), seq_lens=lens, seq_lens_cpu=lens, seq_lens_sum=sum(LENS),
        out_cache_loc=None, positions=lens - 1, capture_hidden_mode=CaptureHiddenMode.NULL,
    )  # fmt: skip


def sliding_layer(worker):
    layers = [module for module in worker.draft_model_runner.model.modules() if isinstance(module, RadixAttention)]
    return next(layer for layer in layers if (layer.sliding_window_size or -1) > -1)


def views(mended):
    """SGLang's two context managers, as they are or as the patch wraps them."""
    originals = frozen_kv_target_view, target_kv_pool_view
    return [functools.partial(frozen_kv_swa._view, view) if mended else view for view in originals]


def seen_by_draft(worker, backend, batch, mended):
    """What a draft on `backend` would read of its sliding layer: the sentinel's word, and the flag before and after."""
    metadata_view, pool_view = views(mended)
    own = backend.token_to_kv_pool
    batch = dataclasses.replace(batch)
    flags = [backend.use_sliding_window_kv_pool]
    with metadata_view(batch, worker.kv_context, backend):
        backend.init_forward_metadata(batch)
    with pool_view(batch, worker.kv_context, backend):
        flags.append(backend.use_sliding_window_kv_pool)
        word = "right"
        try:
            kv_reads.look(backend, sliding_layer(worker), batch)
        except KVIndexError as error:
            word = str(error)
    flags.append(backend.use_sliding_window_kv_pool)
    with contextlib.suppress(RuntimeError), metadata_view(batch, worker.kv_context, backend):
        raise RuntimeError("a step that fails")
    flags.append(backend.use_sliding_window_kv_pool)
    return {"word": word, "flags": flags, "pool restored": backend.token_to_kv_pool is own}


def graph_buffers(backend, mended):
    """Whether FlashAttention's CUDA-graph state has a page table for sliding layers."""
    size = FlashAttentionBackend.init_cuda_graph_state
    (functools.partial(frozen_kv_swa._with_buffers, size) if mended else size)(backend, 2, 2)
    return "swa_page_table" in backend.decode_cuda_graph_metadata, backend.use_sliding_window_kv_pool


if __name__ == "__main__":
    model, draft, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    flashattention_backend.get_device_capability = lambda: (9, 0)
    with torch.no_grad():
        worker = start(model, draft, folder)
        runner, batch = worker.draft_model_runner, batch_of(worker)
        target = worker.kv_context.target_token_to_kv_pool
        flash = FlashAttentionBackend(runner)
        flash._get_scheduler_metadata = None  # a kernel, too; MUSA's backend goes without it
        frozen_kv_swa._note_target(None, flash, runner)
        backends = {"triton": worker.draft_attn_backend, "flashattention": flash}
        report = {
            name: {str(mended): seen_by_draft(worker, backend, batch, mended) for mended in (False, True)}
            for name, backend in backends.items()
        }
        native = TorchNativeAttnBackend(runner)
        with views(True)[1](batch, worker.kv_context, native):
            report["torch_native"] = native.use_sliding_window_kv_pool
        for cls in (
            FlashInferAttnBackend,
            TRTLLMHAAttnBackend,
        ):  # FlashInfer is not installed: no object, its rule alone
            report[cls.__name__] = cls._resolve_swa_kv_pool(runner) is target
        report["graphs"] = {str(mended): graph_buffers(flash, mended) for mended in (False, True)}
        report["counts"] = dict(counting._counts)
    print(json.dumps(report))
    sys.stdout.flush()
    os._exit(0)  # the scheduler's threads would keep the process

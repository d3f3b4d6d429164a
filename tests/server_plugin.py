"""Run by test_plugin.py with a CPU server's environment: the plugin on SGLang's own registry and functions.

Prints one JSON object with what it saw; the test judges it.
"""

import json
import os
from types import SimpleNamespace

import torch
from sgl_kernel import build_tree_kernel_efficient_cpu, verify_tree_greedy_cpu
from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.speculative import eagle_utils, spec_utils

from g4lab.patches import counting, sglang_plugin
from g4lab.patches.catalogue import REGISTRY
from g4lab.patches.registry import Hook, Patch, build

SEQ_LENS = [1, 7, 8, 9, 30]
WINDOW = 8  # keys that Gemma-4's config calls sliding_window; SGLang's size is one less


def install():
    """The real patches, one that misses its target, one that meets another plugin, one whose hook is not taken."""
    topk = "sglang.srt.layers.moe.topk."
    extra = {
        "missing": "sglang.srt.models.gemma4_causal.Gemma4Router.renamed",
        "foreign": topk + "fused_topk_native",
        "stubborn": topk + "biased_grouped_topk",
    }
    fakes = [
        Patch(name, "effect", "source", (Hook(target, "replace", print),), "calls") for name, target in extra.items()
    ]
    sglang_plugin.REGISTRY = build([*REGISTRY.values(), *fakes])
    sglang_plugin.parse = lambda text: tuple(name for name in sglang_plugin.REGISTRY if name != "spread_dummy")
    HookRegistry.register(extra["foreign"], print, HookType.REPLACE)
    HookRegistry._patched.add(extra["stubborn"])
    apply_hooks = HookRegistry.__dict__["apply_hooks"]
    sglang_plugin.register()
    HookRegistry.apply_hooks()
    return counting.states(os.environ["G4LAB_COUNTERS_DIR"]) | {
        "apply_hooks restored": HookRegistry.__dict__["apply_hooks"] is apply_hooks
    }


def backend(**changes):
    """A Triton backend with what its window bookkeeping reads, without a model."""
    self = object.__new__(TritonAttnBackend)
    req_to_token = torch.arange(len(SEQ_LENS) * 100).view(len(SEQ_LENS), 100)  # request r's position p is 100 r + p
    vars(self).update(
        {
            "device": "cpu",
            "num_head": 2,
            "max_kv_splits": 1,
            "v_head_dim": 4,
            "swa_v_head_dim": None,
            "lean_total_programs": 1,
            "lean_block_m": 1,
            "max_context_len": 100,
            "num_draft_tokens": None,
            "skip_prefill": True,
            "is_draft_runner": False,
            "use_sliding_window_kv_pool": False,
            "dcp_size": 1,
            "static_kv_splits": True,
            "enable_deterministic": False,
            "token_to_kv_pool": None,
            "sliding_window_size": WINDOW - 1,
            "kv_indptr": torch.zeros(len(SEQ_LENS) + 1, dtype=torch.int32),
            "window_kv_indptr": torch.zeros(len(SEQ_LENS) + 1, dtype=torch.int32),
            "qo_indptr": torch.zeros(len(SEQ_LENS) + 1, dtype=torch.int64),
            "kv_index_translator": KVIndexTranslator(
                req_to_token=req_to_token,
                token_to_kv_pool_allocator=None,
                token_to_kv_pool=None,
                page_size=1,
                device="cpu",
            ),
            **changes,
        }
    )
    return self


def windows(indptr, indices):
    """The first and last position that each request's window reads, and how many keys."""
    rows = [indices[a:b] % 100 for a, b in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)]
    return [[int(row[0]), int(row[-1]), len(row)] for row in rows]


def graph_step(hooked=True, **changes):
    """What a CUDA graph's decode metadata reads: SGLang's own buffer set-up and refill, outside of a graph."""
    size, fill = TritonAttnBackend.init_cuda_graph_state, TritonAttnBackend._update_decode_kv_buffers
    if not hooked:
        size, fill = size.__wrapped__, fill.__wrapped__
    self = backend(**changes)
    requests = torch.arange(len(SEQ_LENS))
    size(self, len(SEQ_LENS), len(SEQ_LENS))
    indptr = fill(self, len(SEQ_LENS), torch.tensor(SEQ_LENS), requests)[1]
    step = {"windows": windows(indptr, self.cuda_graph_window_kv_indices)}
    fill(self, len(SEQ_LENS), torch.tensor([100] * len(SEQ_LENS)), requests)  # all windows full: must fit the buffer
    full = windows(self.window_kv_indptr, self.cuda_graph_window_kv_indices)
    return step | {
        "buffer": self.cuda_graph_window_kv_indices.numel(),
        "full": full,
        "size after": self.sliding_window_size,
    }


def eager_step(mode, hooked=True):
    start = TritonAttnBackend.init_forward_metadata
    self = backend()
    lens = torch.tensor(SEQ_LENS)
    batch = SimpleNamespace(
        batch_size=len(SEQ_LENS),
        forward_mode=mode,
        spec_info=None,
        req_pool_indices=torch.arange(5),
        seq_lens=lens,
        seq_lens_sum=sum(SEQ_LENS),
        extend_prefix_lens=lens,
        out_cache_loc=None,
        extend_prefix_lens_cpu=SEQ_LENS,
        extend_seq_lens=torch.ones(5),
        extend_seq_lens_cpu=[1] * 5,
    )
    (start if hooked else start.__wrapped__)(self, batch)
    return windows(self.forward_metadata.window_kv_indptr, self.forward_metadata.window_kv_indices)


def random_tree(topk, steps, drafts, batch, generator):
    """Candidates as SGLang's draft loop makes them, laid out by the stand-in and by SGLang's Triton kernels."""
    scores, collected = None, []
    for step in range(steps):
        rows = batch if step == 0 else batch * topk
        p = torch.rand(rows, topk, generator=generator)
        ids = torch.randint(0, 2, (rows, topk), generator=generator)
        _, _, scores, info = spec_utils.select_top_k_tokens(step, p, ids, torch.zeros(rows, 1), scores, topk)
        collected.append(info)
    parents, selected, tokens = eagle_utils.organize_draft_results(*map(list, zip(*collected, strict=True)), drafts)
    prefixes = torch.randint(1, 9, (batch,), generator=generator)
    targets = torch.randint(0, 2, (batch, drafts), generator=generator)
    candidates = torch.cat([torch.zeros(batch, 1, dtype=torch.long), tokens], 1)
    results = []
    for build_tree, verify, name in (
        (build_tree_kernel_efficient_cpu, verify_tree_greedy_cpu, "retrive"),
        (eagle_utils.sgl_build_tree_kernel_triton, eagle_utils.verify_tree_greedy_triton, "retrieve"),
    ):
        mask = torch.ones(int(prefixes.sum() + batch * drafts) * drafts, dtype=torch.bool)
        positions = torch.zeros(batch * drafts, dtype=torch.long)
        index, child, sibling = torch.full((3, batch, drafts), -1)
        build_tree(
            parents, selected, prefixes, mask, positions, index, child, sibling, topk, steps, drafts,
            eagle_utils.TreeMaskMode.FULL_MASK,
        )  # fmt: skip
        predicts = torch.zeros(batch * drafts, dtype=torch.int32)
        accepted = torch.full((batch, steps + 1), -1, dtype=torch.int32)
        right = torch.zeros(batch, dtype=torch.int32)
        links = {f"{name}_index": index, f"{name}_next_token": child, f"{name}_next_sibling": sibling}
        verify(predicts, accepted, right, candidates, **links, target_predict=targets)
        results.append((mask, positions, index, child, sibling, accepted, right, predicts))
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True)), int(results[0][6].sum())


def trees():
    generator = torch.Generator().manual_seed(7)
    shapes = [(1, 3, 4), (2, 3, 6), (3, 2, 5), (4, 4, 16)]
    return [random_tree(*shape, batch, generator) for shape in shapes for batch in (1, 3)]


if __name__ == "__main__":
    report = {"states": install()}
    report["graph"] = {
        "fixed": graph_step(),
        "stock": graph_step(hooked=False),
        "draft": graph_step(is_draft_runner=True),
    }
    report["no window"] = TritonAttnBackend.init_cuda_graph_state(backend(sliding_window_size=None), 1, 1)
    report["decode"] = {"fixed": eager_step(ForwardMode.DECODE), "stock": eager_step(ForwardMode.DECODE, hooked=False)}
    report["extend"] = {"fixed": eager_step(ForwardMode.EXTEND), "stock": eager_step(ForwardMode.EXTEND, hooked=False)}
    report["trees"] = trees()
    print(json.dumps(report))

"""Run by test_attention_patches.py with a CPU server's environment: SGLang's real model, pools and attention backend in
one process, with each patch alone and with all, on the same prompts.

Arguments: model, attention backend. Prints one JSON object with what it saw; the test judges it.
"""

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import torch
from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.moe.moe_runner import MoeRunner
from sglang.srt.layers.moe.topk import BypassedTopKOutput, StandardTopKOutput
from sglang.srt.layers.moe.utils import MoeRunnerBackend
from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.models import gemma4_causal
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.server_args import PortArgs, prepare_server_args
from sglang.srt.speculative.eagle_info import EagleVerifyInput

from g4lab.patches import (
    attention_body,
    counting,
    extend_attention,
    extend_tiles,
    fused_moe,
    kv_single_gemm,
    kv_write,
    residual_norm,
    router_norm,
    sglang_fixes,
)
from g4lab.quality.tokens import random_prompts
from g4lab.runners.server_command import server_command

ATTENTION = ("qkv_norm", "kv_single_gemm", "qkv_norm_rope_kv")
OTHERS = {
    "router_norm": (gemma4_causal.Gemma4Router, router_norm._forward),
    "residual_norm": (gemma4_causal.Gemma4DecoderLayer, residual_norm._forward),
}
EXTEND = {"extend_tiles": extend_tiles._with_our_tile, "extend_attention": extend_attention._extend}  # inner, outer
STOCK = {name: owner.forward for name, (owner, _) in OTHERS.items()}
NEW_TOKENS = 2


def start(model, backend, folder):
    """SGLang's scheduler with its model, as a server's worker process builds it."""
    launch = server_command(model, "none", folder=folder, attention_backend=backend)
    args = prepare_server_args(list(launch.command[3:]))
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    return Scheduler(args, PortArgs.init_new(args)).tp_worker.model_runner


def switch(runner, names):
    """Put the patches `names` on, and every other off."""
    for name, (owner, ours) in OTHERS.items():
        owner.forward = ours if name in names else STOCK[name]
    for attn in attentions(runner):
        vars(attn).pop("forward", None)
        vars(attn).pop("g4lab_steps", None)
        for name in set(names) & set(ATTENTION):
            attention_body.mark(name)(None, attn)
    for moe in expert_layers(runner):
        vars(moe.experts).pop("run_moe_core", None)
        if "fused_moe" in names:
            fused_moe._take_over(None, moe)
    if has_extend_kernel(runner):
        around = extend_attention_fwd
        for name in EXTEND:
            around = functools.partial(EXTEND[name], around) if name in names else around
        runner.attn_backend.extend_attention_fwd = around


def has_extend_kernel(runner):
    return hasattr(runner.attn_backend, "extend_attention_fwd")


def attentions(runner):
    return [m for m in runner.model.modules() if isinstance(m, gemma4_causal.Gemma4Attention)]


def routers(runner):
    return [m for m in runner.model.modules() if isinstance(m, gemma4_causal.Gemma4Router)]


def expert_layers(runner):
    return [m for m in runner.model.modules() if isinstance(m, gemma4_causal.Gemma4MoE)]


class Requests:
    """A batch of prompts in SGLang's pools: a forward pass for the prompts, then one for each new token."""

    def __init__(self, runner, prompts):
        self.runner, self.prompts = runner, prompts
        self.allocator, self.table = runner.token_to_kv_pool_allocator, runner.req_to_token_pool.req_to_token
        self.allocator.clear()
        if not isinstance(runner.attn_backend, TorchNativeAttnBackend):  # that one reads the SWA pool at full slots
            # On a fresh server a slot has the same number in both pools; after many requests it has not.
            swa = self.allocator.swa_attn_allocator
            swa.free_pages = swa.free_pages.flip(0)
        for pool in (runner.token_to_kv_pool.full_kv_pool, runner.token_to_kv_pool.swa_kv_pool):
            for buffer in (*pool.k_buffer, *pool.v_buffer):
                buffer.zero_()
        self.lens = torch.zeros(len(prompts), dtype=torch.int64)  # tokens in the pools
        self.rows = torch.arange(1, 1 + len(prompts))

    def extend(self, upto=None):
        """The prompts' tokens up to `upto` of each, or to the end, over those that are in the pools already."""
        ends = torch.tensor([len(prompt) for prompt in self.prompts] if upto is None else upto)
        starts, self.lens, new = self.lens, ends, ends - self.lens
        slots = self._place(starts, new)
        parts = list(zip(self.prompts, starts.tolist(), ends.tolist(), strict=True))
        return self._forward(
            ForwardMode.EXTEND,
            torch.tensor([token for prompt, start, end in parts for token in prompt[start:end]]),
            slots,
            torch.cat([torch.arange(start, end) for _, start, end in parts]),
            extend_num_tokens=int(new.sum()),
            extend_seq_lens=new,
            extend_prefix_lens=starts,
            extend_start_loc=new.cumsum(0) - new,
            extend_seq_lens_cpu=new.tolist(),
            extend_prefix_lens_cpu=starts.tolist(),
            extend_logprob_start_lens_cpu=starts.tolist(),
        )

    def verify(self, drafts):
        """Logits of four draft tokens of each request, [requests * 4, vocabulary]; they stay drafts.

        The tree: the second and the third follow the first, the fourth follows the second.
        """
        sees = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
        mask = [torch.cat([torch.ones(4, n, dtype=torch.bool), sees], dim=1).flatten() for n in self.lens.tolist()]
        positions = (self.lens[:, None] + torch.tensor([0, 1, 1, 2])).flatten()
        tree = EagleVerifyInput(
            drafts.flatten(), torch.cat(mask), positions, None, None, None, None, 2, 2, 4, CaptureHiddenMode.NULL,
            int(self.lens.sum()), self.lens,
        )  # fmt: skip
        slots = self._place(self.lens, torch.full_like(self.lens, 4))
        return self._forward(ForwardMode.TARGET_VERIFY, drafts.flatten(), slots, positions, spec_info=tree)

    def _place(self, starts, new):
        """Slots for `new` tokens of each request from position `starts` on, in its row of the table."""
        slots = self.allocator.alloc(int(new.sum()))
        for row, start, mine in zip(self.rows, starts.tolist(), slots.split(new.tolist()), strict=True):
            self.table[row, start : start + len(mine)] = mine.to(self.table.dtype)
        return slots

    def decode(self, tokens):
        slots = self._place(self.lens, torch.ones_like(self.lens))
        self.lens = self.lens + 1
        return self._forward(ForwardMode.DECODE, tokens, slots, self.lens - 1)

    def _forward(self, mode, tokens, slots, positions, **more):
        batch = ForwardBatch(
            forward_mode=mode,
            batch_size=len(self.lens),
            input_ids=tokens,
            req_pool_indices=self.rows,
            seq_lens=self.lens,
            seq_lens_cpu=self.lens,
            seq_lens_sum=int(self.lens.sum()),
            out_cache_loc=slots,
            positions=positions,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            **more,
        )
        return self.runner.forward(batch).logits_output.next_token_logits


def caches(runner):
    """Every K and V buffer of both pools: [slots, Hkv, D] each."""
    pool = runner.token_to_kv_pool
    return [b.clone() for each in (pool.full_kv_pool, pool.swa_kv_pool) for b in (*each.k_buffer, *each.v_buffer)]


def run(runner, names, prompts):
    """The logits of every step of a greedy run [steps, prompts, vocabulary], the pools after it, and what counted."""
    switch(runner, names)
    counting._counts.clear()
    counting._notes.clear()
    requests = Requests(runner, prompts)
    logits = [requests.extend()]
    for _ in range(NEW_TOKENS - 1):
        logits.append(requests.decode(logits[-1].argmax(-1)))
    return torch.stack(logits), caches(runner), dict(counting._counts)


def run_extends(runner, names, prompts):
    """As `run`, with the prompts in two chunks and a tree of drafts after them: logits [requests * 5, vocabulary]."""
    switch(runner, names)
    counting._counts.clear()
    counting._notes.clear()
    requests = Requests(runner, prompts)
    requests.extend([len(prompt) // 2 for prompt in prompts])
    logits = [requests.extend()]
    logits.append(requests.verify(torch.tensor([prompt[:4] for prompt in prompts])))
    return torch.cat(logits), caches(runner), dict(counting._counts)


def compared(found, base):
    """One run beside another, in numbers that JSON takes."""
    (logits, kv, counts), (base_logits, base_kv, _) = found, base
    best = logits.topk(2).values
    return {
        "tokens": logits.argmax(-1).transpose(0, -1).tolist(),
        "margin": (best[..., 0] - best[..., 1]).min().item(),
        "logits": (logits - base_logits).abs().max().item(),
        "kv": max((a - b).abs().max().item() for a, b in zip(kv, base_kv, strict=True)),
        "same bits": torch.equal(logits, base_logits) and all(map(torch.equal, kv, base_kv)),
        "declined": counting._notes.get("qkv_norm_rope_kv", {}).get("declined", {}),
        "counts": counts,
    }


def without_v_shard(runner, prompts):
    """kv_single_gemm with NaN in every row that it says it does not read."""
    switch(runner, ("kv_single_gemm",))
    kept = {}
    for attn in attentions(runner):
        rows = kv_single_gemm.rows_needed(attn, attn.is_kv_shared_layer)
        if rows is not None:
            kept[attn] = rows, attn.qkv_proj.weight[rows:].clone()
            attn.qkv_proj.weight[rows:] = torch.nan
    found = run(runner, ("kv_single_gemm",), prompts)
    for attn, (rows, weight) in kept.items():
        attn.qkv_proj.weight[rows:] = weight
    return found, len(kept)


def at_full_slots(runner, prompts):
    """The fused write with the full pool's slots for every layer, as SGLang's switched-off one passes them."""
    right, kv_write._slots = kv_write._slots, lambda attn, backend, batch: batch.out_cache_loc
    try:
        return run(runner, ("qkv_norm_rope_kv",), prompts)
    finally:
        kv_write._slots = right


def with_a_scaled_cache(runner, prompts):
    for attn in attentions(runner):
        attn.attn.k_scale = 1.0
    try:
        return run(runner, ("qkv_norm_rope_kv",), prompts)
    finally:
        for attn in attentions(runner):
            attn.attn.k_scale = None


def report(runner):
    for router in routers(runner):
        router.norm.with_scale = True  # as the default fix router_scale has it
    prompts = random_prompts((5, 66), runner.model_config.vocab_size, seed=4)
    alone = {name: (name,) for name in (*ATTENTION, *OTHERS, "fused_moe")}
    together = (*alone, *EXTEND)
    runs = {name: run(runner, names, prompts) for name, names in {"none": (), **alone, "all": together}.items()}
    seen = {name: compared(found, runs["none"]) for name, found in runs.items()}
    seen["fused and separate"] = compared(runs["qkv_norm_rope_kv"], runs["qkv_norm"])
    found, layers = without_v_shard(runner, prompts)
    seen["without V's shard"] = compared(found, runs["kv_single_gemm"]) | {"layers": layers}
    seen["at full slots"] = compared(at_full_slots(runner, prompts), runs["qkv_norm_rope_kv"])
    seen["scaled"] = compared(with_a_scaled_cache(runner, prompts), runs["none"])
    if has_extend_kernel(runner):
        seen["extends"] = extends(runner)
    if expert_layers(runner):
        seen["experts"] = experts_that_are_not_taken(expert_layers(runner)[0].experts)
        seen["activation"] = activation_by_tanh(expert_layers(runner)[0])
    return seen


def activation_by_tanh(moe):
    """What the layer, its method and its runner say: as it stands on a CPU, then corrected with each of two runners."""
    experts, found = moe.experts, {}
    config, method, right = experts.moe_runner_config, experts.quant_method, experts.quant_method.runner

    def activations():
        return [each.activation for each in (config, method.moe_runner_config, method.runner.config)]

    sglang_fixes._on_a_gpu_by_tanh(None, moe)
    found["cpu"] = activations()
    for method.runner in (MoeRunner(MoeRunnerBackend.TRITON_KERNELS, config), right):
        sglang_fixes.by_tanh(experts)
        found[method.runner.runner_backend.value] = activations()
    config.activation = "gelu"
    return found


def experts_that_are_not_taken(experts):
    """Why fused_moe leaves a layer's call to SGLang, for each change of the real layer or of its call."""
    tokens, top_k = 3, experts.top_k
    routing = StandardTopKOutput(torch.ones(tokens, top_k), torch.zeros(tokens, top_k, dtype=torch.int32), None)
    call = experts.dispatcher.dispatch(torch.ones(tokens, experts.hidden_size, dtype=experts.w13_weight.dtype), routing)
    config, method = experts.moe_runner_config, experts.quant_method
    why = {"nothing": fused_moe.cannot_take(experts, call)}
    for name, value in {
        "activation": "silu", "is_gated": False, "apply_router_weight_on_input": True, "no_combine": True,
        "routed_scaling_factor": 2.5, "gemm1_clamp_limit": 7.0, "num_fused_shared_experts": 1,
        "num_local_experts": config.num_experts // 2,
    }.items():  # fmt: skip
        experts.moe_runner_config = dataclasses.replace(config, **{name: value})
        why[name] = fused_moe.cannot_take(experts, call)
    experts.moe_runner_config = dataclasses.replace(config, num_experts=512, num_local_experts=512)
    why["experts"] = fused_moe.cannot_take(experts, call)
    experts.moe_runner_config = dataclasses.replace(config, activation="gelu_tanh")
    why["gelu_tanh"] = fused_moe.cannot_take(experts, call)
    experts.moe_runner_config = config
    scale = torch.ones(1)
    for name, changed in {
        "scaled input": call._replace(hidden_states_scale=scale),
        "quantised before": call._replace(hidden_states_pre_quant=(scale, scale)),
        "bypassed routing": call._replace(topk_output=BypassedTopKOutput(call.hidden_states, None, None)),
        "fp64": call._replace(hidden_states=call.hidden_states.double()),
    }.items():
        why[name] = fused_moe.cannot_take(experts, changed)
    experts.use_intel_amx_backend = True
    why["AMX"] = fused_moe.cannot_take(experts, call)
    del experts.use_intel_amx_backend
    method.with_bias = True
    why["bias"] = fused_moe.cannot_take(experts, call)
    method.with_bias = False
    runner, method.runner = method.runner, MoeRunner(MoeRunnerBackend.TRITON_KERNELS, config)
    why["runner"] = fused_moe.cannot_take(experts, call)
    method.runner = runner
    del experts.quant_method  # a module; the other is none
    experts.quant_method = object.__new__(Fp8MoEMethod)
    why["fp8"] = fused_moe.cannot_take(experts, call)
    del experts.quant_method
    experts.quant_method = method
    return why


def extends(runner):
    """Each patch of extend attention: prefix, window (of 64, which the longer prompt leaves) and tree in one batch."""
    prompts = random_prompts((9, 84), runner.model_config.vocab_size, seed=4)
    sets = {"none": ()} | {name: (name,) for name in EXTEND}
    base, seen = None, {}
    for name, names in sets.items():
        found = run_extends(runner, names, prompts)
        base = base or found
        seen[name] = compared(found, base) | {"notes": dict(counting._notes)}
    return seen


if __name__ == "__main__":
    model, backend, folder = *sys.argv[1:3], Path(sys.argv[3])
    with torch.no_grad():
        print(json.dumps(report(start(model, backend, folder))))
    sys.stdout.flush()
    os._exit(0)  # the scheduler's threads would keep the process

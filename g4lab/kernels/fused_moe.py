"""The expert layer: sort pairs by expert, gate_up with its activation, down with the routing weight, sum over experts.

    out[t] = sum_k topk_weights[t, k] * down[e] . (gelu_tanh(gate[e] . x[t]) * (up[e] . x[t])),   e = topk_ids[t, k]

Five launches (four up to ONE_PROGRAM pairs, which one program counts and places), no host synchronisation, and nothing
of the [pairs, 2 I] product of gate and up in memory: the activation is in the epilogue of its GEMM. Each expert that a
token chose is read once for every block of its pairs, which at 16 pairs or fewer is once.

Rounding: fp32 accumulators; the activated product, each weighted pair and the sum are each rounded once to x's dtype.
Eager PyTorch rounds gate, up, the activation, the product, the down projection, its weighting and every step of the
sum.

The result of a token depends on its own row, weights and ids alone, bit for bit, whatever else is in the batch, for one
config: rows of a block do not mix, and a token's pairs are added in the order of k. `pick_config` goes by the number of
tokens, so the config, and with it the order of the inner sums, can change with the batch. Two runs give the same bits.

A token that names an expert twice gets it twice, with both weights. An id that no expert has adds nothing (SGLang: -1).
"""

import torch
import triton

from g4lab.errors import bad
from g4lab.kernels import ieee
from g4lab.kernels.checks import DTYPES
from g4lab.kernels.compile_case import CompileCase
from g4lab.kernels.fused_moe_kernel import _count_kernel, _down_kernel, _gate_up_kernel, _place_kernel, _sum_kernel
from g4lab.kernels.moe_tiles import MoEConfig, MoETile, interpreted_config, pick_config

__all__ = ["MoEConfig", "MoETile", "compile_case", "fused_moe", "fused_moe_reference", "pick_config", "place"]

ACTIVATIONS = ("gelu_tanh",)
CHUNK, ONE_PROGRAM = 1024, 1024
STEP = 256 if ieee.INTERPRETED.value else 32  # pairs looked at together; a step is a NumPy call in the interpreter
MAX_EXPERTS = 256


def fused_moe_reference(x, w_gate_up, w_down, topk_weights, topk_ids, *, activation="gelu_tanh", compute=None):
    """Eager PyTorch, expert after expert; arguments as `fused_moe`, every operator in the dtype `compute` (x's own).

    Returns:
        [T, H] in `compute`.
    """
    compute = compute or x.dtype
    num_experts, _, width = w_down.shape
    y = torch.zeros(*topk_ids.shape, x.shape[1], dtype=compute, device=x.device)
    for expert in range(num_experts):
        token, k = torch.where(topk_ids == expert)
        if len(token):
            gate_up = torch.nn.functional.linear(x[token].to(compute), w_gate_up[expert].to(compute))
            h = torch.nn.functional.gelu(gate_up[:, :width], approximate="tanh") * gate_up[:, width:]
            out = torch.nn.functional.linear(h, w_down[expert].to(compute))
            y[token, k] = out * topk_weights[token, k, None].to(compute)
    total = torch.zeros(x.shape, dtype=compute, device=x.device)
    for k in range(topk_ids.shape[1]):
        total += y[:, k]
    return total


def place(topk_ids: torch.Tensor, num_experts: int, block_m: int):
    """Pairs in the order of their experts, each expert's padded to whole blocks; on the device, without a sync.

    topk_ids: [T, K] int32 or int64, contiguous, T * K above 0.

    Returns:
        pairs: int32 [blocks * block_m], pair numbers t * K + k; rows that a block does not use hold anything.
        block_expert: int32 [blocks], num_experts or more for blocks that nobody needs.
        block_rows: int32 [blocks], how many rows of the block are pairs.
    """
    num_pairs, device = topk_ids.numel(), topk_ids.device
    experts = triton.next_power_of_2(max(16, num_experts))
    # An expert wastes less than a block, and only experts that somebody chose have any.
    max_blocks = min(num_pairs, num_pairs // block_m + min(num_experts, num_pairs))
    pairs = torch.empty(max_blocks * block_m, dtype=torch.int32, device=device)
    block_expert = torch.empty(max_blocks, dtype=torch.int32, device=device)
    block_rows = torch.empty_like(block_expert)
    one = num_pairs <= ONE_PROGRAM
    chunks = 1 if one else triton.cdiv(num_pairs, CHUNK)
    counts = None if one else torch.empty(chunks, experts, dtype=torch.int32, device=device)
    sizes = {"E": num_experts, "E_PAD": experts, "CHUNK": CHUNK, "STEP": STEP}
    if not one:
        with ieee.launching(_count_kernel):
            _count_kernel[(chunks,)](topk_ids, counts, num_pairs, **sizes)
    with ieee.launching(_place_kernel):
        _place_kernel[(chunks,)](
            topk_ids, counts, pairs, block_expert, block_rows, num_pairs, chunks, max_blocks, **sizes, ONE=one,
            BLOCK_M=block_m,
        )  # fmt: skip
    return pairs, block_expert, block_rows


def fused_moe(x, w_gate_up, w_down, topk_weights, topk_ids, *, activation="gelu_tanh", config=None, out=None):
    """The experts' part of a Gemma-4 MoE layer; safe inside a CUDA graph.

    Args:
        x: [T, H] bf16, fp16 or fp32; rows may lie apart. T may be 0.
        w_gate_up: [E, 2 I, H] of x's dtype, gate first, E from 1 to 256; the last dimension is contiguous.
        w_down: [E, H, I] likewise.
        topk_weights: [T, K] fp32, bf16 or fp16.
        topk_ids: [T, K] int32 or int64.
        activation: "gelu_tanh".
        config: a MoEConfig; default `pick_config`.
        out: [T, H] to write to.

    Returns:
        [T, H] in x's dtype: out, or a new tensor.

    Raises:
        BadInput: a shape, stride, dtype, device or option it cannot take.
    """
    check_arguments(x, w_gate_up, w_down, topk_weights, topk_ids, activation, config, out)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    (num_tokens, hidden), (num_experts, _, width), top_k = x.shape, w_down.shape, topk_ids.shape[1]
    if num_tokens == 0:
        return out
    if config is None:
        interpreted = ieee.INTERPRETED.value
        pairs = num_tokens * top_k
        config = interpreted_config(pairs) if interpreted else pick_config(num_tokens, top_k, num_experts)
    topk_weights, topk_ids = topk_weights.contiguous(), topk_ids.contiguous()
    placed = place(topk_ids, num_experts, config.gate_up.block_m)
    blocks = placed[1].shape[0]
    h = torch.empty(blocks * config.gate_up.block_m, width, dtype=x.dtype, device=x.device)
    with ieee.launching(_gate_up_kernel):
        tile = config.gate_up
        _gate_up_kernel[(blocks * triton.cdiv(width, tile.block_n),)](
            x, w_gate_up, h, *placed, blocks, x.stride(0), *w_gate_up.stride()[:2], HIDDEN=hidden, WIDTH=width,
            TOP_K=top_k, E=num_experts, **launch(tile),
        )  # fmt: skip
    y = torch.empty(num_tokens * top_k, hidden, dtype=x.dtype, device=x.device)
    with ieee.launching(_down_kernel):
        tile = config.down
        _down_kernel[(blocks * triton.cdiv(hidden, tile.block_n),)](
            h, w_down, y, topk_weights, *placed, blocks, *w_down.stride()[:2], HIDDEN=hidden, WIDTH=width,
            E=num_experts, **launch(tile),
        )  # fmt: skip
    rows, cols = (64, 1024) if ieee.INTERPRETED else (1, 1024)
    with ieee.launching(_sum_kernel):
        _sum_kernel[(triton.cdiv(num_tokens, rows), triton.cdiv(hidden, cols))](
            y, topk_ids, out, num_tokens, out.stride(0), HIDDEN=hidden, TOP_K=top_k, E=num_experts, ROWS=rows,
            COLS=cols,
        )  # fmt: skip
    return out


def launch(tile: MoETile) -> dict:
    """The keywords that a tile stands for."""
    return {
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": tile.group_m,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip


def check_arguments(x, w_gate_up, w_down, topk_weights, topk_ids, activation, config, out) -> None:
    """Raises BadInput unless `fused_moe` takes all of them."""
    if x.ndim != 2 or x.dtype not in DTYPES:
        raise bad("x", f"{tuple(x.shape)} {x.dtype}", "[tokens, hidden] in bfloat16, float16 or float32")
    if w_down.ndim != 3 or w_down.shape[1] != x.shape[1] or not 1 <= w_down.shape[0] <= MAX_EXPERTS:
        raise bad("w_down", tuple(w_down.shape), f"shape [1 to {MAX_EXPERTS} experts, {x.shape[1]}, width]")
    num_experts, hidden, width = w_down.shape
    if tuple(w_gate_up.shape) != (num_experts, 2 * width, hidden):
        raise bad("w_gate_up", tuple(w_gate_up.shape), f"shape {(num_experts, 2 * width, hidden)}, as w_down has it")
    if topk_ids.ndim != 2 or topk_ids.shape[0] != x.shape[0] or topk_ids.shape[1] < 1:
        raise bad("topk_ids", tuple(topk_ids.shape), f"shape ({x.shape[0]}, experts per token)")
    if topk_ids.dtype not in (torch.int32, torch.int64):
        raise bad("topk_ids", topk_ids.dtype, "int32 or int64")
    if topk_weights.shape != topk_ids.shape or topk_weights.dtype not in DTYPES:
        found = f"{tuple(topk_weights.shape)} {topk_weights.dtype}"
        raise bad("topk_weights", found, f"shape {tuple(topk_ids.shape)} in float32, bfloat16 or float16")
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype):
        raise bad("out", f"{tuple(out.shape)} {out.dtype}", f"{tuple(x.shape)} {x.dtype}, as x")
    named = {"x": x, "w_gate_up": w_gate_up, "w_down": w_down, **({} if out is None else {"out": out})}
    for name, tensor in named.items():
        if tensor.dtype != x.dtype:
            raise bad(name, tensor.dtype, f"x's dtype {x.dtype}")
        if tensor.numel() and tensor.stride(-1) != 1:
            raise bad(name, f"stride {tensor.stride(-1)}", "stride 1 in the last dimension")
    for name, tensor in {**named, "topk_weights": topk_weights, "topk_ids": topk_ids}.items():
        if tensor.device != x.device:
            raise bad(name, f"device {tensor.device}", f"x's device {x.device}")
    if activation not in ACTIVATIONS:
        raise bad("activation", activation, "one of " + ", ".join(ACTIVATIONS))
    if config is not None and config.gate_up.block_m != config.down.block_m:
        found = f"block_m {config.gate_up.block_m} and {config.down.block_m}"
        raise bad("config", found, "one block_m for both products: pairs are placed in blocks once")


def compile_case(*, dtype="bf16", product="gate_up", hidden=2816, width=704, num_experts=128, top_k=8, tile=None):
    """One of the two products, "gate_up" or "down", with a MoETile (default: the one for many tokens)."""
    if product not in ("gate_up", "down"):
        raise bad("product", product, "gate_up or down")
    kernel = {"gate_up": _gate_up_kernel, "down": _down_kernel}[product]
    tile = tile or getattr(pick_config(8192, top_k, num_experts), product)
    names = {"x_ptr", "w_ptr", "h_ptr", "y_ptr", "weights_ptr"} & set(kernel.arg_names)
    signature = dict.fromkeys(names, f"*{dtype}:16")
    signature |= dict.fromkeys(("pairs_ptr", "block_expert_ptr", "block_rows_ptr"), "*i32:16") | {"max_blocks": "i32"}
    signature |= {name: "i32:16" for name in kernel.arg_names if name.startswith("stride_")}
    if product == "down":
        signature["weights_ptr"] = "*fp32:16"
    constants = {"HIDDEN": hidden, "WIDTH": width, "TOP_K": top_k, "E": num_experts}
    options = launch(tile)
    warps = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in (constants | options).items() if name in kernel.arg_names}
    return CompileCase(kernel, signature, constants, warps)

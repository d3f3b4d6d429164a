"""Times the tiles that the tuner left for one product of the expert layer, on this GPU, as `tile_timing` does.

One launch is timed: the product itself. Pairs are placed before, and the same for all tiles with one block_m.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton

from g4lab.bench import suite, tile_timing, timing
from g4lab.bench.moe_cases import inputs
from g4lab.bench.timing import Provider
from g4lab.errors import bad
from g4lab.kernels import fused_moe as ours
from g4lab.kernels.moe_tiles import MoETile
from g4lab.tuning import moe_configs
from g4lab.tuning.moe_keys import short
from g4lab.tuning.moe_shapes import MoEShape
from g4lab.tuning.moe_tune import Timer


def timer(kernel: str) -> Timer:
    """A `g4lab.tuning.moe_tune.Timer` for sglang_fused_moe.

    Raises:
        BadInput: another kernel. Unavailable: no GPU, or an interpreted process.
    """
    timing.require_gpu()
    if kernel not in BUILDS:
        raise bad("kernel", kernel, f"{', '.join(BUILDS)}: products of others are not timed alone")

    def time_tiles(shape: MoEShape, product: str, tiles: Sequence[MoETile]) -> dict:
        providers = [
            Provider(short(tile), lambda shape, tile=tile: BUILDS[kernel](shape, product, tile)) for tile in tiles
        ]
        providers.append(Provider(suite.again(providers[0].name), providers[0].build))
        timed = timing.time_providers(providers, shape, seconds=tile_timing.SECONDS)
        return tile_timing.summary(providers[0].name, timed)

    return time_tiles


def sglang(shape: MoEShape, product: str, tile: MoETile, device: str = "cuda") -> Callable[[], torch.Tensor]:
    """SGLang's `invoke_fused_moe_kernel` for a product: returns its result, gate and up [T K, 2 I] or weighted rows
    [T, K, H], of seeded inputs, for one layer's weights after another's.

    Pairs are placed by g4lab, whose blocks are SGLang's: an expert's pairs in order, the unused rows of a block marked.
    """
    from sglang.kernels.ops.moe.fused_moe_triton_kernels import invoke_fused_moe_kernel

    x = inputs(shape, device)
    turns = x.turns()
    pairs, block_expert, block_rows = ours.place(x.topk_ids, shape.num_experts, tile.block_m)
    unused = torch.arange(tile.block_m, device=device) >= block_rows[:, None]
    placed = pairs.view(-1, tile.block_m).masked_fill(unused, shape.pairs).flatten()
    padded = (block_expert < shape.num_experts).sum(dtype=torch.int32).view(1) * tile.block_m
    down = product == "down"
    kind = {"dtype": x.x.dtype, "device": device}
    if down:
        rows = torch.randn(shape.pairs, shape.width, generator=torch.Generator(device).manual_seed(1), **kind)
        out = torch.empty(shape.tokens, shape.top_k, shape.hidden, **kind)
    else:
        rows, out = x.x, torch.empty(shape.pairs, 2 * shape.width, **kind)
    compute = triton.language.bfloat16 if x.x.dtype == torch.bfloat16 else triton.language.float16
    quantised = ("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16", "per_channel_quant")
    options = {"compute_type": compute, **dict.fromkeys(quantised, False), "filter_expert": False}

    def call():
        weights = next(turns)[down]
        invoke_fused_moe_kernel(
            rows, weights, None, out, None, None, None, x.topk_weights, x.topk_ids, placed, block_expert, padded, down,
            1 if down else shape.top_k, moe_configs.entry(tile), **options, router_topk=shape.top_k,
        )  # fmt: skip
        return out

    return call


BUILDS = {"sglang_fused_moe": sglang}

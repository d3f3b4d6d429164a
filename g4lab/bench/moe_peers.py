"""Expert layers of other libraries: builds for the benchmark, each what it can do.

A build takes (shape, device) and returns a call without arguments, whose result is [T, H]; it raises Unavailable where
the library cannot do the shape. All apply GELU by tanh, which is the checkpoint's, but for SGLang before 0.5.21, which
has only "gelu", in its CUDA kernels the exact one, at the same cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch

from g4lab.bench.moe_cases import inputs
from g4lab.errors import Unavailable
from g4lab.tuning import sglang_moe
from g4lab.tuning.moe_shapes import BYTES, MoEShape

GATHER_BYTES = 4 << 30  # of weights copied for one call, at most: 26B-A4B's for up to 45 tokens


def sglang(shape: MoEShape, device: str = "cuda", files: Path | None = None):
    """SGLang's `fused_experts` with the config files under `files`, or with those it comes with."""
    experts = getattr(sglang_moe.module(), sglang_moe.EXPERTS)
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    if files is not None and not sglang_moe.has_files(shape.num_experts, shape.width, files):
        what = f"E={shape.num_experts}, N={shape.width} on this GPU"
        raise Unavailable(f"no config file for {what} under {files}: SGLang would choose its default")
    x = inputs(shape, device)
    turns = x.turns()
    routed = StandardTopKOutput(x.topk_weights, x.topk_ids, None)
    activation = "gelu_tanh" if "gelu_tanh" in inspect.getsource(sglang_moe.module()) else "gelu"
    config = MoeRunnerConfig(
        num_experts=shape.num_experts, num_local_experts=shape.num_experts, activation=activation, inplace=False
    )

    def call():
        with sglang_moe.configured(files):
            return experts(x.x, *next(turns), routed, config)

    return call


def _geglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


def grouped_mm(shape: MoEShape, device: str = "cuda", geglu: Callable = _geglu):
    """PyTorch's grouped_mm: pairs sorted by expert, two grouped products with `geglu` between, rows put back and
    summed."""
    functional = torch.nn.functional
    multiply = getattr(functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if multiply is None:
        raise Unavailable(f"PyTorch {torch.__version__} has no grouped_mm")
    x = inputs(shape, device)
    turns = x.turns()
    experts = torch.arange(shape.num_experts, dtype=torch.int32, device=device)

    def call():
        w_gate_up, w_down = next(turns)
        chosen, pairs = x.topk_ids.flatten().sort(stable=True)
        ends = torch.searchsorted(chosen, experts, right=True, out_int32=True)
        gate, up = multiply(x.x[pairs // shape.top_k], w_gate_up.mT, offs=ends).chunk(2, dim=-1)
        rows = multiply(geglu(gate, up), w_down.mT, offs=ends)
        y = torch.empty_like(rows)
        y[pairs] = rows * x.topk_weights.flatten()[pairs, None].to(rows.dtype)
        return y.view(shape.tokens, shape.top_k, shape.hidden).sum(1)

    return call


def gathered(shape: MoEShape, device: str = "cuda"):
    """Eager PyTorch for few tokens: the chosen experts' weights copied for every pair, then batched products. (An eager
    loop over experts asks the host which have tokens, and no CUDA graph can hold that.)"""
    copied = 3 * shape.pairs * shape.hidden * shape.width * BYTES[shape.dtype]
    if copied > GATHER_BYTES:
        raise Unavailable(f"would copy {copied / 1e9:.0f} GB of weights, one expert's for each of {shape.pairs} pairs")
    x = inputs(shape, device)
    turns = x.turns()
    ids = x.topk_ids.long()

    def call():
        w_gate_up, w_down = next(turns)
        gate, up = (w_gate_up[ids] @ x.x[:, None, :, None]).chunk(2, dim=-2)
        y = (w_down[ids] @ _geglu(gate, up)).squeeze(-1)
        return (y * x.topk_weights[..., None].to(y.dtype)).sum(1)

    return call


def vllm(shape: MoEShape, device: str = "cuda"):
    """vLLM's `fused_experts` with the config files it comes with; only read about, for none is installed here."""
    from vllm.model_executor.layers.fused_moe import fused_experts

    try:
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation

        activation = MoEActivation.from_str("gelu_tanh")
    except ImportError:  # older ones take the name
        activation = "gelu_tanh"
    x = inputs(shape, device)
    turns = x.turns()
    return lambda: fused_experts(x.x, *next(turns), x.topk_weights, x.topk_ids, activation=activation)

"""The inputs of the expert-layer benchmark: tokens routed by a named distribution, and the weights of several layers.

An engine never finds a layer's experts in the L2: the layers before it have read theirs since. So each provider's calls
take turns over LAYERS copies of the weights, which together are larger than any L2 even where a token's eight experts
alone are read. Copies, not draws of their own: the results of all calls are the same bits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from g4lab.kernels.checks import DTYPES
from g4lab.tuning import expert_load
from g4lab.tuning.moe_shapes import MoEShape, routing

TORCH = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
LAYERS = 4  # 26B-A4B on two ranks: 8 experts of 5.9 MB, four times, are 190 MB; the L2 of an H200 has 50 MB
SAMPLES = 64

Weights = tuple[torch.Tensor, torch.Tensor]


class MoEInputs(NamedTuple):
    """x [T, H]; topk_weights [T, K] fp32 and topk_ids [T, K] int32, as Gemma-4's router gives them; layers: w_gate_up
    [E, 2 I, H] and w_down [E, H, I] of each."""

    x: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    layers: tuple[Weights, ...]

    def turns(self) -> Iterator[Weights]:
        """One layer's weights after another's, without end."""
        return itertools.cycle(self.layers)


@functools.lru_cache(maxsize=1)  # read only, so all providers of a shape share one; the next shape's takes its place
def inputs(shape: MoEShape, device: str = "cuda") -> MoEInputs:
    """Seeded inputs of a shape. Raises as `g4lab.tuning.moe_shapes.routing`."""
    generator = torch.Generator(device).manual_seed(shape.tokens)
    kind = {"device": device, "dtype": TORCH[shape.dtype]}
    ids, weights = _routed(shape)
    layers = _layers(shape.hidden, shape.width, shape.num_experts, shape.dtype, device)
    x = torch.randn(shape.tokens, shape.hidden, generator=generator, **kind)
    return MoEInputs(x, torch.from_numpy(weights).to(device), torch.from_numpy(ids).to(device), layers)


@functools.lru_cache(maxsize=1)
def _layers(hidden: int, width: int, num_experts: int, dtype: str, device: str) -> tuple[Weights, ...]:
    """Weights scaled so that every stage has values near 1."""
    generator = torch.Generator(device).manual_seed(hidden + width)
    kind = {"generator": generator, "device": device, "dtype": TORCH[dtype]}
    gate_up = torch.randn(num_experts, 2 * width, hidden, **kind).mul_(hidden**-0.5)
    down = torch.randn(num_experts, hidden, width, **kind).mul_(width**-0.5)
    copies = ((gate_up.clone(), down.clone()) for _ in range(LAYERS - 1))
    return ((gate_up, down), *copies)


def _routed(shape: MoEShape):
    return routing(shape.routing, shape.tokens, shape.num_experts, shape.top_k)


@functools.cache
def load(shape: MoEShape) -> tuple[int, int]:
    """Of a shape's drawn ids: experts that a token chose, and pairs of the expert that most chose."""
    counts = expert_load.counts(torch.from_numpy(_routed(shape)[0]), shape.num_experts)
    return int((counts > 0).sum()), int(counts.max())


def samples(shape: MoEShape) -> list[int]:
    """Tokens whose rows are compared with the truth: all, or SAMPLES from the first to the last, evenly apart."""
    if shape.tokens <= SAMPLES:
        return list(range(shape.tokens))
    return [i * (shape.tokens - 1) // (SAMPLES - 1) for i in range(SAMPLES)]

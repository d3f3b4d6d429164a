"""Before the expert layer is timed: is every provider's output right, and ours the same in every call and batch?

The truth is the reference in fp64 on sampled tokens (moe_cases.samples), whose rows depend on nothing else; the budget
is each row's own (quality.moe_budget). The rest of the output has to be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

import torch

from g4lab import env
from g4lab.bench import moe, suite, timing
from g4lab.bench.moe_cases import TORCH, inputs, samples
from g4lab.bench.suite import Proof
from g4lab.errors import Unavailable
from g4lab.kernels.fused_moe import fused_moe_reference
from g4lab.quality.moe_budget import row_budget
from g4lab.tuning.moe_shapes import MoEShape

CLAIM = ("errors", "error within budget")


class Truth(NamedTuple):
    """Some tokens' rows in fp64, [tokens, H], and the error that each may have, [tokens]."""

    tokens: list[int]
    rows: torch.Tensor
    budget: torch.Tensor


def prove(chosen: moe.Choice, progress: Callable[[int, int], None] | None = None) -> Iterator[Proof]:
    """One proof for each shape and provider that can do it: `check` holds; and for ours also that a second call gives
    the same bits, and that the sampled tokens alone, with the same config, get the same bits as in the whole batch.

    A provider that cannot do a shape has no proof (its reason stands among the times), unless it is ours.

    Raises:
        Unavailable: no GPU, or an interpreted process.
        G4LabError: a provider broke the CUDA context.
    """
    timing.require_gpu()
    for done, shape in enumerate(chosen.shapes):
        yield from proofs_of(shape, [each for each in chosen.providers if each.name not in moe.FLOORS], "cuda")
        if progress:
            progress(done + 1, len(chosen.shapes))


def proofs_of(shape: MoEShape, providers: Sequence, device: str) -> Iterator[Proof]:
    """The proofs of one shape, on the GPU, or on the CPU by Triton's interpreter where providers build for it. There
    the batch may change a token by rounding: NumPy adds in an order that depends on where in a block its row stands.

    Raises:
        Unavailable: no GPU, and this process does not interpret Triton.
    """
    if device == "cpu" and not env.interpreting():
        raise Unavailable("no kernel runs on the CPU: TRITON_INTERPRET is not 1")
    expected = truth(shape, device)
    for provider in providers:
        named = asdict(shape) | {"provider": provider.name}
        others = [lambda shape: moe.ours(shape, device, expected.tokens)] if provider.name == moe.OURS else []
        try:
            out, again, *alone = suite.outputs(provider, shape, device, *others)
        except Unavailable as error:
            if provider.name == moe.OURS:
                yield Proof(named, {"reason": str(error)}, False)
            continue
        values = check(out, expected) | {"repeatable": bool(out.equal(again))}
        holds = values["worst"] <= 1 and values["finite"]
        if alone:
            together = out[expected.tokens]
            values |= {
                "batch_independent": bool(alone[0].equal(together)),
                "apart": _worst(alone[0] - together, expected),
            }
            holds &= values["repeatable"] and (
                values["batch_independent"] if device == "cuda" else values["apart"] <= 1
            )
        yield Proof(named, values, bool(holds))


def truth(shape: MoEShape, device: str) -> Truth:
    """What the sampled tokens' rows should be."""
    x, tokens, dtype = inputs(shape, device), samples(shape), TORCH[shape.dtype]
    arguments = (x.x[tokens], *x.layers[0], x.topk_weights[tokens], x.topk_ids[tokens])
    rows = fused_moe_reference(*arguments, compute=torch.float64)
    low = fused_moe_reference(*arguments, compute=dtype)
    return Truth(tokens, rows, row_budget(rows, low, dtype, shape.hidden + shape.width))


def check(out: torch.Tensor, expected: Truth) -> dict:
    """Of an output [T, H]: the rows compared, the largest error, `worst`, the largest part of its budget that a row's
    error is (NaN is as bad as infinity), and whether all of it is finite."""
    error = out[expected.tokens].double() - expected.rows
    return {
        "rows": len(expected.tokens), "largest_error": float(error.abs().max()), "worst": _worst(error, expected),
        "finite": bool(out.isfinite().all()),
    }  # fmt: skip


def _worst(error: torch.Tensor, expected: Truth) -> float:
    return float((error.abs().amax(-1) / expected.budget).max().nan_to_num(torch.inf))

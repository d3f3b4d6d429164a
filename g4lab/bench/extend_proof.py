"""Before extend attention is timed: is every provider's output right, and ours the same in every call and split?

The truth is the reference in fp64 on sampled rows (extend_cases.samples), the budget that of the correctness grid
(quality.extend_grid). It is a row's own: one for the whole output would let rows over thousands of keys, whose values
are small, be anything.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from g4lab import env
from g4lab.bench import suite, timing
from g4lab.bench.extend import OURS, choose, columns, providers_of
from g4lab.bench.extend_cases import TORCH, Sample, inputs, sampled, samples
from g4lab.bench.suite import Proof
from g4lab.errors import Unavailable
from g4lab.kernels.extend_reference import extend_attention_reference
from g4lab.quality.extend_grid import row_budget
from g4lab.tuning.extend_shapes import ExtendShape

CLAIM = ("errors", "error within budget")


class Truth(NamedTuple):
    """A sample's rows in fp64, [rows, group, D], and the error that each of them may have, [rows, group]."""

    sample: Sample
    rows: torch.Tensor
    budget: torch.Tensor


def prove(
    shapes: Sequence[str] | None = None, without: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Proof]:  # fmt: skip
    """One proof for each shape and provider that can do it: `check` holds; and for ours also that a second call gives
    the same bits, and that outputs of other splits are no further apart than a budget.

    A provider that cannot do a shape has no proof (its reason stands among the times), unless it is ours.

    Raises:
        Unavailable: no GPU, or an interpreted process.
        BadInput: an unknown shape or provider.
        G4LabError: a provider broke the CUDA context.
    """
    chosen = choose(shapes, without)
    timing.require_gpu()
    for done, shape in enumerate(chosen):
        yield from proofs_of(shape, providers_of(shape, without), "cuda")
        if progress:
            progress(done + 1, len(chosen))


def proofs_of(shape: ExtendShape, providers: Sequence, device: str) -> Iterator[Proof]:
    """The proofs of one shape, on the GPU, or on the CPU by Triton's interpreter where providers build for it.

    Raises:
        Unavailable: no GPU, and this process does not interpret Triton.
    """
    if device == "cpu" and not env.interpreting():
        raise Unavailable("no kernel runs on the CPU: TRITON_INTERPRET is not 1")
    expected, chosen = list(truths(shape, device)), None
    for provider in providers:
        named = columns(shape) | {"provider": provider.name}
        try:
            out, again = suite.outputs(provider, shape, device)
        except Unavailable as error:
            if provider.name.startswith(OURS):
                yield Proof(named, {"reason": str(error)}, False)
            continue
        if provider.name == OURS:
            chosen = out
        values = check(out, expected) | {"repeatable": bool(out.equal(again))}
        holds = values["worst"] <= 1
        if provider.name.startswith(OURS):
            holds &= values["repeatable"]
            if chosen is not None and out is not chosen:
                values["apart"] = apart(out, chosen, expected)
                holds &= values["apart"] <= 1
        yield Proof(named, values, bool(holds))


def truths(shape: ExtendShape, device: str) -> Iterator[Truth]:
    """What every sample of a shape should be."""
    x, dtype = inputs(shape, device), TORCH[shape.dtype]
    for sample in samples(shape):
        arguments, options = sampled(x, shape, sample), {"sm_scale": x.sm_scale, "window": shape.window}
        rows = extend_attention_reference(*arguments, compute=torch.float64, **options)
        low = extend_attention_reference(*arguments, compute=dtype, **options)
        yield Truth(sample, rows, row_budget(rows, low, dtype, x.sm_scale))


def check(out: torch.Tensor, expected: Sequence[Truth]) -> dict:
    """Of an output [B, extend, Hq, D]: the rows compared, the largest error, and `worst`, the largest part of its
    budget that a row's error is; NaN is as bad as infinity."""
    errors = [_of_sample(out, truth) - truth.rows for truth in expected]
    return {
        "rows": sum(truth.budget.numel() for truth in expected),
        "largest_error": max(float(error.abs().max()) for error in errors),
        "worst": _worst(errors, expected),
    }


def apart(out: torch.Tensor, other: torch.Tensor, expected: Sequence[Truth]) -> float:
    """As `worst` of `check`, of the distance between two outputs."""
    return _worst([_of_sample(out, truth) - _of_sample(other, truth) for truth in expected], expected)


def _worst(errors: Sequence[torch.Tensor], expected: Sequence[Truth]) -> float:
    parts = [(error.abs().amax(-1) / truth.budget).max() for error, truth in zip(errors, expected, strict=True)]
    return max(float(part.nan_to_num(torch.inf)) for part in parts)


def _of_sample(out: torch.Tensor, truth: Truth) -> torch.Tensor:
    """The sample's rows of an output, in fp64."""
    sequence, rows, kv_head = truth.sample
    group = truth.rows.shape[1]
    return out[sequence, rows][:, kv_head * group : (kv_head + 1) * group].double()

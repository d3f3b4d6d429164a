"""The correctness grid of the expert layer: cases x configs x dtypes, each row of the result with its own error budget.

The budget is each row's own (quality.moe_budget). A token that no expert has gets zeros, and no budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch

from g4lab.errors import bad
from g4lab.kernels.fused_moe import MoEConfig, MoETile, fused_moe, fused_moe_reference
from g4lab.quality.moe_budget import row_budget

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGE = 1024
_SMALL, _WIDE = MoETile(16, 32, 32, 2, 4, 1), MoETile(64, 64, 64, 4, 4, 1)
# By name, as columns of the grid; None lets the layer choose.
CONFIGS = {"16 rows": MoEConfig(_SMALL, _SMALL), "64 rows": MoEConfig(_WIDE, _WIDE), "chosen": None}


@dataclass(frozen=True)
class MoECase:
    """A layer and a batch. ids: how they are drawn ("spread": uniform and distinct; "one": all on one expert; "twice":
    each expert named twice; "nobody": every second id is no expert's, every third token has none). strided: rows of x,
    weights and result lie apart."""

    name: str
    tokens: int
    hidden: int = 64
    width: int = 44
    num_experts: int = 8
    top_k: int = 2
    ids: str = "spread"
    strided: bool = False


CASES = (
    MoECase("one token", 1),
    MoECase("more pairs than a block", 70, hidden=96, num_experts=4),
    MoECase("most experts idle", 3, num_experts=64, top_k=4),
    MoECase("256 experts", 3, hidden=80, width=24, num_experts=256, top_k=8),
    MoECase("one expert of one", 19, num_experts=1, top_k=1),
    MoECase("all on one expert", 40, top_k=1, ids="one"),
    MoECase("an expert named twice", 9, ids="twice"),
    MoECase("ids that no expert has", 21, top_k=4, ids="nobody"),
    MoECase("rows apart", 21, strided=True),
    MoECase("tiny-moe's layer", 40, hidden=128, width=64),
    MoECase("26B-A4B, 2 experts", 3, hidden=2816, width=704, num_experts=2),
    MoECase("a rank of two, 2 experts", 3, hidden=2816, width=352, num_experts=2),
)


def grid(
    configs: Mapping[str, MoEConfig | None] = CONFIGS, cases: Iterable[str | MoECase] | None = None,
    dtypes: Iterable[str] = tuple(DTYPES), *, device: str | None = None, kernel: Callable = fused_moe,
) -> pd.DataFrame:  # fmt: skip
    """Runs every case with every config and dtype, in Triton's interpreter where there is no GPU; cases of a real
    model's size with the layer's own choice alone, for small tiles would be thousands of programs.

    cases: MoECases or names of CASES, None for all. kernel: what takes `fused_moe`'s arguments.

    Returns:
        Columns config, case, dtype, error and budget (of the row that is the furthest through its budget), ratio (of
        the two; infinite for NaN) and holds.

    Raises:
        BadInput: an unknown case or dtype.
    """
    chosen = CASES if cases is None else tuple(case(each) if isinstance(each, str) else each for each in cases)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise bad("dtypes", dtype, "some of " + ", ".join(DTYPES))
        for each in chosen:
            x, out = inputs(each, DTYPES[dtype], device)
            truth, low = (fused_moe_reference(**x, compute=c).double() for c in (torch.float64, DTYPES[dtype]))
            budget = row_budget(truth, low, DTYPES[dtype], each.hidden + each.width)
            for name, config in configs.items():
                if config and each.hidden > LARGE:
                    continue
                out.fill_(math.nan)
                got = kernel(**x, config=config, out=out).double()
                rows.append({"config": name, "case": each.name, "dtype": dtype} | _worst(got, truth, budget))
    return pd.DataFrame(rows)


def case(name: str) -> MoECase:
    """The case called `name`. Raises BadInput for an unknown one."""
    for each in CASES:
        if each.name == name:
            return each
    raise bad("case", name, "one of " + ", ".join(each.name for each in CASES))


def _worst(got: torch.Tensor, truth: torch.Tensor, budget: torch.Tensor) -> dict:
    error = (got - truth).abs().amax(-1).nan_to_num(math.inf)
    ratio = torch.where(error == 0, 0.0, error / budget)
    worst = int(ratio.argmax())
    numbers = {"error": error, "budget": budget, "ratio": ratio}
    return {name: float(x[worst]) for name, x in numbers.items()} | {"holds": bool((ratio <= 1).all())}


def inputs(each: MoECase, dtype: torch.dtype, device: str = "cpu") -> tuple[dict, torch.Tensor]:
    """Arguments of `fused_moe` and its reference by name, seeded by the case, and where to write. Weights are scaled
    so that every stage has values near 1."""
    generator = torch.Generator().manual_seed(sum(map(ord, each.name)))

    def draw(*shape, scale=1.0):
        return _placed(torch.randn(*shape, generator=generator) * scale, each.strided, dtype, device)

    ids = torch.rand(each.tokens, each.num_experts, generator=generator).argsort(1)[:, : each.top_k]
    if each.ids == "one":
        ids[:] = each.num_experts - 1
    elif each.ids == "twice":
        ids[:, 1:] = ids[:, :1]
    elif each.ids == "nobody":
        ids[:, ::2] = -1
        ids[::3] = each.num_experts
    x = {
        "x": draw(each.tokens, each.hidden),
        "w_gate_up": draw(each.num_experts, 2 * each.width, each.hidden, scale=each.hidden**-0.5),
        "w_down": draw(each.num_experts, each.hidden, each.width, scale=each.width**-0.5),
        "topk_weights": torch.rand(ids.shape, generator=generator).to(device),
        "topk_ids": ids.to(device),
    }
    return x, _placed(torch.empty(each.tokens, each.hidden), each.strided, dtype, device)


def _placed(values: torch.Tensor, strided: bool, dtype: torch.dtype, device: str) -> torch.Tensor:
    """The values, contiguous or between NaN that nobody may read."""
    if not strided:
        return values.to(device, dtype)
    wide = torch.full((*values.shape[:-1], values.shape[-1] + 16), math.nan, dtype=dtype, device=device)
    wide[..., : values.shape[-1]] = values.to(device, dtype)
    return wide[..., : values.shape[-1]]

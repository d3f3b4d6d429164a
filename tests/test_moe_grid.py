"""The expert layer's correctness grid holds, and its budget has teeth."""

import pytest
import torch

from g4lab.errors import BadInput
from g4lab.kernels.fused_moe import fused_moe
from g4lab.quality import moe_grid


def test_every_cell_holds():
    found = moe_grid.grid(dtypes=["bf16"])
    large = sum(case.hidden > moe_grid.LARGE for case in moe_grid.CASES)
    assert len(found) == len(moe_grid.CONFIGS) * len(moe_grid.CASES) - (len(moe_grid.CONFIGS) - 1) * large
    assert found.holds.all(), found[~found.holds]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_other_dtypes(dtype):
    cases = ["one token", "ids that no expert has", "rows apart", "tiny-moe's layer"]
    found = moe_grid.grid({"chosen": None}, cases, [dtype])
    assert found.holds.all(), found[~found.holds]


def wrong_expert(**x):
    return fused_moe(**x | {"topk_ids": (x["topk_ids"] + 1) % x["w_down"].shape[0]})


def up_first(**x):
    return fused_moe(**x | {"w_gate_up": x["w_gate_up"].roll(x["w_down"].shape[2], 1)})


def no_weights(**x):
    return fused_moe(**x | {"topk_weights": torch.ones_like(x["topk_weights"])})


def exact_gelu(*, x, w_gate_up, w_down, topk_weights, topk_ids, config, out):
    """The other GELU (erf), all else in fp64: no more than 4.7e-4 from the tanh form in each value."""
    out.zero_()
    for token, k in torch.ones_like(topk_ids).nonzero().tolist():
        expert = int(topk_ids[token, k])
        gate, up = (w_gate_up[expert].double() @ x[token].double()).chunk(2)
        h = torch.nn.functional.gelu(gate) * up
        out[token] += (topk_weights[token, k].double() * (w_down[expert].double() @ h)).to(out.dtype)
    return out


@pytest.mark.parametrize("mistake", [wrong_expert, up_first, no_weights])
def test_a_mistake_does_not_pass_in_the_coarsest_dtype(mistake):
    (row,) = moe_grid.grid({"chosen": None}, ["tiny-moe's layer"], ["bf16"], kernel=mistake).itertuples()
    assert not row.holds


def test_the_other_gelu_does_not_pass_in_fp32():
    (row,) = moe_grid.grid({"chosen": None}, ["tiny-moe's layer"], ["fp32"], kernel=exact_gelu).itertuples()
    assert not row.holds


def test_a_token_without_experts_has_no_budget():
    truth = low = torch.zeros(1, 4).double()
    assert moe_grid.row_budget(truth, low, torch.bfloat16, 8).item() == 0


def test_unknown_names():
    with pytest.raises(BadInput, match="case: got 'nonesuch', expected one of"):
        moe_grid.grid(cases=["nonesuch"])
    with pytest.raises(BadInput, match="dtypes: got 'fp8', expected some of"):
        moe_grid.grid(dtypes=["fp8"])

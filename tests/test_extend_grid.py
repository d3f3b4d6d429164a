"""The correctness grid of extend attention: the kernel holds in every cell, and a wrong one does not."""

import pytest
import torch

from g4lab.errors import BadInput
from g4lab.kernels.extend_attention import extend_attention, extend_attention_reference
from g4lab.quality import extend_grid
from g4lab.quality.extend_grid import CASES, DTYPES, HEAD_DIMS, grid

# The rest is the notebook's: 12_extend_attention runs every head dim in bf16.
PAIRS = ((64, "fp16"), (128, "fp32"), (256, "fp16"), (288, "fp32"))


@pytest.mark.parametrize(("head_dim", "dtype"), PAIRS)
def test_every_case_is_within_its_budget(head_dim, dtype):
    frame = grid([head_dim], dtypes=[dtype])
    assert frame.holds.all(), frame[~frame.holds].to_string()
    assert list(frame.case) == [case.name for case in CASES]


@pytest.mark.gpu
@pytest.mark.parametrize("tile", [None, extend_grid.TILE])
def test_the_whole_grid_on_a_gpu(tile):
    frame = grid(tile=tile)
    assert len(frame) == len(HEAD_DIMS) * len(CASES) * len(DTYPES)
    assert frame.holds.all(), frame[~frame.holds].to_string()


def changed(**changes):
    def kernel(**arguments):
        return extend_attention(**arguments | {name: change(arguments[name]) for name, change in changes.items()})

    return kernel


def first_page_from_nowhere(kv_indices):
    unused = next(slot for slot in range(len(kv_indices) + 1) if slot not in kv_indices.tolist())
    return torch.cat([torch.tensor([unused], device=kv_indices.device), kv_indices[1:]])


@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        ("window below the extend", changed(window=lambda w: w + 1)),
        ("prefix partly in the window", changed(window=lambda w: w - 1)),
        ("window above the extend", changed(window=lambda w: w - 1)),
        ("logit cap", changed(logit_cap=lambda cap: 1.05 * cap)),
        ("ragged batch", changed(sm_scale=lambda scale: 1.05 * scale)),
        ("ragged batch", changed(v=lambda v: v.roll(1, 0))),
        ("tree mask", changed(custom_mask=torch.ones_like)),
        ("rows masked whole", changed(custom_mask=lambda mask: mask.roll(1))),
        ("rows masked whole", changed(window_kv_offsets=torch.zeros_like)),
        ("rows masked whole", changed(skip_prefix_custom_mask=lambda _: True)),
        ("shared, scattered pages", changed(kv_indices=lambda slots: slots.roll(1))),
        ("split keys", changed(kv_indices=first_page_from_nowhere)),
    ],
)
def test_a_wrong_kernel_does_not_hold(case, kernel):
    """Small mistakes, in the coarsest dtype with the widest budget."""
    assert not grid([64], [case], ["bf16"], kernel=kernel).holds.any()


def test_the_truth_holds_and_nan_does_not():
    def reference(max_len_extend, tile, splits, out, **x):
        return extend_attention_reference(**x).to(out.dtype)

    frame = grid([64], kernel=reference)
    assert frame.holds.all(), frame[~frame.holds].to_string()
    broken = grid([64], ["one token"], ["fp16"], kernel=lambda **x: x["out"])  # nothing written: NaN
    assert broken.ratio.item() == float("inf")


def test_strides_and_gaps_are_real():
    x, _, out = extend_grid.inputs(extend_grid.case("strided views"), 64, torch.bfloat16)
    tensors = [x[name] for name in ("q", "k", "v", "k_buffer", "v_buffer")] + [out]
    assert not any(tensor.is_contiguous() for tensor in tensors)
    assert x["q"].untyped_storage().data_ptr() == x["k"].untyped_storage().data_ptr()
    assert x["q"].isfinite().all()


def test_bad_input():
    with pytest.raises(BadInput, match="case: got 'nothing', expected one of ragged batch, "):
        grid([64], ["nothing"])
    with pytest.raises(BadInput, match="dtypes: got 'fp8', expected some of fp32, bf16, fp16"):
        grid([64], ["one token"], ["fp8"])


def test_progress():
    seen = []
    grid([64], ["one token"], ["fp32", "bf16"], progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]

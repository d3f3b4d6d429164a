"""The blocks of keys that the plain rules name are those that the kernels go through, counted in the interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab import env
from g4lab.kernels import extend_kernel
from g4lab.kernels.extend_attention import ExtendTile, extend_attention
from g4lab.tuning import extend_blocks, sglang_extend
from g4lab.tuning.extend_blocks import INTERIOR, MASKED, SKIPPED
from g4lab.tuning.extend_shapes import SHAPES
from g4lab.tuning.tile_space import TUNABLES

pytestmark = pytest.mark.skipif(env.has_gpu(), reason="counts calls inside Triton's interpreter")
TILE = ExtendTile(16, 16, 4, 1)
LENGTHS = {"extend": st.integers(1, 50), "prefix": st.integers(0, 60), "window": st.none() | st.integers(1, 70)}


def tensors(extend, prefix, group):
    q, k, v = (torch.zeros(extend, heads, 16) for heads in (group, 1, 1))
    pool = torch.zeros(prefix + 1, 1, 16)
    indptrs = (torch.tensor([0, extend]), torch.tensor([0, prefix]))
    return q, k, v, pool, pool, *indptrs, torch.arange(prefix)


@settings(max_examples=20)
@given(**LENGTHS, group=st.sampled_from([1, 2, 3]), tile=st.sampled_from([TILE, ExtendTile(32, 16, 4, 1)]))
def test_our_kernel_goes_through_these(extend, prefix, window, group, tile):
    seen = []

    def attend(*args):
        seen.append(MASKED if args[-1] else INTERIOR)
        return compute(*args)

    compute = extend_kernel._attend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extend_kernel, "_attend", attend)
        extend_attention(*tensors(extend, prefix, group), max_len_extend=extend, window=window, tile=tile, splits=1)
    blocks = extend_blocks.ours(extend, prefix, window, group, tile)
    assert (blocks.count(MASKED), blocks.count(INTERIOR)) == (seen.count(MASKED), seen.count(INTERIOR))
    assert blocks.count(SKIPPED) == 0


@settings(max_examples=12)
@given(**LENGTHS)
def test_sglangs_kernel_goes_through_these(extend, prefix, window):
    """Every block that it computes is two products; every one that it visits under a window asks whether to skip."""
    from triton.runtime import interpreter

    products, questions = [], []
    builder, home = interpreter.interpreter_builder, sglang_extend.module()
    multiply, reduce = builder.create_dot, interpreter.ReduceOps.apply_impl

    def dot(*args):
        products.append(1)
        return multiply(*args)

    def reduced(self, input_param):
        questions.append(self.axis == 0)  # of the two maxima that decide, the last; all others are along rows
        return reduce(self, input_param)

    q, k, v, *rest = tensors(extend, prefix, 2)
    with pytest.MonkeyPatch.context() as patch, sglang_extend.tiled(TILE):
        patch.setattr(builder, "create_dot", dot)
        patch.setattr(interpreter.ReduceOps, "apply_impl", reduced)
        home.extend_attention_fwd(
            q, k, v, torch.empty_like(q), *rest, None, True, None, extend, 1.0, 1.0,
            sm_scale=0.25, sliding_window_size=-1 if window is None else window,
        )  # fmt: skip
    blocks = extend_blocks.sglang(extend, prefix, window, 2, TILE)
    assert blocks.count(MASKED) == len(products) / 2
    assert blocks.count(INTERIOR) == 0
    if window is not None:
        assert blocks.count() == sum(questions)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.extend <= 1024], ids=lambda s: s.name)
@pytest.mark.parametrize(("kernel", "name"), [("ours", "extend_attention"), ("sglang", "sglang_extend_attention")])
def test_the_tuner_counts_the_same(shape, kernel, name):
    tile = ExtendTile(32, 64, 4, 2)
    row = extend_blocks.work(shape, [(kernel, tile)]).iloc[0]
    counted = TUNABLES[name].work(shape, tile, sms=132)
    assert (row.computed, row.programs * counted.splits) == (counted.blocks, counted.programs)


def test_runs_touch_and_cover_what_is_seen():
    for tile in extend_blocks.ours(100, 333, 77, 2, ExtendTile(64, 32, 4, 1)).tiles:
        assert tile.runs[0].first == 333 + tile.first - 77
        assert tile.runs[-1].end == 333 + tile.last + 1
        assert all(a.end == b.first for a, b in zip(tile.runs, tile.runs[1:], strict=False))

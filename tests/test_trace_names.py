"""Kernel names: short enough to read, the same across builds, and never two kernels made one."""

import pytest

from g4lab.trace.names import same, short


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("volta_sgemm_128x32_nt", "volta_sgemm_128x32_nt"),
        ("ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)", "ncclKernel_AllReduce_RING_LL_Sum_float"),
        ("aten::mm", "aten::mm"),
        ("Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD (Pageable -> Device)"),
        ("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__",) * 2,
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float> >(int, float*)",
            "vectorized_elementwise_kernel<4, FillFunctor<float> >",
        ),
        ("void (anonymous namespace)::softmax_warp_forward<float, 10>(float*)", "softmax_warp_forward<float, 10>"),
        ("", ""),
        ("(", "("),
    ],
)
def test_short(name, expected):
    assert short(name) == expected


def test_short_cuts_to_the_width():
    assert short("k" * 100, 20) == "k" * 19 + "…"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("_fwd_kernel_0d1d2d3de4c5de", "_fwd_kernel"),
        ("_fwd_kernel_012d3d", "_fwd_kernel_012d3d"),  # no suffix of Triton's: an argument 0 is d, c, e or absent
        ("void f<g<int> >(int)", "f<g<int>>(int)"),
        ("void f<g<h<int> > >(int)", "f<g<h<int>>>(int)"),
        ("triton_poi_fused_add_mul_7", "triton_poi_fused_add_mul"),
    ],
)
def test_what_builds_may_differ_in(a, b):
    assert same(a) == same(b) == b


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("volta_sgemm_128x32_nt", "volta_sgemm_128x64_nt"),  # tiles
        ("_combine_splitk_kernel_2", "_combine_splitk_kernel_8"),  # a number that belongs to the name
        ("f<float>(int)", "f<c10::BFloat16>(int)"),
        ("_fwd_kernel_stage1", "_fwd_kernel_stage2"),
        ("triton_poi_fused_add_0", "triton_red_fused_add_0"),
    ],
)
def test_what_stays_different(a, b):
    assert same(a) != same(b)

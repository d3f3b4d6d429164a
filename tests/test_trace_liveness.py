"""Liveness: what a patch replaces is gone, what it launches is there, on hand-made GPU traces and real captures."""

import pytest
from traces import CAPTURES, kernel, note, opened, text

from g4lab import patches
from g4lab.errors import BadInput
from g4lab.trace import expect, load

# The chain of SGLang PR 1 of pyc96/sglang: top-k, its sort, softmax, the scale's gather and two elementwise kernels.
EAGER = (
    "void at::native::sbtopk::gatherTopK<c10::BFloat16, unsigned int, 2, false>(...)",
    "void at::native::bitonicSortKVInPlace<2, -1, 16, 16, c10::BFloat16, long, ...>(...)",
    "void (anonymous namespace)::cunn_SoftMaxForward<4, float, float, float, ...>(...)",
    "void at::native::index_elementwise_kernel<128, 4, ...>(int, ...)",
    "void at::native::vectorized_elementwise_kernel<4, at::native::BinaryFunctor<..., MulFunctor<float>>>(...)",
)


def gpu_trace(*names):
    events = [kernel(name, 10 * index, 2.5, index) for index, name in enumerate(names)]
    return load(opened(text([note("step[DECODE bs=1]", 0, 500), *events])))


def test_on_a_gpu_the_kernels_names_decide():
    before, after = gpu_trace("gemm", *EAGER), gpu_trace("gemm", "_route_kernel", EAGER[2])
    assert patches.alive_in(after, "router").alive
    verdict = patches.alive_in(before, "router")
    assert not verdict.alive
    assert len(verdict.reasons) == 2
    assert "1 calls, 2.5 µs, NOT as expected" in str(verdict)
    both = patches.alive_in(gpu_trace("_route_kernel", EAGER[0]), "router")  # half of the layers still run the chain
    assert not both.alive
    assert not patches.alive_in(gpu_trace("_gemma4_routing_kernel", "_route_kernel"), "router").alive


def test_on_real_captures_of_the_server():
    off, on = load(CAPTURES / "sglang_stages_none"), load(CAPTURES / "sglang_stages_router")
    assert patches.alive_in(on, "router").alive
    assert not patches.alive_in(off, "router").alive
    steps, layers = len(on.steps), 6
    assert expect(on, present=["_route_kernel"]).signs[0].calls == steps * layers
    assert "alive</b>" in patches.alive_in(on, "router")._repr_html_()


def test_a_drafts_top_k_does_not_hide_that_the_routers_is_gone():
    steps = [note("step[VERIFY bs=1]", 0, 100), note("step[DRAFT bs=1]", 200, 100)]
    trace = load(opened(text([*steps, kernel("_route_kernel", 10, 2.5, 1), kernel(EAGER[0], 210, 2.5, 2)])))
    assert patches.alive_in(trace, "router").alive
    assert not expect(trace, gone=["gatherTopK"]).alive
    real = load(CAPTURES / "sglang_mtp")
    routing, drafting = (
        expect(real, gone=["^aten::topk$"], phases=each).signs[0] for each in (["verify"], ["unknown"])
    )
    assert (routing.calls, drafting.calls) == (6, 1)


def test_a_phase_without_events_is_no_proof():
    trace = gpu_trace("_route_kernel")
    assert expect(trace, gone=["topk"], phases=["prefill"]).signs[0].holds is None
    with pytest.raises(BadInput, match=r"phases: got \['dekode'\]"):
        expect(trace, gone=["topk"], phases=["dekode"])


def test_the_scope_holds_for_annotations():
    on = load(CAPTURES / "sglang_stages_router")
    assert expect(on, present=["_route_kernel"], phases=["decode"]).signs[0].calls == 12
    assert expect(on, present=["scheduler.run_batch"], phases=["decode"]).signs[0].calls == 0


def test_an_empty_trace_is_no_proof():
    empty = load(opened(b'[{"ph": "M", "name": "process_name"}]'))
    verdict = expect(empty, gone=["topk"])
    assert not verdict.alive
    assert "cannot tell" in verdict.reasons[0]


def test_bad_input():
    trace = gpu_trace("a")
    with pytest.raises(BadInput, match="at least one pattern"):
        expect(trace)
    with pytest.raises(BadInput, match="regular expression"):
        expect(trace, gone=["("])
    with pytest.raises(BadInput, match="lists of patterns"):
        expect(trace, gone="topk")
    with pytest.raises(BadInput, match="a known patch"):
        patches.alive_in(trace, "nope")
    with pytest.raises(BadInput, match="call counter"):
        patches.alive_in(trace, "router_scale")

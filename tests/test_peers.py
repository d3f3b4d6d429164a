"""Peers that are not SGLang of today: Liger's real kernels where it is installed (the environment of the oldest
versions has it), vLLM's pages, and the names that SGLang 0.5.17 has."""

import importlib.util
import sys
from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from g4lab import env
from g4lab.bench import extend, extend_cases, extend_peers, liger_peers, moe, moe_proof, norms, norms_cases, router
from g4lab.bench.norms_cases import HeadCase, RowCase
from g4lab.bench.timing import Provider
from g4lab.tuning import sglang_moe
from g4lab.tuning.extend_shapes import ExtendShape
from g4lab.tuning.moe_shapes import MoEShape
from tests.norm_inputs import relative_error

DEVICE = "cuda" if env.has_gpu() else "cpu"


@pytest.fixture
def liger(monkeypatch):
    """Liger as it is on a GPU; on a CPU its kernels interpreted, with Triton's own functions for libdevice's."""
    pytest.importorskip("liger_kernel")
    from liger_kernel.ops import geglu, rms_norm

    if DEVICE == "cpu":
        monkeypatch.setattr(rms_norm, "rsqrt", _rsqrt)
        monkeypatch.setattr(geglu, "tanh", _tanh)
        forward = rms_norm.rms_norm_forward

        def forward_with_casts(x, weight, eps, offset, *rest):
            return forward(x, weight, _Scalar(eps), _Scalar(offset), *rest)

        monkeypatch.setattr(rms_norm, "rms_norm_forward", forward_with_casts)


class _Scalar(float):
    """A launch's float, which the interpreter passes on as it is, with the cast that it has in compiled code."""

    def to(self, dtype):
        return self


@triton.jit
def _rsqrt(x):
    return tl.rsqrt(x)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


HEADS = [HeadCase(name, 3, mode, 4, 2, 64, "float32") for name in norms_cases.ON_HEADS for mode in ("QKV", "QK", "Q")]
ROWS = [RowCase(name, 3, 256, "float32") for name in norms_cases.ON_ROWS]
EAGER = {
    "qkv_norm": norms.eager_qkv_norm,
    "qkv_norm_rope_kv": norms.eager_qkv_norm_rope_kv,
    "router_norm": lambda case, x: torch.nn.functional.rms_norm(x.x, (case.hidden_size,), x.weights[0], 1e-6),
    "residual_norm": norms.row_norm(norms.residual_norm_reference),
    "dual_residual_norm": norms.row_norm(norms.dual_residual_norm_reference),
}


@pytest.mark.parametrize("case", [*HEADS, *ROWS], ids=str)
def test_ligers_norms_are_given_the_same_arguments(case, liger):
    x, again = case.inputs(DEVICE, "normal"), case.inputs(DEVICE, "normal")
    got, expected = getattr(liger_peers, case.operation)(case, x), EAGER[case.operation](case, again)
    for mine, eager in zip(*(o if isinstance(o, tuple) else (o,) for o in (got, expected)), strict=True):
        assert (mine is None) == (eager is None)
        if mine is not None:
            _assert_near(mine.flatten(1), eager, case)
    if case.operation == "qkv_norm_rope_kv":
        assert x.v_cache.any() == (case.mode != "Q")
        _assert_near(x.k_cache, again.k_cache, case)
        _assert_near(x.v_cache, again.v_cache, case)


def _assert_near(mine, eager, case):
    """Both are within their bound of the truth; the second of two norms has the first one's error besides its own, and
    a rotation or a sum adds values no larger than the largest."""
    size = case.head_dim if isinstance(case, HeadCase) else case.hidden_size
    chained = 2 if case.operation == "dual_residual_norm" else 1
    bound = 2 * chained * relative_error(size, 4) * eager.abs().max()
    assert (mine - eager).abs().max() <= bound


@pytest.mark.parametrize("tokens", [1, 6])
def test_the_experts_with_ligers_geglu_are_within_the_layers_budget(tokens, liger):
    shape = MoEShape(tokens, 64, 48, 8, 2, dtype="float16")
    (proof,) = moe_proof.proofs_of(shape, [Provider("Liger", partial(liger_peers.experts, device=DEVICE))], DEVICE)
    assert proof.holds, proof.values


@pytest.mark.parametrize("name", ["liger_kernel", "vllm"])
def test_each_suite_names_the_peer_that_is_absent(name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda each, *a: None if each == name else find(each, *a))
    suites = {
        "liger_kernel": [norms.availability(), moe.availability()],
        "vllm": [router.availability(), extend.availability(), moe.availability()],
    }
    for found in suites[name]:
        absent = found[found.reason.str.startswith(f"{name} is not installed")]
        assert len(absent) >= 1
        assert not absent.runs.any()


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 40])
def test_vllms_pages_hold_every_sequences_keys_in_order(keys):
    shape = ExtendShape("paged", 3, 1, keys - 1, None, 4, 2, 8, "float16")
    x = extend_cases.inputs(shape, DEVICE)
    *buffers, table = extend_peers.paged(x, extend_peers.VLLM_PAGE)
    assert table.dtype == torch.int32
    assert table.unique().numel() == table.numel()
    for pages, pool in zip(buffers, (x.k_buffer, x.v_buffer), strict=True):
        assert pages.shape[1:] == (16, 2, 8)
        read = pages[table.long()].flatten(1, 2)
        assert read[:, :keys].equal(pool[x.slots])
        assert not read[:, keys:].any()


def test_the_router_is_found_where_sglang_0_5_17_has_it(monkeypatch):
    here = pytest.importorskip("sglang.kernels.ops.moe.gemma4_routing")
    from sglang.kernels.ops.layernorm import gemma4_fused_ops as there

    inputs = torch.randn(5, 16, device=DEVICE), torch.rand(16, device=DEVICE)
    monkeypatch.setattr(router.Case, "inputs", lambda case: inputs)
    case = router.Case(5, 16, 2, "float32")
    weights, ids = router._sglang(case)()
    monkeypatch.setattr(there, "gemma4_fused_routing", here.gemma4_fused_routing, raising=False)
    monkeypatch.setitem(sys.modules, here.__name__, None)
    for mine, theirs in zip(router._sglang(case)(), (weights, ids), strict=True):
        assert mine.equal(theirs)
    assert ids.sort(dim=1).values.equal(inputs[0].topk(2).indices.to(ids.dtype).sort(dim=1).values)


def test_the_experts_run_without_the_group_that_sglang_0_5_17_asks_for(monkeypatch):
    pytest.importorskip("sglang.srt.runtime_context")

    def get_tp_group():
        raise AssertionError("tensor model parallel group is not initialized")

    monkeypatch.setattr(sglang_moe.module(), sglang_moe.GROUP, get_tp_group, raising=False)
    with sglang_moe.configured():
        assert getattr(sglang_moe.module(), sglang_moe.GROUP)() is None
    assert getattr(sglang_moe.module(), sglang_moe.GROUP) is get_tp_group

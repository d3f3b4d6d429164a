"""families.csv: every rule means what its example says, and real traces leave almost nothing without a family."""

import pytest
from traces import CAPTURES, loaded

from g4lab.errors import BadInput
from g4lab.trace.families import DOMAINS, OTHER, classify, families, rules
from g4lab.trace.look import FAMILY_COLOUR
from g4lab.trace.tables import coverage

RULES = [rule for domain in DOMAINS for rule in rules(domain)]
CONTRACT = {  # the families every report of the project speaks of
    "extend attention",
    "decode attention",
    "MoE GEMM",
    "dense GEMM",
    "routing",
    "norm",
    "rope",
    "KV write",
    "all-reduce",
    "sampling",
    "copy",
    OTHER,
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.domain}-{rule.family}-{rule.example[:40]}")
def test_every_rule_is_reached_by_its_example(rule):
    first = next(each for each in rules(rule.domain) if each.pattern.search(rule.example))
    assert first is rule, f"an earlier rule for {first.family} takes it: {first.pattern.pattern}"
    assert classify([rule.example], rule.domain) == [rule.family]
    assert rule.producer
    assert rule.source


@pytest.mark.parametrize("domain", DOMAINS)
def test_families_are_those_of_the_contract_and_all_have_a_colour(domain):
    assert set(families(domain)) >= CONTRACT
    assert set(families(domain)) <= FAMILY_COLOUR.keys()
    assert families(domain)[-1] == OTHER


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("_fwd_kernel", "extend attention"),  # SGLang's extend kernel, and with Triton's old suffix
        ("_fwd_kernel_0d1d2d3de4de", "extend attention"),
        ("_fwd_kernel_stage1", "decode attention"),
        ("_fwd_grouped_kernel_stage1", "decode attention"),
        ("_fwd_kernel_stage2", "decode attention"),
        ("_fwd_kernel_ep_scatter_1", "routing"),  # begins like attention, moves tokens to experts
        ("fused_moe_kernel", "MoE GEMM"),
        ("fused_moe_router_cudacore_kernel", "routing"),
        ("_fused_moe_preprocess_kernel", OTHER),
        ("_route_kernel", "routing"),
        ("grouped_gemma_rmsnorm_kernel", "norm"),  # "grouped_gemm" is in it
        ("_gemma_qkv_rmsnorm_kernel", "norm"),
        ("all_reduce_one_shot_push_kernel", "all-reduce"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all-reduce"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "other collectives"),
        ("void at::native::bitonicSortKVInPlace<2, -1, 16, 16, c10::BFloat16, long>()", "routing"),
        ("void at::native::mbtopk::gatherTopK<float, unsigned int, 2>()", "sampling"),
        ("void at::native::mbtopk::radixFindKthValues<float, unsigned int, 2>()", "sampling"),
        (
            "void (anonymous namespace)::softmax_warp_forward<float, float, float, 4, false>()",
            "softmax and sort",
        ),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>()", "norm"),
        ("_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalIN4cute5tupleE", "dense GEMM"),  # mangled
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute", "dense GEMM"),
        ("void (anonymous namespace)::elementwise_kernel_with_index<int>(int, long*)", "elementwise"),
        ("vectorized_elementwise_kernel", "elementwise"),  # as Nsight Compute shortens it
        ("gatherTopK", "routing"),
        ("[CUDA memcpy Host-to-Device]", "copy"),
        ("a kernel nobody has heard of", OTHER),
        ("", OTHER),
    ],
)
def test_names_that_resemble_another_family(name, family):
    assert classify([name], "kernel") == [family]


def test_classify_keeps_order_and_repeats():
    names = ["aten::mm", "aten::topk", "aten::mm", "mine::unheard_of"]
    assert classify(names, "operator") == ["dense GEMM", "routing", "dense GEMM", OTHER]
    assert classify([], "kernel") == []


def test_a_domain_is_one_of_two():
    with pytest.raises(BadInput, match=r"domain: got 'gpu', expected one of kernel, operator"):
        classify(["x"], "gpu")


@pytest.mark.parametrize("file", ["v100_training_hta.json.gz", "v100_resnet50_kineto_2021.json.gz"])
def test_nearly_all_gpu_time_of_real_traces_has_a_family(shared_traces, file):
    assert coverage(loaded(shared_traces / file)).loc["kernels", "coverage"] >= 0.95


@pytest.mark.parametrize("folder", ["sglang_stages_none", "sglang_stages_router", "sglang_mixed_none", "sglang_mtp"])
def test_nearly_all_operator_time_of_real_servers_has_a_family(folder):
    found = coverage(loaded(CAPTURES / folder))
    assert found.loc["operators", "coverage"] >= 0.95

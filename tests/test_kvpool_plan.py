"""The plan of the KV pools against SGLang's own classes, and against what was published."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab import cli
from g4lab.errors import BadInput
from g4lab.gemma4 import NAMES, spec
from g4lab.kvpool import (
    Scheduling,
    Workload,
    best_ratio,
    draw_plan,
    plan,
    reproduce,
    sglang_pools,
    swa_tokens_per_request,
    swa_tokens_to_admit,
)
from g4lab.kvpool.charges import window
from g4lab.kvpool.workload import Demand

RATIOS, PAGES, TPS = (0.05, 0.15, 1 / 3, 0.8, 1.0), (1, 16, 64), (1, 2, 4, 8)


@pytest.fixture(scope="module")
def model_configs():
    return {name: sglang_pools.model_config(name) for name in NAMES}


def tps_of(name):
    return [tp for tp in TPS if spec(name).num_attention_heads % tp == 0]


@pytest.mark.parametrize("name", NAMES)
def test_pools_are_those_of_sglangs_configurator(name, model_configs):
    compared = refused = 0
    for ratio, page, tp, draft in itertools.product(RATIOS, PAGES, tps_of(name), (0, 4)):
        theirs = sglang_pools.configurator(model_configs[name], tp=tp, ratio=ratio, page_size=page, draft_layers=draft)
        options = {"ratio": ratio, "page_size": page, "tp": tp, "draft_layers": draft}
        for kv_bytes in (1 << 18, 1 << 24, 12_345_678_901, 109_478_041_600):
            try:
                expected = theirs.calculate_pool_sizes(kv_bytes, page)
            except ValueError:  # SGLang's own floor
                with pytest.raises(BadInput):
                    plan(name, kv_bytes, **options)
                refused += 1
                continue
            ours = plan(name, kv_bytes, **options)
            assert (ours.full_tokens, ours.swa_tokens) == (
                expected.full_max_total_num_tokens,
                expected.swa_max_total_num_tokens,
            )
            assert ours.cell.bytes(ratio) == theirs._cell_size
            assert ours.left_bytes >= 0
            capped = theirs.calculate_pool_sizes_from_max_tokens(ours.full_tokens // 2 + 64_000, page)
            ours = plan(name, max_total_tokens=ours.full_tokens // 2 + 64_000, **options)
            assert (ours.full_tokens, ours.swa_tokens) == (
                capped.full_max_total_num_tokens,
                capped.swa_max_total_num_tokens,
            )
            compared += 1
    assert compared > 100
    assert refused > 0


def test_fp8_halves_the_cell(model_configs):
    theirs = sglang_pools.configurator(model_configs["26b-a4b"], ratio=0.8, dtype_bytes=1)
    assert plan("26b-a4b", 1 << 36, dtype_bytes=1).cell.bytes(0.8) == theirs._cell_size == 184_320 / 2


def test_floor_is_where_sglang_starts_to_refuse(model_configs):
    theirs = sglang_pools.configurator(model_configs["tiny-moe"], ratio=0.5, page_size=16)
    for tokens in range(96, 224, 16):
        try:
            theirs.calculate_pool_sizes_from_max_tokens(tokens, 16)
        except ValueError:
            with pytest.raises(BadInput, match="ratio"):
                plan("tiny-moe", max_total_tokens=tokens, ratio=0.5, page_size=16)
        else:
            assert plan("tiny-moe", max_total_tokens=tokens, ratio=0.5, page_size=16).swa_tokens > 63 + 16


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("draft_tokens", [0, 4])
def test_a_requests_share_is_sglangs_worst_case(page, draft_tokens):
    from sglang.srt.model_executor.pool_configurator import compute_swa_request_cap

    mtp = {"speculative_algorithm": "FROZEN_KV_MTP", "speculative_num_steps": 3, "speculative_eagle_topk": 1}
    mtp = mtp | {"speculative_num_draft_tokens": 4} if draft_tokens else {}
    scheduling = Scheduling(page_size=page, draft_tokens=draft_tokens, prefix_cache=False)
    with sglang_pools.settings(page_size=page, chunked_prefill_size=8192, **mtp):
        settings = {"page_size": page, "window": 1023, "attn_dp_size": 1}
        nine, ten = (compute_swa_request_cap(**settings, max_running_requests=count) for count in (9, 10))
    assert swa_tokens_per_request(spec("26b-a4b"), 8000, 1000, scheduling) == ten - nine
    assert nine - 9 * (ten - nine) == scheduling.chunks_in_flight * 8192 + page


@pytest.mark.parametrize("page", PAGES)
def test_admission_charge_is_sglangs_estimate(page):
    from sglang.srt.mem_cache.prefill_budget import estimate_swa_kv_tokens

    scheduling = Scheduling(page_size=page, chunked_prefill_size=2048)
    for prompt, output in itertools.product((1, 63, 64, 1000, 1023, 1024, 8000), (1, 100, 1000)):
        theirs = estimate_swa_kv_tokens(
            scheduling.paged(prompt), output, sliding_window_size=1023, page_size=page, allocation_limit=2048
        )
        assert swa_tokens_to_admit(spec("31b"), prompt, output, scheduling) == theirs


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from(PAGES), st.sampled_from((0, 4)), st.booleans())
def test_a_request_takes_from_its_window_to_its_tokens_and_slack(prompt, output, page, draft_tokens, prefix_cache):
    s = spec("tiny-moe")
    scheduling = Scheduling(page_size=page, draft_tokens=draft_tokens, prefix_cache=prefix_cache)
    taken = swa_tokens_per_request(s, prompt, output, scheduling)
    slack = scheduling.paged(1) + scheduling.decode_reserve
    assert min(prompt + output, window(s) + 1) <= taken <= scheduling.paged(prompt + output) + slack
    assert taken <= swa_tokens_per_request(s, prompt, output + 1, scheduling)
    assert taken <= swa_tokens_per_request(s, prompt + 1, output, scheduling)


def test_what_fits_and_which_pool_binds():
    long = plan("26b-a4b", 109_478_041_600, workload=Workload.fixed(8000, 1000))
    assert (long.fit.requests, long.fit.binds, long.fit.enough) == (65, "full", False)
    chat = plan("31b", 98_052_341_760, ratio=0.15, page_size=64, workload=Workload.fixed(1000, 1000))
    assert chat.fit.binds == "swa"
    assert not chat.fit.enough
    asked = plan("26b-a4b", 109_478_041_600, requests=65, context_len=9000)
    assert asked.fit.requests == 65
    assert asked.fit.enough
    assert not plan("26b-a4b", 109_478_041_600, requests=66, context_len=9000).fit.enough
    assert plan("26b-a4b", 1 << 36).fit is None


@given(st.sampled_from(("26b-a4b", "31b", "e4b", "tiny-moe")), st.integers(1, 12_000), st.integers(1, 3000))
def test_no_ratio_admits_more_than_the_best(name, prompt, output):
    workload, kv_bytes = Workload.fixed(prompt, output), 1 << 36
    best = best_ratio(name, workload, kv_bytes=kv_bytes)
    for ratio in (0.01, 0.05, 0.1, 0.15, 0.3, 0.5, 0.8, 1.0, best.ratio - 0.001, best.ratio + 0.001):
        with contextlib.suppress(BadInput):  # outside 0 to 1, or below the floor
            other = plan(name, kv_bytes, ratio=ratio, workload=workload).fit
            assert min(other.full, other.swa) <= min(best.fit.full, best.fit.swa)


def test_best_ratio_without_bytes_gives_pools_that_hold_the_concurrency():
    for name, workload in (("26b-a4b", Workload.fixed(8000, 1000)), ("31b", Workload.uniform(1000, 1000, 0.5, 32))):
        ratio = best_ratio(name, workload).ratio
        tokens = workload.full(Scheduling()).needs(workload.concurrency)
        fit = plan(name, max_total_tokens=tokens + 1, ratio=ratio, workload=workload).fit
        assert fit.full >= workload.concurrency
        assert fit.swa == pytest.approx(workload.concurrency, abs=0.1)


def test_lengths_that_vary_fit_fewer_than_their_mean():
    varied, mean = Workload.uniform(8000, 1000, 0.0), Workload.fixed(4000, 500)
    assert plan("26b-a4b", 1 << 36, workload=varied).fit.full < plan("26b-a4b", 1 << 36, workload=mean).fit.full
    assert {min(varied.requests)[0], max(varied.requests)[0]} == {1, 8000}


@given(st.floats(1, 1e4), st.floats(0, 1e4), st.integers(1, 1000))
def test_demand_inverts(mean, deviation, requests):
    demand = Demand(mean, deviation)
    assert demand.fits(demand.needs(requests)) == pytest.approx(requests, abs=1 / mean + 1e-6, rel=1e-6)
    assert demand.fits(0) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kv_bytes": 0}, "kv_bytes"),
        ({"kv_bytes": None}, "kv_bytes"),
        ({"kv_bytes": 1000}, "kv_bytes"),
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": 1.01}, "ratio"),
        ({"ratio": float("nan")}, "ratio"),
        ({"page_size": 0}, "page_size"),
        ({"tp": 3}, "tp"),
        ({"tp": 0}, "tp"),
        ({"dtype_bytes": 0}, "dtype_bytes"),
        ({"draft_layers": -1}, "draft_layers"),
        ({"requests": 4}, "context_len"),
        ({"requests": 0, "context_len": 100}, "concurrency"),
        ({"page_size": 64, "scheduling": Scheduling(page_size=1)}, "page_size"),
    ],
)
def test_bad_input_is_named(arguments, named):
    with pytest.raises(BadInput, match=f"^{named}: got"):
        plan("26b-a4b", **({"kv_bytes": 1 << 36} | arguments))


@pytest.mark.parametrize("text", ["", "8000", "8000/0", "a/b", "8000/-1", "8000:1000"])
def test_workloads_that_cannot_be_read(text):
    with pytest.raises(BadInput):
        Workload.parse(text)
    assert Workload.parse("8000/1000", 7) == Workload.fixed(8000, 1000, 7)


def test_published_pools_are_reproduced_to_the_token():
    rows = reproduce.figures().set_index(["model", "source", "figure"])
    pools = rows[rows["verdict"].isin(["exact", "given"])]
    assert (pools["published"] == pools["derived"]).all()
    assert len(pools) == 14
    assert (pools["verdict"] == "given").sum() == 2  # one pool of each model fixes the memory
    for model, pr, full, swa in (
        ("26b-a4b", "pyc96/sglang#2", 2_138_243, 320_736),
        ("26b-a4b", "pyc96/sglang#10", 2_138_240, 320_704),
        ("31b", "pyc96/sglang#10", 478_720, 71_808),
    ):
        assert pools.loc[model, pr, "full-attention pool, ratio 0.15"]["derived"] == full
        assert pools.loc[model, pr, "sliding-window pool, ratio 0.15"]["derived"] == swa
    refused = rows[rows["verdict"] == "not derivable"]
    assert refused["derived"].isna().all()
    assert len(refused) == len(rows) - 14 == 3
    assert reproduce.budget("26b-a4b") == range(109_478_041_600, 109_478_092_800)


def test_published_pools_rule_out_a_charge_for_drafts():
    """SGLang 0.5.21 charges the assistant's four layers; no memory gives the published pair with them."""
    for model, page, pair in (("26b-a4b", 1, (593_956, 2_138_243)), ("31b", 64, (132_992, 478_720))):
        for layers, agree in ((0, True), (1, False), (4, False)):
            at_default, at_low = (
                reproduce.memory_behind(model, tokens, ratio=ratio, page_size=page, draft_layers=layers)
                for tokens, ratio in zip(pair, (0.8, 0.15), strict=True)
            )
            assert bool(reproduce.common(at_default, at_low)) == agree


@given(st.integers(2000, 10**7), st.sampled_from((0.05, 0.15, 0.8)), st.sampled_from(PAGES), st.integers(0, 4))
def test_memory_behind_a_pool_gives_that_pool(tokens, ratio, page, draft):
    tokens = -(-max(tokens, 30_000) // page) * page
    options = {"ratio": ratio, "page_size": page, "draft_layers": draft}
    memory = reproduce.memory_behind("31b", tokens, **options)
    for kv_bytes in (memory[0], memory[-1]):
        assert plan("31b", kv_bytes, **options).full_tokens == tokens
    assert plan("31b", memory[-1] + 1, **options).full_tokens == tokens + page
    assert plan("31b", memory[0] - 1, **options).full_tokens == tokens - page


def test_memory_behind_refuses_what_no_pool_can_be():
    with pytest.raises(BadInput, match="full_tokens"):
        reproduce.memory_behind("31b", 65, ratio=0.8, page_size=64)
    with pytest.raises(BadInput, match="model"):
        reproduce.budget("e4b")


def test_command_prints_the_pools(capsys):
    assert cli.run(["plan", "26b-a4b", "--kv-bytes", "109478041600", "--ratio", "0.15"]) == 0
    out = capsys.readouterr().out
    assert "2,138,243" in out
    assert "593,956" in out
    assert "0.232 (best)" in out
    assert cli.run(["plan", "31b", "--gpu-memory", "141G", "--ratio", "auto", "--draft", "--tp", "2"]) == 0
    for arguments, named in (
        (["26b-a4b"], "--kv-bytes"),
        (["26b-a4b", "--kv-bytes", "1G", "--gpu-memory", "2G"], "--kv-bytes"),
        (["26b-a4b", "--kv-bytes", "many"], "--kv-bytes"),
        (["26b-a4b", "--gpu-memory", "10G"], "--gpu-memory"),
        (["26b-a4b", "--gpu-memory", "80G", "--reserve", "1"], "--reserve"),
        (["26b-a4b", "--kv-bytes", "40Gi", "--ratio", "best"], "--ratio"),
        (["26b-a4b", "--kv-bytes", "40Gi", "--prompt", "0"], "requests"),
    ):
        assert cli.run(["plan", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"g4lab: {named}: got")


def test_figures_show_the_plans_numbers():
    cases = [
        ("26b-a4b", 109_478_041_600, Workload.fixed(8000, 1000)),
        ("tiny-moe", 1 << 22, Workload.fixed(100, 20, 8)),
    ]
    fig = draw_plan.draw_crossing(cases, "arithmetic")
    assert {"152", "65", "0.23: 178"} <= {text.get_text() for text in fig.axes[0].texts}
    stock, patched = (plan("e2b", 10**10, draft_layers=4 * (1 - w), writers_only=bool(w)) for w in (0, 1))
    ax = draw_plan.draw_memory([("stock", stock), ("patched", patched)], "arithmetic").axes[0]
    ends = [sum(bar.get_width() for bar in ax.patches[6 * row : 6 * row + 6]) for row in (0, 1)]
    assert ends == pytest.approx([10, 10], abs=1e-4)  # GB, to a token
    idle = [sum(bar.get_width() for bar in ax.patches[6 * row + 1 : 6 * row + 6 : 2]) for row in (0, 1)]
    assert idle[0] > 5
    assert idle[1] == 0


def test_comparison_counts_what_differs(monkeypatch):
    compared = sglang_pools.compare(["tiny-ple"], [1 << 18, 1 << 24], ratios=(0.15, 0.8), page_sizes=(16,), tps=(1, 3))
    row = compared.loc[0]
    assert row["equal"] + row["both refuse"] == 8  # two ratios, with and without drafts, two amounts of memory
    assert row["both refuse"] > 0 == row["different"]
    monkeypatch.setattr(sglang_pools, "plan", lambda name, memory, **options: plan(name, memory + 10_000, **options))
    assert sglang_pools.compare(["tiny-ple"], [1 << 24], ratios=(0.8,), page_sizes=(1,))["different"].sum() > 0

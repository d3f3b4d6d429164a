"""The extend-attention benchmark without a GPU: inputs, calls, proofs and verdicts; and, with one, its times."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from g4lab import env, records
from g4lab.bench import extend, extend_cases, extend_peers, extend_proof, suite, timing
from g4lab.bench.ceilings import Ceilings
from g4lab.bench.extend_goals import GOALS, PUBLISHED_TFLOPS, PUBLISHED_US, goals
from g4lab.bench.suite import INCOMPLETE, MET, MISSED, NOT_MEASURED
from g4lab.bench.timing import READINGS, Provider, Timed
from g4lab.errors import BadInput, Unavailable
from g4lab.kernels.extend_attention import ExtendTile, extend_attention_reference
from g4lab.published import published
from g4lab.tuning import sglang_extend
from g4lab.tuning.extend_shapes import SHAPES, ExtendShape, shape

no_gpu = pytest.mark.skipif(env.has_gpu(), reason="about machines without a GPU")
DEVICE = "cuda" if env.has_gpu() else "cpu"
# fp16: SGLang's kernel multiplies bf16 wrongly in the interpreter.
WINDOWED = ExtendShape("windowed", 2, 18, 90, 70, 4, 2, 32, "float16")
PREFILL = ExtendShape("prefill", 2, 33, 0, None, 4, 2, 32, "float16")
FULL = ExtendShape("full", 2, 5, 100, None, 4, 1, 32, "float16")
SMALL = (WINDOWED, PREFILL, FULL)
TILE = ExtendTile(16, 32, 4, 2)


def truth(shape):
    """The whole output in fp64 as [B, extend, Hq, D]."""
    x = extend_cases.inputs(shape, DEVICE)
    options = {"sm_scale": x.sm_scale, "window": shape.window, "compute": torch.float64}
    return extend_cases.by_sequence(extend_attention_reference(*x[:8], **options), shape)


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_inputs_are_a_seeded_pool_with_shuffled_slots(shape):
    x = extend_cases.inputs(shape, DEVICE)
    extend_cases.inputs.cache_clear()
    again = extend_cases.inputs(shape, DEVICE)
    assert all(a.equal(b) for a, b in zip(x, again, strict=True))
    keys = shape.prefix + shape.extend
    assert x.slots.shape == (shape.batch, keys)
    assert x.slots.unique().numel() == shape.batch * keys
    assert 1 <= int(x.slots.min()) <= int(x.slots.max()) < x.k_buffer.shape[0]
    assert not x.slots.flatten().equal(x.slots.flatten().sort().values)
    assert x.kv_indices.equal(x.slots[:, : shape.prefix].flatten())
    assert x.k_buffer[x.slots[:, shape.prefix :].flatten()].equal(x.k), "an engine writes new keys to the pool first"
    assert x.qo_indptr.tolist() == [b * shape.extend for b in range(shape.batch + 1)]


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_a_sample_is_the_same_rows_of_the_whole(shape):
    whole = truth(shape)
    for part in extend_proof.truths(shape, DEVICE):
        sequence, rows, kv_head = part.sample
        heads = slice(kv_head * shape.group, (kv_head + 1) * shape.group)
        torch.testing.assert_close(whole[sequence, rows][:, heads], part.rows, rtol=1e-12, atol=1e-12)
        assert (part.budget > 0).all()


@pytest.mark.parametrize("each", SHAPES, ids=lambda s: s.name)
def test_samples_have_both_ends_and_the_windows_edge(each):
    found = list(extend_cases.samples(each))
    assert {s.sequence for s in found} >= {0, each.batch - 1}
    assert {s.kv_head for s in found} == {0, each.num_kv_heads - 1}
    for sample in found:
        assert {0, each.extend - 1} <= set(sample.rows) <= set(range(each.extend))
        if each.window and 0 < each.window - each.prefix < each.extend:
            assert {each.window - each.prefix, each.window - each.prefix + 1} <= set(sample.rows)
    assert len(found) * len(found[0].rows) <= 200


def _tiled(shape):
    call = extend_peers.sglang(shape, DEVICE)

    def tiled():
        with sglang_extend.tiled(TILE):
            return call()

    return tiled


def _plain_flex(shape):
    """FlexAttention as PyTorch runs it uncompiled, which is its own reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda call, **_: call)
        return extend_peers.flex(shape, DEVICE)


PROVIDERS = [
    Provider(extend.BASELINE, partial(extend_peers.sglang, device=DEVICE), "sglang"),
    Provider(extend.TILES["seed"], _tiled, "sglang"),
    Provider(extend.OURS, partial(extend.ours, device=DEVICE)),
    *(Provider(f"{extend.OURS}, {n}", partial(extend.ours, device=DEVICE, splits=n)) for n in (1, 3)),
    Provider("SGLang verify_splitkv_fwd", partial(extend_peers.sglang_verify, device=DEVICE), "sglang"),
    Provider("PyTorch SDPA", partial(extend_peers.sdpa, device=DEVICE)),
    Provider(extend.FLEX, _plain_flex),
]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:invalid value encountered")
@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_every_provider_that_runs_here_is_within_its_budget(shape):
    proofs = list(extend_proof.proofs_of(shape, PROVIDERS, DEVICE))
    cannot = set() if shape is FULL else {"SGLang verify_splitkv_fwd"}
    names = [p.name for p in PROVIDERS if not p.missing() and p.name not in cannot]
    assert [proof.parameters["provider"] for proof in proofs] == names
    for proof in proofs:
        assert proof.holds, (str(proof), proof.values)
        assert proof.values["rows"] > 0
        assert proof.values["repeatable"]
        assert 0 < proof.values["largest_error"] < 0.1
    split = proofs[[p.parameters["provider"] for p in proofs].index(f"{extend.OURS}, 3")]
    assert split.values["apart"] <= 1


def _proof(call):
    (found,) = extend_proof.proofs_of(PREFILL, [Provider(extend.OURS, lambda shape: call)], DEVICE)
    return found


def test_a_wrong_row_is_found_however_small_its_values_are():
    """Zeros in one late row, whose values are averages of many, are wrong; one eps of a result is not."""
    right = truth(PREFILL)
    assert _proof(lambda: right.half()).holds
    wrong = right.half()
    wrong[-1, -1, -1] = 0
    found = _proof(lambda: wrong)
    assert not found.holds
    assert found.values["worst"] > 5
    wrong = right.half()
    wrong[0, 0, 0, 0] = torch.nan
    assert _proof(lambda: wrong).values["worst"] == float("inf")


def test_what_changes_from_call_to_call_is_found():
    results = iter([truth(PREFILL).half(), truth(PREFILL).half() * (1 + 2**-10)])
    found = _proof(lambda: next(results))
    assert not found.holds
    assert found.values["worst"] <= 1
    assert not found.values["repeatable"]


def test_what_cannot_run_takes_nothing_down():
    def broken(shape):
        raise ZeroDivisionError("by zero")

    providers = [
        Provider("peer", broken), Provider("absent", broken, "no_such_package"), Provider("g4lab, 2 splits", broken),
        Provider(extend.OURS, partial(extend.ours, device=DEVICE)),
    ]  # fmt: skip
    found = list(extend_proof.proofs_of(PREFILL, providers, DEVICE))
    assert [(p.parameters["provider"], p.holds) for p in found] == [("g4lab, 2 splits", False), (extend.OURS, True)]
    assert found[0].values == {"reason": "ZeroDivisionError: by zero"}


def paged_attention(q, k_cache, v_cache, *, cache_seqlens, page_table, softmax_scale, causal, window_size):
    """What FlashAttention-3 documents for these arguments, in PyTorch: pages of one token, causality and window
    aligned to the last key."""
    assert causal
    assert window_size[1] in (-1, 0)
    out = torch.empty_like(q)
    for b, length in enumerate(cache_seqlens.tolist()):
        keys, values = (cache[page_table[b, :length].long(), 0].double() for cache in (k_cache, v_cache))
        keys, values = (each.repeat_interleave(q.shape[2] // each.shape[1], dim=1) for each in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", q[b].double(), keys) * softmax_scale
        distance = length - q.shape[1] + torch.arange(q.shape[1])[:, None] - torch.arange(length)
        seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
        weights = scores.masked_fill(~seen.to(q.device), float("-inf")).softmax(-1)
        out[b] = torch.einsum("hqk,khd->qhd", weights, values)
    return out


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_flash_attention_is_asked_for_the_same(shape):
    """No FlashAttention is here: its documented meaning shows that the arguments describe the shape."""
    call = extend_peers._flash_3(paged_attention)(shape, DEVICE)
    assert extend_proof.check(call(), list(extend_proof.truths(shape, DEVICE)))["worst"] <= 1


def test_what_a_peer_cannot_do_is_said():
    with pytest.raises(Unavailable, match="head dim ends at 256; this shape has 512"):
        extend_peers._flash_3(paged_attention)(replace(FULL, head_dim=512), DEVICE)
    full = shape("prefill long full tp1")
    with pytest.raises(Unavailable, match="the same tile as its own, 32x64 w8 s1"):
        extend.sglang_tiled(full, "seed", DEVICE, "sm_90")


@no_gpu
def test_a_tables_tile_reaches_sglangs_launch(monkeypatch):
    pytest.importorskip("sglang")
    module, seen = sglang_extend.module(), []

    class Spy:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: seen.append((grid, kwargs["BLOCK_M"], kwargs["num_stages"]))

    monkeypatch.setattr(module, "_fwd_kernel", Spy())
    verify = replace(WINDOWED, batch=8, extend=4, head_dim=256)
    for table in extend.TILES:
        extend.sglang_tiled(verify, table, DEVICE, "sm_90")()
    assert seen == [((8, 4, 1), 128, 1), ((8, 4, 1), 16, 2)]


@pytest.mark.parametrize(
    ("name", "splits"), [("prefill long", False), ("verify chat", True), ("verify one after 64k full tp2", True)]
)
def test_splits_are_timed_where_programs_are_few(name, splits, monkeypatch):
    """An H200's 132 SMs: 8192 tokens of 4 KV heads fill them, four tokens of 32 sequences do not."""
    monkeypatch.setattr(extend, "arch_of", lambda device: "sm_90")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    h200 = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h200)
    names = [provider.name for provider in extend.providers_of(shape(name), [extend.FLEX])]
    assert names[:2] == [extend.BASELINE, suite.again(extend.BASELINE)]
    assert extend.FLEX not in names
    assert len(extend.SPLIT_NAMES) == 6
    assert set(extend.SPLIT_NAMES) & set(names) == (set(extend.SPLIT_NAMES) if splits else set())


def test_what_cannot_be_chosen():
    assert extend.choose() == list(SHAPES)
    with pytest.raises(BadInput, match="shape: got 'prefil'"):
        extend.choose(["prefil"])
    for name in ("FlashAttention-4", extend.BASELINE, suite.again(extend.BASELINE)):
        with pytest.raises(BadInput, match=r"without: got .* expected one of SGLang, legacy tile"):
            extend.choose(None, [name])


@no_gpu
@pytest.mark.parametrize("work", [lambda: list(extend_proof.prove()), extend.measure])
def test_nothing_is_proved_or_timed_without_a_gpu(work):
    with pytest.raises(Unavailable, match="no kernel time here"):
        work()


@no_gpu
def test_the_command_says_what_could_not_run(tmp_path):
    from g4lab.commands.bench import app

    done = CliRunner().invoke(app, ["extend", "--records", str(tmp_path)], env={"COLUMNS": "250"})
    assert isinstance(done.exception, Unavailable)
    assert done.exit_code != 0
    for provider in extend.PROVIDERS:
        assert provider.name in done.output
    assert "flash_attn_interface is not installed; no kernel time here" in done.output
    assert list(tmp_path.iterdir()) == []
    done = CliRunner().invoke(app, ["extend", "--shape", "prefil"])
    assert isinstance(done.exception, BadInput)


@pytest.mark.parametrize(("us", "calls"), [(4, 20), (100, 20), (400, 5), (1900, 1), (700_000, 1)])
def test_long_calls_fill_a_sample_alone(us, calls):
    assert timing.calls_per_sample(us, seconds=8) == calls


def test_too_long_a_call_is_not_timed():
    with pytest.raises(Unavailable, match="one call takes 900 ms: 10 do not fit into the 8 s of a case"):
        timing.calls_per_sample(900_000, seconds=8)


@pytest.mark.parametrize(("each_us", "rounds"), [(10_000, 200), (80_000, 100), (5_000_000, 10), (0, 200)])
def test_rounds_fit_into_the_seconds(each_us, rounds):
    assert timing.rounds_within(8, each_us, 200) == rounds


# From here on figures are made up, to show what is done with samples; none was measured.


def made_up_times(us: dict, about=SHAPES[0]):
    timed = {name: Timed(dict.fromkeys(READINGS, t * np.linspace(0.99, 1.01, 21))) for name, t in us.items()}
    timed[extend.FLEX] = Timed({}, "does not compile")
    most = Ceilings("made up", 4000, 800, 2.0, "live", "made up")
    return pd.DataFrame(
        row for name in timed
        for row in suite.rows(about, name, timed, extend.rates(most), extend.BASELINE, extend.columns)
    )  # fmt: skip


def test_rows_carry_rates_shares_and_the_best_of_sglangs_tiles():
    us = {extend.BASELINE: 2000, suite.again(extend.BASELINE): 2000, extend.TILES["legacy"]: 2600,
          extend.TILES["seed"]: 1900, extend.OURS: 950}  # fmt: skip
    frame = made_up_times(us)
    assert set(extend.KEYS) <= set(frame)
    row = frame[(frame.provider == extend.OURS) & (frame.reading == "cold")].iloc[0]
    prefill = shape("prefill long")
    assert row["shape"] == "prefill long"
    assert row.speedup == pytest.approx(2000 / 950)
    assert (row.best, row.over_best) == (extend.TILES["seed"], pytest.approx(2))
    assert row.tflops == pytest.approx(prefill.flops / 950e-6 / 1e12)
    assert row.matrix_share == pytest.approx(row.tflops / 800)
    assert row.gbps == pytest.approx(prefill.bytes / 950e-6 / 1e9)
    assert row.bandwidth_share == pytest.approx(row.gbps / 4000)
    assert row.beyond_noise
    found = dict(extend.tables(frame))
    assert list(found) == [f"{r} L2: {what}" for r in READINGS for what in ("median µs", "g4lab")] + ["not timed"]
    assert found["not timed"].to_dict("records") == [
        {"provider": extend.FLEX, "reason": "does not compile", "shape": "prefill long"}
    ]
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        named = {key: row.pop(key) for key in extend.KEYS}
        assert records.new_record("extend.latency", row, named).parameters["window"] is None


def judged(shapes=SHAPES, **values):
    """A table as `measure` makes it, with made-up figures in every row of ours."""
    values = {"over_best": 1.2, "speedup": 1.6, "tflops": 360.0, "aa_low": 0.99, "reason": ""} | values
    values.setdefault("over_best_high", values["over_best"] + 0.005)
    return pd.DataFrame(
        extend.columns(each) | {"provider": extend.OURS, "reading": reading} | values
        for each in shapes for reading in READINGS
    )  # fmt: skip


def verdicts(frame):
    return goals(frame).groupby("goal", sort=False).verdict.agg(lambda v: "/".join(sorted(set(v)))).tolist()


def test_no_record_is_not_measured():
    for frame in (pd.DataFrame(), extend.availability(), records.to_frame([])):
        assert verdicts(frame) == [NOT_MEASURED] * len(GOALS)
        assert goals(frame).measured.str.startswith("0 of ").all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [MET, MET, MET]),
        ({"over_best": 0.98}, [MISSED, MET, MET]),
        ({"over_best": 0.98, "aa_low": 0.97}, [MET, MET, MET]),
        ({"over_best": float("nan")}, [NOT_MEASURED, MET, MET]),
        ({"speedup": 1.49}, [MET, MISSED, MET]),
        ({"tflops": 349.0}, [MET, MET, MISSED]),
    ],
)
def test_goals_are_judged(values, expected):
    assert verdicts(judged(**values)) == expected


def test_the_mean_is_geometric_and_judged_when_complete():
    frame = judged()
    frame["speedup"] = [1.0, 1.0, *[1.6] * (len(frame) - 2)]
    row = goals(frame).query("goal.str.contains('mean')").iloc[0]
    assert row.value == pytest.approx(1.6 ** (1 - 1 / len(SHAPES)), abs=1e-3)
    assert (row.verdict, row.worst) == (MET, SHAPES[0].name)
    assert verdicts(judged(SHAPES[1:], speedup=1.1)) == [INCOMPLETE, INCOMPLETE, NOT_MEASURED]
    slow = judged(SHAPES[:2], over_best=0.8)
    assert verdicts(slow) == [MISSED, INCOMPLETE, MET]
    assert set(goals(slow).measured) == {f"2 of {len(SHAPES)}", "1 of 1"}


def test_of_repeated_runs_the_later_counts():
    frame = pd.concat([judged(tflops=100.0), judged(tflops=400.0)])
    assert goals(frame).query("goal.str.startswith('prefill')").value.tolist() == [400.0, 400.0]


def test_the_published_best_is_the_one_in_the_table():
    table = published("extend_attention_microbench")
    times = table[(table.case == "prefill long") & (table.metric == "kernel time")].value
    assert times.min() == PUBLISHED_US
    assert round(PUBLISHED_TFLOPS) == 144


@pytest.mark.gpu
def test_measures_on_the_gpu():
    proofs = list(extend_proof.prove(["verify burst", "prefill chat"], [extend.FLEX]))
    assert all(proof.holds for proof in proofs if proof.parameters["provider"].startswith(extend.OURS))
    frame = extend.measure(["verify burst", "prefill chat"], [extend.FLEX], rounds=20, seconds=2)
    ran = frame[frame.reason == ""]
    assert {*extend.SGLANG, suite.again(extend.BASELINE), extend.OURS, "PyTorch SDPA"} <= set(ran.provider)
    assert (ran.tflops > 0).all()
    assert (ran.n >= timing.LEAST_ROUNDS).all()

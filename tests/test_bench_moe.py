"""The expert-layer benchmark without a GPU: inputs, calls, proofs and tables; and, with one, its times."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from g4lab import env, records
from g4lab.bench import moe, moe_cases, moe_peers, moe_proof, suite
from g4lab.bench.ceilings import Ceilings
from g4lab.bench.moe_floors import weight_bytes
from g4lab.bench.moe_goals import goals
from g4lab.bench.roofline import COPY
from g4lab.bench.suite import MET
from g4lab.bench.timing import READINGS, Provider, Timed
from g4lab.errors import BadInput, Unavailable
from g4lab.kernels.fused_moe import MoEConfig, MoETile, fused_moe_reference
from g4lab.tuning import moe_configs, sglang_moe
from g4lab.tuning.moe_shapes import SIZES, MoEShape, of

no_gpu = pytest.mark.skipif(env.has_gpu(), reason="about machines without a GPU")
DEVICE = "cuda" if env.has_gpu() else "cpu"
# fp16: the interpreter multiplies bf16 wrongly outside our kernels.
FEW = MoEShape(3, 64, 48, 8, 2, dtype="float16")
MANY = MoEShape(70, 96, 40, 8, 2, routing="zipf", dtype="float16")
SMALL = (FEW, MANY)


def truth(shape, compute=torch.float64):
    """The whole output, [T, H]."""
    x = moe_cases.inputs(shape, DEVICE)
    return fused_moe_reference(x.x, *x.layers[0], x.topk_weights, x.topk_ids, compute=compute)


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_inputs_are_seeded_and_layers_are_copies(shape):
    x = moe_cases.inputs(shape, DEVICE)
    moe_cases.inputs.cache_clear()
    moe_cases._layers.cache_clear()
    again = moe_cases.inputs(shape, DEVICE)
    assert x.x.equal(again.x)
    assert x.topk_ids.equal(again.topk_ids)
    assert x.topk_ids.dtype == torch.int32
    assert x.layers[0][0].shape == (shape.num_experts, 2 * shape.width, shape.hidden)
    assert x.layers[0][1].shape == (shape.num_experts, shape.hidden, shape.width)
    assert all(a.equal(b) for layer in x.layers for a, b in zip(layer, again.layers[0], strict=True))
    addresses = {tensor.data_ptr() for layer in x.layers for tensor in layer}
    assert len(addresses) == 2 * moe_cases.LAYERS, "each layer's weights are at addresses of their own"
    turns = x.turns()
    assert [next(turns)[0].data_ptr() for _ in range(5)] == [w.data_ptr() for w, _ in (*x.layers, x.layers[0])]
    touched, busiest = moe_cases.load(shape)
    assert touched == x.topk_ids.unique().numel()
    assert busiest == int(x.topk_ids.flatten().bincount().max())


@pytest.mark.parametrize("tp", [1, 2])
def test_layers_together_are_larger_than_the_largest_l2(tp):
    """Even where one token's eight experts alone are read, twice an H100's or H200's 50 MB are read before again."""
    one = of(tp=tp, sizes=[1])[0]
    assert moe_cases.LAYERS * weight_bytes(one)["layer"] > 2 * 50e6


@pytest.mark.parametrize("tokens", [1, 64, 65, 8192])
def test_samples_go_from_the_first_to_the_last(tokens):
    found = moe_cases.samples(of(sizes=[tokens])[0])
    assert (found[0], found[-1]) == (0, tokens - 1)
    assert sorted(set(found)) == found
    assert len(found) == min(tokens, moe_cases.SAMPLES)


def align(topk_ids, block_size, num_experts):
    """What SGLang documents for moe_align_block_size, in PyTorch: its own is CUDA code."""
    flat = topk_ids.flatten()
    rows, experts = [], []
    for expert in range(num_experts):
        pairs = torch.where(flat == expert)[0].int()
        blocks = -(-len(pairs) // block_size)
        rows += [pairs, torch.full((blocks * block_size - len(pairs),), flat.numel(), dtype=torch.int32)]
        experts += [expert] * blocks
    rows = torch.cat(rows)
    return rows, torch.tensor(experts, dtype=torch.int32), torch.tensor([len(rows)], dtype=torch.int32)


@pytest.fixture
def sglang(monkeypatch):
    """SGLang's expert layer where it can run: on a GPU as it is; on a CPU its own kernel interpreted, below the
    operator that it registers for CUDA alone, and with `align`."""
    context = pytest.importorskip("sglang.srt.runtime_context")
    home, before = sglang_moe.module(), context.snapshot_context()
    if DEVICE == "cpu":
        implementation = home.fused_experts_impl  # which is told as its eighth argument whether to write in place

        def outplace(*args, **options):
            return implementation(*args[:7], False, *args[7:], **options)

        monkeypatch.setattr(home, "outplace_fused_experts", outplace)
        monkeypatch.setattr(home, "moe_align_block_size", align)
        monkeypatch.setattr(sglang_moe._lookups(), "get_device_name", lambda: "NVIDIA H200")
    sglang_moe._lookup.cache_clear()
    yield home
    sglang_moe._lookup.cache_clear()
    context.restore_context(before)


PROVIDERS = [
    Provider(moe.BASELINE, partial(moe_peers.sglang, device=DEVICE), "sglang"),
    Provider(moe.OURS, partial(moe.ours, device=DEVICE)),
    Provider("PyTorch grouped_mm", partial(moe_peers.grouped_mm, device=DEVICE)),
    Provider("eager PyTorch, gathered weights", partial(moe_peers.gathered, device=DEVICE)),
]


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_every_provider_that_runs_here_is_within_its_budget(shape, sglang):
    proofs = list(moe_proof.proofs_of(shape, PROVIDERS, DEVICE))
    assert [proof.parameters["provider"] for proof in proofs] == [provider.name for provider in PROVIDERS]
    for proof in proofs:
        assert proof.holds, (str(proof), proof.values)
        assert proof.values["rows"] == min(shape.tokens, moe_cases.SAMPLES)
        assert proof.values["repeatable"]
        assert 0 < proof.values["largest_error"] < 0.1
    mine = proofs[1].values
    assert mine["apart"] <= 1
    assert mine["batch_independent"] or DEVICE == "cpu"


def _proof(make, shape=MANY, name="a peer"):
    (found,) = moe_proof.proofs_of(shape, [Provider(name, lambda shape: make)], DEVICE)
    return found


def test_a_wrong_row_is_found():
    right = truth(MANY).half()
    assert _proof(lambda: right).holds
    wrong = right.clone()
    wrong[-1, 3:6] = 0
    found = _proof(lambda: wrong)
    assert not found.holds
    assert found.values["worst"] > 5
    wrong = right.clone()
    wrong[0, 0] = torch.nan
    assert _proof(lambda: wrong).values["worst"] == float("inf")
    wrong = right.clone()
    between = next(t for t in range(MANY.tokens) if t not in moe_cases.samples(MANY))
    wrong[between, 0] = torch.inf
    found = _proof(lambda: wrong)
    assert (found.holds, found.values["finite"]) == (False, False)
    assert found.values["worst"] <= 1


def test_exact_gelu_is_not_the_layers():
    """SGLang's "gelu" is GELU by erf in its CUDA kernels: in fp32 beyond the budget, so the proof knows them apart."""
    shape = replace(MANY, dtype="float32")
    x = moe_cases.inputs(shape, DEVICE)

    def exact():
        gate, up = (x.layers[0][0][x.topk_ids.long()] @ x.x[:, None, :, None]).chunk(2, dim=-2)
        y = (x.layers[0][1][x.topk_ids.long()] @ (torch.nn.functional.gelu(gate) * up)).squeeze(-1)
        return (y * x.topk_weights[..., None]).sum(1)

    assert not _proof(exact, shape).holds
    assert _proof(moe_peers.gathered(shape, DEVICE), shape).holds


def test_ours_has_to_be_the_same_in_every_call_and_batch(monkeypatch):
    results = iter([truth(MANY).half(), truth(MANY).half() * (1 + 2**-10)])
    monkeypatch.setattr(moe, "ours", lambda shape, device, tokens: lambda: truth(shape).half()[tokens])
    found = _proof(lambda: next(results), name=moe.OURS)
    assert (found.holds, found.values["repeatable"], found.values["batch_independent"]) == (False, False, True)
    monkeypatch.setattr(moe, "ours", lambda shape, device, tokens: lambda: 1.5 * truth(shape).half()[tokens])
    found = _proof(lambda: truth(MANY).half(), name=moe.OURS)
    assert (found.holds, found.values["repeatable"], found.values["batch_independent"]) == (False, True, False)
    assert found.values["apart"] > 1


def test_what_cannot_run_takes_nothing_down():
    def broken(shape):
        raise ZeroDivisionError("by zero")

    providers = [Provider("peer", broken), Provider("absent", broken, "no_such_package"), Provider(moe.OURS, broken)]
    found = list(moe_proof.proofs_of(FEW, [*providers, *PROVIDERS[1:3]], DEVICE))
    assert [(p.parameters["provider"], p.holds) for p in found] == [
        (moe.OURS, False), (moe.OURS, True), ("PyTorch grouped_mm", True)
    ]  # fmt: skip
    assert found[0].values == {"reason": "ZeroDivisionError: by zero"}


def test_what_a_peer_cannot_do_is_said(monkeypatch):
    with pytest.raises(Unavailable, match="would copy 12 GB of weights, one expert's for each of 1024 pairs"):
        moe_peers.gathered(of(sizes=[128])[0], DEVICE)
    monkeypatch.delattr(torch.nn.functional, "grouped_mm", raising=False)
    monkeypatch.delattr(torch, "_grouped_mm", raising=False)
    with pytest.raises(Unavailable, match="has no grouped_mm"):
        moe_peers.grouped_mm(FEW, DEVICE)


TILES = MoEConfig(MoETile(16, 32, 32, 1, 4, 2), MoETile(16, 64, 16, 2, 4, 2))


@no_gpu
def test_sglang_runs_with_the_files_of_a_folder_and_else_with_its_own(sglang, tmp_path, monkeypatch):
    moe_configs.write(tmp_path, FEW.num_experts, FEW.width, "NVIDIA H200", {1: TILES})
    sizes = (FEW.tokens, FEW.hidden, FEW.width, FEW.num_experts, FEW.top_k)
    monkeypatch.setenv(moe_configs.VARIABLE, "/somewhere/else")  # the baseline's are upstream's whatever it says
    before = sglang_moe._lookups().get_moe_configs
    gate_up, down = sglang_moe.choice(*sizes, tmp_path)
    assert (moe_configs.tile(gate_up), moe_configs.tile(down)) == (TILES.gate_up, TILES.down)
    assert moe.config_of(moe.FILES, FEW, tmp_path) == "16x32x32 g1 w4 s2, down 16x64x16 g2 w4 s2"
    assert moe.config_of(moe.BASELINE, FEW, tmp_path) == "16x32x64 g1 (no file: SGLang's default)"
    upstream = moe.config_of(suite.again(moe.BASELINE), of(sizes=[1024])[0], tmp_path)
    assert "down" not in upstream, "upstream's two files for an H200 are twins"
    assert "no file" not in upstream
    assert moe.config_of("PyTorch grouped_mm", FEW) == ""
    assert os.environ[moe_configs.VARIABLE] == "/somewhere/else"
    assert sglang_moe._lookups().get_moe_configs is before

    used = []
    invoke = sglang.invoke_fused_moe_kernel
    monkeypatch.setattr(sglang, "invoke_fused_moe_kernel", lambda *a, **k: (used.append(a[14]), invoke(*a, **k))[1])
    providers = [Provider(moe.FILES, partial(moe_peers.sglang, device=DEVICE, files=tmp_path))]
    (proof,) = moe_proof.proofs_of(FEW, providers, DEVICE)
    assert proof.holds, proof.values
    assert [moe_configs.tile(options) for options in used] == [TILES.gate_up, TILES.down] * 2
    with pytest.raises(Unavailable, match="no config file for E=8, N=40 on this GPU under"):
        moe_peers.sglang(MANY, DEVICE, tmp_path)


def test_what_cannot_be_chosen(tmp_path):
    assert [shape.tokens for shape in moe.choose().shapes] == list(SIZES)
    assert [(s.tokens, s.tp, s.width) for s in moe.choose([5], [1, 2]).shapes] == [(5, 1, 704), (5, 2, 352)]
    assert "vLLM" not in [provider.name for provider in moe.choose(without=["vLLM"]).providers]
    with pytest.raises(BadInput, match="tokens: got 0"):
        moe.choose([0])
    with pytest.raises(BadInput, match="tp: got 3, expected a divisor of the experts' width 704"):
        moe.choose(tp=[3])
    with pytest.raises(BadInput, match="routing: got 'even'"):
        moe.choose(routing="even")
    with pytest.raises(BadInput, match="SGLANG_MOE_CONFIG_DIR: got"):
        moe.choose(files=tmp_path)
    for name in ("SGLang", moe.BASELINE, suite.again(moe.BASELINE)):
        with pytest.raises(BadInput, match=r"without: got .* expected one of SGLang, g4lab's files"):
            moe.choose(without=[name])


def test_files_that_g4lab_ships_are_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(moe_configs, "SHIPPED", tmp_path)
    assert moe.choose().files is None
    moe_configs.write(tmp_path, 128, 704, "NVIDIA H200", {1: TILES})
    chosen = moe.choose()
    assert chosen.files == tmp_path
    assert [provider.files for provider in chosen.providers if provider.name == moe.FILES] == [tmp_path]


def test_without_files_their_provider_says_so(tmp_path):
    missing = {provider.name: provider.missing() for provider in moe.providers()}
    assert "g4lab ships no config files: none are measured" in missing[moe.FILES]
    assert {p.name: p.missing() for p in moe.providers(tmp_path)}[moe.FILES] == missing[moe.BASELINE]


@no_gpu
@pytest.mark.parametrize("work", [lambda chosen: list(moe_proof.prove(chosen)), moe.measure])
def test_nothing_is_proved_or_timed_without_a_gpu(work):
    with pytest.raises(Unavailable, match="no kernel time here"):
        work(moe.choose())


@no_gpu
def test_the_command_says_what_could_not_run(tmp_path, monkeypatch):
    from g4lab.commands.bench import app

    monkeypatch.setattr(moe_configs, "SHIPPED", tmp_path / "none")

    done = CliRunner().invoke(app, ["moe", "--records", str(tmp_path)], env={"COLUMNS": "250"})
    assert isinstance(done.exception, Unavailable)
    for provider in moe.providers():
        assert provider.name in done.output
    assert "g4lab ships no config files" in done.output
    assert list(tmp_path.iterdir()) == []
    for options in (["--tp", "1;2"], ["--tp", "5"], ["--tokens", "0"], ["--configs", str(tmp_path)]):
        assert isinstance(CliRunner().invoke(app, ["moe", *options]).exception, BadInput), options


# From here on figures are made up, to show what is done with samples; none was measured.


@no_gpu
def test_measures_every_case_and_keeps_it(sglang, tmp_path, monkeypatch):
    """All but the clock and the ceilings, which are a GPU's: these take made-up times."""
    us = {moe.BASELINE: 60, suite.again(moe.BASELINE): 60, moe.FILES: 50, moe.OURS: 40, suite.EMPTY: 2, moe.COPY: 25}

    def times(providers, shape, **options):
        assert set(options) == {"rounds", "seconds"}
        samples = {name: dict.fromkeys(READINGS, t * np.linspace(0.99, 1.01, 21)) for name, t in us.items()}
        return {p.name: Timed(samples[p.name]) if p.name in us else Timed({}, "not here") for p in providers}

    monkeypatch.setattr(moe.timing, "require_gpu", lambda: None)
    monkeypatch.setattr(moe.timing, "time_providers", times)
    monkeypatch.setattr(moe.ceilings, "measure", lambda: Ceilings("made up", 4000, 800, 2.0, "live", "made up"))
    moe_configs.write(tmp_path, 128, 704, "NVIDIA H200", {1: TILES})
    kept = []
    frame = moe.measure(moe.choose(files=tmp_path), keep=kept.append)
    assert [part.tokens.unique().tolist() for part in kept] == [[size] for size in SIZES]
    found = frame[(frame.provider == moe.FILES) & (frame.reading == "warm")]
    assert found.config.tolist() == ["16x32x32 g1 w4 s2, down 16x64x16 g2 w4 s2"] * len(SIZES)
    assert found.speedup.tolist() == pytest.approx([1.2] * len(SIZES))
    baseline = frame[frame.provider == moe.BASELINE].config
    assert not baseline.str.contains("no file|down").any(), "upstream has files for an H200, and they are twins"
    assert baseline.nunique() > 3
    assert goals(frame).verdict.tolist()[:8] == [MET] * 8
    assert moe.config_of(moe.BASELINE, of(tp=2, sizes=[1])[0]).endswith("(no file: SGLang's default)")


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_the_copy_moves_as_many_bytes_as_the_touched_weights_have(shape, monkeypatch):
    moved = []
    monkeypatch.setattr(moe, "copying", lambda count, device: moved.append(count) or (lambda: None))
    moe.copy(shape, DEVICE)()
    assert moved == [moe_cases.load(shape)[0] * 3 * shape.hidden * shape.width * 2] * moe_cases.LAYERS
    moe.empty(shape, DEVICE)()


def made_up_times(us: dict, about):
    timed = {name: Timed(dict.fromkeys(READINGS, t * np.linspace(0.99, 1.01, 21))) for name, t in us.items()}
    timed["vLLM"] = Timed({}, "vllm is not installed")
    most = Ceilings("made up", 4000, 800, 2.0, "live", "made up")
    return pd.DataFrame(
        row for name in timed for row in suite.rows(about, name, timed, moe.rates(most), moe.BASELINE)
    )  # fmt: skip


def test_rows_carry_rates_shares_and_the_load():
    us = {"PyTorch grouped_mm": 100, moe.OURS: 40, suite.EMPTY: 2, moe.COPY: 25}
    frame = made_up_times(us, of(sizes=[1])[0])
    assert set(moe.KEYS) <= set(frame)
    cold = frame[frame.reading == "cold"].set_index("provider")
    row = cold.loc[moe.OURS]
    weights = 8 * 3 * 704 * 2816 * 2
    assert (row.touched, row.busiest) == (8, 1)
    assert row.gbps == pytest.approx(weights / 40e-6 / 1e9)
    assert row.bandwidth_share == pytest.approx(row.gbps / 4000)
    assert row.copy_share == pytest.approx(25 / 40)
    assert row.tflops == pytest.approx(6 * 8 * 2816 * 704 / 40e-6 / 1e12)
    assert row.floor_us == pytest.approx((weights + 2 * 2816 * 2) / 4000e9 * 1e6)
    assert (row.binds, row.config) == (COPY, "16x32x128 g1 w4 s4, down 16x64x64 g1 w4 s4")
    assert cold.loc[suite.EMPTY].isna().gbps
    assert cold.loc[moe.COPY].copy_share == 1
    assert np.isnan(cold.loc[moe.COPY].tflops)
    titles = dict(moe.tables(frame))
    assert list(titles) == [
        f"tp 1, uniform routing, {r} L2: {what}" for r in READINGS for what in ("median µs", "g4lab")
    ] + ["not timed"]  # fmt: skip
    assert titles["not timed"].to_dict("records") == [
        {"provider": "vLLM", "reason": "vllm is not installed", "tokens": "1"}
    ]
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        values = {key: row.pop(key) for key in moe.KEYS}
        assert records.new_record("moe.latency", row, values).parameters["width"] == 704


@pytest.mark.gpu
def test_measures_on_the_gpu():
    chosen = moe.choose([1, 256], routing="zipf")
    assert all(proof.holds for proof in moe_proof.prove(chosen) if proof.parameters["provider"] == moe.OURS)
    frame = moe.measure(chosen, rounds=20, seconds=2)
    ran = frame[frame.reason == ""]
    assert {moe.OURS, "PyTorch grouped_mm", *moe.FLOORS} <= set(ran.provider)
    layers = ran[~ran.provider.isin(moe.FLOORS)]
    assert (layers.bandwidth_share < 1.1).all(), "weights come from memory, not from the L2"
    assert (layers.p50_us > 0.9 * layers.floor_us).all()

"""The norm benchmark without a GPU: its cases, inputs, bytes, calls and verdicts; and, with one, its times."""

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from g4lab import env, records
from g4lab.bench import norms, norms_cases, norms_proof, suite
from g4lab.bench.norms_cases import HeadCase, RowCase, cases
from g4lab.bench.norms_goals import GOALS, INCOMPLETE, MET, MISSED, NOT_MEASURED, goals
from g4lab.bench.timing import READINGS, Timed
from g4lab.errors import BadInput, Unavailable
from g4lab.kernels.qkv_norm import qkv_rmsnorm_reference
from g4lab.kernels.qkv_norm_rope_kv import qkv_norm_rope_kv_reference

no_gpu = pytest.mark.skipif(env.has_gpu(), reason="about machines without a GPU")
DEVICE = "cuda" if env.has_gpu() else "cpu"
SLIDING = HeadCase("qkv_norm_rope_kv", 5, "QKV", 16, 8, 256)
FULL = HeadCase("qkv_norm_rope_kv", 5, "QK", 16, 2, 512)


def test_cases_are_the_two_models_layers():
    shapes = {(c.mode, c.num_q_heads, c.num_kv_heads, c.head_dim) for c in cases(operations=["qkv_norm"])}
    own = {("QKV", 16, 8, 256), ("QK", 16, 2, 512), ("QKV", 32, 16, 256), ("QK", 32, 4, 512)}
    assert shapes == own | {("Q", *shape) for _, *shape in own}
    assert {c.hidden_size for c in cases(operations=["dual_residual_norm"])} == {2816, 5376}
    assert {c.tokens for c in cases()} == set(norms_cases.TOKENS)
    assert len(set(cases())) == len(cases()) == 231


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"operations": ["norm"]}, "operations: got 'norm'"), ({"tokens": [8, 0]}, "tokens: got 0, expected 1 or more")],
)
def test_unknown_cases(arguments, expected):
    with pytest.raises(BadInput, match=expected):
        cases(**arguments)


def used(case, x):
    """The tensors that a call reads and those that it writes, a row each for tensors of slots or positions."""
    own_kv = case.mode != "Q"
    reads = [x.q, x.q_weight, *([x.k, x.k_weight] if own_kv else []), *([x.v] if case.mode == "QKV" else [])]
    writes = [x.q, *([x.k, x.v] if own_kv else [])]
    if case.operation == "qkv_norm_rope_kv":
        reads += [x.positions, x.cos_sin_cache[x.positions], *([x.cache_loc] if own_kv else [])]
        writes += [x.k_cache[x.cache_loc], x.v_cache[x.cache_loc]] if own_kv else []
    return reads + writes


@pytest.mark.parametrize("case", cases([5], ["qkv_norm", "qkv_norm_rope_kv"]), ids=str)
def test_bytes_are_those_of_every_tensor_once(case):
    assert case.bytes == sum(t.numel() * t.element_size() for t in used(case, case.inputs(DEVICE)))


@pytest.mark.parametrize(
    ("operation", "tensors"), [("router_norm", 2), ("residual_norm", 3), ("dual_residual_norm", 4)]
)
def test_bytes_of_rows(operation, tensors):
    norms_of = {"dual_residual_norm": 3}.get(operation, 1)
    assert RowCase(operation, 7, 2816).bytes == 2 * 2816 * (7 * tensors + norms_of)
    assert RowCase(operation, 7, 2816, "float32").bytes == 2 * RowCase(operation, 7, 2816).bytes


def test_inputs_are_seeded_slices_of_one_projection():
    for case in (SLIDING, FULL):
        x, again = case.inputs(DEVICE), case.inputs(DEVICE)
        assert all(a.equal(b) for a, b in zip(x, again, strict=True))
        width = (case.num_q_heads + 2 * case.num_kv_heads) * case.head_dim
        assert x.q.stride() == x.k.stride() == x.v.stride() == (width, 1)
        assert x.cache_loc.unique().numel() == case.tokens
        assert 1 <= int(x.cache_loc.min()) <= int(x.cache_loc.max()) < x.k_cache.shape[0]
        assert int(x.positions.max()) < x.cos_sin_cache.shape[0]
    assert FULL.inputs(DEVICE).k.equal(FULL.inputs(DEVICE).v)
    assert not SLIDING.inputs(DEVICE).k.equal(SLIDING.inputs(DEVICE).v)


def test_full_attention_turns_a_quarter_of_a_head():
    table = norms_cases.cos_sin_cache(512, DEVICE)
    cos, sin = table[1:].chunk(2, dim=1)
    assert int((sin != 0).any(0).sum()) == 64
    assert (cos[:, 64:] == 1).all()
    assert (norms_cases.cos_sin_cache(256, DEVICE)[1:, 128:] != 0).any(0).all()


@pytest.mark.parametrize(("rows", "steady"), [("steady", True), ("normal", False)])
def test_a_norm_repeated_in_place_stays_what_it_was(rows, steady):
    """Timing calls thousands of times on one tensor: steady rows keep their size; with other weights most would fade
    into denormals and zeros."""
    case = HeadCase("qkv_norm", 3, "QKV", 2, 1, 256)
    x = case.inputs(DEVICE, rows)
    for _ in range(300):
        x = x._replace(**dict(zip("qkv", norms.eager_qkv_norm(case, x), strict=True)))
    for each in (x.q, x.k):
        faded = (each.abs() < 1e-30).float().mean()
        assert (faded == 0) if steady else (faded > 0.5)
    if steady:
        rms = x.q.float().unflatten(1, (-1, 256)).pow(2).mean(-1).sqrt()
        assert ((rms - 1).abs() < torch.finfo(x.q.dtype).eps).all()


def test_adversarial_rows_hold_what_they_should():
    for dtype in norms_cases.DTYPES.values():
        x = norms_cases.ROWS["adversarial"]((16, 64), dtype, torch.Generator().manual_seed(0))
        assert (x[0] == 0).all()
        assert ((x[1].float().abs() < torch.finfo(dtype).smallest_normal) & (x[1] != 0)).any()
        assert x[5].isinf().any()
        assert x[6].isnan().any()
        assert x[4].unique().numel() == 1
        assert x[7].float().pow(2).mean() < 1e-5
        if dtype != torch.float16:
            assert x[2].float().pow(2).sum().isinf()


@pytest.mark.parametrize("mode", ["QKV", "QK", "Q"])
def test_the_timed_eager_chain_is_the_reference(mode):
    case = HeadCase("qkv_norm_rope_kv", 4, mode, 4, 2, 64)
    timed, reference = case.inputs(DEVICE), case.inputs(DEVICE)
    got = norms.eager_qkv_norm_rope_kv(case, timed)
    expected = norms.qkv_norm_rope(case, reference, qkv_norm_rope_kv_reference)
    for a, b in zip(got, expected, strict=True):
        assert (a is None and b is None) or a.equal(b)
    assert timed.k_cache.equal(reference.k_cache)
    assert timed.v_cache.equal(reference.v_cache)
    assert (mode == "Q") == (not timed.v_cache.any())


@no_gpu
@pytest.mark.parametrize("operation", ["residual_norm", "dual_residual_norm"])
def test_sglangs_kernels_are_given_the_same_arguments(operation):
    """Their Triton kernels run in the interpreter, too: what they return differs from ours by the order of fp32 sums,
    at most H steps of each term."""
    case = RowCase(operation, 2, 256, "float32")
    theirs = {"residual_norm": norms._sglang_residual_norm, "dual_residual_norm": norms._sglang_dual_residual_norm}
    x = case.inputs("cpu", "normal")
    expected = norms.row_norm(norms_proof._ON_ROWS[operation][1], rounding="fp32")(case, x)
    error = (theirs[operation](case, x) - expected).abs()
    assert error.max() <= case.hidden_size * torch.finfo(torch.float32).eps * (expected.abs().max() + 2)


def test_the_chains_can_be_compiled():
    """torch.compile traces each eager chain as one graph; the graph gives what the chain gives."""
    small = [HeadCase(name, 4, mode, 4, 2, 64) for name in norms_cases.ON_HEADS for mode in ("QKV", "QK", "Q")]
    for case in [*small, *(RowCase(name, 4, 256) for name in norms_cases.ON_ROWS)]:
        if isinstance(case, RowCase):
            chain = norms.row_norm(norms_proof._ON_ROWS[case.operation][1])
        else:
            chain = norms.eager_qkv_norm if case.operation == "qkv_norm" else norms.eager_qkv_norm_rope_kv
        torch._dynamo.reset()
        got = torch.compile(chain, fullgraph=True, dynamic=False, backend="eager")(case, case.inputs(DEVICE))
        expected = chain(case, case.inputs(DEVICE))
        for a, b in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (got, expected)), strict=True):
            assert (a is None and b is None) or a.equal(b)


@pytest.mark.parametrize("operation", norms_cases.OPERATIONS)
def test_proofs_hold(operation, monkeypatch):
    """The kernels' order, bit for bit."""
    chosen = [
        type(case)(
            **{**vars(case), "num_q_heads": 3, "num_kv_heads": 2, "head_dim": 64}
            if isinstance(case, HeadCase)
            else vars(case)
        )
        for case in cases([4], [operation])
    ]
    few = list({vars(c).get("mode"): c for c in chosen}.values())
    monkeypatch.setattr(norms_proof, "cases", lambda tokens, operations: few)
    seen = []
    dtypes = ("bfloat16", "float32") if operation == "qkv_norm" else ("bfloat16",)
    proofs = norms_proof.prove([4], [operation], dtypes, progress=lambda done, total: seen.append(done))
    assert len(proofs) == 2 * len(seen) > 0
    for proof in proofs:
        assert proof.holds, proof
        assert proof.values["compared"] > 0


def test_a_wrong_kernel_is_found(monkeypatch):
    def doubled(q, k, v, q_weight, k_weight, **options):
        return qkv_rmsnorm_reference(q, k, v, 2 * q_weight, k_weight, **options)

    case = HeadCase("qkv_norm", 2, "Q", 2, 1, 128)
    monkeypatch.setattr(norms_proof, "cases", lambda tokens, operations: [case])
    monkeypatch.setattr(norms_proof, "qkv_rmsnorm", doubled)
    proofs = norms_proof.prove([2], ["qkv_norm"], ["float32"])
    wrong = [proof for proof in proofs if not proof.holds]
    assert {proof.parameters["rows"] for proof in wrong} == {"normal", "adversarial"}
    normal = next(p for p in wrong if p.parameters["rows"] == "normal")
    assert normal.values["unequal"] == normal.values["compared"]
    assert "mode=Q" in str(normal)


@no_gpu
def test_nothing_is_timed_without_a_gpu(tmp_path):
    from g4lab.commands.bench import app

    with pytest.raises(Unavailable, match="no kernel time here"):
        norms.measure([1], ["router_norm"])
    done = CliRunner().invoke(app, ["norms", "--records", str(tmp_path)], env={"COLUMNS": "250"})
    assert isinstance(done.exception, Unavailable)
    for name in ("SGLang gemma_qkv_rmsnorm", "copy of the same bytes", "g4lab, two_step", "no kernel time here"):
        assert name in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_bad_size_is_an_error_before_anything_runs():
    from g4lab.commands.bench import app

    done = CliRunner().invoke(app, ["norms", "--tokens", "0"])
    assert isinstance(done.exception, BadInput)


def test_torch_compile_is_timed_only_where_asked_for():
    names = [provider.name for provider in norms.providers_of("qkv_norm")]
    assert norms.COMPILED not in names
    assert norms.COMPILED in [provider.name for provider in norms.providers_of("qkv_norm", compiled=True)]
    assert names[:2] == [suite.BASELINE, suite.AGAIN]


def table(operations=norms_cases.OPERATIONS, tokens=norms_cases.TOKENS, **columns):
    """A table as `measure` makes it, with made-up figures in every row of ours: not a measurement."""
    columns = {"over_sglang": 2.5, "copy_share": 0.9, "aa_low": 0.99, "reason": ""} | columns
    columns.setdefault("over_sglang_high", columns["over_sglang"] + 0.01)
    return pd.DataFrame(
        vars(case) | {"provider": provider.name, "reading": reading} | columns
        for case in cases(tokens, operations)
        for provider in norms.providers_of(case.operation) if provider.name.startswith(norms.OURS)
        for reading in READINGS
    )  # fmt: skip


def test_rows_carry_bandwidth_and_the_gain_over_sglang():
    case = RowCase("residual_norm", 2048, 2816)
    us = {suite.BASELINE: 40, suite.AGAIN: 40, "g4lab, fp32": 10, "SGLang x": 25, norms.COPY: 8, suite.EMPTY: 2}
    timed = {name: Timed(dict.fromkeys(READINGS, t * np.linspace(0.99, 1.01, 21))) for name, t in us.items()}
    frame = pd.DataFrame(row for name in us for row in suite.rows(case, name, timed, norms.bandwidth))
    row = frame[(frame.provider == "g4lab, fp32") & (frame.reading == "warm")].iloc[0]
    assert row.bytes == 2 * 2816 * (3 * 2048 + 1)
    assert row.gbps == pytest.approx(row.bytes / 10e-6 / 1e9)
    assert row.copy_share == pytest.approx(0.8)
    assert row.over_sglang == pytest.approx(2.5)
    assert row.speedup == pytest.approx(4)
    assert frame[frame.provider == suite.EMPTY].gbps.isna().all()
    titles = dict(norms.medians(frame))
    assert list(titles) == ["residual_norm, cold L2: median µs", "residual_norm, warm L2: median µs"]
    assert titles["residual_norm, warm L2: median µs"]["g4lab, fp32"].tolist() == [10]


def verdicts(frame):
    return goals(frame).groupby("goal", sort=False).verdict.agg(lambda v: "/".join(sorted(set(v)))).tolist()


def test_no_record_is_not_measured():
    for frame in (pd.DataFrame(), norms.availability(), records.to_frame([])):
        assert verdicts(frame) == [NOT_MEASURED] * len(GOALS)
        assert (goals(frame).measured.str.startswith("0 of ")).all()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, [MET, MET, MET]),
        ({"over_sglang": 1.9}, [MET, MET, MISSED]),
        ({"over_sglang": 1.0, "copy_share": 0.84}, [MET, MISSED, MISSED]),
        ({"over_sglang": 0.97}, [MISSED, MET, MISSED]),
        ({"over_sglang": 0.97, "aa_low": 0.96}, [MET, MET, MISSED]),
        ({"over_sglang": float("nan")}, [NOT_MEASURED, MET, NOT_MEASURED]),
    ],
)
def test_goals_are_judged(columns, expected):
    assert verdicts(table(**columns)) == expected


def test_a_part_of_the_sizes_is_incomplete_and_a_slow_one_is_named():
    frame = table(["qkv_norm_rope_kv"], [1, 2048])
    found = goals(frame).set_index(["operation", "reading"])
    assert set(found.loc["qkv_norm_rope_kv"].verdict) == {INCOMPLETE}
    assert set(found.drop("qkv_norm_rope_kv", level=0).verdict) == {NOT_MEASURED}
    slow = (frame.tokens == 1) & (frame["mode"] == "QK") & (frame.reading == "warm") & (frame.num_q_heads == 32)
    frame.loc[slow, "over_sglang"] = 1.5
    row = goals(frame).query("goal.str.contains('2x') and reading == 'warm'").iloc[0]
    assert (row.verdict, row.worst, row["where"]) == (MISSED, 1.5, "1 QK 32 4 512 bfloat16 (g4lab)")


def test_records_of_a_table_give_the_same_verdicts():
    """Integers come back as floats where the operations have different columns; of two runs the later counts."""
    frame = pd.concat([table(["qkv_norm", "router_norm"], [2048], copy_share=share) for share in (0.5, 0.9)])
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    one = records.new_record("norms.latency", {})  # asks for machine and commit once
    kept = [
        one.model_copy(update={"parameters": {k: r[k] for k in norms.KEYS},
                               "values": {k: v for k, v in r.items() if k not in norms.KEYS}})
        for r in rows
    ]  # fmt: skip
    found = goals(records.to_frame(records.from_json(records.to_json(record)) for record in kept))
    pd.testing.assert_frame_equal(found, goals(frame.iloc[len(frame) // 2 :]))
    assert set(found.query("operation == 'router_norm' and goal.str.contains('copy')").worst) == {0.9}


@pytest.mark.gpu
def test_measures_on_the_gpu():
    frame = norms.measure([1, 256], rounds=20)
    ran = frame[frame.reason == ""]
    for operation in norms_cases.OPERATIONS:
        names = set(ran[ran.operation == operation].provider)
        assert {suite.BASELINE, suite.AGAIN, suite.EMPTY, norms.COPY} <= names
        assert any(name.startswith(norms.OURS) for name in names)
    ours = ran[ran.provider.str.startswith(norms.OURS)]
    assert (ours.copy_share > 0).all()

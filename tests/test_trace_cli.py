"""`g4lab trace`: what it prints, what it writes, and how it fails."""

import gzip

import pandas as pd
import pytest
from traces import CAPTURES, call, kernel, note, text

from g4lab import cli

NONE, ROUTER = CAPTURES / "sglang_stages_none", CAPTURES / "sglang_stages_router"


@pytest.fixture
def run(capsys):
    """Runs `g4lab trace ...` and returns (exit code, stdout, stderr)."""

    def call(*arguments):
        code = cli.run(["trace", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def test_summarize_prints_families_phases_and_coverage(run):
    code, out, err = run("summarize", NONE, "--top", 3)
    assert (code, err) == (0, "")
    for words in ("Operators by family (CPU time: no kernel performance)", "share_prefill", "share_decode", "Top 3 of"):
        assert words in out
    assert "recorded · sglang_stages_none" in out
    assert "coverage" in out


def test_summarize_one_phase_by_name(run):
    code, out, _ = run("summarize", NONE, "--phase", "decode", "--by", "name", "--top", 0)
    assert code == 0
    assert "Operators by name in decode" in out
    assert "aten::mm" in out
    assert "more rows" in out
    assert "Top" not in out


def test_summarize_writes_frames_and_one_page(run, tmp_path):
    csv, html = tmp_path / "out" / "families.csv", tmp_path / "page.html"
    code, _, err = run("summarize", NONE, "--csv", csv, "--html", html)
    assert code == 0
    frames = {path.stem: pd.read_csv(path) for path in csv.parent.iterdir()}
    parts = ("phases", "top", "breakdown", "steps", "launches", "coverage", "gaps")
    assert set(frames) == {"families", *(f"families-{part}" for part in parts)}
    assert frames["families"]["share"].sum() == pytest.approx(1)
    assert html.read_text().count("<h2>") == len(frames)
    assert f"wrote {csv}" in err
    assert f"wrote {html}" in err


def test_diff_names_what_the_patch_took_away_and_writes_parquet(run, tmp_path):
    path = tmp_path / "diff.parquet"
    code, out, _ = run("diff", NONE, ROUTER, "--phase", "decode", "--csv", path)
    assert code == 0
    line = next(line for line in out.splitlines() if "aten::topk" in line)
    assert "routing" in line
    assert "gone" in line
    frame = pd.read_parquet(path)
    assert frame.loc[frame["name"] == "aten::topk", "status"].tolist() == ["gone"]


def test_roofline_prints_floors_alone_or_beside_a_gpus_times(run, tmp_path):
    code, out, err = run("roofline", "--batch", 8, "--context", 1000)
    assert (code, err) == (0, "")
    assert "26b-a4b decode, batch 8, 1,000 cached: µs per step, floor for H200 SXM" in out
    assert "published · " in out
    assert "measured_us" not in out

    gpu, csv = tmp_path / "gpu.trace.json", tmp_path / "floors.csv"
    launched = call("cudaLaunchKernel", 12, 3, 1), kernel("fused_moe_kernel", 20, 5000, 1)
    gpu.write_bytes(text([note("step[DECODE bs=8]", 0, 6000), *launched]))
    code, out, err = run("roofline", gpu, "--batch", 8, "--context", 1000, "--csv", csv)
    assert code == 0
    assert "recorded · gpu.trace.json; ceilings: " in out
    moe = pd.read_csv(csv, index_col="family").loc["MoE GEMM"]
    assert moe["measured_us"] == 5000
    assert moe["ratio"] == pytest.approx(5000 / moe["floor_us"])


def test_what_was_lost_in_reading_is_said(run, tmp_path):
    whole = gzip.decompress(next(NONE.glob("*DECODE*")).read_bytes())
    cut = tmp_path / "cut.trace.json"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    code, out, err = run("summarize", cut)
    assert code == 0
    assert "cut.trace.json: repaired: " in err
    assert "Operators by family" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summarize", "nowhere.json"], "nowhere.json"),
        (["summarize", NONE, "--phase", "verify"], "phase: got 'verify'"),
        (["summarize", NONE, "--by", "kernel"], "by: got 'kernel'"),
        (["summarize", NONE, "--of", "kernels", "--phase", "decode"], "a phase of this trace: it has none"),
        (["summarize", NONE, "--csv", "table.xlsx"], "--csv: got 'table.xlsx'"),
        (["diff", NONE], "Missing argument"),
        (["roofline", "--chip", "abacus"], "chip: got 'abacus'"),
        (["roofline", "--phase", "prefill"], "new_tokens: got None"),
    ],
)
def test_bad_input_is_one_line_and_no_file(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())

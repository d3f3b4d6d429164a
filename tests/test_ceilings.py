"""Ceilings: data sheets by name, arithmetic from samples, records there and back, and no figure without a GPU."""

import numpy as np
import pytest
from typer.testing import CliRunner

from g4lab import env, records
from g4lab.bench import ceilings
from g4lab.bench.ceilings import AGAIN, COPY, LAUNCH, MATMUL, Ceilings
from g4lab.errors import BadInput, Unavailable

no_gpu = pytest.mark.skipif(env.has_gpu(), reason="about machines without a GPU")
SPREAD = np.linspace(0.98, 1.02, 21)


def samples(copy_us, matmul_us, launch_us):
    micros = {COPY: copy_us, MATMUL: matmul_us, LAUNCH: launch_us}
    return {name + again: us * SPREAD for name, us in micros.items() for again in ("", AGAIN)}


def test_every_chip_cites_its_data_sheet():
    chips = ceilings.chips()
    assert set(chips) == {"H200 SXM", "H100 SXM", "B200", "A100 SXM 80GB"}
    for name, chip in chips.items():
        assert (chip.chip, chip.kind, chip.launch_us) == (name, "published", None)
        assert "data sheet" in chip.source


def test_the_numbers_notebook_00_argues_with():
    h200 = ceilings.named("h200")
    assert (h200.copy_gbps, round(h200.matmul_tflops)) == (4800, 990)
    assert h200.flops_per_byte == pytest.approx(206, abs=1)


@pytest.mark.parametrize("name", ["H200 SXM", "h200", " h200 sxm "])
def test_a_chip_by_its_name(name):
    assert ceilings.named(name).chip == "H200 SXM"


@pytest.mark.parametrize("name", ["", " ", "H", "V100", "H200 PCIe"])
def test_an_unknown_or_ambiguous_chip(name):
    with pytest.raises(BadInput, match="expected one of H200 SXM, H100 SXM, B200, A100 SXM 80GB"):
        ceilings.named(name)


def test_rates_from_times():
    """1 GiB read and written in 536.870912 µs is 4,000 GB/s; 2 * 8192^3 FLOPs in 1,099.511627776 µs, 1,000 TFLOP/s."""
    found = ceilings.of_samples(samples(536.870912, 1099.511627776, 2.5), "a chip")
    assert found.copy_gbps == pytest.approx(4000)
    assert found.matmul_tflops == pytest.approx(1000)
    assert found.launch_us == pytest.approx(2.5)
    assert found.flops_per_byte == pytest.approx(250)
    assert (found.kind, found.chip) == ("live", "a chip")
    for low, high in found.noise.values():
        assert 0.96 < low <= 1 <= high < 1.05


def test_a_record_gives_the_same_ceilings(tmp_path):
    measured = ceilings.of_samples(samples(500, 1500, 2), "NVIDIA H200")
    values = {name: getattr(measured, name) for name in ceilings.MEASURED}
    path = records.append(records.new_record("ceilings", values, {"rounds": 21}), tmp_path / "ceilings.jsonl")
    (record,) = records.read(path).records
    back = ceilings.of_record(record)
    assert (back.chip, back.copy_gbps, back.matmul_tflops) == (
        "NVIDIA H200",
        measured.copy_gbps,
        measured.matmul_tflops,
    )
    assert {name: tuple(ends) for name, ends in back.noise.items()} == measured.noise
    assert back.kind == "live"


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_ceiling_is_positive(rate):
    with pytest.raises(BadInput, match="matmul_tflops: got"):
        Ceilings("x", 1.0, rate, None, "live", "made for a test")


@no_gpu
def test_nothing_is_measured_without_a_gpu():
    with pytest.raises(Unavailable, match="no kernel time here"):
        ceilings.measure()


@no_gpu
def test_the_command_shows_data_sheets_and_fails_in_one_line(tmp_path):
    from g4lab.commands.bench import app

    done = CliRunner().invoke(app, ["ceilings", "--records", str(tmp_path)], env={"COLUMNS": "200"})
    assert isinstance(done.exception, Unavailable)
    assert "A100 SXM 80GB" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_measures_on_the_gpu():
    found = ceilings.measure(rounds=10)
    assert 100 < found.copy_gbps < 20_000
    assert 10 < found.matmul_tflops < 5_000
    assert 0.1 < found.launch_us < 50
    for low, high in found.noise.values():
        assert 0.8 < low <= high < 1.25

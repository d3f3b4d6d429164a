"""`g4lab models`: what it prints is what the specs say."""

import json

import pytest
import typer
from typer.testing import CliRunner

from g4lab.commands import models
from g4lab.errors import BadInput
from g4lab.gemma4 import NAMES, spec
from g4lab.gemma4.tables import counts_frame, layers_frame, models_frame

app = typer.Typer()
app.command()(models.command)


def test_models_frame_has_a_row_for_every_model():
    frame = models_frame()
    assert tuple(frame.index) == NAMES
    row = frame.loc["26b-a4b"]
    assert (row.sliding_layers, row.full_layers, row.kv_heads_full, row.head_dim_full) == (25, 5, 2, 512)
    expert_parameters = 30 * 128 * 3 * 2816 * 704
    assert row.parameters == 25_233_141_760
    assert row.active == row.parameters - expert_parameters * 120 // 128
    assert row.weights_gb == pytest.approx(50.47, abs=0.005)
    assert frame.loc["e2b"].kv_writing_layers == 15


def test_counts_agree_with_transformers_and_nearly_with_what_is_published():
    frame = counts_frame()
    assert frame.exact.all()
    published = frame.dropna(subset="published_active_b")
    off = (published.counted_active_b - published.published_active_b).abs()
    # One decimal is published; E4B's 4.5 is not what its text model without the per-layer embedding counts.
    assert {name: bool(value <= 0.05) for name, value in off.items()} == {
        "26b-a4b": True,
        "31b": True,
        "e4b": False,
        "e2b": True,
    }


def test_layers_frame_follows_the_spec():
    frame = layers_frame("e2b")
    assert list(frame.kv_source) == [layer.kv_source for layer in spec("e2b").layers]
    assert frame.window.isna().sum() == 7
    assert set(frame.qkv_mode) == {"QKV", "Q"}
    with pytest.raises(BadInput, match="model: got 'e3b'"):
        layers_frame("e3b")


def test_tables_show_every_model_and_layer():
    out = _run()
    assert all(name in out for name in NAMES)
    assert "25.23 B" in out
    assert "8 of 128" in out
    out = _run("26b-a4b")
    assert len([line for line in out.splitlines() if "_attention" in line]) == 30
    assert "itself" in out


def test_json_parses_and_is_complete():
    assert [row["model"] for row in json.loads(_run("--json"))] == list(NAMES)
    layers = json.loads(_run("e2b", "--json"))
    assert [row["kv_source"] for row in layers] == [layer.kv_source for layer in spec("e2b").layers]
    assert [row["window"] for row in layers] == [layer.window for layer in spec("e2b").layers]


def test_unknown_model_is_bad_input():
    result = CliRunner().invoke(app, ["26b"])
    assert isinstance(result.exception, BadInput)


def _run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output

"""The published tables: every value has a source, and the figures the project argues with are the published ones."""

import math
import re

import pytest

from g4lab import env, published
from g4lab.errors import BadInput, Unavailable

TABLES = published.tables()


@pytest.mark.parametrize("name", TABLES)
def test_every_value_has_a_number_a_unit_and_a_source(name):
    frame = published.published(name)
    assert tuple(frame.columns) == published.COLUMNS
    assert len(frame) > 5
    assert frame["value"].map(math.isfinite).all()
    assert frame["pr"].map(lambda pr: bool(re.fullmatch(r"(pyc96|sgl-project)/sglang#\d+", pr))).all()
    assert frame["commit"].map(lambda c: bool(re.fullmatch(r"([0-9a-f]{7,9}( (or|and) [0-9a-f]{9})?)?", c))).all()
    for column in ("case", "variant", "metric", "unit", "hardware", "source"):
        assert (frame[column] != "").all(), column
    assert not frame.duplicated(["case", "condition", "variant", "metric"]).any()
    assert frame.loc[frame["unit"] == "fraction", "value"].between(0, 1).all()
    assert frame.loc[frame["unit"] == "percent", "value"].between(0, 100).all()


def value(name, **where):
    frame = published.published(name)
    for column, text in where.items():
        frame = frame[frame[column].str.contains(text, regex=False)]
    (found,) = frame["value"]
    return found


def test_the_figures_the_project_argues_with():
    assert value("router_quality", metric="McNemar") == 1.97
    assert value("router_quality", metric="set disagreement") == 0.0
    assert value("router_quality", metric="order disagreement") == 20.4
    assert value("router_quality", metric="weight difference") == 7.5e-3
    legacy, new = (
        value("extend_attention_microbench", case="verify summarization", variant=tile) for tile in ("128,64", "16,64")
    )
    assert round(100 * (new / legacy - 1)) == -82
    before, after = (value("mm_disabled", metric="KV pool", variant=v) for v in ("multimodal loaded", "text only"))
    assert round(100 * (after / before - 1), 1) == 21.6
    assert value("swa_ratio", case="summarization", metric="median TTFT", variant="and ratio 0.15") == 8763
    assert value("frozen_kv_mtp", condition="26b-a4b, unb", metric="accept length", variant="swapped") == 2.84
    assert value("h200_moe", commit="10ab189e3", metric="score") == 0.360
    assert value("qkv_norm", metric="output throughput", variant="fused Q and K=V") == 343.1


def test_sources_count_every_value():
    assert published.sources()["values"].sum() == sum(len(published.published(name)) for name in TABLES)
    assert published.citation(published.published("h200_moe")) == "sgl-project/sglang PR #26588"


def test_an_unknown_table_and_a_missing_checkout(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="name: got 'nope', expected one of custom_all_reduce"):
        published.published("nope")
    monkeypatch.setattr(env, "_ROOT", tmp_path)
    with pytest.raises(Unavailable, match="belongs to a checkout"):
        published.published("h200_moe")

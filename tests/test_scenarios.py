"""Named loads, and how the command line takes and overrides them."""

import math

import pytest
from typer.testing import CliRunner

from g4lab.cli import app
from g4lab.errors import BadInput
from g4lab.published import published
from g4lab.runners import interleaved
from g4lab.runners.scenarios import scenario, scenarios, table


def test_every_scenario_is_whole_and_says_where_it_is_from():
    assert {"chat", "summarisation", "steady"} < set(scenarios())
    for name, row in scenarios().items():
        assert row.name == name
        assert min(row.num_prompts, row.input_len, row.output_len, row.max_concurrency) > 0
        assert row.request_rate > 0
        assert row.source
    assert table().loc["steady", "request_rate"] == 8
    assert math.isinf(scenario("chat").request_rate)
    with pytest.raises(BadInput, match="scenario: got 'nope', expected one of chat, "):
        scenario("nope")


def test_the_published_loads_are_the_published_tables():
    cases = {case for name in ("router_serving", "mm_disabled", "swa_ratio") for case in published(name)["case"]}
    for name in ("chat", "summarisation"):
        lengths = f"{scenario(name).input_len}/{scenario(name).output_len}"
        assert any(case.endswith(lengths) for case in cases)
        assert scenario(name).num_prompts == 80


@pytest.fixture
def asked(monkeypatch):
    """What the command asks `ab` for, which then stops."""
    seen = {}

    def stop(model, a, b, **given):
        seen.update(given, model=model)
        raise BadInput("that is all")

    monkeypatch.setattr(interleaved, "ab", stop)
    return seen


def run(*arguments):
    return CliRunner().invoke(app, ["ab", "tiny-moe", *arguments])


def test_options_override_the_scenario(asked):
    run("--scenario", "tiny-steady", "--output-len", "5", "--request-rate", "inf")
    given = {"num_prompts": 16, "input_len": 64, "output_len": 5}
    assert {name: asked[name] for name in given} == given
    assert asked["client"] == {"request_rate": math.inf, "max_concurrency": 8}
    assert asked["drafts"] == (None, None)
    run("--args-b", "--page-size 16 --swa-full-tokens-ratio 0.15")
    assert (asked["num_prompts"], asked["input_len"], asked["output_len"], asked["client"]) == (16, 64, 16, {})
    assert asked["server_args"] == ([], ["--page-size", "16", "--swa-full-tokens-ratio", "0.15"])


def test_drafts_on_both_sides_or_on_one(asked, tmp_path):
    run("--mtp", "--draft", str(tmp_path))
    assert asked["drafts"] == (tmp_path, tmp_path)
    run("--mtp-b", "--draft", str(tmp_path))
    assert asked["drafts"] == (None, tmp_path)


def test_the_list_and_what_cannot_work():
    shown = run("--scenario", "list").output
    assert all(name in shown for name in scenarios())
    for arguments, reason in (
        (("--scenario", "nope"), "scenario: got 'nope'"),
        (("--draft", "/nowhere"), "--draft: got '/nowhere', expected --mtp or --mtp-b beside it"),
    ):
        assert reason in str(run(*arguments).exception)

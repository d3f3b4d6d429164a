"""Bisection without servers: the judgement, what would be started, what is kept. test_bisect_server has real ones."""

import io
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from g4lab import cli, records
from g4lab.commands.bisect import drawn
from g4lab.errors import BadInput
from g4lab.patches import REGISTRY
from g4lab.quality.bisection import Answer, Bisection, Row, judge, measure
from g4lab.quality.draw_bisection import draw_bisection
from g4lab.runners import bisection
from g4lab.runners.answers import keep, kept
from g4lab.runners.bisection import bisect, candidates, configurations

V, LAYERS = 6, 3


def answer(prompt_len=4, tokens=(1, 2, 3), shift=0.0, flip_from=LAYERS, drafts=(0, 0)):
    """Log-probabilities of the token 0 moved by `shift`; every token routed otherwise from layer `flip_from` on."""
    rows = prompt_len - 1 + len(tokens)
    logits = np.tile(np.linspace(2.0, -2.0, V), (rows, 1))
    logits[:, 0] += shift
    logp = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    experts = np.tile(np.array([0, 1], dtype=np.int32), (rows, LAYERS, 1))
    experts[:, flip_from:] += 1
    return Answer(prompt_len, tokens, np.tile(np.arange(V, dtype=np.int32), (rows, 1)), logp, experts, *drafts)


def test_nothing_moved_is_all_zero():
    row = measure([answer(drafts=(3, 2))], [answer(drafts=(3, 2))], V)
    assert (row.positions, row.drift_max, row.kl_mean, row.flips_pct, row.first_flip_layer) == (6, 0, 0, 0, None)
    assert (row.greedy_lost_pct, row.acceptance, row.acceptance_change) == (0, 1.5, 0)


def test_each_measure_sees_its_own():
    base = [answer(drafts=(6, 4)), answer(5, (1, 2, 3), drafts=(0, 2))]
    parted = answer(5, (1, 9, 3), flip_from=2, drafts=(2, 2))  # 5 positions before and with the other token, not 7
    row = measure(base, [answer(shift=0.1, drafts=(6, 4)), parted], V, ["router"])
    assert row.positions == 6 + 6
    assert row.flips_by_layer == (0, 0, 50)
    assert row.first_flip_layer == 2
    assert row.flips_pct == pytest.approx(100 / 6)
    assert row.greedy_lost_pct == pytest.approx(100 * 2 / 6)
    assert (row.acceptance, row.acceptance_change) == (8 / 6, pytest.approx(2 / 6))
    assert row.kl_max > row.kl_mean > 0
    assert row.drift_max > row.drift_mean > 0


def test_a_dense_model_has_no_routing_and_no_mtp_no_acceptance():
    dense = [replace(answer(), experts=None)]
    row = measure(dense, dense, V)
    assert row.flips_pct is row.first_flip_layer is row.acceptance is row.acceptance_change is None


def test_another_number_of_prompts_is_refused():
    with pytest.raises(BadInput, match="other: got '1 answers', expected one for each of 2 prompts"):
        measure([answer()] * 2, [answer()], V)


def row(*patches, kl=0.0, flips=0.0, noise=False):
    drifts = dict.fromkeys(("drift_max", "drift_mean", "kl_mean", "kl_max"), kl)
    same = {"greedy_lost_pct": 0.0, "top_changed_pct": 0.0}
    return Row(patches, noise, positions=9, flips_pct=flips, flips_by_layer=(0.0, 0.0), **drifts, **same)


NOISE = row(noise=True, kl=1e-6)


def test_a_patch_alone_is_named_before_its_pairs():
    found = judge([NOISE, row("a", kl=1e-3, flips=1.0), row("b", kl=1e-6), row("a", "b", kl=1e-1)], "m")
    assert found.verdict.startswith("likeliest culprit: patch a (KL 0.001 nats a position, noise 1e-06;")
    assert "too" not in found.verdict
    assert [r.beyond for r in found.rows] == [(), ("drift", "KL", "routing"), (), ("drift", "KL")]


def test_a_pair_of_sound_patches_is_named_as_a_pair():
    found = judge([row("a"), row("b"), row("a", "b", kl=1e-3), NOISE], "m")
    assert found.verdict.startswith("likeliest culprit: patches a,b together, none of them alone (")
    assert "yet no expert and no likeliest token is another one" in found.verdict
    assert found.rows[0].noise
    alone = judge([row("a"), row("a", "b", kl=1e-3), NOISE], "m")
    assert alone.verdict.startswith("likeliest culprit: patches a,b (")  # b alone was not measured


def test_the_worst_is_named_first_and_a_dead_server_is_the_worst():
    rows = [NOISE, row("a", kl=1e-3), row("b", kl=1e-2)]
    assert "patch b (" in judge(rows, "m").verdict
    assert judge(rows, "m").verdict.endswith("beyond the noise, too: a")
    dead = judge([*rows, Row(("c",), problem="the SGLang server ended")], "m")
    assert dead.verdict.startswith("likeliest culprit: patch c (the SGLang server ended)")
    wild = judge([*rows, row("c", kl=np.inf)], "m")
    assert wild.verdict.startswith("likeliest culprit: patch c (KL inf")


@given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_beyond_is_more_than_twice_the_largest_noise(value, noises):
    found = judge([row("a", kl=value), *(row(noise=True, kl=kl) for kl in noises)], "m")
    assert bool(found.rows[-1].beyond) == (value > 2 * max(noises))
    assert ("likeliest" in found.verdict) == bool(found.rows[-1].beyond)


def test_without_noise_there_is_no_verdict():
    with pytest.raises(BadInput, match="at least one noise row"):
        judge([row("a")], "m")


def test_candidates_are_every_patch_that_is_no_correction():
    assert "router" in candidates()
    assert not {"router_scale", "expert_load", "routed_experts"} & set(candidates())
    count = len(candidates())
    assert len(configurations()) == count + count * (count - 1) // 2
    assert all(len(names) in (1, 2) and set(names) <= set(REGISTRY) for names in configurations())


def test_a_given_list_is_taken_as_it_stands_and_once():
    assert configurations(["router", "qkv_norm"]) == [("router",), ("qkv_norm",), ("router", "qkv_norm")]
    assert configurations(["router", "qkv_norm,router"], pairs=False) == [("router",), ("router", "qkv_norm")]
    assert configurations(["router", "router"]) == [("router",)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--list", "warp_speed"], "warp_speed"),
        (["--list", "router||qkv_norm"], "candidates: got '', expected names of patches that are off by default"),
        (["--list", "router_scale"], "candidates: got 'router_scale', expected names of patches"),
        (["--list", "none"], "got 'none'"),
        (["--noise", "0"], "noise: got 0, expected at least 1"),
        (["--new-tokens", "0"], "new_tokens: got 0, expected at least 1"),
        (["--prompt-lens", "8,many"], "--prompt-lens: got '8,many', expected numbers"),
        (["--prompt-lens", "8,1"], "prompts: got '1 tokens', expected at least 2 each"),
        (["--device", "tpu"], "device: got 'tpu'"),
        (["--dtype", "int3"], "dtype: got 'int3'"),
        (["--draft", "/nowhere"], "draft: got '/nowhere'"),
    ],
)
def test_bad_input_is_one_line_before_any_server_starts(capsys, monkeypatch, tmp_path, options, reason):
    monkeypatch.setattr(bisection, "sglang_server", None)
    device = [] if "--device" in options else ["--device", "cpu"]
    code = cli.run(["bisect", "tiny-moe", *device, "--folder", str(tmp_path), *options])
    error = capsys.readouterr().err
    assert code == 2
    assert reason in error
    assert error.count("\n") == 1


def test_wrong_tokens_and_another_bisections_folder_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(bisection, "sglang_server", None)
    options = {"candidates": ["router"], "server": {"device": "cpu"}}
    with pytest.raises(BadInput, match="prompts: got 5000, expected token ids from 0 to 1023"):
        bisect("tiny-moe", prompts=[[3, 4, 5000]], **options)
    (tmp_path / "bisection.json").write_text("{}")
    with pytest.raises(BadInput, match=r"folder: got .* expected a new one, or one of the same model"):
        bisect("tiny-moe", folder=tmp_path, **options)


def test_answers_are_kept_whole(tmp_path):
    answers = [answer(), replace(answer(5, (7, 8)), experts=None, correct_drafts=3, verifies=2)]
    keep(answers, tmp_path / "a.npz", problem="router never ran")
    back, said = kept(tmp_path / "a.npz")
    assert said == {"problem": "router never ran"}
    for ours, theirs in zip(answers, back, strict=True):
        for name in ("prompt_len", "tokens", "correct_drafts", "verifies"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in ("ids", "logp", "experts"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_a_record_gives_the_bisection_back():
    rows = [NOISE, row("a", kl=1e-3, flips=1.0), row("a", "b", kl=np.inf), Row(("c",), problem="died")]
    found = judge(rows, "m", ["a note"], {"model": "m", "seed": 1})
    line = records.to_json(records.new_record("bisect", found.values(), found.parameters))
    back = records.from_json(line)
    assert Bisection.from_record(back.values, back.parameters) == found


def test_table_and_figure_show_every_configuration():
    rows = [NOISE, row("a", kl=1e-3, flips=1.0), row("b"), Row(("c",), problem="died"), row("a", "b", kl=np.inf)]
    found = judge(rows, "m")
    assert found.table()["configuration"].tolist() == ["none again", "a", "b", "c", "a,b"]
    assert found.by_layer().shape == (5, 2)
    assert found.by_layer().loc["c"].isna().all()
    assert [r["flips_by_layer"] for r in found.values()["rows"]][3] == []
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(drawn(found))
    text = console.export_text()
    shown = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert list(shown) == ["none again", "a", "b", "c", "a,b"]
    assert "the noise" in shown["none again"]
    assert "1.00 %" in shown["a"]
    assert "drift, KL, routing" in shown["a"]
    assert shown["b"].endswith("│ -                   │")
    assert "no answer; died" in shown["c"]
    assert "greedy lost" in text
    assert "accepted" not in text  # without MTP
    fig = draw_bisection(found, "a test")
    left, right = fig.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b", "c", "a\n+ b"]
    texts = [text.get_text() for text in left.texts]
    assert texts == ["noise 2e-06", "0.001", "equal", "no answer", "not a number"]
    assert len(right.texts) == 6  # two layers of the three that answered

"""`g4lab quality`: what needs no server. Its run and A/B are functions that test_evaluation_server.py calls."""

import pytest

from g4lab import cli
from g4lab.quality.evaluation import Evaluation, Graded


@pytest.fixture
def runs(tmp_path):
    """Files of three runs of 20 questions: a, a again (one question otherwise), and b (ten more wrong)."""
    answers = {"a": [True] * 16 + [False] * 4, "again": [True] * 15 + [False] * 5, "b": [True] * 6 + [False] * 14}
    for name, correct in answers.items():
        rows = [Graded(f"q{i}", f"s{i % 2}", "A", "A" if right else "B", right) for i, right in enumerate(correct)]
        Evaluation(tuple(rows), {"set": "t", "shots": 0}).write(tmp_path / f"{name}.jsonl")
    return tmp_path


def test_compare_says_who_is_worse_and_how_noisy_a_is(runs, capsys):
    code = cli.run(
        ["quality", "compare", *(str(runs / f"{n}.jsonl") for n in "ab"), "--again", str(runs / "again.jsonl")]
    )
    said = capsys.readouterr().out
    assert code == 0
    assert "only a right: 10, only b: 0" in said
    assert "McNemar chi2 8.10 (corrected), p 0.0044, exact p 0.002" in said  # 9 * 9 / 10; 2 / 2**10
    assert "subjects won 0, lost 2, tied 0" in said
    assert "b is worse than a" in said
    assert "two runs of one variant disagree on 1 of 20 questions" in said


def test_compare_needs_runs(runs, capsys):
    (runs / "x.jsonl").write_text("{}\n")
    assert cli.run(["quality", "compare", str(runs / "a.jsonl"), str(runs / "x.jsonl")]) == 2
    assert "expected a file that `g4lab quality run` wrote" in capsys.readouterr().err


def test_power_answers_both_ways(capsys):
    assert cli.run(["quality", "power", "--accuracy", "0.71", "--difference", "0.02", "-n", "500"]) == 0
    said = capsys.readouterr().out
    assert "1,568 questions put to both variants" in said
    assert "500 questions put to both find it with 35 % power" in said
    assert cli.run(["quality", "power", "--difference", "0"]) == 2


def test_a_set_that_is_none_ends_before_any_server(capsys):
    assert cli.run(["quality", "run", "tiny-moe", "--set", "mmul"]) == 2
    assert "set: got 'mmul', expected one of probe, mmlu, gsm8k" in capsys.readouterr().err

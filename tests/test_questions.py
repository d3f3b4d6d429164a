"""Sets of questions: the loaders on files of each layout, subsets, prompts, and the probe set's own data."""

import json
import re
import sys
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab.errors import BadInput, Unavailable
from g4lab.quality.question_sets import gsm8k, load_questions, mmlu, probe
from g4lab.quality.questions import Question, QuestionSet, identified
from g4lab.quality.word_problems import word_problems


@pytest.fixture(scope="module")
def probe_set():
    return probe()


def test_the_probe_set_is_what_its_readme_says(probe_set):
    choices = probe_set.with_choices().questions
    subjects = ["biology", "computing", "geography", "history", "mathematics", "physics"]
    for subject in subjects:
        assert Counter(q.answer for q in choices if q.subject == subject) == dict.fromkeys("ABCD", 5)
    assert (len(choices), len(probe_set)) == (120, 160)
    assert all(len(set(q.choices)) == 4 for q in choices)
    everything = [*probe_set.questions, *probe_set.examples]
    assert (
        len({q.text for q in everything}) == len({q.id for q in everything}) == len(everything)
    )  # no example is asked
    for question in probe_set.questions:
        probe_set.prompt(question, 4)  # every subject has four examples


@given(st.integers(0, 10**6))
def test_word_problems_are_solved_by_the_sums_they_show(seed):
    for question in word_problems(16, seed):
        shown = re.findall(r"([0-9 +*/-]+) = ([0-9]+)\.?", question.worked)
        assert shown or "percent" in question.worked
        for left, right in shown:
            assert eval(left) == int(right)
        assert question.worked.rstrip(".").endswith(question.answer)
        assert int(question.answer) >= 0
        assert len(re.findall(r"[0-9]+", question.text)) >= 2


def test_word_problems_repeat_and_differ_by_seed():
    assert word_problems(40) == word_problems(40)
    assert word_problems(40)[:8] == word_problems(8)
    assert {q.text for q in word_problems(40)} != {q.text for q in word_problems(40, seed=1)}
    with pytest.raises(BadInput, match="count: got 0, expected 1 to 500"):
        word_problems(0)


def some(count, subject="s"):
    return identified(Question("", subject, f"question {i}", ("yes", "no"), "A") for i in range(count))


def test_subsets_are_nested_and_do_not_depend_on_the_place():
    whole = QuestionSet("t", some(50))
    turned = QuestionSet("t", whole.questions[::-1])
    small, large = whole.subset(10), whole.subset(20)
    assert {q.id for q in small.questions} < {q.id for q in large.questions}
    assert {q.id for q in turned.subset(10).questions} == {q.id for q in small.questions}
    assert [q.id for q in small.questions] == [q.id for q in whole.questions if q in small.questions]
    assert {q.id for q in whole.subset(10, seed=1).questions} != {q.id for q in small.questions}
    assert whole.subset(None) is whole
    assert whole.digest != turned.digest
    for limit in (0, 51):
        with pytest.raises(BadInput, match=r"expected 1 to 50"):
            whole.subset(limit)


def test_prompts_share_their_examples_and_end_where_the_answer_begins(probe_set):
    first, second = probe_set.questions[:2]
    a, b = probe_set.prompt(first, 3), probe_set.prompt(second, 3)
    assert a.endswith("\nAnswer:")
    assert first.text in a
    assert a.count("Question: ") == 4
    assert a[: a.index(first.text)] == b[: b.index(second.text)]
    assert probe_set.prompt(first, 3) == a
    number = probe_set.questions[-1]
    assert probe_set.prompt(number).endswith("\nSolution:")
    assert re.search(r"Answer: [0-9]+\n\nProblem: ", probe_set.prompt(number, 2))
    with pytest.raises(BadInput, match=r"shots: got 5, expected 0 to 4 \(the examples of biology in probe\)"):
        probe_set.prompt(first, 5)


def test_bad_questions_are_named():
    with pytest.raises(BadInput, match=r"answer: got 'E', expected one of AB"):
        identified([Question("", "s", "q", ("x", "y"), "E")])
    with pytest.raises(BadInput, match="some text"):
        identified([Question("", "s", " ", ("x", "y"), "A")])
    twice = identified([Question("", "s", "q", ("x", "y"), "A")] * 2)
    assert twice[1].id == twice[0].id + "-2"


@pytest.fixture
def mmlu_csv(tmp_path):
    for part, rows in (
        ("test", ['"Which is 1e3?\nPick.",None,NA,1e3,"a, b",C', "Q2,1,2,3,4,A"]),
        ("dev", ["D1,1,2,3,4,B"]),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"high_school_test_taking_{part}.csv").write_text("\n".join(rows))
    return tmp_path


def test_mmlu_from_the_original_csv_keeps_text_as_text(mmlu_csv):
    found = mmlu(mmlu_csv)
    question = found.questions[0]
    assert question.choices == ("None", "NA", "1e3", "a, b")
    assert (question.answer, question.subject) == ("C", "high_school_test_taking")
    assert question.text == "Which is 1e3?\nPick."
    assert found.prompt(question, 1).count("Answer: B") == 1
    (mmlu_csv / "test" / "short_test.csv").write_text("Q,1,2,A\n")
    with pytest.raises(BadInput, match=r"expected 6 columns: question, four choices, answer \(it has 4\)"):
        mmlu(mmlu_csv)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_mmlu_from_files_of_the_hub_is_the_same_set(mmlu_csv, tmp_path, kind):
    folder = tmp_path / "hub"
    folder.mkdir()
    for part in ("test", "dev"):
        questions = mmlu(mmlu_csv).questions if part == "test" else mmlu(mmlu_csv).examples
        rows = pd.DataFrame(
            [
                {"question": q.text, "subject": q.subject, "choices": list(q.choices), "answer": "ABCD".index(q.answer)}
                for q in questions
            ]
        )
        file = folder / f"{part}-00000-of-00001.{kind}"
        rows.to_parquet(file) if kind == "parquet" else rows.to_json(file, orient="records", lines=True)
    assert mmlu(folder).digest == mmlu(mmlu_csv).digest
    alone = mmlu(folder / f"test-00000-of-00001.{kind}")
    assert alone.questions == mmlu(folder).questions
    assert alone.examples == ()


def test_gsm8k_reads_the_number_and_drops_the_calculator_marks(tmp_path):
    row = {"question": "How many?", "answer": "She has 2*500=<<2*500=1000>>1000.\nPlus 200.\n#### 1,200"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n\n")
    (tmp_path / "train.jsonl").write_text(json.dumps({**row, "question": "Other?"}) + "\n")
    found = gsm8k(tmp_path)
    question = found.questions[0]
    assert (question.answer, question.choices) == ("1200", ())
    assert question.worked == "She has 2*500=1000. Plus 200."
    assert "Solution: She has 2*500=1000. Plus 200. Answer: 1200" in found.prompt(question, 1)
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "?", "answer": "1200"}))
    with pytest.raises(BadInput, match="a solution that ends with"):
        gsm8k(tmp_path)
    (tmp_path / "test.jsonl").write_text("{")
    with pytest.raises(BadInput, match="JSON lines"):
        gsm8k(tmp_path)


def test_what_cannot_be_loaded_says_so(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="set: got 'mmul', expected one of probe, mmlu, gsm8k"):
        load_questions("mmul")
    with pytest.raises(BadInput, match="none for the probe set"):
        load_questions("probe", tmp_path)
    with pytest.raises(BadInput, match="a file or folder that exists"):
        mmlu(tmp_path / "none")
    with pytest.raises(BadInput, match=r"a folder with \*test\*"):
        gsm8k(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Unavailable, match="give a folder of local files, or install the package `datasets`"):
        load_questions("mmlu")

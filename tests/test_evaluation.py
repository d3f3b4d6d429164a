"""A run over questions: its file, what is asked again, what a refused question becomes. The server is an HTTP one of
the standard library that answers in OpenAI's form; the real SGLang stands in test_evaluation_server.py."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from g4lab.errors import BadInput, Unavailable
from g4lab.quality import compare
from g4lab.quality.evaluation import Evaluation, Graded, paired_frame, read_run, same_answers
from g4lab.quality.questions import Question, QuestionSet, identified
from g4lab.runners.evaluation import evaluate
from g4lab.runners.openai_api import Api

QUESTIONS = QuestionSet(
    "t",
    identified(
        [Question("", f"s{i % 2}", f"question {i}", ("yes", "no", "so"), "ABC"[i % 3]) for i in range(12)]
        + [Question("", "n", "how many?", (), "42")]
    ),
)
CHOICES = QUESTIONS.with_choices()


class Endpoint:
    """OpenAI's completions and chat: answers "B" or 42; counts what it was asked, and does what `act` says first."""

    def __init__(self, api):
        self.asked, self.act, endpoint = [], (lambda prompt: None), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.say(200, {"data": [{"id": "/somewhere/model", "owned_by": "someone"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
                endpoint.asked.append(body)
                if (status := endpoint.act(prompt)) is not None:
                    return self.say(*status)
                text = " B" if "Question:" in prompt else "6 * 7 = 42. Answer: 42"
                usage = {"prompt_tokens": 5, "completion_tokens": 2}
                pairs = {" B": -0.5, " A": -1.0, "B": -3.0}
                if api == "chat":
                    tops = [{"token": token, "logprob": value} for token, value in pairs.items()]
                    logprobs = {"content": [{"top_logprobs": tops}]} if body.get("logprobs") else None
                    choice = {"message": {"content": text}, "logprobs": logprobs}
                else:
                    choice = {"text": text, "logprobs": {"top_logprobs": [pairs]} if body.get("logprobs") else None}
                return self.say(200, {"choices": [choice | {"finish_reason": "stop"}], "usage": usage})

            def say(self, status, content):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def endpoint(request, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Endpoint(getattr(request, "param", "completions"))
    yield made
    made.close()


@pytest.mark.parametrize(("endpoint", "api"), [("completions", "completions"), ("chat", "chat")], indirect=["endpoint"])
def test_both_apis_grade_letters_and_numbers(endpoint, api):
    found = evaluate(endpoint.url + "/v1/", QUESTIONS, api=api, seed=3)
    assert [row.id for row in found.rows] == [question.id for question in QUESTIONS.questions]
    assert {row.given for row in found.rows if row.subject != "n"} == {"B"}
    assert sum(row.correct for row in found.rows) == 4 + 1
    assert found.accuracy.estimate == 5 / 13
    sent = endpoint.asked[0]
    assert (sent["temperature"], sent["seed"], sent["model"], sent["stop"]) == (
        0.0,
        3,
        "/somewhere/model",
        ["\nQuestion:"],
    )
    assert "return_token_ids" not in sent  # not SGLang: nothing beside OpenAI's own fields
    limits = {body["max_tokens"] for body in endpoint.asked}
    assert limits == {8, 256}
    by_logprobs = evaluate(endpoint.url, CHOICES, api=api, by="logprobs")
    assert {row.given for row in by_logprobs.rows} == {"B"}
    assert set(by_logprobs.rows[0].logprobs) == {"A", "B"}
    assert endpoint.asked[-1]["max_tokens"] == 1


def test_a_refused_question_is_a_row_and_is_asked_again(endpoint, tmp_path):
    file = tmp_path / "run.jsonl"
    endpoint.act = lambda prompt: (400, {"error": "too long"}) if "question 3\n" in prompt else None
    found = evaluate(endpoint.url, CHOICES, path=file, label="x")
    (failed,) = found.errors
    assert "too long" in failed.error
    assert not failed.correct
    assert len(found.rows) == 12  # kept, and counted as wrong
    assert found.by_subject()["errors"].tolist() == [0, 1]
    assert Evaluation.read(file).rows == found.rows
    endpoint.act = lambda prompt: None
    asked = len(endpoint.asked)
    again = evaluate(endpoint.url, CHOICES, path=file, label="x")
    assert len(endpoint.asked) == asked + 1
    assert not again.errors
    assert [row.id for row in again.rows] == [row.id for row in found.rows]
    with pytest.raises(BadInput, match=r"path: got .*one of this run \(its digest, label, concurrency differ\)"):
        evaluate(endpoint.url, CHOICES.subset(2), path=file, label="y", concurrency=1)


def test_an_ended_run_goes_on_where_it_was_and_ends_as_if_it_had_not(endpoint, tmp_path):
    file = tmp_path / "run.jsonl"

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(endpoint.url, CHOICES, path=file, concurrency=1, progress=stop)
    kept = read_run(file)[1]
    assert len(kept) == 5
    file.write_text(file.read_text() + '{"id": "s0-cut sh')  # a line that a kill cut short
    asked = len(endpoint.asked)
    found = evaluate(endpoint.url, CHOICES, path=file, concurrency=1)
    assert len(endpoint.asked) == asked + 7
    whole = evaluate(endpoint.url, CHOICES, concurrency=3)
    assert found.rows == whole.rows == Evaluation.read(file).rows


def test_a_server_that_is_gone_ends_the_run(endpoint, tmp_path):
    file = tmp_path / "run.jsonl"
    client = Api(endpoint.url)
    endpoint.close()
    with pytest.raises(Unavailable, match="nothing answers at"):
        client.ask("x", 1)
    with pytest.raises(Unavailable, match="nothing answers at"):
        evaluate(endpoint.url, CHOICES, path=file)
    assert not file.exists()


def test_bad_arguments_are_named_before_anything_is_asked(endpoint):
    for wrong, message in (
        ({"by": "guess"}, "by: got 'guess', expected one of generate, logprobs"),
        ({"concurrency": 0}, "concurrency: got 0, expected at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, expected at least 1"),
        ({"api": "responses"}, "api: got 'responses', expected one of completions, chat"),
        ({"shots": 1}, "shots: got 1, expected 0 to 0"),
        ({"by": "logprobs"}, "by: got 'logprobs', expected generate, for a set that asks for numbers"),
    ):
        with pytest.raises(BadInput, match=message):
            evaluate(endpoint.url, QUESTIONS, **wrong)
    with pytest.raises(BadInput, match="questions: got 'none', expected at least one"):
        evaluate(endpoint.url, QuestionSet("empty", ()))
    with pytest.raises(BadInput, match="a running Server, or a URL"):
        evaluate("tiny-moe", CHOICES)
    assert endpoint.asked == []


def graded(name, correct=True, **more):
    return Graded(name, "s", "A", "A" if correct else "B", correct, **more)


def test_two_runs_pair_by_question_without_those_that_failed():
    a = Evaluation((graded("1"), graded("2", error="x"), graded("3", False), graded("4")), {"shots": 0})
    b = Evaluation((graded("4", False), graded("3"), graded("2"), graded("5")), {"shots": 0})
    frame = paired_frame(a, b)
    assert frame["question"].tolist() == ["3", "4"]
    found = compare(frame)
    assert (found.only_a, found.only_b) == (1, 1)
    with pytest.raises(BadInput, match="runs: got 'shots 0 and 5', expected the same questions, asked in the same way"):
        paired_frame(a, Evaluation(b.rows, {"shots": 5}))
    with pytest.raises(BadInput, match="some that both runs answered"):
        paired_frame(a, Evaluation((graded("9"),), {"shots": 0}))


def test_same_answers_needs_the_same_tokens_for_the_same_text():
    a = [graded("1", text="A", output_ids=(1,)), graded("2", text="A", output_ids=(1,)), graded("3")]
    b = [graded("1", text="A", output_ids=(1,)), graded("2", text="A", output_ids=(2,)), graded("3", False)]
    assert same_answers(a, b) == (3, 2, 2)


def test_counts_and_acceptance_of_a_run():
    rows = (
        graded("1", verify_steps=4, drafted=12, accepted=6, new_tokens=11, finish_reason="length"),
        graded("2", verify_steps=1, drafted=3, accepted=0, new_tokens=1),
        Graded("3", "t", "A", text="?"),
    )
    found = Evaluation(rows, {})
    assert found.acceptance.per_verify == 6 / 5
    assert (found.unreadable, found.cut) == (1, 1)
    assert found.by_subject()["correct"].tolist() == [2, 0]
    assert found.values()["acceptance"]["per_verify"] == 6 / 5
    assert Evaluation(rows[2:], {}).acceptance.per_verify is None
    assert found.frame()["given"].isna().tolist() == [False, False, True]


def test_another_file_is_no_run(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    for name in ("x.jsonl", "none.jsonl"):
        with pytest.raises(BadInput, match="a file that `g4lab quality run` wrote"):
            Evaluation.read(tmp_path / name)

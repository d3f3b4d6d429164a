"""Questions through a server's OpenAI API: one graded row each, the same prompts every time.

Temperature is 0 and the prompts are fixed, yet two runs need not agree. Which requests share a batch, and how much of a
prompt comes from the prefix cache, depends on their timing; kernels reduce in another order for another batch, and a
near-tie of two tokens then falls to the other side. That is part of what two runs of one variant differ by, and must
be in the noise that a change is held against; concurrency=1 on a server with an emptied cache leaves it out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g4lab import env
from g4lab.errors import bad
from g4lab.quality.evaluation import Evaluation, Graded, header, line, read_run
from g4lab.quality.questions import Question, QuestionSet
from g4lab.quality.scoring import given_answer, is_right, letter_logprobs, likeliest_letter
from g4lab.runners.acceptance import acceptance
from g4lab.runners.openai_api import Api, Refused

if TYPE_CHECKING:
    from g4lab.runners.server import Server

WAYS = ("generate", "logprobs")
NEW_TOKENS = {"letter": 8, "number": 256}
TOP = 20  # what OpenAI's chat API allows at most
WHOLE_VOCABULARY = 4096  # a twin's letters may be anywhere in it


def evaluate(
    server_or_url: Server | str,
    questions: QuestionSet,
    *,
    shots: int = 0,
    by: str = "generate",
    max_new_tokens: int | None = None,
    concurrency: int = 8,
    api: str = "completions",
    seed: int = 0,
    label: str = "",
    path: Path | str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Ask every question and grade the answers.

    Args:
        shots: worked examples before each question.
        by: "generate" reads the answer from generated text; "logprobs" takes the likeliest letter of the first token,
            for multiple choice only: one prefill, so it never runs a decode step or a draft.
        max_new_tokens: of a generated answer; default 8 for a letter and 256 for a number.
        concurrency: requests in flight.
        api: "completions", or "chat" for a model that was tuned to its chat template.
        seed: of the sampler (idle at temperature 0) and of the choice of examples.
        label: what is on trial, for the run's file and its comparison ("default,router").
        path: file of the run, one line a question. Given again, the run goes on: what it holds is not asked again, but
            what the server refused is.
        progress: called with (questions done, all).

    Raises:
        BadInput: an argument that cannot work, or `path` of another run.
        Unavailable: the server died or nothing answers; `path` keeps what was done. A single refused question is a row
            with its error instead.
    """
    if by not in WAYS:
        raise bad("by", by, "one of " + ", ".join(WAYS))
    if by == "logprobs" and not all(question.choices for question in questions.questions):
        raise bad("by", by, "generate, for a set that asks for numbers")
    if concurrency < 1:
        raise bad("concurrency", concurrency, "at least 1")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise bad("max_new_tokens", max_new_tokens, "at least 1")
    if not len(questions):
        raise bad("questions", "none", "at least one")
    prompts = {question.id: questions.prompt(question, shots, seed) for question in questions.questions}
    client = Api(server_or_url, api)
    parameters = {
        "set": questions.name,
        "digest": questions.digest,
        "source": questions.source,
        "label": label,
        "shots": shots,
        "by": by,
        "max_new_tokens": max_new_tokens,
        "concurrency": concurrency,
        "api": api,
        "seed": seed,
        "model": Path(client.model).name,
        "versions": env.versions(),
        "commit": env.commit()[0],
    }
    top = _top(server_or_url) if by == "logprobs" else None

    def ask(question: Question) -> Graded:
        return _ask(client, question, prompts[question.id], max_new_tokens, top, seed)

    done = _kept(path, parameters)
    waiting = [question for question in questions.questions if question.id not in done]
    with _Journal(path, parameters, done) as journal:
        for row in _answers(ask, waiting, concurrency):
            done[row.id] = row
            journal.add(row)
            progress(len(done), len(questions))
    found = Evaluation(tuple(done[question.id] for question in questions.questions), parameters)
    if path is not None:
        found.write(path)
    return found


def _top(server_or_url: Server | str) -> int:
    vocab = getattr(server_or_url, "vocab_size", None)
    return vocab if vocab and vocab <= WHOLE_VOCABULARY else TOP


def _answers(ask: Callable[[Question], Graded], questions: list[Question], concurrency: int) -> Iterator[Graded]:
    """Rows as they come; when one cannot be had, or the caller stops, those that wait are not asked."""
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(ask, question) for question in questions]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ask(
    client: Api, question: Question, prompt: str, max_new_tokens: int | None, top: int | None, seed: int
) -> Graded:
    asked = {"id": question.id, "subject": question.subject, "answer": question.answer}
    limit = max_new_tokens or NEW_TOKENS["letter" if question.choices else "number"]
    try:
        if top:
            reply = client.ask(prompt, 1, seed=seed, top=top)
        else:
            reply = client.ask(prompt, limit, stop=[question.stop], seed=seed)
    except Refused as error:
        return Graded(**asked, error=str(error))
    logprobs = letter_logprobs(reply.top or {}, question.letters) if top else {}
    given = likeliest_letter(logprobs) if top else given_answer(question, reply.text)
    drafts = acceptance([{**(reply.meta or {}), "completion_tokens": reply.new_tokens}])
    return Graded(
        **asked,
        given=given,
        correct=is_right(question, given),
        text=reply.text,
        output_ids=reply.output_ids,
        prompt_tokens=reply.prompt_tokens,
        new_tokens=reply.new_tokens,
        finish_reason=reply.finish_reason,
        logprobs=logprobs,
        verify_steps=drafts.verify_steps,
        drafted=drafts.drafted,
        accepted=drafts.accepted,
    )


def _kept(path: Path | str | None, parameters: dict[str, Any]) -> dict[str, Graded]:
    """Answered rows of an earlier part of this run."""
    kept = read_run(path) if path is not None else None
    if kept is None:
        return {}
    other = [name for name in parameters if kept[0].get(name) != parameters[name]]
    if other:
        raise bad("path", str(path), f"a new file, or one of this run (its {', '.join(other)} differ)")
    return {name: row for name, row in kept[1].items() if not row.error}


class _Journal:
    """The file of a run that is not finished: what is kept, then a line for every new row; no file without a path."""

    def __init__(self, path: Path | str | None, parameters: dict[str, Any], done: dict[str, Graded]) -> None:
        self._file = None
        if path is not None:
            env.atomic_write(path, "".join([header(parameters), *map(line, done.values())]))
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed on exit

    def __enter__(self) -> _Journal:
        return self

    def add(self, row: Graded) -> None:
        if self._file:
            self._file.write(line(row))
            self._file.flush()
            os.fsync(self._file.fileno())

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()

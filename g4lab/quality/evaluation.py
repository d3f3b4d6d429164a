"""One run over a set of questions: a row for each, kept in a file that an interrupted run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g4lab import env
from g4lab.errors import bad
from g4lab.quality.acceptance import Acceptance
from g4lab.quality.intervals import Interval, wilson

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Graded:
    """One question's answer. given: the letter or number found in it, None where there is none; text: all it said.

    logprobs: of the letters, where these were compared. verify_steps, drafted, accepted: of speculative decoding.
    error: why the server did not answer; such a question counts as wrong, is counted apart, and is asked again.
    """

    id: str
    subject: str
    answer: str
    given: str | None = None
    correct: bool = False
    text: str = ""
    output_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0
    finish_reason: str = ""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    verify_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    error: str = ""


@dataclass(frozen=True)
class Evaluation:
    """A run: one row a question, in the set's order, and the parameters that it ran with."""

    rows: tuple[Graded, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> Interval:
        """Right answers among all questions, errors counted as wrong, with Wilson's interval at 95 %."""
        return wilson(sum(row.correct for row in self.rows), len(self.rows))

    @property
    def errors(self) -> tuple[Graded, ...]:
        """The questions that the server did not answer."""
        return tuple(row for row in self.rows if row.error)

    @property
    def unreadable(self) -> int:
        """Questions whose answer gives no letter or number: a model that cannot keep the form, not one that errs."""
        return sum(row.given is None and not row.error for row in self.rows)

    @property
    def cut(self) -> int:
        """Answers that the limit of new tokens ended."""
        return sum(row.finish_reason == "length" for row in self.rows)

    @property
    def acceptance(self) -> Acceptance:
        """Drafts of speculative decoding over all answers; zeros without it."""
        rows = [row for row in self.rows if row.verify_steps]
        counts = [(row.verify_steps, row.drafted, row.accepted, row.new_tokens) for row in rows]
        return Acceptance(*map(sum, zip(*counts, strict=True)))

    def frame(self) -> pd.DataFrame:
        """One row a question: the fields of Graded, without log-probabilities and token ids."""
        import pandas as pd

        names = [f.name for f in fields(Graded) if f.name not in ("logprobs", "output_ids")]
        return pd.DataFrame([{name: getattr(row, name) for name in names} for row in self.rows], columns=names)

    def by_subject(self) -> pd.DataFrame:
        """One row a subject, in the set's order: subject, questions, correct, accuracy (0 to 1), low and high (Wilson,
        95 %), unreadable, errors."""
        import pandas as pd

        subjects: dict[str, list[Graded]] = {}
        for row in self.rows:
            subjects.setdefault(row.subject, []).append(row)
        rows = []
        for subject, graded in subjects.items():
            part = Evaluation(tuple(graded))
            correct = sum(row.correct for row in graded)
            rows.append((subject, len(graded), correct, *part.accuracy[:3], part.unreadable, len(part.errors)))
        return pd.DataFrame(
            rows, columns=["subject", "questions", "correct", "accuracy", "low", "high", "unreadable", "errors"]
        )

    def values(self) -> dict[str, Any]:
        """For a record: the accuracy with its interval, what could not be read, and the subjects. Not every answer;
        the run's file has those."""
        found = self.acceptance
        drafts = {**found._asdict(), "per_verify": found.per_verify} if found.verify_steps else None
        return {
            "questions": len(self.rows),
            "correct": sum(row.correct for row in self.rows),
            "accuracy": self.accuracy.estimate,
            "low": self.accuracy.low,
            "high": self.accuracy.high,
            "unreadable": self.unreadable,
            "cut": self.cut,
            "errors": len(self.errors),
            "acceptance": drafts,
            "subjects": self.by_subject().to_dict("records"),
        }

    @classmethod
    def read(cls, path: Path | str) -> Evaluation:
        """The run in a file, finished or not. Raises BadInput where it is none."""
        kept = read_run(path)
        if kept is None:
            raise bad("run", str(path), "a file that `g4lab quality run` wrote")
        return cls(tuple(kept[1].values()), kept[0])

    def write(self, path: Path | str) -> None:
        """The whole run to a file, or none of it."""
        env.atomic_write(path, "".join([header(self.parameters), *map(line, self.rows)]))


def header(parameters: Mapping[str, Any]) -> str:
    """The first line of a run's file."""
    return json.dumps({"evaluation": parameters}, sort_keys=True) + "\n"


def line(row: Graded) -> str:
    """The line of one question in a run's file."""
    return json.dumps(asdict(row)) + "\n"


def read_run(path: Path | str) -> tuple[dict[str, Any], dict[str, Graded]] | None:
    """Parameters and rows by id of a run's file; None where there is no file. A last line cut short is left out.

    Raises:
        BadInput: the file is something else.
    """
    path = Path(path)
    if not path.exists():
        return None
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    try:
        first, *rest = [json.loads(text) for text in whole.split("\n")]
        rows = [_graded(values) for values in rest]
        return first["evaluation"], {row.id: row for row in rows}
    except (ValueError, LookupError, TypeError):
        raise bad("run", str(path), "a file that `g4lab quality run` wrote") from None


def _graded(values: Mapping[str, Any]) -> Graded:
    return Graded(**{**values, "output_ids": tuple(values["output_ids"])})


def paired_frame(a: Evaluation, b: Evaluation) -> pd.DataFrame:
    """What quality.compare takes of two runs: question (id), subject, correct_a, correct_b. A question that either run
    could not ask is in neither.

    Raises:
        BadInput: they were not asked the same questions in the same way, or have no question in common.
    """
    import pandas as pd

    for name in ("set", "digest", "shots", "by", "max_new_tokens", "api"):
        said = [run.parameters.get(name) for run in (a, b)]
        if said[0] != said[1]:
            raise bad("runs", f"{name} {said[0]!r} and {said[1]!r}", "the same questions, asked in the same way")
    pairs = _pairs(a.rows, b.rows)
    if not pairs:
        raise bad("runs", f"{len(a.rows)} and {len(b.rows)} questions", "some that both runs answered")
    return pd.DataFrame(
        [(x.id, x.subject, x.correct, y.correct) for x, y in pairs],
        columns=["question", "subject", "correct_a", "correct_b"],
    )


def same_answers(a: Sequence[Graded], b: Sequence[Graded]) -> tuple[int, int, int]:
    """Of the questions that both answered: how many, how many with the same letter or number, with the same tokens."""
    pairs = _pairs(a, b)
    given = sum(x.given == y.given for x, y in pairs)
    whole = sum((x.text, x.output_ids) == (y.text, y.output_ids) for x, y in pairs)
    return len(pairs), given, whole


def _pairs(a: Sequence[Graded], b: Sequence[Graded]) -> list[tuple[Graded, Graded]]:
    answered = {row.id: row for row in b if not row.error}
    return [(row, answered[row.id]) for row in a if row.id in answered and not row.error]

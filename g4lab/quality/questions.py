"""Questions with known answers, worked examples to show before them, and the prompt that asks one.

The wording of the prompts is this project's own, and short. Scores are therefore comparable between runs of this
harness, and not with those of another harness or a model card: prompts alone move MMLU by points.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from g4lab.errors import bad

CHOOSE = "Pick the correct option and reply with its letter alone."
SOLVE = "Work the problem out step by step, then give the result as a number after the word Answer."


@dataclass(frozen=True)
class Question:
    """One question. choices: the options, first is A; empty where a number is asked for.

    answer: the right letter, or the right number as text. worked: a solution in words, which an example may show.
    """

    id: str
    subject: str
    text: str
    choices: tuple[str, ...]
    answer: str
    worked: str = ""

    @property
    def letters(self) -> str:
        """The letters of the choices: "ABCD" for four; empty for a number."""
        return string.ascii_uppercase[: len(self.choices)]

    @property
    def stop(self) -> str:
        """Where an answer ends at the latest: the model has gone on to a question of its own."""
        return f"\n{self._label}:"

    def asked(self) -> str:
        """The question as a prompt shows it, up to where the answer begins."""
        options = [f"{letter}) {choice}" for letter, choice in zip(self.letters, self.choices, strict=True)]
        return "\n".join([f"{self._label}: {self.text}", *options, "Answer:" if self.choices else "Solution:"])

    def shown(self) -> str:
        """The question with its answer: a worked example."""
        if self.choices:
            return f"{self.asked()} {self.answer}"
        return " ".join(filter(None, [self.asked(), self.worked, f"Answer: {self.answer}"]))

    @property
    def _label(self) -> str:
        return "Question" if self.choices else "Problem"


@dataclass(frozen=True)
class QuestionSet:
    """Questions to ask, and examples that are only shown. source: where they come from."""

    name: str
    questions: tuple[Question, ...]
    examples: tuple[Question, ...] = ()
    source: str = ""

    def __len__(self) -> int:
        return len(self.questions)

    def subset(self, limit: int | None, seed: int = 0) -> QuestionSet:
        """`limit` questions (None: all), chosen by a hash of seed and id, in the set's order.

        Where a question stands does not matter, and a smaller subset is part of a larger one of the same seed.

        Raises:
            BadInput: fewer than 1, or more than there are.
        """
        if limit is None:
            return self
        if not 1 <= limit <= len(self):
            raise bad("limit", limit, f"1 to {len(self)} (the questions of {self.name})")
        chosen = {question.id for question in sorted(self.questions, key=lambda q: _rank(seed, q))[:limit]}
        return replace(self, questions=tuple(q for q in self.questions if q.id in chosen))

    def with_choices(self) -> QuestionSet:
        """The questions that have choices, without those that ask for a number."""
        return replace(self, questions=tuple(question for question in self.questions if question.choices))

    def prompt(self, question: Question, shots: int = 0, seed: int = 0) -> str:
        """The whole prompt: what is wanted, `shots` examples of the question's subject, and the question.

        Examples are chosen and ordered by a hash of seed and id, so all questions of a subject share a prefix.

        Raises:
            BadInput: the subject has fewer examples.
        """
        same = [e for e in self.examples if e.subject == question.subject and bool(e.choices) == bool(question.choices)]
        if not 0 <= shots <= len(same):
            raise bad("shots", shots, f"0 to {len(same)} (the examples of {question.subject} in {self.name})")
        examples = sorted(same, key=lambda e: _rank(seed, e))[:shots]
        wanted = CHOOSE if question.choices else SOLVE
        return "\n\n".join([wanted, *(example.shown() for example in examples), question.asked()])

    @property
    def digest(self) -> str:
        """A hash of every question and example: two runs of the same digest were asked the same."""
        return _hash(repr((self.questions, self.examples)))[:16]


def identified(questions: Iterable[Question]) -> tuple[Question, ...]:
    """The questions with an id each: subject and a hash of what is asked; a repeated question gets a number behind it.

    Raises:
        BadInput: a right answer that is no letter of the choices, or an empty question.
    """
    seen: dict[str, int] = {}
    made = []
    for question in questions:
        if question.choices and question.answer not in tuple(question.letters):
            raise bad("answer", question.answer, f"one of {question.letters} (for {question.text[:40]!r})")
        if not question.text.strip():
            raise bad("question", question.text, f"some text (in {question.subject})")
        name = f"{question.subject}-{_hash(repr((question.text, question.choices)))[:8]}"
        seen[name] = seen.get(name, 0) + 1
        made.append(replace(question, id=name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return tuple(made)


def letter(index: int, choices: Sequence[str]) -> str:
    """The letter of the choice at `index`. Raises BadInput where there is none."""
    if not 0 <= index < len(choices) <= 26:
        raise bad("answer", index, f"an index of the {len(choices)} choices (26 at most)")
    return string.ascii_uppercase[index]


def _rank(seed: int, question: Question) -> str:
    return _hash(f"{seed}:{question.id}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

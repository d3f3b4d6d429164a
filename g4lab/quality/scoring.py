"""What did the model answer? A letter or a number, out of free text or log-probabilities; None where it does not say.

An answer that cannot be told is wrong, and is counted: a harness that guessed on the model's behalf would hide damage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from g4lab.quality.questions import Question

# "answer is", "Answer:", "final answer =", plain or decorated.
_STATED = re.compile(
    r"answer\b[\s*_:=]*(?:(?:is|would be|must be)\b[\s*_:=]*)?(?:(?:option|choice)\b\s*)?", re.IGNORECASE
)
_NUMBER = re.compile(
    r"(?P<before>(?<![\w)\]%])[-−])?[$€£]?(?P<after>(?<=[$€£])[-−])?"
    r"(?<![\w.])(?P<value>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_WORDS = "AI"  # letters that are also English words: "A cat", but
_REASONS = (" because", " since", " as", " is")  # "A because it purrs"


def given_answer(question: Question, text: str) -> str | None:
    """The letter or number that `text`, what the model wrote, gives as its answer."""
    if question.choices:
        return find_letter(text, question.letters)
    number = find_number(text)
    return None if number is None else f"{number:f}"


def is_right(question: Question, given: str | None) -> bool:
    """Is it the question's answer? Numbers compare by value: 42, 42.0 and 42.00 are one."""
    if given is None:
        return False
    if question.choices:
        return given == question.answer
    right = find_number(question.answer)
    return right is not None and find_number(given) == right


def find_letter(text: str, letters: str) -> str | None:
    """One of `letters` (capitals): of the last "answer is ..." in `text`, else at its start, else the only one marked.

    Marked is a letter before a bracket: (C), C). At the start, a letter that is a word, as in "A cat", is none.
    """
    bare = rf"[\s*_(\[\"'`]*([{letters}])(?![\w'’])"
    stated = [found[1] for match in _STATED.finditer(text) if (found := re.match(bare, text[match.end() :]))]
    if stated:
        return stated[-1]
    leading = re.match(rf"\s*(?:[Oo]ption\b|[Cc]hoice\b)?{bare}(?P<word> [a-z]+)?", text)
    if leading and not (leading[1] in _WORDS and leading["word"] and leading["word"] not in _REASONS):
        return leading[1]
    marked = set(re.findall(rf"(?<!\w)([{letters}])\)", text))
    return marked.pop() if len(marked) == 1 else None


def find_number(text: str) -> Decimal | None:
    """The number after the last "answer is ..." in `text` that has one, else the last number.

    Reads 1,234.50, -3, −3, $1,200, 42%, 12km; a minus between two numbers subtracts.
    """
    for match in reversed(list(_STATED.finditer(text))):
        line = text[match.end() :].split("\n", 1)[0]
        if found := _NUMBER.search(line.rpartition("=")[2]):  # "Answer: 6 * 7 = 42"
            return _value(found)
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(found: re.Match) -> Decimal:
    value = Decimal(found["value"].replace(",", ""))
    return -value if found["before"] or found["after"] else value


def letter_logprobs(top: Mapping[str, float], letters: str) -> dict[str, float]:
    """Log-probability of each letter that the likeliest tokens `top` (text -> log-probability) name.

    "B", " B" and "\\nB" are one answer: their probabilities add up.
    """
    found: dict[str, float] = {}
    for token, logprob in top.items():
        name = token.strip()
        if len(name) == 1 and name in letters and not math.isnan(logprob):
            found[name] = _log_add(found[name], logprob) if name in found else logprob
    return found


def likeliest_letter(logprobs: Mapping[str, float]) -> str | None:
    """The letter of the largest log-probability, the first in the alphabet of equal ones; None of none."""
    return min(logprobs, key=lambda name: (-logprobs[name], name)) if logprobs else None


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))

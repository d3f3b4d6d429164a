"""Answers out of free text: known forms, and properties over generated ones."""

import math
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4lab.quality.questions import Question
from g4lab.quality.scoring import (
    find_letter,
    find_number,
    given_answer,
    is_right,
    letter_logprobs,
    likeliest_letter,
)

LETTERS = {
    " B": "B",
    "C.": "C",
    "(D) because it is": "D",
    "**A**": "A",
    "A\nQuestion": "A",
    "A because it purrs": "A",
    "Option C": "C",
    "The answer is (D).": "D",
    "The answer is A because it purrs": "A",
    "**Answer:** C": "C",
    "First I thought the answer is B. No: the answer is C.": "C",
    "It must be B) then": "B",
    "A cat sat": None,
    "Both A) and B) hold": None,
    "a": None,
    "BAD": None,
    "B's choice": None,
    "E": None,  # no choice of this question
    "": None,
}
NUMBERS = {
    "1,234.50": "1234.5",
    "-3": "-3",
    "−3": "-3",
    "-$7": "-7",
    "$-7": "-7",
    "costs $1,200.": "1200",
    "42 %": "42",
    "12km": "12",
    "so 10 - 3 = 7": "7",
    "5-3": "3",
    "(-5)": "-5",
    "about -.5": "-0.5",
    "3 apples, 4": "4",
    "1,2": "2",
    "Answer: 42. That is 7 more.": "42",
    "Answer: 6 * 7 = 42": "42",
    "Answer: 41\nNo. Answer: 42": "42",
    "The answer is unclear, perhaps 5": "5",
    "answer is\n42": "42",
    "v2": None,
    "none": None,
    "": None,
}


@pytest.mark.parametrize(("text", "letter"), LETTERS.items())
def test_letters(text, letter):
    assert find_letter(text, "ABCD") == letter


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_numbers(text, number):
    assert find_number(text) == (None if number is None else Decimal(number))


@given(st.text())
def test_any_text_gives_a_choice_or_a_number_or_nothing(text):
    assert find_letter(text, "ABCD") in (None, *"ABCD")
    number = find_number(text)
    assert number is None or number.is_finite()


@given(
    st.sampled_from("ABCDEFGHIJ"),
    st.sampled_from(
        ["{}", " {}", "({})", "{})", "{}.", "**{}**", "Answer: {}", "The answer is {}", "answer is **{}**."]
    ),
    st.sampled_from(["", "\n", ". It purrs.", "\n\nQuestion: which"]),
)
def test_every_letter_is_read_alike(letter, form, rest):
    assert find_letter(form.format(letter) + rest, "ABCDEFGHIJ") == letter


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12),
    st.sampled_from(["{:f}", "{:,f}"]),
    st.sampled_from(
        ["{}", "so it is {}", "= {}", "Answer: {}", "the answer is {} coins", "{}%", "costs $ {}.", "({})"]
    ),
)
def test_a_written_number_is_read_back(number, form, text):
    assert find_number(text.format(form.format(number))) == number


def test_numbers_compare_by_value_and_letters_by_letter():
    number = Question("", "s", "?", (), "1,200")
    assert is_right(number, given_answer(number, "it costs $1200.00"))
    assert not is_right(number, given_answer(number, "1201"))
    assert not is_right(number, None)
    choice = Question("", "s", "?", ("1200", "7"), "B")
    assert is_right(choice, given_answer(choice, "B"))
    assert not is_right(choice, given_answer(choice, "A"))
    assert given_answer(choice, "C") is None


def test_spellings_of_a_letter_add_up():
    top = {" A": math.log(0.2), "A": math.log(0.2), "\nB": math.log(0.3), "AB": 0.0, "": 0.0, "a": 0.0, "C": math.nan}
    found = letter_logprobs(top, "ABC")
    assert found == pytest.approx({"A": math.log(0.4), "B": math.log(0.3)})
    assert likeliest_letter(found) == "A"
    assert letter_logprobs({"A": -math.inf, " A": -math.inf}, "A") == {"A": -math.inf}


def test_ties_go_to_the_first_letter_and_nothing_is_nothing():
    assert likeliest_letter({"C": -1.0, "B": -1.0}) == "B"
    assert likeliest_letter({}) is None


@given(st.dictionaries(st.text(max_size=3), st.floats(-50, 0), max_size=8))
@settings(max_examples=50)
def test_log_probabilities_of_any_tokens(top):
    found = letter_logprobs(top, "ABCD")
    assert set(found) <= set("ABCD")
    assert sum(map(math.exp, found.values())) <= sum(map(math.exp, top.values())) * (1 + 1e-12)

"""Token identity is judged token by token, lengths included."""

import matplotlib

matplotlib.use("Agg")
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4lab.errors import BadInput
from g4lab.quality.tokens import draw_identity, first_difference, identity, random_prompts

tokens = st.lists(st.integers(0, 5), max_size=8)


@given(tokens, tokens)
def test_first_difference_is_the_end_of_the_common_beginning(a, b):
    at = first_difference(a, b)
    if at is None:
        assert a == b
    else:
        assert a[:at] == b[:at]
        assert a[at : at + 1] != b[at : at + 1]


def test_identity_table_says_where_an_engine_leaves_the_reference():
    table = identity(
        [[5], [5, 6]], [[1, 2, 3], [4, 5, 6]], {"good": [[1, 2, 3], [4, 5, 6]], "cut": [[1, 2], [4, 9, 6]]}
    )
    assert table["equal"].tolist() == [True, True, False, False]
    assert table["first difference"].dropna().tolist() == [2, 1]


def test_an_engine_that_lost_a_prompt_is_refused():
    with pytest.raises(BadInput, match="1 outputs of lossy"):
        identity([[5], [6]], [[1], [2]], {"lossy": [[1]]})


def test_prompts_are_the_same_every_time_and_hold_no_special_tokens():
    prompts = random_prompts([8, 40, 150], 1024, seed=3)
    assert prompts == random_prompts([8, 40, 150], 1024, seed=3)
    assert [len(p) for p in prompts] == [8, 40, 150]
    assert all(3 <= t < 1024 for p in prompts for t in p)


def test_figure_draws_one_square_a_token():
    fig = draw_identity([[5]], [[1, 2, 3]], {"a": [[1, 2, 3]], "b": [[1]]}, "a test")
    hollow = [p for p in fig.axes[0].patches if p.get_facecolor()[3] == 0]
    assert (len(fig.axes[0].patches), len(hollow)) == (6, 2)

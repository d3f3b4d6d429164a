"""The published gains are computed from the cited tables, and match the percentages that the authors wrote."""

import pytest

from g4lab.errors import BadInput
from g4lab.runners import gains

WRITTEN = [  # change, case, percent as written in the pull request or commit message
    ("fused router", "chat 1000/1000", 5.6),
    ("fused router", "summarization 8000/1000", 4.5),
    ("extend-attention tiles", "chat 1000/1000", 42),
    ("extend-attention tiles", "summarization 8000/1000", 21),
    ("window pool ratio 0.15", "chat 1000/1000", 1.1),
    ("window pool ratio 0.15", "summarization 8000/1000", -1.0),
    ("text-only load", "chat 1000/1000", 17.2),
    ("text-only load", "summarization 8000/1000", 19.1),
    ("custom all-reduce", "no MTP, decode burst", 5.0),
    ("custom all-reduce", "MTP, decode burst", -6.8),
]


@pytest.mark.parametrize(("change", "case", "percent"), WRITTEN)
def test_gain_is_what_the_author_wrote(change, case, percent):
    found = gains.gains()
    (gain,) = found[(found["change"] == change) & (found["case"] == case)]["gain"]
    assert round(gain, 1 if percent % 1 else 0) == pytest.approx(percent, abs=0.06)


def test_a_change_without_its_table_rows_is_refused(monkeypatch):
    monkeypatch.setattr(gains, "CHANGES", (gains.Change("gone", "router_serving", "no such", "fused router"),))
    with pytest.raises(BadInput, match="gone"):
        gains.gains()

"""Accepted drafts per verification, and the finished requests that they are counted from."""

import json

import pytest

from g4lab.errors import Unavailable
from g4lab.quality.acceptance import Acceptance
from g4lab.runners import finished as module
from g4lab.runners.acceptance import acceptance
from g4lab.runners.finished import export_args, finished


def meta(steps, accepted, tokens):
    counts = {"spec_verify_ct": steps, "spec_num_correct_drafts": accepted, "spec_num_proposed_drafts": 3 * steps}
    return counts | {"completion_tokens": tokens}


def test_sums_not_means_and_sglangs_length_flatters():
    never = acceptance([meta(7, 0, 8)])
    assert (never.per_verify, never.rate) == (0, 0)
    assert never.accept_length == pytest.approx(1.14, abs=0.005)  # with no draft accepted
    both = acceptance([meta(7, 0, 8), meta(1, 3, 5)])
    assert both == Acceptance(8, 24, 3, 13)
    assert both.per_verify == 3 / 8  # the mean of 0 and 3 would be 1.5
    assert both.rate == 1 / 8


def test_answers_without_a_verification_add_nothing():
    one_token = {"completion_tokens": 1}  # its token came from the prefill: SGLang says nothing of drafts
    none = acceptance([one_token, {"spec_verify_ct": 0, "completion_tokens": 9}])
    assert none == acceptance([]) == Acceptance()
    assert none.per_verify is none.rate is none.accept_length is None
    assert acceptance([meta(2, 1, 4), one_token]).tokens == 4


def test_finished_requests_from_several_files_without_their_prompts(tmp_path, monkeypatch):
    assert export_args(tmp_path)[-1] == str(tmp_path)
    assert finished(tmp_path) == []
    lines = [json.dumps({"id": i, "request_parameters": "[1, 2]"}) + "\n" for i in range(3)]
    (tmp_path / "sglang-request-metrics-20260101_10.log").write_text(lines[0])
    (tmp_path / "sglang-request-metrics-20260101_11.log").write_text(lines[1] + lines[2][:9])  # still being written
    assert finished(tmp_path, at_least=2) == [{"id": 0}, {"id": 1}]
    monkeypatch.setattr(module, "_WAIT_S", 0.1)
    with pytest.raises(Unavailable, match="has written 2 of 3 finished requests"):
        finished(tmp_path, at_least=3)

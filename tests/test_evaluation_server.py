"""The probe set's questions on the real SGLang server: the same twice, moved by a broken router, drafts beside them."""

import pytest

from g4lab import env
from g4lab.gemma4 import spec
from g4lab.gemma4.assistant import write_assistant
from g4lab.gemma4.checkpoint import ensure
from g4lab.quality.question_sets import probe
from g4lab.runners.quality_ab import quality_ab

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(env.has_gpu(), reason="token identity in fp32 is the CPU server's; a GPU's A/B is a notebook's"),
]


def test_a_wrong_router_shows_in_routing_and_drift_long_before_it_shows_in_accuracy(tmp_path):
    questions = probe().with_choices().subset(8)
    lines = []
    found = quality_ab(
        "tiny-moe", "default", "default,-router_scale", questions, by="logprobs", concurrency=4, prompt_lens=(8, 80),
        new_tokens=4, server={"device": "cpu"}, folder=tmp_path, progress=lines.append,
    )  # fmt: skip
    assert [line.split(":")[0] for line in lines if "starting" not in line] == ["a1", "b1", "b2", "a2"]
    assert list(found.runs) == ["a1", "a2", "b1", "b2"]
    assert found.silent == ()
    assert all(not run.errors and not run.unreadable for run in found.runs.values())
    agreement = found.agreement().set_index("pair")
    assert agreement.loc[["a1 a2", "b1 b2"], "same_answer"].tolist() == [1.0, 1.0]
    assert agreement.loc["a1 b1", "same_answer"] < 1
    noise, changed = found.drift.rows
    assert (noise.drift_max, noise.flips_pct) == (0.0, 0.0)
    assert {"drift", "KL", "routing"} <= set(changed.beyond)
    assert changed.flips_pct > 10
    assert changed.first_flip_layer == 0
    assert changed.patches == ("router_scale",)
    assert found.paired.n == 8
    frame = found.frame()
    assert frame["a1"].equals(frame["a2"])
    parts = found.decomposition()
    assert (parts.within_a, parts.within_b) == (0, 0)
    assert parts.between == (frame["a1"] != frame["b1"]).mean()
    assert "cannot be told from" in found.verdicts()[0]  # 8 questions prove nothing


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    return write_assistant(spec("tiny-moe"), ensure("tiny-moe"), tmp_path_factory.mktemp("draft") / "assistant")


# Without a draft the server runs torch_native: in fp32 its tokens are the Triton backend's (test_sglang_server.py).
def test_mtp_answers_with_the_same_tokens_and_its_drafts_are_counted(draft, tmp_path):
    questions = probe().with_choices().subset(2)
    found = quality_ab(
        "tiny-moe", "default", "default", questions, runs=1, max_new_tokens=6, prompt_lens=(),
        server={"device": "cpu"}, server_b={"draft": draft}, folder=tmp_path,
    )  # fmt: skip
    plain, drafted = found.runs["a1"], found.runs["b1"]
    assert [row.output_ids for row in plain.rows] == [row.output_ids for row in drafted.rows]
    assert found.agreement()["same_tokens"].tolist() == [1.0]
    assert plain.acceptance.verify_steps == 0
    drafts = drafted.acceptance
    assert drafts.verify_steps > 0
    assert drafts.drafted >= drafts.accepted > 0
    assert found.drift is None
    assert found.decomposition() is None

"""What the report shows: squares as the data say, gains only from records of a GPU, verdicts of the run at hand."""

import json

import pandas as pd
import pytest

from g4lab import records
from g4lab.claims import draw, draw_gains, load, run, tables
from g4lab.errors import BadInput

BOOK = load()


@pytest.mark.parametrize("by", ["room", "pull"])
def test_every_claim_is_a_square_of_its_state(by):
    found = draw.groups(BOOK, by)
    assert {claim.id for claims in found.values() for claim in claims} == {claim.id for claim in BOOK.claims}
    fig = draw.draw_claims(BOOK, by, "made for a test")
    for place, ax in enumerate(fig.axes):
        drawn = [patch.get_edgecolor() for patch in ax.patches]
        assert len(drawn) == sum(map(len, found.values()))
        from matplotlib.colors import to_rgba

        looks = [draw.looks(claim)[place] for claims in found.values() for claim in claims]
        assert drawn == [to_rgba(draw.LOOKS[state][1]) for state in looks]
    assert "made for a test" in fig._supxlabel.get_text()


def test_groups_are_of_two_kinds():
    with pytest.raises(BadInput, match="by: got 'kind', expected room or pull"):
        draw.groups(BOOK, "kind")


def test_a_room_s_table_has_every_command():
    for room in {claim.room for claim in BOOK.claims}:
        table = tables.room_table(BOOK, room)
        commands = [proof.command for claim in BOOK.claims if claim.room == room for proof in claim.proofs.values()]
        assert len(table.splitlines()) == 2 + len(commands)
        assert all(f"`{command}`" in table for command in commands)
    with pytest.raises(BadInput, match="room: got 'attic'"):
        tables.room_table(BOOK, "attic")


# Figures from here on are made up, to show how they are read; none was measured.


def record(a="default", b="default,router", ratio=1.03, gpus=({"name": "made up"},), name="serving.ab"):
    effect = {"metric": draw_gains.THROUGHPUT, "ratio": ratio, "low": 1.01, "high": 1.05, "aa_low": 0.99,
              "aa_high": 1.01, "verdict": "better"}  # fmt: skip
    made = records.new_record(name, {"effects": [effect]}, {"a": a, "b": b, "model": "26b-a4b"})
    return made.model_copy(update={"machine": {"gpus": list(gpus)}})


def test_gains_are_of_one_patch_on_a_gpu():
    of_two, of_a_cpu = record(b="default,router,qkv_norm"), record(gpus=())
    taken_out = record(a="none,spread_dummy", b="none,spread_dummy,router", ratio=0.98)
    own = record(b="default,residual_norm")  # nothing published stands beside it
    found = draw_gains.measured_gains([record(), of_two, of_a_cpu, taken_out, own, record(name="serving.ratio")])
    assert found["patch"].tolist() == ["router", "router"]
    assert found["gain"].tolist() == pytest.approx([3, -2])
    assert found[["low", "high", "aa_low", "aa_high"]].iloc[0].tolist() == pytest.approx([1, 5, -1, 1])
    assert list(draw_gains.measured_gains([]).columns) == list(found.columns)


def test_what_was_measured_stands_beside_what_was_published():
    def words(fig):
        return [text.get_text() for text in fig.axes[0].texts]

    nothing = words(draw_gains.draw_beside(draw_gains.measured_gains([])))
    assert nothing.count("not measured here yet") == len(draw_gains.PATCH_OF)
    assert any(text.startswith("+5.6 %") for text in nothing)
    one = words(draw_gains.draw_beside(draw_gains.measured_gains([record()])))
    assert one.count("not measured here yet") == len(draw_gains.PATCH_OF) - 1
    assert "+3.0 %  26b-a4b · made up" in one


def test_steps_follow_each_other():
    steps = pd.DataFrame(
        [("x", "one", 60, ["a"]), ("y", "two", 120, []), ("z", "two", 60, ["a", "b", "c"])],
        columns=["step", "stage", "seconds", "claims"],
    )
    (ax,) = draw.draw_steps(steps, 90, "made up").axes
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 1), (1, 2), (3, 1)]
    assert [text.get_text() for text in ax.texts] == ["1.0 min  a", "2.0 min  ", "1.0 min  3 claims"]


def test_verdicts_of_the_run_at_hand(tmp_path, monkeypatch):
    def notebook(*lines):
        return json.dumps({"cells": [{"cell_type": "code", "outputs": [{"text": [line + "\n" for line in lines]}]}]})

    monkeypatch.delenv("G4LAB_RECORDS", raising=False)
    committed = run.verdicts()
    assert set(committed["of"]) == {"committed"}
    assert run.REPORT not in set(committed["notebook"])
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/10_router.ipynb").write_text(notebook("Verdict: yes", "no verdict", "  Verdict: two: parts"))
    (tmp_path / "notebooks/20_kv_pool.ipynb").write_text('{"cells": [')
    (tmp_path / f"notebooks/{run.REPORT}.ipynb").write_text(notebook("Verdict: about itself"))
    monkeypatch.setenv("G4LAB_RECORDS", str(tmp_path / "records"))
    found = run.verdicts()
    ours = found[found["of"] == "this run"]
    assert ours[["notebook", "verdict"]].to_numpy().tolist() == [["10_router", "yes"], ["10_router", "two: parts"]]
    others = committed[~committed["notebook"].isin(["10_router", "20_kv_pool"])]
    assert found[found["of"] == "committed"].to_numpy().tolist() == others.to_numpy().tolist()
    before = run.found_records()["lines"].sum()
    records.append(records.new_record("made.up", {"v": 1}))
    listed = run.found_records()
    assert listed["lines"].sum() == before + 1
    assert listed.set_index("record").loc["made.up", "kind"] == "live"

"""Claims: none without a kind or a command, none about a chip without a record of one, and README as the data say."""

import re
from pathlib import Path

import pytest
import yaml

from g4lab import cli, env
from g4lab.claims import load
from g4lab.claims.run import REPORT
from g4lab.claims.tables import claims_frame, features_frame, markdown, rewrite, settled_by
from g4lab.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent
BOOK = load()
PROOFS = [(claim, place, proof) for claim in BOOK.claims for place, proof in claim.proofs.items()]


def test_steps_are_the_campaigns():
    from g4lab.campaign import load_table

    known = {step.name for step in load_table().steps}
    assert set(settled_by(BOOK)) - {""} <= known
    assert sum(map(len, settled_by(BOOK).values())) >= sum(proof.state == "not measured" for _, _, proof in PROOFS)


def test_no_claim_for_a_gpu_is_proven_without_a_record_of_one():
    """A chip decides only what a record of a machine with a GPU shows."""
    recorded = {path.stem for path in (env.data_dir() / "records").glob("*/*.jsonl") if "cpu" not in path.parent.name}
    for claim, place, proof in PROOFS:
        if place == "GPU" and proof.state != "not measured":
            assert claim.record in recorded, claim.id


@pytest.mark.parametrize(
    "claim", [claim for claim in BOOK.claims if claim.kind == "published"], ids=lambda claim: claim.id
)
def test_percentages_of_published_claims_are_their_tables(claim):
    """Every percentage is one value over another of the same case, condition and metric."""
    rows = claim.published.frame()
    ratios = {
        f"{100 * (after / before - 1):+.{digits}f} %"
        for _, same in rows.groupby(["case", "condition", "metric", "hardware"])
        for before in same["value"]
        for after in same["value"]
        if before
        for digits in (0, 1)
    }
    said = re.findall(r"[+-]\d+(?:\.\d+)? %", claim.claim)
    assert set(said) <= ratios
    assert said or not claim.id.endswith("-published") or claim.id == "pools-published"


def test_what_is_recorded_of_roundings_is_what_the_records_say():
    from g4lab import records
    from g4lab.quality.bisection import Bisection

    found = [
        r for r in records.read(env.data_dir() / "records").records if r.name == "bisect" and not r.machine["gpus"]
    ]
    beyond = {}
    for record in found:
        back = Bisection.from_record(record.values, record.parameters)
        (row,) = [row for row in back.rows if row.name == "router_norm"]
        rounding = record.parameters["variables"].get("G4LAB_ROUTER_NORM_ROUNDING", "transformers")
        beyond[rounding] = (bool(row.beyond), row.drift_max, row.positions)
        assert record.parameters["dtype"] == "bfloat16"
    assert beyond["transformers"][0]
    assert beyond["sglang"] == (False, 0, 326)


def test_no_text_was_cut_where_yaml_saw_a_comment():
    texts = [text for claim in BOOK.claims for text in (claim.claim, claim.peer)]
    texts += [proof.how for _, _, proof in PROOFS] + [t for f in BOOK.features for t in (f.did, f.has, f.gap)]
    assert not [text for text in texts if re.search(r"\b(PR|issue)$", text)]


def test_every_pull_request_of_the_published_tables_has_its_features():
    from g4lab.published import sources

    assert {feature.pull for feature in BOOK.features} == set(sources()["pr"]) | {"own"}


def test_every_patch_and_notebook_belongs_to_a_feature():
    from g4lab.patches import REGISTRY

    assert {name for feature in BOOK.features for name in feature.patches} == set(REGISTRY)
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - {REPORT}
    assert {name for feature in BOOK.features for name in feature.notebooks} == notebooks


def test_the_report_comes_after_every_other_notebook():
    import nbformat

    found = nbformat.read(ROOT / f"notebooks/{REPORT}.ipynb", as_version=4).metadata["g4lab"]["after"]
    assert set(found) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - {REPORT}


def test_frames_have_a_row_for_everything():
    frame = claims_frame()
    assert len(frame) == len(PROOFS)
    assert set(frame["id"]) == {claim.id for claim in BOOK.claims}
    assert (frame[["claim", "kind", "command", "interval", "peer", "pulls", "state"]] != "").all(axis=None)
    assert (frame.loc[frame["state"] == "not measured", "interval"] == "not measured yet").all()
    assert len(features_frame()) == len(BOOK.features)


def test_readme_is_as_the_data_say():
    text = (ROOT / "README.md").read_text()
    assert rewrite(text) == text, "run `g4lab claims readme`"


@pytest.mark.parametrize("text", ["", "<!-- claims:end --><!-- claims:begin -->", "<!-- claims:begin -->"])
def test_markers_that_are_not_there(text):
    with pytest.raises(BadInput, match="once in the text"):
        rewrite(text)


def test_markdown_cells_keep_their_column():
    assert markdown(["a", "b"], [["x | y", "two\nlines"]]).splitlines()[2] == r"| x \| y | two lines |"


GOOD = {"id": "x", "room": "r", "claim": "c", "kind": "live", "peer": "p", "gpu": "the same",
        "cpu": {"state": "proven", "how": "h", "interval": "exact", "command": "pytest tests/test_claims.py",
                "evidence": ["tests/test_claims.py::test_x"]}}  # fmt: skip
FEATURE = {"pull": "own", "has": "h", "claims": ["x"]}


def written(folder, claims, features=(FEATURE,)):
    (folder / "claims.yaml").write_text(yaml.safe_dump(list(claims)))
    (folder / "features.yaml").write_text(yaml.safe_dump(list(features)))
    return folder


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (without("kind"), "claims.yaml: 1, x: kind: Field required"),
        (GOOD | {"kind": "guessed"}, "kind: Input should be 'live', 'recorded' or 'published'"),
        (without("gpu"), "gpu: Field required"),
        (without("cpu"), "no command"),
        (GOOD | {"cpu": {k: v for k, v in GOOD["cpu"].items() if k != "command"}}, "cpu.command: Field required"),
        (GOOD | {"cpu": GOOD["cpu"] | {"interval": ""}}, "cpu: what is proven needs interval"),
        (GOOD | {"cpu": GOOD["cpu"] | {"state": "not measured"}}, "cpu: interval: what is not measured has none"),
        (GOOD | {"kind": "recorded"}, "a recorded claim names its record"),
        (GOOD | {"kind": "recorded", "record": "nowhere"}, "'nowhere' is not in data/records"),
        (GOOD | {"kind": "published"}, "a published claim names its table"),
        (GOOD | {"kind": "published", "published": {"table": "nope"}}, "table 'nope', expected one of"),
        (GOOD | {"kind": "published", "published": {"table": "swa_ratio", "case": "z"}}, "no row of swa_ratio"),
        (GOOD | {"typo": 1}, "typo: Extra inputs are not permitted"),
    ],
)
def test_a_claim_that_is_none(tmp_path, claim, reason):
    with pytest.raises(BadInput, match=re.escape(reason)):
        load(written(tmp_path, [claim]))


@pytest.mark.parametrize(
    ("claims", "features", "reason"),
    [
        ([GOOD, GOOD], [FEATURE], "claim twice: x"),
        ([GOOD], [FEATURE | {"claims": ["x", "y"]}], "claim of a feature, but no claim: y"),
        ([GOOD, GOOD | {"id": "y"}], [FEATURE], "claim of no feature: y"),
        ([GOOD], [FEATURE | {"patches": ["nope"]}], "features.yaml: 1, own: no such patch, kernel or notebook: nope"),
        ([GOOD], [FEATURE | {"claims": []}], "a feature has claims"),
        ([GOOD], [FEATURE | {"did": "something"}], "what is our own has none"),
        ([GOOD], [FEATURE | {"pull": "somebody#1"}], "pull: String should match"),
    ],
)
def test_a_book_that_does_not_fit(tmp_path, claims, features, reason):
    with pytest.raises(BadInput, match=re.escape(reason)):
        load(written(tmp_path, claims, features))


@pytest.mark.parametrize("text", ["", "a: 1", "[1]", "{"])
def test_files_that_are_no_list(tmp_path, text):
    written(tmp_path, [GOOD])
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"claims\.yaml"):
        load(tmp_path)


def test_the_commands(capsys):
    assert cli.run(["claims", "list", "--of", "router-bits", "--state", "not measured"]) == 0
    out = capsys.readouterr().out
    assert "1 claims" in out
    assert cli.run(["claims", "list", "--state", "nearly"]) == 2
    assert "--state: got 'nearly'" in capsys.readouterr().err
    assert cli.run(["claims", "readme", "--check"]) == 0


def test_a_readme_that_differs_is_said(capsys, monkeypatch, tmp_path):
    text = (ROOT / "README.md").read_text().replace("<!-- claims:begin -->", "<!-- claims:begin -->\nwritten over", 1)
    (tmp_path / "README.md").write_text(text)
    monkeypatch.setattr("g4lab.claims.tables.load", lambda: BOOK)
    monkeypatch.setattr(env, "data_dir", lambda: tmp_path / "data")
    assert cli.run(["claims", "readme", "--check"]) == 1
    assert "run `g4lab claims readme`" in capsys.readouterr().err
    assert cli.run(["claims", "readme"]) == 0
    assert "written over" not in (tmp_path / "README.md").read_text()

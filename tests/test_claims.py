"""Claims: none without a kind or a command, every command one that can be given, and README as the data say."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from g4lab import cli, env
from g4lab.claims import load
from g4lab.claims.model import State
from g4lab.claims.run import REPORT
from g4lab.claims.tables import claims_frame, features_frame, markdown, rewrite, settled_by
from g4lab.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent
BOOK = load()
PROOFS = [(claim, place, proof) for claim in BOOK.claims for place, proof in claim.proofs.items()]
BY_ID = pytest.mark.parametrize("claim", BOOK.claims, ids=lambda claim: claim.id)


def nodes_of(path: Path) -> set[str]:
    """Names below the file as pytest writes them: "test_x", "TestY", "TestY::test_z"."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found |= {node.name, *(f"{node.name}::{f.name}" for f in node.body if isinstance(f, ast.FunctionDef))}
    return found


def check_evidence(text: str) -> None:
    name, _, node = text.partition("::")
    path = ROOT / name
    assert path.is_file(), text
    assert path.suffix == ".ipynb" or node in nodes_of(path), text


def check_command(command: str) -> None:
    """The command names what there is: tests and markers, a command of g4lab with its options, a target of make."""
    program, *arguments = shlex.split(command)
    {"pytest": check_pytest, "g4lab": check_g4lab, "make": check_make}[program](arguments)


def check_pytest(arguments: list[str]) -> None:
    words = iter(arguments)
    files = []
    for word in words:
        if word == "-m":
            assert next(words) in {"gpu", "server"}
        else:
            files.append(word)
    assert files
    for file in files:
        name, _, node = file.partition("::")
        found = nodes_of(ROOT / name)
        assert node in found if node else found, file


def check_g4lab(arguments: list[str]) -> None:
    """Typer parses it; nothing runs."""
    command = typer.main.get_command(cli.app)
    context = command.make_context("g4lab", list(arguments))
    rest = list(arguments)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, rest)
        assert command is not None, name
        context = command.make_context(name, list(rest), parent=context)


def check_make(arguments: list[str]) -> None:
    (target,) = arguments
    notebook = re.fullmatch(r"nbval/(\w+)", target)
    if notebook:
        assert (ROOT / f"notebooks/{notebook[1]}.ipynb").is_file(), target
    else:
        assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def kernel_tests() -> list[str]:
    """What `make old` runs."""
    listed = re.search(r"^KERNEL_TESTS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return listed[1].replace("\\\n", " ").split()


@pytest.mark.parametrize(
    "command", sorted({proof.command for _, _, proof in PROOFS} | {c for f in BOOK.features for c in f.commands})
)
def test_every_command_can_be_given(command):
    words = command.split()
    shown_bare = {
        "g4lab ab",
        "g4lab bisect",
        "g4lab quality ab",
        "g4lab plan",
        "g4lab kv inspect",
        "g4lab serve",
        "g4lab bundle",
    }
    check_command(f"{command} x" if command in shown_bare else command)
    assert words[0] in {"pytest", "g4lab", "make"}


@pytest.mark.parametrize(
    "command",
    ["g4lab nope", "g4lab ab --no-such-option 26b-a4b", "g4lab bench nope", "make nope", "make nbval/99_nope",
     "pytest tests/test_router.py::test_nope", "pytest", "pytest -m slow tests/test_router.py", "rm -r x"],
)  # fmt: skip
def test_a_command_that_cannot_be_given_is_found(command):
    with pytest.raises((AssertionError, KeyError, typer.TyperException)):
        check_command(command)


@BY_ID
def test_evidence_is_there_and_the_command_runs_it(claim):
    for place, proof in claim.proofs.items():
        for text in proof.evidence:
            check_evidence(text)
        assert proof.command
        assert proof.state in State.__args__
        if place == "CPU":
            files = {word.partition("::")[0] for word in proof.command.split() if word.startswith("tests/")}
            shown = {text.partition("::")[0] for text in proof.evidence}
            files |= {f"notebooks/{name}.ipynb" for name in re.findall(r"nbval/(\w+)", proof.command)}
            if proof.command == "make old":
                files |= {f"tests/test_{name}.py" for name in kernel_tests()}
            own = proof.command.startswith("g4lab ")  # the command is what the evidence tests
            assert own or files & shown, "the command runs none of the evidence"


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

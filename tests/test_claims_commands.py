"""Every command and every piece of evidence that a claim names is there: parsed and looked up, never run."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

from g4lab import cli
from g4lab.claims import load
from g4lab.claims.model import State

ROOT = Path(__file__).resolve().parent.parent
BOOK = load()
COMMANDS = {proof.command for claim in BOOK.claims for proof in claim.proofs.values()}


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


def check_g4lab(arguments: list[str], whole: bool = True) -> None:
    """Typer parses it and nothing runs. whole: required arguments have to be there, too."""
    name, command, rest, context = "g4lab", typer.main.get_command(cli.app), list(arguments), None
    while True:
        context = command.make_context(name, list(rest), parent=context, resilient_parsing=not whole)
        if not hasattr(command, "resolve_command"):
            return
        name, command, rest = command.resolve_command(context, rest)
        assert command is not None, name


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


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_can_be_given(command):
    check_command(command)


@pytest.mark.parametrize("command", sorted({command for feature in BOOK.features for command in feature.commands}))
def test_every_feature_s_command_is_there(command):
    program, *words = command.split()
    assert program == "g4lab"
    check_g4lab(words, whole=False)


@pytest.mark.parametrize(
    "command",
    ["g4lab nope", "g4lab ab --no-such-option 26b-a4b", "g4lab bench nope", "make nope", "make nbval/99_nope",
     "pytest tests/test_router.py::test_nope", "pytest", "g4lab ab", "pytest -m slow tests/test_router.py", "rm -r x"],
)  # fmt: skip
def test_a_command_that_cannot_be_given_is_found(command):
    with pytest.raises((AssertionError, KeyError, typer.TyperException)):
        check_command(command)


@pytest.mark.parametrize("claim", BOOK.claims, ids=lambda claim: claim.id)
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

"""What of a step's command can be checked without running it: options, patches, scenario, notebooks, SGLang's flags.

A dry run does this for the real command of every step, so that the first minute on a GPU is not spent on a typo.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import typer.core

from g4lab.campaign.steps import Step
from g4lab.errors import G4LabError
from g4lab.gemma4 import NAMES

_FLAGS_S = 300


def check(root: typer.core.TyperGroup, steps: Sequence[Step], folder: Path) -> dict[str, str]:
    """The first fault of each step's real command by the step's name; an empty text where none is found.

    Args:
        root: the command line that "g4lab" stands for.
    """
    faults, flags = {}, {}
    for step in steps:
        argv = step.argv(folder)
        try:
            parsed = _parsed(root, argv[1:]) if argv[0] == "g4lab" else {}
            _values(parsed)
            faults[step.name] = "" if argv[0] == "g4lab" else _python(argv[1:])
            flags[step.name] = list(_sglang_flags(parsed))
        except (G4LabError, typer.TyperException) as error:
            said = error.format_message() if isinstance(error, typer.TyperException) else str(error)
            faults[step.name] = " ".join(said.split())
    wanted = [list(each) for each in {tuple(each) for all_of in flags.values() for each in all_of}]
    found = dict(zip(map(tuple, wanted), refused_by_sglang(wanted), strict=True))
    for name, all_of in flags.items():
        faults[name] = faults[name] or next(filter(None, (found[tuple(each)] for each in all_of)), "")
    return faults


def _parsed(root: typer.core.TyperGroup, words: list[str]) -> dict:
    """The options of the command that `words` call, as it would get them. Raises as the command line does."""
    name, command, context = "g4lab", root, None
    while hasattr(command, "resolve_command"):  # a group; none has options of its own
        context = command.make_context(name, list(words), parent=context)
        name, command, words = command.resolve_command(context, list(words))
    return command.make_context(name, list(words), parent=context).params


def _values(parsed: Mapping) -> None:
    """Raises BadInput for a value that the command would refuse as soon as it ran."""
    for name, of in _CHECKS.items():
        if parsed.get(name) is not None:
            of(parsed[name])


def _patches(text: str) -> None:
    from g4lab.patches import parse

    parse(text)


def _scenario(name: str) -> None:
    from g4lab.runners.scenarios import scenario

    scenario(name)


def _model(name: str) -> None:
    from g4lab.errors import bad

    if name not in NAMES and not Path(name).is_dir():
        raise bad("model", name, f"a folder, or one of {', '.join(NAMES)}")


def _profile(name: str) -> None:
    from g4lab.batch import notebooks
    from g4lab.profiles import load_profile

    notebooks.parameters_for(notebooks.find(), load_profile(name).parameters, {})


def _shapes(names: Sequence[str]) -> None:
    from g4lab.tuning.extend_shapes import select

    select(names)


# By the name of a command's parameter; what only one command has needs no more than its name.
_CHECKS: dict[str, Callable] = {
    "a": _patches, "b": _patches, "patches": _patches, "scenario": _scenario, "model": _model, "profile": _profile,
    "shapes": _shapes, "candidates": lambda text: [_patches(each) for each in text.split("|")],
}  # fmt: skip


def _sglang_flags(parsed: Mapping) -> Iterator[tuple[str, ...]]:
    """Every list of flags that a command hands to SGLang."""
    import shlex

    common = tuple(parsed.get("args") or ())
    sides = [tuple(shlex.split(parsed.get(side) or "")) for side in ("args_a", "args_b")]
    yield from {(*common, *side) for side in sides} - {()}


def _python(words: list[str]) -> str:
    if words[:1] == ["-m"] and len(words) > 1:
        import importlib.util

        return "" if importlib.util.find_spec(words[1]) else f"no module named {words[1]}"
    return "" if words and Path(words[0]).is_file() else f"no script {' '.join(words[:1])}"


def refused_by_sglang(lists: Sequence[Sequence[str]]) -> list[str]:
    """What the installed SGLang says against each list of flags, by its own parser; empty where it takes them."""
    from g4lab.runners.server_command import server_command

    if not lists:
        return []
    with tempfile.TemporaryDirectory() as folder:
        env = server_command("tiny-moe", "none", device="cpu", folder=Path(folder)).env
    import os

    done = subprocess.run(
        [sys.executable, "-c", _PARSE], input=json.dumps(lists), capture_output=True, text=True, timeout=_FLAGS_S,
        env={**os.environ, **env},
    )  # fmt: skip
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        return [f"SGLang's parser did not start: {why[0]}"] * len(lists)
    return json.loads(done.stdout.splitlines()[-1])


_PARSE = """
import argparse, contextlib, io, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
said = []
for flags in json.load(sys.stdin):
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            parser.parse_args(["--model-path", "model", *flags])
        said.append("")
    except SystemExit:
        said.append("SGLang: " + text.getvalue().strip().splitlines()[-1].split("error: ")[-1])
print(json.dumps(said))
"""

"""What of a step's command can be checked without running it: options, patches, scenario, notebooks, SGLang's flags.

A dry run does this for the real command of every step, so that the first minute on a GPU is not spent on a typo.
"""

import json
import os
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


def check(root: typer.core.TyperGroup, steps: Sequence[Step], folder: Path) -> tuple[dict[str, str], "SGLangFlags"]:
    """The first fault of each step's real command by the step's name, empty where none is found; and what SGLang is
    being asked meanwhile about the flags that commands hand to it.

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
    return faults, SGLangFlags(flags)


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


class SGLangFlags:
    """Asks the installed SGLang's own parser, in a process of its own, about lists of flags by the steps' names."""

    def __init__(self, flags: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._flags = flags
        self._lists = sorted({tuple(each) for all_of in flags.values() for each in all_of})
        if not self._lists:
            return
        from g4lab.runners.server_command import server_command

        with tempfile.TemporaryDirectory() as folder:
            variables = server_command("tiny-moe", "none", device="cpu", folder=Path(folder)).env
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  # read when the process has ended
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PARSE, json.dumps(self._lists)], stdin=subprocess.DEVNULL, stdout=self._out,
            stderr=subprocess.STDOUT, env={**os.environ, **variables},
        )  # fmt: skip

    def faults(self) -> dict[str, str]:
        """Waits for the answer: what SGLang says against a step's flags; steps that it takes are left out."""
        if not self._lists:
            return {}
        try:
            code = self._process.wait(_FLAGS_S)
        finally:
            self._process.kill()
        self._out.seek(0)
        last = (self._out.read().decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        if code:
            said = dict.fromkeys(self._lists, f"SGLang's parser did not start: {last}")
        else:
            said = dict(zip(self._lists, json.loads(last), strict=True))
        found = {name: [said[tuple(each)] for each in all_of] for name, all_of in self._flags.items()}
        return {name: next(filter(None, each)) for name, each in found.items() if any(each)}


_PARSE = """
import argparse, contextlib, io, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
said = []
for flags in json.loads(sys.argv[1]):
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            parser.parse_args(["--model-path", "model", *flags])
        said.append("")
    except SystemExit:
        said.append("SGLang: " + text.getvalue().strip().splitlines()[-1].split("error: ")[-1])
print(json.dumps(said))
"""

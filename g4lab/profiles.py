"""Profiles: which parameters and environment the notebooks run with on a kind of machine, as checked YAML files."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from g4lab import env
from g4lab.errors import BadInput, bad


class Profile(BaseModel):
    """One profile file. `parameters` maps a notebook's name to the parameters that differ from its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    machine: str = Field(min_length=1, description="what the profile is meant for, in words")
    jobs: PositiveInt = Field(default=1, description="notebooks that may run side by side")
    cell_timeout_s: PositiveInt = 600
    notebook_timeout_s: PositiveInt = 1800
    env: dict[str, str] = {}
    parameters: dict[str, dict[str, Any]] = {}


def load_profile(which: str = "auto") -> Profile:
    """The profile of that name in notebooks/profiles/, or of that file; "auto" is h200 where there is a GPU, else cpu.

    Raises:
        BadInput: no such profile, not YAML, or not the schema: names the file and the first fault.
    """
    if which == "auto":
        which = "h200" if env.has_gpu() else "cpu"
    path = Path(which)
    if path.suffix not in (".yaml", ".yml"):
        folder = env.checkout("notebooks") / "profiles"
        path = folder / f"{which}.yaml"
        if not path.exists():
            raise bad(
                "profile", which, "auto, " + ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) + " or a file"
            )
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"profile {path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadInput(f"profile {path}: expected a mapping with name, machine and parameters")
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"profile {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts as a dict; values are YAML, so "[1, 2]" is a list, "3" an int and "1e-3" or "inf" a float."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise bad("-p", text, "name=value")
        try:
            typed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise bad("-p", text, "a value that is YAML") from None
        if isinstance(typed, str):  # YAML 1.1 takes 1e-3 and inf for text
            with contextlib.suppress(ValueError):
                typed = float(typed)
        found[name.strip()] = typed
    return found

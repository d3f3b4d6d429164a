"""The state of a batch run on disk: which notebook is done with which content and parameters, so that it can resume."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from g4lab import env
from g4lab.errors import BadInput, bad
from g4lab.profiles import Profile

FILE = "state.json"


class Entry(BaseModel):
    """One notebook of a run. `key` is what a finished result stands for: notebook content, parameters, environment."""

    model_config = ConfigDict(extra="forbid")

    path: Path
    key: str
    parameters: dict[str, Any]
    state: Literal["waiting", "running", "done", "failed", "stopped"] = "waiting"
    seconds: float | None = None
    cell: str | None = None
    error: str | None = None


class RunState(BaseModel):
    """A run: its folder holds state.json, notebooks/, html/, logs/, records/ and report.html."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    started: AwareDatetime
    profile: Profile
    given: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str | None]
    commit: str | None
    dirty: bool
    notebooks: dict[str, Entry]

    def save(self, folder: Path) -> None:
        """Write state.json whole, so that a kill at any moment leaves a state that can be read."""
        env.atomic_write(folder / FILE, self.model_dump_json(indent=1) + "\n")


def new_state(profile: Profile, given: Mapping[str, Any], entries: Mapping[str, Entry]) -> RunState:
    """The state of a run that starts now on this machine."""
    commit, dirty = env.commit()
    return RunState(
        started=datetime.now(UTC),
        profile=profile,
        given=dict(given),
        machine=env.machine(),
        versions=env.versions(),
        commit=commit,
        dirty=dirty,
        notebooks=dict(entries),
    )


def load_state(folder: Path) -> RunState:
    """The state of the run in `folder`. Raises BadInput where there is none that can be read."""
    try:
        return RunState.model_validate_json((folder / FILE).read_bytes())
    except FileNotFoundError:
        raise bad("run folder", str(folder), f"a folder of `g4lab run` with {FILE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{folder / FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def newest_run(runs: Path) -> Path:
    """The newest run folder below `runs`; folders are named by their UTC start. Raises BadInput where there is none."""
    found = sorted(path.parent for path in runs.glob(f"*/{FILE}"))
    if not found:
        raise bad("run folder", str(runs), "at least one run below it")
    return found[-1]


def key_of(sha: str, parameters: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """What makes a finished notebook's result still valid: SHA-256 over its content, parameters and environment."""
    text = json.dumps([sha, parameters, dict(environment)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()

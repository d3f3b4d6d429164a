"""The state of a campaign on disk: which step is done, with which command, so that it can go on after a kill."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from g4lab import env
from g4lab.campaign.steps import Table
from g4lab.errors import BadInput, bad

FILE = "state.json"

# left out: no budget. skipped: the machine lacks something. stopped: time limit, interrupt or kill. blocked: it comes
# after a step that failed.
How = Literal["waiting", "running", "done", "failed", "stopped", "skipped", "blocked", "left out"]


class StepRun(BaseModel):
    """One step: how it is, its attempts so far, seconds of the last, and a line: the result, or the reason."""

    model_config = ConfigDict(extra="forbid")

    command: str
    state: How = "waiting"
    attempts: int = 0
    seconds: float | None = None
    line: str = ""


class CampaignState(BaseModel):
    """A campaign: its folder holds state.json, steps/NAME/ATTEMPT/ (log, records, files), records/ and summary.md."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    started: AwareDatetime
    dry_run: bool = False
    table: Table
    only: list[str]
    records: Path | None = None
    machine: dict[str, Any]
    versions: dict[str, str | None]
    commit: str | None
    dirty: bool
    steps: dict[str, StepRun]

    def save(self, folder: Path) -> None:
        """Write state.json whole, so that a kill at any moment leaves a state that can be read."""
        env.atomic_write(folder / FILE, self.model_dump_json(indent=1) + "\n")


def new_state(table: Table, only: list[str], records: Path | None = None, dry_run: bool = False) -> CampaignState:
    """The state of a campaign that starts now on this machine. only: names of the steps to run."""
    commit, dirty = env.commit()
    return CampaignState(
        started=datetime.now(UTC),
        dry_run=dry_run,
        table=table,
        only=only,
        records=records.absolute() if records else None,
        machine=env.machine(),
        versions=env.versions(),
        commit=commit,
        dirty=dirty,
        steps={step.name: StepRun(command=step.command) for step in table.steps if step.name in only},
    )


def load_state(folder: Path) -> CampaignState:
    """The state of the campaign in `folder`. Raises BadInput where there is none that can be read."""
    try:
        return CampaignState.model_validate_json((folder / FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise bad("campaign folder", str(folder), f"a folder of `g4lab campaign` with {FILE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{folder / FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

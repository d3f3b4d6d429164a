"""Runs a campaign: each step in a process of its own, within the budget, with the state on disk after each.

What a step records goes to its attempt's own folder, and from there to the campaign's records once the step is done:
the records of a step that failed or was stopped never leave its attempt.
"""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

from g4lab import children, records
from g4lab.batch.scheduler import only_one
from g4lab.campaign import steps as of_steps
from g4lab.campaign.planner import plan
from g4lab.campaign.state import CampaignState, StepRun, load_state
from g4lab.campaign.steps import Cost, Step
from g4lab.errors import bad

POLL_S = 0.1
LOG = "log.txt"
Say = Callable[[str], None]


def new_folder() -> Path:
    """runs/campaign-<UTC time>, which does not exist yet."""
    return records.runs_dir() / datetime.now(UTC).strftime("campaign-%Y%m%dT%H%M%S.%fZ")


def reopen(folder: Path) -> CampaignState:
    """The state to go on with: what is done stays done; what was running, failed, stopped or left out waits again.

    Raises:
        BadInput: no campaign in the folder, or a dry run's.
    """
    state = load_state(folder)
    if state.dry_run:
        raise bad("--resume", str(folder), "the folder of a campaign; this one holds a dry run")
    for run in state.steps.values():
        if run.state != "done":
            run.state, run.line = "waiting", ""
    return state


def run(
    state: CampaignState, folder: Path, budget_s: float = float("inf"), *, say: Say = lambda line: None,
    known: Collection[Path] = (),
) -> CampaignState:  # fmt: skip
    """Run what the budget holds; returns the state, in which every step says what became of it.

    Args:
        known: folders with records of earlier campaigns, whose durations replace estimates.

    Raises:
        BadInput: another process is running in this folder.
        KeyboardInterrupt: after the running step is stopped and the state is saved.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    steps = [step for step in state.table.steps if step.name in state.steps]
    costs = of_steps.costs(steps, [*known, _records(state, folder)])
    end = time.monotonic() + budget_s
    with only_one(folder, "g4lab campaign"):
        publish(state, folder)  # a kill may have come between the state and the records
        for step in steps:
            if state.steps[step.name].state == "waiting" and (lacking := step.lacking()):
                _close(state, step.name, "skipped", f"needs {lacking}")
        state.save(folder)
        while True:
            _block(state, steps)
            over = {name for name, each in state.steps.items() if each.state not in ("waiting", "done", "skipped")}
            done = {name for name, each in state.steps.items() if each.state in ("done", "skipped")}
            chosen = plan(steps, costs, end - time.monotonic(), done=done, refused=over)
            if not chosen.taken:
                break
            name = chosen.taken[0]
            step = next(step for step in steps if step.name == name)
            _run_step(state, folder, step, costs[name], end, say)
        for name, reason in chosen.left_out.items():
            _close(state, name, "left out", reason)
        state.save(folder)
    return state


def publish(state: CampaignState, folder: Path) -> None:
    """Copy the records of every step done, and the files beside them, to the campaign's; what is there stays."""
    to = _records(state, folder)
    known = {record.id for record in records.read(to).records} if to.is_dir() else set()
    for name, step in state.steps.items():
        if step.state != "done":
            continue
        made = attempt_folder(folder, name, step.attempts) / "records"
        for record in records.read(made).records if made.is_dir() else ():
            if record.id not in known:
                records.append(record, to / f"{record.name}.jsonl")
        for file in made.rglob("*"):
            if file.is_file() and file.suffix != ".jsonl" and not (to / file.name).exists():
                to.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to / file.name)


def attempt_folder(folder: Path, name: str, attempt: int) -> Path:
    """Where an attempt (from 1) of a step keeps its log, its records and its files."""
    return folder / "steps" / name / str(attempt)


def _records(state: CampaignState, folder: Path) -> Path:
    return state.records or folder / "records"


def process_command(argv: list[str]) -> list[str]:
    """The command of a child process for a step's words: this Python, whatever the path holds."""
    return [sys.executable, *(("-m", "g4lab") if argv[0] == "g4lab" else ()), *argv[1:]]


def result_line(step: Step, log: Path) -> str:
    """The step's result in a line, from its log."""
    lines = [line.strip() for line in children.last_lines(log, 100_000).splitlines()]
    found = [line for line in lines if step.headline and re.search(step.headline, line)]
    return (found or lines)[-1][:300]


def _run_step(state: CampaignState, folder: Path, step: Step, cost: Cost, end: float, say: Say) -> None:
    entry = state.steps[step.name]
    entry.state, entry.attempts, entry.line = "running", entry.attempts + 1, ""
    mine = attempt_folder(folder, step.name, entry.attempts)
    shutil.rmtree(mine, ignore_errors=True)  # of an attempt that was killed before its number was saved
    mine.mkdir(parents=True)
    state.save(folder)
    say(f"{step.name}: running, about {cost.seconds:.0f} s ({cost.source}); log {mine / LOG}")
    started, most = time.monotonic(), min(of_steps.limit(cost), end - time.monotonic())
    process = children.start(
        process_command(step.argv(mine)), log=mine / LOG, env={"G4LAB_RECORDS": str(mine / "records")}
    )
    late = False
    try:
        while process.poll() is None and not late:
            time.sleep(POLL_S)
            late = time.monotonic() - started > most
        if late:
            children.stop(process, first=signal.SIGINT)
    except BaseException:
        children.stop(process, first=signal.SIGINT)
        _close(state, step.name, "stopped", "interrupted", started)
        state.save(folder)
        raise
    children.stop(process)  # nothing that it started may hold the GPU's memory
    if late:
        _close(state, step.name, "stopped", f"ran longer than {most:.0f} s", started)
    elif process.returncode:
        _close(state, step.name, "failed", _why(process, mine / LOG), started)
    elif missing := _not_left(step, mine / "records"):
        _close(state, step.name, "failed", f"ended well, but left no record of {missing}", started)
    else:
        _close(state, step.name, "done", result_line(step, mine / LOG), started)
        records.append(of_steps.duration(step, entry.seconds), mine / "records" / f"{of_steps.DURATION}.jsonl")
    state.save(folder)  # before the records are published: a step done whose records are missing gets them at resume
    publish(state, folder)
    say(f"{step.name}: {entry.state} in {entry.seconds:.1f} s: {entry.line}")


def _why(process: subprocess.Popen, log: Path) -> str:
    last = children.last_lines(log, 1)
    if process.returncode < 0:
        return f"killed by signal {-process.returncode}: {last}"
    lines = children.last_lines(log, 30).splitlines()
    ours = [line for line in lines if line.startswith("g4lab: ")]
    return (ours[-1] if ours else last)[:300]


def _not_left(step: Step, made: Path) -> str:
    """Names of the records that the step should have left and has not."""
    names = {record.name for record in records.read(made).records} if made.is_dir() else set()
    return ", ".join(each.replace("|", " or ") for each in step.leaves if not names & set(each.split("|")))


def _block(state: CampaignState, steps: list[Step]) -> None:
    """What comes after a step that did not succeed does not run: its figures would mean nothing."""
    for step in steps:
        bad_ones = [n for n in step.after if n in state.steps and state.steps[n].state in _NOT_PROVEN]
        if state.steps[step.name].state == "waiting" and bad_ones:
            _close(state, step.name, "blocked", f"{', '.join(f'{n} {state.steps[n].state}' for n in bad_ones)}")


_NOT_PROVEN = ("failed", "stopped", "blocked")


def _close(state: CampaignState, name: str, how: str, line: str, started: float | None = None) -> None:
    entry: StepRun = state.steps[name]
    entry.state, entry.line = how, line
    entry.seconds = None if started is None else round(time.monotonic() - started, 2)

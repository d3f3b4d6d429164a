"""How a campaign ends: a short table of its steps, and the same with its figures as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from g4lab import env, records
from g4lab.campaign.runner import LOG, attempt_folder

if TYPE_CHECKING:
    from rich.table import Table

    from g4lab.campaign.state import CampaignState

FILE = "summary.md"
MAX_TRACE_MB = 3  # of those that are worth keeping beside records
_WITH_LOAD = ("profiles", "serving")  # stages whose figures are of random weights


def table(state: CampaignState) -> Table:
    """Step, state, seconds, and the result or the reason."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        "step", "state", "seconds", "result or reason", title="dry run: nothing measured" if state.dry_run else None
    )
    for name, step in state.steps.items():
        drawn.add_row(*map(Text, (name, step.state, _seconds(step.seconds), step.line)))
    return drawn


def counts(state: CampaignState) -> str:
    """ "12 done, 3 left out", in the order of the states."""
    found: dict[str, int] = {}
    for step in state.steps.values():
        found[step.state] = found.get(step.state, 0) + 1
    return ", ".join(f"{number} {how}" for how, number in found.items())


def write(state: CampaignState, folder: Path) -> Path:
    """summary.md in the campaign's folder: what ran, where, and what came of it. Nothing unfinished has a figure."""
    versions = ", ".join(f"{name} {version}" for name, version in state.versions.items() if version)
    gpus = [gpu["name"] for gpu in state.machine["gpus"]]
    what = "Dry run of campaign" if state.dry_run else "Campaign"
    lines = [
        f"# {what} {state.table.name}, {state.started:%Y-%m-%d %H:%M} UTC",
        "",
        f"{', '.join(gpus) or state.machine['cpu']}, driver {state.machine['driver'] or 'none'}; {versions}; commit "
        f"{(state.commit or 'unknown')[:12]}{' with changes' if state.dirty else ''}. {counts(state)}.",
        "",
    ]
    if state.dry_run:
        lines += ["Nothing was measured: twins of tiny size, to find faults in the commands.", ""]
    load = None if state.dry_run else _expert_load(state, folder)
    for stage in dict.fromkeys(step.stage for step in state.table.steps if step.name in state.steps):
        lines += [f"## {stage}", ""]
        if stage in _WITH_LOAD and not state.dry_run:
            lines += [f"Random weights. {load or 'Expert load not measured in this campaign.'}", ""]
        lines += ["| step | proves | state | s | result or reason |", "|---|---|---|--:|---|"]
        for step in (step for step in state.table.steps if step.stage == stage and step.name in state.steps):
            run = state.steps[step.name]
            cells = (step.name, step.proves, run.state, _seconds(run.seconds), run.line)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines += ["", *_traces(state, stage, folder)]
    lines += [f"Logs: steps/NAME/ATTEMPT/{LOG}. Records of steps that are not done stay in their attempt's folder.", ""]
    env.atomic_write(folder / FILE, "\n".join(lines))
    return folder / FILE


def _expert_load(state: CampaignState, folder: Path) -> str:
    step = state.steps.get("expert-load")
    if step is None or step.state != "done":
        return ""
    made = attempt_folder(folder, "expert-load", step.attempts) / "records" / "expert_load.jsonl"
    found = records.read(made).records if made.exists() else []
    rows = found[-1].values["sizes"] if found else []
    said = [f"{row['used_mean']:.0f} of {row['experts']} for {row['tokens']}" for row in rows]
    return f"Experts used in a step, mean over layers: {', '.join(said)} tokens." if said else ""


def _traces(state: CampaignState, stage: str, folder: Path) -> list[str]:
    """Each trace of the stage's finished steps, and whether it is small enough to keep."""
    lines = []
    for step in state.table.steps:
        run = state.steps.get(step.name)
        if step.stage != stage or run is None or run.state != "done":
            continue
        for file in sorted(attempt_folder(folder, step.name, run.attempts).rglob("*.trace.json.gz")):
            megabytes = file.stat().st_size / 1e6
            word = "small enough to keep" if megabytes < MAX_TRACE_MB else f"over {MAX_TRACE_MB} MB: not to keep"
            lines.append(f"- trace {file.relative_to(folder)}, {megabytes:.1f} MB: {word}")
    return [*lines, ""] if lines else []


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"

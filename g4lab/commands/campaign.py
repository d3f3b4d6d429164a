"""Measure everything worth measuring on this GPU."""

import contextlib
import functools
import os
import re
import signal
from pathlib import Path
from typing import Annotated

import typer

DRY_BUDGET = "90s"


def command(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help="A table of steps: h200, or a YAML file.")] = "h200",
    budget: Annotated[
        str | None,
        typer.Option(help="Time for all: 25m, 1h30m, 900s.", show_default=f"no limit; {DRY_BUDGET} for a dry run"),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this step, stage or pattern; may be given again.", show_default="all")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the campaign in this folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="The campaign's folder.", show_default="among the runs")] = None,
    records_dir: Annotated[
        Path | None, typer.Option("--records", help="Folder for the records of finished steps.", show_default="in OUT")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every command and run tiny twins, here; measures nothing.")
    ] = False,
) -> None:
    """Run the steps of a table in order of worth, as far as the budget goes, and checkpoint after each.

    Every step is a process of its own with its own time limit and log; correctness comes first, and what a failed proof
    stands under does not run. `--resume` goes on where a campaign ended, with a new budget, and repeats nothing that is
    done. Exit code 1 where a step failed.

    Examples:

    - `g4lab campaign --dry-run` (on any machine, before the first minute on a GPU)
    - `g4lab campaign --profile h200 --budget 25m --records data/records/h200-2026-11-21`
    - `g4lab campaign --only correctness --only "bench-*" --budget 10m`
    - `g4lab campaign --resume runs/campaign-20261121T090000Z --budget 9m`
    """
    import sys

    from rich.console import Console

    from g4lab import campaign, env
    from g4lab.campaign import dry, summary
    from g4lab.campaign.state import new_state
    from g4lab.errors import Unavailable, bad

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    if dry_run:  # on a GPU machine, too: tiny twins are for the interpreter and the CPU's server
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    limit = _seconds(budget or (DRY_BUDGET if dry_run else None))
    if resume:
        if only or out or dry_run or records_dir:
            raise bad("--resume", str(resume), "nothing beside --budget")
        folder, state = resume, campaign.reopen(resume)
    else:
        table = campaign.load_table(profile)
        folder = out or campaign.new_folder()
        if (folder / "state.json").exists():
            raise bad("--out", str(folder), "a new folder, or --resume to go on with the campaign in it")
        state = new_state(table, campaign.select(table, only or ()), records_dir, dry_run)
        state.save(folder)
    say = functools.partial(print, flush=True)
    say(f"{len(state.steps)} steps into {folder}" + (f", {limit:.0f} s" if limit != float("inf") else ""))

    def show() -> None:
        Console(width=None if sys.stdout.isatty() else 160).print(summary.table(state))
        say(f"{summary.counts(state)}; summary in {summary.write(state, folder)}")

    try:
        if dry_run:
            dry.walk(state, folder, limit, context.find_root().command, say=say)
        else:
            known = []
            with contextlib.suppress(Unavailable):  # installed without a checkout, there are no earlier records
                known = [env.data_dir() / "records"]
            campaign.run(state, folder, limit, say=say, known=known)
    except KeyboardInterrupt:
        show()
        raise
    show()
    if any(step.state in ("failed", "stopped", "blocked") for step in state.steps.values()):
        raise typer.Exit(1)


def _seconds(text: str | None) -> float:
    """ "25m" -> 1500.0, "1h30m" -> 5400.0; None is no limit."""
    from g4lab.errors import bad

    if text is None:
        return float("inf")
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    total = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    if not total:
        raise bad("--budget", text, "a time such as 25m, 1h30m or 900s")
    return float(total)

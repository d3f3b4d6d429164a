"""The dry run: every command checked, and the twins that fit run here, each in a process forked from this one.

Forked, because what takes longest of a tiny command is to import torch. Nothing it leaves is a result.
"""

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import typer.core

from g4lab import children, env
from g4lab.campaign import runner, steps
from g4lab.campaign.check import check
from g4lab.campaign.planner import plan
from g4lab.campaign.state import CampaignState
from g4lab.campaign.steps import Cost, Step

JOBS = 2
BUSY = 4  # a busy machine may take so many times longer over a twin
# What the twins import; a fork then has it already.
IMPORTS = ("torch", "triton", "pandas", "g4lab.bench.extend_proof", "g4lab.bench.moe_proof", "g4lab.bench.norms_proof",
           "transformers.models.gemma4.modeling_gemma4")  # fmt: skip


def walk(
    state: CampaignState, folder: Path, budget_s: float, root: typer.core.TyperGroup, *, say: Callable[[str], None]
) -> CampaignState:
    """Check every step's command, run the twins that the budget holds, and say of each step what became of it.

    done: its twin ran to its end. skipped: its command is right as far as this can tell, and the line says why no more
    of it ran. failed: a fault in the command, or in the twin.
    """
    folder = folder.resolve()
    chosen = [step for step in state.table.steps if step.name in state.steps]
    say(f"checking {len(chosen)} commands")
    faults, asked = check(root, chosen, folder)
    _refuse(state, faults, say)
    for step in chosen:
        if step.twin.reason and not faults[step.name]:
            _close(state, step.name, "skipped", f"its command parses; {step.twin.reason}")
    ready = [step.model_copy(update={"after": ()}) for step in chosen if state.steps[step.name].state == "waiting"]
    seconds = {step.name: Cost(step.twin.seconds, "estimate") for step in ready}
    planned = plan(ready, seconds, JOBS * budget_s)
    for name in planned.left_out:
        line = f"its command parses; its twin, {seconds[name].seconds:.0f} s, does not fit (--budget, --only {name})"
        _close(state, name, "skipped", line)
    state.save(folder)
    env.interpret_without_gpu()
    if any(step.twin.stops_with or "proofs" in step.name for step in ready):
        for module in IMPORTS:
            importlib.import_module(module)
    _run([step for step in ready if step.name in planned.taken], state, folder, say)
    _refuse(state, asked.faults(), say)
    state.save(folder)
    return state


def _refuse(state: CampaignState, faults: Mapping[str, str], say: Callable[[str], None]) -> None:
    for name, fault in faults.items():
        if fault:
            _close(state, name, "failed", f"its command: {fault}")
            say(f"{name}: failed: {state.steps[name].line}")


def _run(waiting: list[Step], state: CampaignState, folder: Path, say: Callable[[str], None]) -> None:
    """Run twins, the longest first, JOBS at a time."""
    waiting = sorted(waiting, key=lambda step: -step.twin.seconds)
    running: dict[str, tuple[Step, BaseProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < JOBS:
                step = waiting.pop(0)
                state.steps[step.name].attempts, state.steps[step.name].state = 1, "running"
                running[step.name] = step, _fork(step, runner.attempt_folder(folder, step.name, 1)), time.monotonic()
            time.sleep(0.05)
            for step, process, started in list(running.values()):
                late = time.monotonic() - started > BUSY * step.twin.seconds + steps.GRACE_S
                if process.is_alive() and not late:
                    continue
                if late:
                    _stop(process)
                process.join()
                del running[step.name]
                _judge(state, step, runner.attempt_folder(folder, step.name, 1) / runner.LOG, process.exitcode, late)
                entry = state.steps[step.name]
                entry.seconds = round(time.monotonic() - started, 2)
                state.save(folder)
                say(f"{step.name}: {entry.state} in {entry.seconds:.1f} s: {entry.line}")
    finally:
        for _, process, _ in running.values():
            _stop(process)


def _judge(state: CampaignState, step: Step, log: Path, code: int | None, late: bool) -> None:
    last = children.last_lines(log, 1)
    stopped = bool(step.twin.stops_with and code == 1 and step.twin.stops_with in last)
    if late:
        _close(state, step.name, "failed", f"its twin ran longer than {BUSY * step.twin.seconds + steps.GRACE_S:.0f} s")
    elif code == 0:
        _close(state, step.name, "done", f"twin: {runner.result_line(step, log)}")
    elif stopped:
        _close(state, step.name, "skipped", last.removeprefix("g4lab: "))
    else:
        how = f"killed by signal {-code}" if code and code < 0 else f"code {code}"
        _close(state, step.name, "failed", f"its twin ({how}): {last}")


def _close(state: CampaignState, name: str, how: str, line: str) -> None:
    state.steps[name].state, state.steps[name].line = how, line[:300]


def _fork(step: Step, mine: Path) -> BaseProcess:
    mine.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(step.argv(mine, twin=True), mine, os.getpid())
    )
    process.start()
    return process


def _child(argv: Sequence[str], mine: Path, parent: int) -> None:
    """In the fork: become the command, in a process group of its own, with its output in the log."""
    os.setsid()
    children.tie_to_parent(parent, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    log = os.open(mine / runner.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ["G4LAB_RECORDS"] = str(mine / "records")
    if argv[0] == "python":
        os.execv(sys.executable, runner.process_command(list(argv)))
    sys.argv = list(argv)
    code = 1
    try:
        runpy.run_module("g4lab", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop(process: BaseProcess) -> None:
    """End a fork and what it started."""
    for number, grace_s in ((signal.SIGINT, 10), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        process.join(grace_s)

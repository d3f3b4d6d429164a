"""Child processes that never outlive their parent, and that are stopped together with what they started."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_BAR = re.compile(r"\|\s*(\d+)/(\d+) \[")
_libc = ctypes.CDLL(None, use_errno=True)


def start(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_parent_death: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen:
    """Start `command` in a process group of its own, with stdout and stderr appended to `log`.

    The kernel sends it `on_parent_death` when this process dies in any way, SIGKILL included. Call from the main
    thread: the signal is sent when the *thread* that started the child ends (Linux, prctl(2)).

    Args:
        env: variables added to this process's environment.
    """
    parent = os.getpid()

    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=(lambda: tie_to_parent(parent, on_parent_death)) if sys.platform == "linux" else None,
        )


def tie_to_parent(parent: int, number: signal.Signals) -> None:
    """In a child of process `parent`: have the kernel send it the signal `number` when that one dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def stop(process: subprocess.Popen, *, first: signal.Signals = signal.SIGTERM, grace_s: float = 10.0) -> None:
    """End the child and its process group: `first`, then SIGKILL after `grace_s` seconds. Harmless when it is gone."""
    if process.poll() is None:
        _signal_group(process, first)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    _signal_group(process, signal.SIGKILL)  # what it started may still be there
    process.wait()


def last_lines(log: Path, count: int = 15) -> str:
    """The last lines of a log for an error message, or a note that there are none."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
        kept = [line for line in lines if line.strip()][-count:]
        if kept:
            return "\n".join(kept)
    return f"(nothing in {log})"


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def bar_position(log: Path) -> tuple[int, int] | None:
    """(done, total) of the last progress bar that a child drew with tqdm into its log; None before the first."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        found = _BAR.findall(file.read().decode(errors="replace"))
        if found:
            return int(found[-1][0]), int(found[-1][1])
    return None

"""Runs one server until it ends or this process is told to stop, and then ends all that the server had started.

python -m g4lab.runners._supervise LOG COMMAND...   SIGTERM stops it; it exits with the command's code, or 128 + signal.

A server's workers must not outlive it, however it or the notebook that started it died. So this process stands between
the two: the kernel signals it when the notebook dies and kills the server when it dies itself (children.start), and as
a subreaper it inherits the workers of a server that was killed, so that none can hide from it.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from g4lab import children

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1
GRACE_S = 1.0  # for a server that was asked to end


def main(log: str, *command: str) -> int:
    return supervise(lambda: children.start(command, log=Path(log)))


def supervise(start: Callable[[], subprocess.Popen]) -> int:
    """Start a process and watch it as above, in a main thread that does nothing else; the exit code for this one."""
    asked: list[int] = []  # the handler only notes the signal: an exception could interrupt the clean-up below
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = start()
    while server.poll() is None and not asked:
        time.sleep(_POLL_S)
    children.stop(server, grace_s=GRACE_S)
    _end_all()
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _end_all() -> None:
    """Kill every descendant; again, while some were started meanwhile."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

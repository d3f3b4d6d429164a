"""SGLang's processes without importing SGLang again: forked from a process that has, `python -m ...` in all else.

Importing takes a server ten seconds of a core three times, for its main process and two workers, and every run of the
benchmark client ten more. So the first `start` begins a fork server (_fork_server), which imports what it is told to
and then forks for whoever asks. A process has the variables and the folder that it would have had: where they differ,
another fork server is begun. Only for processes without a GPU: CUDA does not survive a fork.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from g4lab import children
from g4lab.errors import Unavailable

# Variables (their first letters) that nothing reads as it is imported: every process may have its own.
OWN = ("G4LAB_", "PYTEST_CURRENT_TEST")
MOST = 3  # fork servers kept: each holds 0.7 GB
_POLL_S = 0.02


class Forked:
    """A process that was forked and not exec'ed: what children.stop needs of subprocess.Popen.

    Args:
        ended: gives the exit code, negative for a signal, or None while the process runs.
    """

    def __init__(self, pid: int, ended: Callable[[], int | None]) -> None:
        self.pid, self.returncode, self._ended = pid, None, ended

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ended()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_POLL_S)
        return self.returncode


def start(
    command: Sequence[str | Path],
    *,
    imports: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 300,
) -> Forked:
    """Start `command`, (sys.executable, "-m", module, arguments...), with stdout and stderr appended to `log`.

    What it returns is the process's supervisor (_supervise): SIGTERM to it, or the death of this process, ends the
    process and all that it has started. The exit code is the process's, or 128 + signal.

    Args:
        imports: modules that the process imports first, before it could change any of them.
        env: variables added to this process's environment.
        timeout_s: limit for the imports.

    Raises:
        Unavailable: the fork server died or was late.
    """
    _, _, module, *arguments = map(str, command)
    variables = {**os.environ, **(env or {})}
    own = {name: variables.pop(name) for name in list(variables) if name.startswith(OWN)}
    log.parent.mkdir(parents=True, exist_ok=True)
    request = {"module": module, "arguments": arguments, "imports": list(imports), "log": str(log), "own": own}
    return _server(variables).fork(request, timeout_s)


class _ForkServer:
    def __init__(self, variables: Mapping[str, str]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="g4lab-fork-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self._address, self._log = str(folder / "socket"), folder / "log"
        command = (sys.executable, "-m", "g4lab.runners._fork_server", self._address)
        self._process = children.start(command, log=self._log, env=variables)
        self._forked: list[Forked] = []

    def alive(self) -> bool:
        return self._process.poll() is None

    def idle(self) -> bool:
        return all(forked.poll() is not None for forked in self._forked)

    def stop(self) -> None:
        children.stop(self._process)

    def fork(self, request: Mapping, timeout_s: float) -> Forked:
        connection = self._connect()
        connection.settimeout(timeout_s)
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            pid = connection.recv(16)
        except TimeoutError:
            raise Unavailable(f"{', '.join(request['imports'])} took longer than {timeout_s:.0f} s to import") from None
        if not pid:
            raise Unavailable(f"the fork server ended:\n{children.last_lines(self._log)}")

        def ended() -> int | None:
            if not select.select([connection], [], [], 0)[0]:
                return None
            said = connection.recv(16)
            return int(said) if said else -signal.SIGKILL  # which leaves no time to say anything

        self._forked = [forked for forked in self._forked if forked.poll() is None] + [Forked(int(pid), ended)]
        return self._forked[-1]

    def _connect(self) -> socket.socket:
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._address)
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
            if not self.alive():
                raise Unavailable(f"the fork server ended:\n{children.last_lines(self._log)}")
            time.sleep(_POLL_S)


_servers: dict[object, _ForkServer] = {}


def _server(variables: Mapping[str, str]) -> _ForkServer:
    """The fork server of this environment, folder and thread (with which it would end; children.start)."""
    key = os.getpid(), threading.get_native_id(), os.getcwd(), frozenset(variables.items())
    if key not in _servers or not _servers[key].alive():
        for old in list(_servers):
            if len(_servers) >= MOST and _servers[old].idle():
                _servers.pop(old).stop()
        _servers[key] = _ForkServer(variables)
    return _servers[key]

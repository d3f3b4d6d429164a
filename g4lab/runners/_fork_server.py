"""Imports modules once and forks a process for every request, until the process that started it ends.

python -m g4lab.runners._fork_server SOCKET      A request is a line of JSON on a connection of its own (forks.start).

Every request forks twice: a supervisor, and under it the process itself, which runs its module as `python -m` does. The
supervisor answers with its pid and, at the end, with the exit code.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys

from g4lab import children
from g4lab.runners import _spares
from g4lab.runners._supervise import supervise
from g4lab.runners.forks import OWN, Forked

WORKERS = 3  # that a server starts: multiprocessing's resource tracker, SGLang's scheduler and its detokenizer


def main(address: str) -> None:
    connection, request = _next_request(address)  # returns in a supervisor-to-be only
    os.setsid()
    _write_to(request["log"])
    connection.sendall(str(os.getpid()).encode())
    code = supervise(lambda: _fork(connection, request))
    connection.sendall(str(code).encode())


def _next_request(address: str) -> tuple[socket.socket, dict]:
    server = os.getpid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors leave no zombies
            connection, _ = listener.accept()
            request = json.loads(connection.makefile().readline() or "null")
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if request:
                _import(request["imports"])
                if os.fork() == 0:
                    children.tie_to_parent(server, signal.SIGTERM)
                    return connection, request
            connection.close()


def _import(modules: list[str]) -> None:
    for module in modules:
        with contextlib.suppress(Exception):  # the process will fail at it, too, and say so in its own log
            importlib.import_module(module)
    gc.freeze()  # a collection would write to, and so copy, the pages that all share


def _fork(connection: socket.socket, request: dict) -> Forked:
    """Fork the process proper; returns in the supervisor only."""
    supervisor, pid = os.getpid(), os.fork()
    if pid:
        return Forked(pid, lambda: _exit_code(pid))
    children.tie_to_parent(supervisor, signal.SIGKILL)
    os.setsid()
    connection.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _name([sys.executable, "-m", request["module"], *request["arguments"]])
    for name in [name for name in os.environ if name.startswith(OWN)]:
        del os.environ[name]
    os.environ.update(request["own"])
    _spares.install(WORKERS)
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit()


def _exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _write_to(log: str) -> None:
    with open(log, "ab") as out, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)


def _name(command: list[str]) -> None:
    """Have process listings show what runs, not what it was forked from.

    The title takes the place of the environment in memory, which must not have moved yet.
    """
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(" ".join(command))


if __name__ == "__main__":
    main(sys.argv[1])

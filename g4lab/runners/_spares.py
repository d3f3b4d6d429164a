"""multiprocessing's "spawn" out of spare processes, forked before this process did anything but import.

A spawned process is a new Python, which imports everything again. A spare is a child of this process, too, and as
clean, but has imported it all; it takes over the code, the file descriptors and the environment that a new Python would
have got, and dies with its parent. When no spare is left, a new Python is started after all.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
from multiprocessing import util

from g4lab import children


def install(count: int) -> None:
    """Fork `count` spares, and have multiprocessing in this process use them."""
    spares = [_spare() for _ in range(count)]
    new_python = util.spawnv_passfds

    def spawn(path: bytes | str, args: list, fds: list[int]) -> int:
        if not spares or os.fsdecode(path) != sys.executable:
            return new_python(path, args, fds)
        pid, channel = spares.pop()
        args = [os.fsdecode(arg) for arg in args]
        with channel:
            socket.send_fds(channel, [b"."], list(fds))
            message = {"argv": args[args.index("-c") + 1 :], "fds": list(fds), "env": dict(os.environ)}
            channel.sendall(json.dumps(message).encode() + b"\n")
        return pid

    util.spawnv_passfds = spawn


def _spare() -> tuple[int, socket.socket]:
    """(pid, channel) of a new spare. The spare itself stays in here, and leaves by sys.exit."""
    ours, theirs = socket.socketpair()
    parent, pid = os.getpid(), os.fork()
    if pid:
        theirs.close()
        return pid, ours
    ours.close()
    children.tie_to_parent(parent, signal.SIGKILL)
    with theirs:
        _, received, *_ = socket.recv_fds(theirs, 1, 64)
        line = theirs.makefile().readline()
    if not line:
        os._exit(0)  # the parent ended, and its sockets sooner than its death became known
    message = json.loads(line)
    _renumber(received, message["fds"])
    os.environ.clear()
    os.environ.update(message["env"])
    code, *arguments = message["argv"]
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
    sys.exit()


def _renumber(received: list[int], wanted: list[int]) -> None:
    """Give file descriptors the numbers that the code in the command line calls them by."""
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, max(wanted) + 1) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(above, wanted, strict=True):
        os.dup2(fd, number)
        os.close(fd)

"""Compiles many kernels side by side, each in a process that compiles for GPUs and can be stopped when it hangs."""

import contextlib
import json
import os
import pickle
import queue
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

from g4lab.errors import Unavailable

REQUESTS_PER_PROCESS = 6  # a process takes some seconds to start: fewer requests than this are not worth another one
_POLL_S = 0.5


def answers(requests: Sequence[tuple[str, str, dict]], limit_s: float) -> Iterator[tuple[int, dict]]:
    """(position, answer) of every (kernel name, architecture, choices), as they come; see compile_child for answers.

    limit_s: CPU seconds that one compile may take, which do not depend on how busy the machine is. One that takes more
    is stopped and answered by {"error": ..., "type": "Unavailable", "limit_s": limit_s}.

    Raises:
        Unavailable: a compiling process ended by itself.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    for job in enumerate(requests):
        todo.put(job)
    cores = len(os.sched_getaffinity(0))
    count = min(cores, -(-len(requests) // REQUESTS_PER_PROCESS))
    stop = threading.Event()
    threads = [threading.Thread(target=_work, args=(todo, done, limit_s, stop), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in requests:
            position, answer = done.get()
            if isinstance(answer, Unavailable):
                raise answer
            yield position, answer
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _work(todo: queue.SimpleQueue, done: queue.SimpleQueue, limit_s: float, stop: threading.Event) -> None:
    child = None
    try:
        while not stop.is_set():
            position, request = todo.get_nowait()
            child = child or _Child()
            answer = child.ask(request, limit_s, stop)
            if answer is None:
                child.close()
                child = None
                reason = f"{request[0]} for {request[1]} did not compile within {limit_s:g} s of CPU time"
                answer = {"error": reason, "type": "Unavailable", "limit_s": limit_s}
            done.put((position, answer))
    except queue.Empty:
        pass
    except (Unavailable, OSError) as error:
        done.put((0, Unavailable(str(error))))
    finally:
        if child:
            child.close()


class _Child:
    """One process of compile_child: a request at a time."""

    def __init__(self):
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115, closed by close()
        command = [sys.executable, "-m", "g4lab.tuning.compile_child"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def ask(self, request: tuple, limit_s: float, stop: threading.Event) -> dict | None:
        """The answer; None when it takes more than `limit_s` CPU seconds, or when `stop` is set meanwhile."""
        before = self._cpu_s()
        self.process.stdin.write(pickle.dumps(request))
        self.process.stdin.flush()
        while not select.select([self.process.stdout], [], [], _POLL_S)[0]:
            if stop.is_set() or self._cpu_s() - before > limit_s:
                return None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            self.log.seek(0)
            last = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Unavailable(f"the compiling process ended early: {''.join(last)}")
        return json.loads(line)

    def close(self) -> None:
        """End it together with a ptxas that it may be waiting for."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _cpu_s(self) -> float:
        """CPU seconds of the process, of what it started and waited for, and of the ptxas that runs now."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            total = sum(process.cpu_times()[:4])  # user, system, and both of children that have ended
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += sum(child.cpu_times()[:2])
            return total
        return 0.0

"""A real SGLang server as a context manager: it is ready inside the block, and gone after it, whatever happens."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import requests

from g4lab import children
from g4lab.errors import Unavailable, bad
from g4lab.patches import counting
from g4lab.runners import forks
from g4lab.runners.server_command import Launch, server_command

_POLL_S = 0.2
_HEALTH_S = 30.0  # the health endpoint has the server generate a token, which an interpreted kernel may make slow
_ANSWER_S = 1800.0
# What SGLang's three processes import before they load plugins.
_IMPORTS = tuple(
    f"sglang.srt.{name}" for name in ("entrypoints.http_server", "managers.scheduler", "managers.detokenizer_manager")
)


class Server:
    """A running server: url, port, pid (of SGLang's main process), log_path, launch (command, checkpoint, device)."""

    def __init__(self, launch: Launch, log_path: Path, supervisor) -> None:
        self.launch, self.log_path, self._supervisor = launch, log_path, supervisor
        self.port, self.url = launch.port, f"http://127.0.0.1:{launch.port}"
        self.pid: int | None = None
        config = json.loads((launch.checkpoint / "config.json").read_text())
        self.vocab_size = config.get("text_config", config)["vocab_size"]
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between this machine and itself

    def check(self) -> None:
        """Raise Unavailable, with the log's last lines, if the server is dead."""
        code = self._supervisor.poll()
        if code is not None:
            how = f"by signal {code - 128}" if code > 128 else f"with exit code {code}"
            raise Unavailable(f"the SGLang server ended {how}; its log {self.log_path} ends:\n{self.log_tail()}")

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the server's log."""
        return children.last_lines(self.log_path, lines)

    def generate(self, input_ids: Sequence[int], max_new_tokens: int, **sampling) -> list[int]:
        """The tokens that the server adds to one prompt, greedily unless `sampling` says otherwise.

        sampling: SGLang's sampling parameters, such as temperature=1.0 or ignore_eos=True. Raises Unavailable when the
        server dies meanwhile.
        """
        return self.answer(input_ids, max_new_tokens, **sampling)["output_ids"]

    def answer(self, input_ids: Sequence[int], max_new_tokens: int, **sampling) -> dict:
        """As generate, with all that SGLang says: output_ids, text, and meta_info with its times and MTP counters."""
        for token in input_ids:
            if not 0 <= token < self.vocab_size:  # SGLang's scheduler would die of it
                raise bad("input_ids", token, f"token ids from 0 to {self.vocab_size - 1}")
        sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens} | sampling
        body = {"input_ids": list(input_ids), "sampling_params": sampling}
        return self._ask("POST", "/generate", json=body, timeout=_ANSWER_S)

    def info(self) -> dict:
        """SGLang's /server_info: resolved arguments and, in internal_states, the scheduler's memory and counters."""
        return self._ask("GET", "/server_info", timeout=30)

    def counters(self) -> dict[str, int]:
        """Calls of each patch in the server's processes, the latest included (waits for them to be written)."""
        self._settle()
        return counting.counters(self._counters_dir)

    def states(self) -> dict[str, str]:
        """What the plugin said about each patch: "on", "off" or why not."""
        return counting.states(self._counters_dir)

    def expert_load(self) -> list[dict]:
        """Of the largest batch so far, one row a MoE layer: layer, tokens, experts, used, most_tokens_on_one.

        Needs the opt-in patch expert_load; empty without it.
        """
        self._settle()
        return [row for report in counting.notes(self._counters_dir, "expert_load") for row in report]

    @property
    def _counters_dir(self) -> str:
        return self.launch.env["G4LAB_COUNTERS_DIR"]

    def _settle(self) -> None:
        time.sleep(2 * counting.INTERVAL_S)

    def _ask(self, method: str, path: str, **request) -> dict:
        return self.request(method, path, **request).json()

    def request(self, method: str, path: str, **request) -> requests.Response:
        """The answer to one HTTP request to any of SGLang's endpoints; `request`: more arguments for requests.

        Raises Unavailable when the server is dead, refuses or does not answer.
        """
        try:
            answer = self._session.request(method, self.url + path, **request)
            answer.raise_for_status()
            return answer
        except requests.RequestException as error:
            with contextlib.suppress(Exception):
                self._supervisor.wait(2)  # a dead server's connection breaks before its supervisor has cleaned up
            self.check()
            said = getattr(error.response, "text", "") or str(error)
            raise Unavailable(f"the SGLang server did not answer {path}: {said}") from error

    def _wait_until_ready(self, deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        while True:
            self.check()
            with contextlib.suppress(requests.RequestException):
                if self._session.get(self.url + "/health", timeout=_HEALTH_S).ok:
                    break
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the SGLang server was not ready after {deadline_s:.0f} s; its log {self.log_path} ends:\n"
                    + self.log_tail()
                )
            time.sleep(_POLL_S)
        self.pid = psutil.Process(self._supervisor.pid).children()[0].pid
        for name in self.launch.patches:
            state = self.states().get(name, "not loaded: SGLang did not run the g4lab plugin")
            if state != "on":
                warnings.warn(f"patch {name} is not on: {state}", stacklevel=4)


def _start(launch: Launch, log: Path, deadline_s: float):
    """Start the server and, above it, the process that ends whatever it leaves behind, which is returned."""
    if launch.device == "cpu" and sys.platform == "linux":
        return forks.start(launch.command, imports=_IMPORTS, log=log, env=launch.env, timeout_s=deadline_s)
    supervise = (sys.executable, "-m", "g4lab.runners._supervise", log, *launch.command)
    return children.start(supervise, log=log, env=launch.env, on_parent_death=signal.SIGTERM)


@contextlib.contextmanager
def sglang_server(
    model: str | Path,
    patches: str = "default",
    args: Sequence[str] = (),
    *,
    draft: str | Path | None = None,
    device: str | None = None,
    attention_backend: str | None = None,
    dtype: str | None = None,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    deadline_s: float = 900,
    log_dir: Path | str | None = None,
) -> Iterator[Server]:
    """Start `python -m sglang.launch_server`, yield it once it has answered a request, and end it after the block.

    Args:
        model: a name that g4lab.gemma4 knows (the tiny twins come with weights; the others need args=["--load-format",
            "dummy"]), a checkpoint folder, or a model in the local Hugging Face cache.
        patches: the list that g4lab.patches.parse reads; a warning says which of them did not go on, and why.
        args: more flags for SGLang, as they are.
        draft: folder of an MTP assistant; switches on speculative decoding with 3 steps.
        device: "cpu" or "cuda"; default the GPU where there is one. On a CPU the stand-in for sgl_kernel is put on the
            path of the server alone, Triton is interpreted, and every server after the first is ready within seconds,
            because its processes are forked from one that has imported SGLang (runners.forks).
        attention_backend: on a CPU torch_native (default) or triton; on a GPU SGLang's choice.
        dtype: default float32 on a CPU, elsewhere the checkpoint's.
        port: default any free one.
        env: variables added to the server's environment.
        deadline_s: seconds to become ready.
        log_dir: folder for the log and the counters; default a new temporary one, which stays.

    Raises:
        BadInput: before anything starts, for an argument that cannot work.
        Unavailable: the server died or was late; the message ends with its log's last lines.

    The server and its workers end with the block, with an interrupt, with the death of this process, and when any part
    of the server is killed.
    """
    folder = Path(log_dir or tempfile.mkdtemp(prefix="g4lab-server-")).absolute()
    launch = server_command(
        model,
        patches,
        args,
        folder=folder,
        draft=draft,
        device=device,
        attention_backend=attention_backend,
        dtype=dtype,
        port=port,
        env_vars=env,
    )
    log_path = folder / "server.log"
    log_path.unlink(missing_ok=True)  # an earlier server's log and counters would pass for this one's
    shutil.rmtree(folder / "counters", ignore_errors=True)
    supervisor = _start(launch, log_path, deadline_s)
    try:
        server = Server(launch, log_path, supervisor)
        server._wait_until_ready(deadline_s)
        yield server
    finally:
        children.stop(supervisor)

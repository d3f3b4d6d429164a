"""SGLang's own benchmark client against a server of ours or any OpenAI-compatible URL, as one result."""

import json
import math
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from g4lab import children
from g4lab.env import has_gpu
from g4lab.errors import Unavailable, bad
from g4lab.runners import forks
from g4lab.runners.parse import parse_bench
from g4lab.runners.request_log import requests_of
from g4lab.runners.results import BenchResult, doubts

if TYPE_CHECKING:
    from g4lab.runners.server import Server

BACKENDS = ("sglang", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat")
_POLL_S = 0.2


class _Url:
    """A server that somebody else runs: alive as long as its port takes connections."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise bad("server_or_url", url, "a running Server, or a URL such as http://127.0.0.1:8000")
        self._address = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)

    def check(self) -> None:
        try:
            socket.create_connection(self._address, timeout=10).close()
        except TimeoutError:
            pass  # busy is not dead
        except OSError as error:
            raise Unavailable(f"nothing answers at {self.url} ({error.strerror or error})") from None


def bench_serving(
    server_or_url: "Server | str",
    *,
    num_prompts: int,
    input_len: int,
    output_len: int,
    request_rate: float = math.inf,
    max_concurrency: int | None = None,
    seed: int = 1,
    backend: str = "sglang",
    model: str | None = None,
    tokenizer: str | Path | None = None,
    temperature: float = 0.0,
    extra_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout_s: float = 3600,
    progress: Callable[[int, int], None] | None = None,
) -> BenchResult:
    """Run `python -m sglang.bench_serving` with prompts of random token ids; return what it measured.

    Every prompt has `input_len` tokens and every answer `output_len` (end-of-sequence is ignored). The prefix cache of
    an SGLang server is flushed first, or a second run with the same seed would find its prompts in it; of another
    server it is not, so give each run its own seed there.

    Args:
        request_rate: requests/s, arriving as a Poisson process; inf sends all at once.
        backend: "sglang" sends token ids to SGLang's own endpoint; "sglang-oai", "sglang-oai-chat", "vllm" and
            "vllm-chat" send text to any OpenAI-compatible server, so prompt lengths can differ by a few tokens.
        model: the served name; default: what the server says.
        tokenizer: name or folder; default: what the server says, or the model's name.
        extra_args: more flags for the client, as they are. env: variables added to its environment.
        timeout_s: limit for the client, start included.
        progress: called with (requests done, requests) as they change.

    Raises:
        BadInput: an argument that cannot work.
        Unavailable: the server died (noticed within seconds; the client is stopped), nothing answers at the URL, no
            request succeeded, or the client failed or took too long. Requests that failed among others that succeeded
            are a warning in the result.
    """
    _check(num_prompts=num_prompts, input_len=input_len, output_len=output_len)
    if max_concurrency is not None:
        _check(max_concurrency=max_concurrency)
    if backend not in BACKENDS:
        raise bad("backend", backend, "one of " + ", ".join(BACKENDS))
    if not request_rate > 0:
        raise bad("request_rate", request_rate, "more than 0 requests/s, or inf")
    server = _Url(server_or_url) if isinstance(server_or_url, str) else server_or_url
    server.check()
    if tokenizer is None and not isinstance(server, _Url):
        tokenizer = server.launch.checkpoint
    options = {
        "--backend": backend,
        "--base-url": server.url,
        "--model": model,
        "--tokenizer": tokenizer,
        "--dataset-name": "random-ids",
        "--num-prompts": num_prompts,
        "--random-input-len": input_len,
        "--random-output-len": output_len,
        "--random-range-ratio": 1.0,
        "--request-rate": request_rate,
        "--max-concurrency": max_concurrency,
        "--seed": seed,
        "--temperature": temperature,
    }
    switches = ["--output-details"]
    switches += ["--tokenize-prompt"] if backend == "sglang" else []
    switches += ["--flush-cache"] if backend.startswith("sglang") else []
    with tempfile.TemporaryDirectory(prefix="g4lab-bench-") as folder:
        output, log = Path(folder) / "result.jsonl", Path(folder) / "client.log"
        command = [sys.executable, "-m", "sglang.bench_serving", *switches, "--output-file", output]
        command += [part for flag, value in options.items() if value is not None for part in (flag, value)]
        _run([*command, *extra_args], server, log, env, timeout_s, progress)
        return _one_result(output, log, num_prompts)


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise bad(name, value, "a whole number above 0")


def _run(command: Sequence, server, log: Path, env, timeout_s: float, progress) -> None:
    deadline, shown = time.monotonic() + timeout_s, None
    client = _start(command, log, {"HF_HUB_OFFLINE": "1", **(env or {})}, timeout_s)
    try:
        while client.poll() is None:
            try:
                server.check()
            except Unavailable as error:
                raise Unavailable(f"the server was lost during the benchmark: {error}") from None
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the benchmark client took longer than {timeout_s:.0f} s:\n{children.last_lines(log)}"
                )
            position = children.bar_position(log)
            if progress and position and position != shown:
                progress(*position)
                shown = position
            time.sleep(_POLL_S)
    finally:
        children.stop(client)
    if client.returncode != 0:
        server.check()
        raise Unavailable(f"the benchmark client ended with code {client.returncode}:\n{children.last_lines(log)}")


def _start(command: Sequence, log: Path, variables: Mapping[str, str], timeout_s: float):
    if sys.platform == "linux" and not has_gpu():  # where there is one, SGLang may wake CUDA up as it is imported
        imports = ["sglang.benchmark.serving"]
        return forks.start(command, imports=imports, log=log, env=variables, timeout_s=timeout_s)
    return children.start(command, log=log, env=variables)


def _one_result(output: Path, log: Path, num_prompts: int) -> BenchResult:
    if not output.exists():
        raise Unavailable(f"the benchmark client wrote no result:\n{children.last_lines(log)}")
    raw = json.loads(output.read_text())
    errors = [error for error in raw.get("errors", ()) if error]
    per_request = ("input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors")
    (result,) = parse_bench(json.dumps({key: value for key, value in raw.items() if key not in per_request}))
    reason = f"; the first error: {' '.join(errors[0].split())[-300:]}" if errors else ""
    if not result.completed:
        raise Unavailable(f"none of {num_prompts} requests succeeded{reason}")
    failures = [note + reason for note in doubts({"completed": result.completed, "num_prompts": num_prompts})]
    more = {"num_prompts": num_prompts, "warnings": [*result.warnings, *failures], "requests": requests_of(raw)}
    return result.model_copy(update=more)

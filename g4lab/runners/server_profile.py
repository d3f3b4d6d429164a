"""Profiles of a running SGLang server: the requests that make one phase run, captured by its own profiler."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from g4lab.errors import Unavailable, bad
from g4lab.runners import captures

if TYPE_CHECKING:
    from g4lab.runners.server import Server

_FIRST_TOKEN = 3  # below are special tokens
# Sequences must still decode when the profiler has started and until it has stopped. A GPU decodes faster.
_SPARE_TOKENS = {"cpu": 128, "cuda": 512}
_SETTINGS = ("attention_backend", "dtype", "disable_cuda_graph", "chunked_prefill_size", "speculative_algorithm")


def profile_server(
    server: Server,
    phase: str = "prefill",
    batch: int = 1,
    prompt_len: int = 128,
    steps: int = 3,
    *,
    out: Path | str,
    timeout_s: float = 300,
) -> Path:
    """Capture `steps` forward passes of one phase on `server`, which nobody else should use; return its folder.

    Prefill: `steps` times `batch` new prompts of random tokens, the prefix cache flushed before. Decode: `batch`
    sequences that all decode when the capture starts; with a draft model a step is a verification with its drafts. The
    same requests run once before as a warm-up. Shapes and stacks are not recorded.

    Args:
        out: here a folder MODEL-PHASE-bsN-lenN-PATCHES receives one trace per rank, in place of older ones, and
            provenance.json, which says what made them.
        timeout_s: limit for the requests, and for the files to be whole.

    Raises:
        BadInput: an unknown phase, a count below 1, or a prompt that the vocabulary has too few tokens for.
        Unavailable: the server died, was late, or computed other steps than asked for; the message says which.
    """
    captures.check(phase, batch=batch, prompt_len=prompt_len, steps=steps)
    prompts = _prompts(server, batch, prompt_len, waves=steps + 1)
    with tempfile.TemporaryDirectory() as folder, _profiling(server, folder, timeout_s):
        # The profiler's first start takes seconds, in which the sequences to capture would end.
        _generate(server, next(prompts), 3, timeout_s)
    server.request("POST", "/flush_cache", params={"timeout": timeout_s}, timeout=2 * timeout_s)
    patches = ",".join(server.launch.patches) or "none"
    final = Path(out).absolute() / captures.stem(server.launch.model, phase, batch, prompt_len, patches)
    final.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final, prefix=".capture-") as name:
        folder = Path(name)
        if phase == "prefill":
            with _profiling(server, folder, timeout_s):
                for _ in range(steps):
                    _generate(server, next(prompts), 1, timeout_s)
        else:
            _decode(server, next(prompts), steps, folder, timeout_s)
        traces = _whole(server, folder)
        _check_steps(folder, phase, batch, batch * prompt_len, steps)
        for old in final.glob("*" + captures.END):
            old.unlink()
        for file, trace in traces.items():
            captures.publish(trace, final / file)
    info = server.info()
    parameters = {
        "runner": "sglang",
        "model": server.launch.model,
        "phase": phase,
        "batch": batch,
        "prompt_len": prompt_len,
        "steps": steps,
        "patches": patches,
        "device": server.launch.device,
        **{name: info.get(name) for name in _SETTINGS},
    }
    captures.provenance(final / "provenance.json", parameters)
    return final


def _prompts(server: Server, batch: int, length: int, waves: int) -> Iterator[list[list[int]]]:
    """`waves` times `batch` prompts; no two begin alike, so that no prefix is found in the cache."""
    generator = random.Random(1)
    if waves * batch > server.vocab_size - _FIRST_TOKEN:
        raise bad("batch", batch, f"few enough prompts to begin each with another of {server.vocab_size} tokens")
    first = iter(generator.sample(range(_FIRST_TOKEN, server.vocab_size), waves * batch))
    for _ in range(waves):
        yield [
            [next(first), *(generator.randrange(_FIRST_TOKEN, server.vocab_size) for _ in range(length - 1))]
            for _ in range(batch)
        ]


def _generate(server: Server, prompts: list[list[int]], count: int, timeout_s: float, stream: bool = False):
    """Ask for `count` tokens after each prompt. SGLang gets all prompts in one message, so it can batch them."""
    sampling = {"temperature": 0.0, "max_new_tokens": count, "ignore_eos": True}
    body = {"input_ids": prompts, "sampling_params": sampling, "stream": stream}
    return server.request("POST", "/generate", json=body, timeout=timeout_s, stream=stream)


def _decode(server: Server, prompts: list[list[int]], steps: int, folder: Path, timeout_s: float) -> None:
    """Once every prompt has its first token, capture the next `steps` steps; then hang up, which ends the sequences."""
    count = steps + _SPARE_TOKENS[server.launch.device]
    with _generate(server, prompts, count, timeout_s, stream=True) as answer, contextlib.closing(_tokens(answer)) as of:
        waiting = set(range(len(prompts)))
        while waiting and (index := next(of, None)) is not None:
            waiting.discard(index)
        if not waiting:
            with _profiling(server, folder, timeout_s, steps):
                while next(of, None) is not None:
                    if any(folder.iterdir()):  # SGLang has stopped and is writing
                        return
    server.check()
    raise Unavailable(
        f"{len(waiting)} of {len(prompts)} sequences never began to decode"
        if waiting
        else f"all sequences ended before {steps} steps were captured"
    )


def _tokens(answer: requests.Response) -> Iterator[int]:
    """Of each token as it arrives, the index of its prompt. Ends when all sequences have, or the connection breaks."""
    with contextlib.suppress(requests.RequestException):
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                said = json.loads(line.removeprefix(b"data: "))
                if "error" in said:
                    raise Unavailable(f"the SGLang server refused to decode: {said['error']['message']}")
                yield said["index"]


@contextlib.contextmanager
def _profiling(server: Server, folder: Path, timeout_s: float, steps: int | None = None) -> Iterator[None]:
    """Profile what runs inside, or the next `steps` forward passes; SGLang then stops by itself, at the next one."""
    activities = ["CPU", "GPU"] if server.launch.device == "cuda" else ["CPU"]
    body = {"output_dir": str(folder), "num_steps": steps, "activities": activities, "with_stack": False}
    server.request("POST", "/start_profile", json=body | {"record_shapes": False}, timeout=timeout_s)
    try:
        yield
    finally:
        # Refused where SGLang has stopped already; otherwise it answers when the files are written.
        with contextlib.suppress(Unavailable):
            server.request("POST", "/stop_profile", timeout=timeout_s)


def _whole(server: Server, folder: Path) -> dict[str, bytes]:
    """The traces in `folder` by name, each with its end: SGLang writes them in place."""
    traces = {file.name: captures.inflate(file) for file in sorted(folder.glob("*" + captures.END))}
    if not traces or None in traces.values():
        server.check()
        what = "a trace without its end" if traces else "no trace"
        raise Unavailable(f"the SGLang server has written {what}; its log {server.log_path} ends:\n{server.log_tail()}")
    return traces


def _check_steps(folder: Path, phase: str, batch: int, tokens: int, steps: int) -> None:
    from g4lab.trace import load

    seen = load(folder).steps
    ours = seen[seen["phase"].isin(["prefill"] if phase == "prefill" else ["decode", "verify"])]
    right = (ours["batch"] == batch) & ((ours["tokens"] == tokens) if phase == "prefill" else True)
    if not (ours.groupby("capture").size() == steps).all() or ours.empty or not right.all():
        raise Unavailable(
            f"asked for {steps} steps of {phase} with {batch} sequences, the server ran {', '.join(seen['name'])}: "
            "it has too little memory for the batch, or splits long prompts (--chunked-prefill-size)"
        )

"""SGLang's log of its scheduler, read back: every prefill and decode step with the pools, and every retraction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.optimize import nnls

from g4lab.errors import bad
from g4lab.kvpool.simulator import StepCosts

LOG_ARGS = ("--decode-log-interval", "1")  # a line for every decode step; SGLang's default is every 40th
_FLUSHED = "Cache flushed successfully"
_PREFILL = re.compile(
    r"Prefill batch.*?#new-seq: (\d+), #new-token: (\d+), #cached-token: (\d+), full token usage: ([\d.]+), "
    r"swa token usage: ([\d.]+).*?#queue-req: (\d+).*?input throughput \(token/s\): ([\d.]+)"
)
_DECODE = re.compile(
    r"Decode batch.*?#running-req: (\d+), #full token: (\d+), full token usage: ([\d.]+), "
    r"#swa token: (\d+), swa token usage: ([\d.]+).*?gen throughput \(token/s\): ([\d.]+), #queue-req: (\d+)"
)
_RETRACT = re.compile(r"#retracted_reqs: (\d+)")


class LoggedStep(NamedTuple):
    """One step as the log has it. Usage: the share of each pool that requests hold, to a hundredth.

    seconds: since the end of the step before; None where that was a step of the other phase, which SGLang's log counts
    otherwise.
    """

    phase: str  # "prefill" or "decode"
    requests: int
    tokens: int  # prefilled or decoded
    cached: int
    full_usage: float
    swa_usage: float
    waiting: int
    retracted: int  # just before it
    kv_tokens: int  # that requests hold of the full pool after a decode step; 0 after a prefill, which does not say
    swa_tokens: int  # and of the sliding pool
    seconds: float | None


def steps(text: str) -> list[LoggedStep]:
    """The steps of a log since its last flush of the cache, which is where a benchmark's measured part begins."""
    found, retracted = [], 0
    for line in text[max(text.rfind(_FLUSHED), 0) :].splitlines():
        phase = found[-1].phase if found else None
        if match := _RETRACT.search(line):
            retracted += int(match[1])
        elif match := _PREFILL.search(line):
            seqs, new, cached, full, swa, queue, rate = match.groups()
            seconds = _seconds(int(new), rate) if phase == "prefill" else None
            found.append(LoggedStep("prefill", int(seqs), int(new), int(cached), float(full), float(swa), int(queue),
                                    retracted, 0, 0, seconds))  # fmt: skip
            retracted = 0
        elif match := _DECODE.search(line):
            running, kv_tokens, full, swa_tokens, swa, rate, queue = match.groups()
            seconds = _seconds(int(running), rate) if phase == "decode" else None
            found.append(LoggedStep("decode", int(running), int(running), 0, float(full), float(swa), int(queue),
                                    retracted, int(kv_tokens), int(swa_tokens), seconds))  # fmt: skip
            retracted = 0
    return found


class LogReader:
    """Gives the part of a growing log that is new since the last call."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def __call__(self) -> str:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        self._offset += len(text)
        return text.decode(errors="replace")


def fit_costs(logged: Sequence[LoggedStep]) -> StepCosts:
    """Step costs of the simulator by non-negative least squares over the steps whose time the log tells.

    Raises:
        BadInput: fewer than three timed steps of either phase.
    """
    timed = {
        phase: [s for s in logged if s.phase == phase and s.seconds is not None] for phase in ("prefill", "decode")
    }
    for phase, rows in timed.items():
        if len(rows) < 3:
            raise bad("logged", f"{len(rows)} timed {phase} steps", "at least 3: more requests, or longer prompts")
    prefill, _ = nnls([[1.0, s.tokens] for s in timed["prefill"]], [s.seconds for s in timed["prefill"]])
    decode, _ = nnls([[1.0, s.requests, s.kv_tokens] for s in timed["decode"]], [s.seconds for s in timed["decode"]])
    return StepCosts(*prefill.tolist(), *decode.tolist())


def _seconds(tokens: int, rate: str) -> float | None:
    return tokens / float(rate) if float(rate) > 0 else None

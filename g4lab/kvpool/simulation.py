"""What the simulator found: requests with their times, steps with the pools, and the figures a client would report."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from g4lab.kvpool.plan import Plan

if TYPE_CHECKING:
    import pandas as pd


class Request(NamedTuple):
    """Arrives at `arrival_s` with `prompt_len` tokens and stops after `output_len`."""

    prompt_len: int
    output_len: int
    arrival_s: float = 0.0


class Served(NamedTuple):
    """What one request met; times in seconds since it arrived."""

    request: Request
    queue_s: float  # until its first prefill step began
    ttft_s: float
    e2e_s: float
    retractions: int
    prefilled: int  # tokens, again after each retraction
    again: int  # those of them that followed a retraction

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for an answer of one."""
        later = self.request.output_len - 1
        return (self.e2e_s - self.ttft_s) / later if later else None


class Step(NamedTuple):
    """One step of the engine. Pools in tokens that requests hold after it; `waiting` requests in the queue."""

    start_s: float
    end_s: float
    phase: str  # "prefill" or "decode"
    requests: int
    tokens: int
    full_used: int
    swa_used: int
    waiting: int
    retracted: int


@dataclass(frozen=True)
class Simulation:
    """A workload served with the pools of `plan`, in the order the requests were given."""

    plan: Plan
    served: tuple[Served, ...]
    steps: tuple[Step, ...]

    @property
    def retractions(self) -> int:
        return sum(one.retractions for one in self.served)

    @property
    def reprefilled_share(self) -> float:
        """Of all prefilled tokens, the part that followed a retraction."""
        prefilled = sum(one.prefilled for one in self.served)
        return sum(one.again for one in self.served) / prefilled if prefilled else 0.0

    def summary(self) -> dict[str, float]:
        """Counts, shares, peaks, and mean, median and p99 latencies under the names of runners.results.BenchResult.

        Without requests there are no latencies.
        """
        end = self.steps[-1].end_s if self.steps else 0.0
        decodes = [step.requests for step in self.steps if step.phase == "decode"]
        out = {
            "requests": len(self.served),
            "duration_s": end,
            "retractions": self.retractions,
            "reprefilled_share": self.reprefilled_share,
            "peak_running": max(decodes, default=0),
            "peak_full_usage": max((step.full_used for step in self.steps), default=0) / self.plan.full_tokens,
            "peak_swa_usage": max((step.swa_used for step in self.steps), default=0) / self.plan.swa_tokens,
        }
        if end:
            out["output_tokens_per_s"] = sum(one.request.output_len for one in self.served) / end
        for name in ("queue", "ttft", "tpot", "e2e"):
            values = sorted(1e3 * v for one in self.served if (v := getattr(one, f"{name}_s")) is not None)
            if values:
                out[f"mean_{name}_ms"] = statistics.fmean(values)
                out[f"median_{name}_ms"] = statistics.median(values)
                out[f"p99_{name}_ms"] = values[int(0.99 * (len(values) - 1))]
        return out

    def table(self) -> pd.DataFrame:
        """One row a step, with the columns of Step."""
        import pandas as pd

        return pd.DataFrame(self.steps, columns=Step._fields)

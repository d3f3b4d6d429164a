"""The --swa-full-tokens-ratio that lets most requests of a workload run at once."""

from __future__ import annotations

import bisect
import contextlib
from dataclasses import dataclass

from g4lab.errors import BadInput
from g4lab.gemma4 import Spec
from g4lab.gemma4 import spec as spec_named
from g4lab.kvpool.charges import Scheduling, window
from g4lab.kvpool.plan import Fit, Plan, plan
from g4lab.kvpool.workload import Workload

STEPS = 1000  # ratios are searched in thousandths


@dataclass(frozen=True)
class BestRatio:
    """The ratio, and the plan it gives; without a number of bytes there is no plan."""

    ratio: float
    plan: Plan | None

    @property
    def fit(self) -> Fit | None:
        return self.plan.fit if self.plan else None


def best_ratio(
    spec: Spec | str,
    workload: Workload,
    *,
    kv_bytes: int | None = None,
    page_size: int = 1,
    tp: int = 1,
    dtype_bytes: int = 2,
    draft_layers: int = 0,
    writers_only: bool = False,
    scheduling: Scheduling | None = None,
) -> BestRatio:
    """The ratio at which both pools fill up together, to a thousandth.

    A smaller one leaves the sliding pool short, a larger one the full pool: the requests that fit are the lesser of two
    curves that cross once. Without `kv_bytes` the ratio is that of the two pools the workload's concurrency needs.

    Raises:
        BadInput: what `plan` refuses at every ratio.
    """
    spec = spec_named(spec) if isinstance(spec, str) else spec
    scheduling = scheduling or Scheduling(page_size=page_size)
    if kv_bytes is None:
        return BestRatio(_needed(spec, workload, scheduling), None)

    options = {"page_size": page_size, "tp": tp, "dtype_bytes": dtype_bytes}
    options |= {"draft_layers": draft_layers, "writers_only": writers_only}

    def at(step: int) -> Plan:
        return plan(spec, kv_bytes, ratio=step / STEPS, workload=workload, scheduling=scheduling, **options)

    def sliding_is_enough(step: int) -> bool:
        try:
            return at(step).fit.binds == "full"
        except BadInput:  # below the floor of the sliding pool, unless nothing fits at all
            return False

    crossing = bisect.bisect_left(range(1, STEPS), True, key=sliding_is_enough) + 1
    around = [at(crossing)]
    with contextlib.suppress(BadInput):  # the next smaller ratio may lie below the sliding pool's floor
        around.append(at(max(crossing - 1, 1)))
    best = max(around, key=lambda made: min(made.fit.full, made.fit.swa))
    return BestRatio(best.ratio, best)


def _needed(spec: Spec, workload: Workload, scheduling: Scheduling) -> float:
    full = workload.full(scheduling).needs(workload.concurrency)
    swa = workload.swa(spec, scheduling).needs(workload.concurrency) + workload.swa_in_flight(spec, scheduling)
    least = window(spec) + scheduling.page_size + 1
    return min(1.0, max(swa, least) / full)

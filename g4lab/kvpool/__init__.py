"""The two KV pools of a hybrid sliding-window model: how SGLang sizes them, and what happens when they fill."""

from g4lab.kvpool.charges import Scheduling, full_tokens_per_request, swa_tokens_per_request, swa_tokens_to_admit
from g4lab.kvpool.plan import Plan, plan
from g4lab.kvpool.ratio import BestRatio, best_ratio
from g4lab.kvpool.workload import Workload

__all__ = [
    "BestRatio",
    "Plan",
    "Scheduling",
    "Workload",
    "best_ratio",
    "full_tokens_per_request",
    "plan",
    "swa_tokens_per_request",
    "swa_tokens_to_admit",
]

"""Two values of --swa-full-tokens-ratio with the same bytes of KV, on real servers in turns, and beside the simulator.

What differs between the sides is how SGLang splits the bytes, so the effect is one of scheduling: who waits, who is
retracted and prefilled again. It exists on any machine, a CPU too, where the times say nothing about kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from g4lab import env
from g4lab.errors import Unavailable, bad
from g4lab.kvpool import Plan, Scheduling, Workload, best_ratio, plan
from g4lab.kvpool.simulation import Simulation
from g4lab.kvpool.simulator import StepCosts, burst, simulate
from g4lab.runners.comparison import Comparison
from g4lab.runners.interleaved import ab
from g4lab.runners.scheduler_log import LOG_ARGS, LoggedStep, LogReader, fit_costs, steps
from g4lab.runners.server import Server

if TYPE_CHECKING:
    import pandas as pd

SIDES = "AB"


@dataclass(frozen=True)
class RatioExperiment:
    """Both plans, the A/B as `ab` judges it, and the scheduler's steps of every visit, in the order of the visits."""

    plans: tuple[Plan, Plan]
    workload: Workload
    comparison: Comparison
    logged: tuple[tuple[LoggedStep, ...], ...]

    def of(self, side: Literal["A", "B"]) -> list[tuple[LoggedStep, ...]]:
        """The logged steps of one side's visits."""
        return [rows for visit, rows in zip(self.comparison.visits, self.logged, strict=True) if visit.side == side]

    def scheduling(self) -> pd.DataFrame:
        """One row a visit: what the scheduler did, counted from its log, and the client's median TTFT and E2E."""
        import pandas as pd

        rows = []
        for visit, logged in zip(self.comparison.visits, self.logged, strict=True):
            made = self.plans[SIDES.index(visit.side)]
            pools = {"ratio": made.ratio, "full_tokens": made.full_tokens, "swa_tokens": made.swa_tokens}
            times = {name: getattr(visit.result, name) for name in ("median_ttft_ms", "median_e2e_ms")}
            counts = _counts(logged, self._prompts - visit.cached_tokens)
            rows.append({"side": visit.side, "round": visit.round, **pools, **counts, **times})
        return pd.DataFrame(rows)

    def costs(self, side: Literal["A", "B"] = "A") -> StepCosts:
        """The simulator's step costs as one side's steps have them, so that the other side is a prediction."""
        return fit_costs([step for logged in self.of(side) for step in logged])

    def simulated(self, costs: StepCosts | None = None) -> tuple[Simulation, Simulation]:
        """The workload simulated with A's and B's pools; default costs: those fitted on A."""
        costs = costs or self.costs()
        requests = burst(self.workload.concurrency, *self.workload.requests[0])
        return tuple(simulate(made, requests, costs) for made in self.plans)

    def prediction(self) -> pd.DataFrame:
        """Medians over visits beside the simulation, a row a figure and side; A fits the costs, B is foretold."""
        import pandas as pd

        measured = self.scheduling().groupby("side").median(numeric_only=True)
        rows = []
        for side, simulation in zip(SIDES, self.simulated(), strict=True):
            summary = simulation.summary()
            for name in (*_COUNTS, "median_ttft_ms", "median_e2e_ms"):
                ratio = self.plans[SIDES.index(side)].ratio
                rows.append({"side": side, "ratio": ratio, "figure": name, "measured": measured.loc[side, name],
                             "simulated": summary[name]})  # fmt: skip
        return pd.DataFrame(rows)

    def latencies(self, name: Literal["ttft", "tpot", "e2e"] = "ttft") -> tuple[dict[str, list], dict[str, list]]:
        """Milliseconds of each request, simulated and measured, by ratio: what draw_simulator.draw_latencies takes."""
        simulated, measured, requests = {}, {}, self.comparison.requests()
        for side, found in zip(SIDES, self.simulated(), strict=True):
            label = f"ratio {found.plan.ratio:g}"
            simulated[label] = [1e3 * getattr(one, f"{name}_s") for one in found.served]
            measured[label] = requests.loc[requests["side"] == side, f"{name}_ms"].tolist()
        return simulated, measured

    def values(self) -> dict[str, Any]:
        """For a record: the A/B's, with the counts of every visit."""
        return self.comparison.values() | {"scheduling": self.scheduling().to_dict("records")}

    @property
    def _prompts(self) -> int:
        return self.workload.concurrency * self.workload.requests[0][0]


def ratio_experiment(
    model: str = "tiny-moe",
    ratio_a: float = 0.8,
    ratio_b: float | Literal["auto"] = "auto",
    *,
    kv_bytes: int,
    num_prompts: int = 16,
    input_len: int = 600,
    output_len: int = 96,
    rounds: int = 3,
    seed: int = 2,
    patches: str = "default",
    scheduling: Scheduling | None = None,
    fresh: bool | None = None,
    server: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> RatioExperiment:
    """Serve `model` with the pools that `kv_bytes` give at each ratio, in rounds of A B B A of prompts sent at once.

    Args:
        ratio_b: "auto" is kvpool.best_ratio's for this workload.
        scheduling: chunk size and eviction interval of both servers; pages of one token.
        seed: of the first round. With a small vocabulary (tiny-moe: 1024 tokens) two random prompts can begin at the
            same token and then share a prefix, which seed 1 shows and 2 does not.
        patches: of both sides. fresh: as `ab`'s. server: more arguments for sglang_server, for both.

    Raises:
        BadInput: an argument that cannot work. Unavailable: a server failed, or made pools other than planned.
    """
    server = dict(server or {})
    on_cpu = server.get("device", "cuda" if env.has_gpu() else "cpu") == "cpu"
    scheduling = scheduling or Scheduling(chunked_prefill_size=512 if on_cpu else 8192, overlap=not on_cpu)
    workload = Workload.fixed(input_len, output_len, num_prompts)
    options = {"dtype_bytes": 4 if on_cpu else 2, "scheduling": scheduling}
    if ratio_b == "auto":
        ratio_b = best_ratio(model, workload, kv_bytes=kv_bytes, **options).ratio
    plans = tuple(plan(model, kv_bytes, ratio=ratio, workload=workload, **options) for ratio in (ratio_a, ratio_b))
    for made in plans:
        if made.fit.requests < 1:
            raise bad("kv_bytes", kv_bytes, f"more: at ratio {made.ratio:g} not one request fits")
    readers: dict[str, LogReader] = {}
    logged: list[tuple[LoggedStep, ...]] = []

    def observe(running: Server) -> dict[str, float]:
        if running.url not in readers:
            _check_pools(running, plans)
            readers[running.url] = LogReader(running.log_path)
        logged.append(tuple(steps(readers[running.url]())))
        return {}

    # One thread each: two servers share this machine, and waiting threads would take their cores from each other.
    alone = {"OMP_NUM_THREADS": "1"} if on_cpu else {}
    server["env"] = {
        **alone,
        "SGLANG_SWA_EVICTION_INTERVAL": str(scheduling.eviction_interval),
        **server.get("env", {}),
    }
    common = (*server.pop("args", ()), *LOG_ARGS, "--chunked-prefill-size", str(scheduling.chunked_prefill_size))
    found = ab(
        model,
        patches,
        patches,
        rounds=rounds,
        fresh=fresh,
        num_prompts=num_prompts,
        input_len=input_len,
        output_len=output_len,
        seed=seed,
        server=server,
        server_args=tuple((*common, *_pool_args(made)) for made in plans),
        observe=observe,
        progress=progress,
    )
    return RatioExperiment(plans, workload, found, tuple(logged))


_COUNTS = ("retractions", "reprefilled_share", "peak_running", "peak_full_usage", "peak_swa_usage")


def _pool_args(made: Plan) -> tuple[str, ...]:
    return ("--max-total-tokens", str(made.full_tokens), "--swa-full-tokens-ratio", str(made.ratio))


def _check_pools(server: Server, plans: tuple[Plan, Plan]) -> None:
    memory = server.info()["internal_states"][0]["memory_usage"]
    made = memory["token_capacity"], memory["token_capacity_swa"]
    planned = [(one.full_tokens, one.swa_tokens) for one in plans]
    if made not in planned:
        raise Unavailable(f"the server's pools are {made} tokens (full, sliding), planned were {planned}")


def _counts(logged: tuple[LoggedStep, ...], prompts: int) -> dict[str, float]:
    """The names of Simulation.summary. prompts: tokens to prefill if none is retracted, those of prefixes shared by
    chance left out."""
    prefilled = sum(step.tokens for step in logged if step.phase == "prefill")
    return {
        "retractions": sum(step.retracted for step in logged),
        "reprefilled_share": (prefilled - prompts) / prefilled if prefilled else 0.0,
        "peak_running": max((step.requests for step in logged if step.phase == "decode"), default=0),
        "peak_full_usage": max((step.full_usage for step in logged), default=0.0),
        "peak_swa_usage": max((step.swa_usage for step in logged), default=0.0),
    }

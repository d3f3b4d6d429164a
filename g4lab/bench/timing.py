"""Timing of short GPU work: CUDA-graph replay, providers interleaved, L2 cleared, an empty kernel for the floor.

Two readings, because a launch-bound kernel has two honest times:
  cold  one call per replay after the L2 was overwritten; includes starting the graph
  warm  `REPEATS` calls back to back in one graph, per call; inputs in the L2, as after the GEMM that wrote them
"""

import importlib.util
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from g4lab import env
from g4lab.errors import G4LabError, Unavailable

READINGS = ("cold", "warm")
REPEATS = 20
WARM_UP = 3
# The GPU waits this long (about 0.1 ms) before each sample, so that the host has queued all of it and costs no time.
HEAD_START_CYCLES = 200_000


@dataclass(frozen=True)
class Provider:
    """One way to do the work: build(case) returns the call to time or raises what stops it; it needs `package`."""

    name: str
    build: Callable[[object], Callable[[], object]]
    package: str | None = None

    def missing(self) -> str:
        """Why it cannot run in this environment whatever the machine; empty where nothing is missing."""
        absent = self.package and importlib.util.find_spec(self.package) is None
        return f"{self.package} is not installed" if absent else ""


@dataclass(frozen=True)
class Timed:
    """Samples in microseconds per call by reading, or the reason there are none."""

    samples: Mapping[str, np.ndarray]
    reason: str = ""


def require_gpu() -> None:
    """Raises Unavailable where kernels of this process cannot be timed."""
    if env.interpreting():
        raise Unavailable("no kernel time here: TRITON_INTERPRET=1 runs Triton in its interpreter on the CPU")
    if not env.has_gpu():
        raise Unavailable("no kernel time here: this machine has no CUDA GPU, and interpreter times are none")


def time_providers(
    providers: list[Provider],
    case,
    *,
    rounds: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timed]:
    """Times every provider on `case`, `rounds` samples each of both readings, in an order shuffled anew each round.

    A provider that cannot be built or captured is kept, with its reason. Providers stay independent: the same provider
    may stand in the list twice under two names, which gives the A/A interval of this very run.

    Raises:
        Unavailable: no GPU, or an interpreted process.
    """
    require_gpu()
    import torch

    graphs: dict[str, dict] = {}
    timed: dict[str, Timed] = {}
    for provider in providers:
        try:
            if provider.missing():
                raise Unavailable(provider.missing())
            call = provider.build(case)
            graphs[provider.name] = {"cold": _capture(call, 1), "warm": _capture(call, REPEATS)}
        except (ImportError, OSError, G4LabError, RuntimeError, AssertionError) as error:
            timed[provider.name] = Timed({}, reason_of(error))
    samples = {name: {reading: np.empty(rounds) for reading in READINGS} for name in graphs}
    flush = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.int8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    random = np.random.default_rng(seed)
    for i in range(rounds):
        for name in random.permutation(list(graphs)):
            for reading in READINGS:
                flush.zero_()
                if reading == "warm":
                    graphs[name]["cold"].replay()
                torch.cuda._sleep(HEAD_START_CYCLES)
                start.record()
                graphs[name][reading].replay()
                end.record()
                end.synchronize()
                per_call = REPEATS if reading == "warm" else 1
                samples[name][reading][i] = 1000 * start.elapsed_time(end) / per_call
        if progress:
            progress(i + 1, rounds)
    return {p.name: timed.get(p.name) or Timed(samples[p.name]) for p in providers}


def clocks() -> dict[str, float]:
    """The GPU's present SM and memory clock in MHz and power in W, from nvidia-smi; empty where it cannot say."""
    fields = ("sm_mhz", "mem_mhz", "power_w")
    command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
        return dict(zip(fields, map(float, line.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}


def reason_of(error: Exception) -> str:
    """The first line of what stopped a provider."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _capture(call: Callable[[], object], repeats: int):
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and fills the allocator, before the capture
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph

"""Timing of short GPU work: CUDA-graph replay, providers interleaved, L2 cleared, an empty kernel for the floor.

Two readings, because a launch-bound kernel has two honest times:
  cold  one call per replay after the L2 was overwritten; includes starting the graph
  warm  `REPEATS` calls back to back in one graph, per call; inputs in the L2, as after the GEMM that wrote them
Kernels of milliseconds need fewer calls and rounds: with a limit of seconds both are cut to what fits.
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
LEAST_ROUNDS = 10  # fewer samples give no interval worth the name
LONG_US = 2000.0  # with a limit, the calls of one warm sample take about this long together; a longer one stands alone
AROUND_US = 300.0  # of one sample: clearing the L2, the head start, the host's wait
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
    seconds: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timed]:
    """Times every provider on `case`, `rounds` samples each of both readings, in an order shuffled anew each round.

    A provider that cannot be built or captured is kept, with its reason. Providers stay independent: the same provider
    may stand in the list twice under two names, which gives the A/A interval of this very run.

    seconds: about how long the samples may take together; `calls_per_sample` and `rounds_within` say
    what is cut, and who is too slow.

    Raises:
        Unavailable: no GPU, or an interpreted process.
        G4LabError: a provider broke this process's CUDA context, so that nothing more can run in it.
    """
    require_gpu()
    import torch

    graphs: dict[str, dict] = {}
    calls: dict[str, Callable] = {}  # a graph knows its inputs by address only: they have to live as long as it does
    repeats: dict[str, int] = {}
    each_round = 0.0
    timed: dict[str, Timed] = {}
    for provider in providers:
        try:
            if provider.missing():
                raise Unavailable(provider.missing())
            call = provider.build(case)
            cold = _capture(call, 1)
            us = _replayed_us(cold)
            count = REPEATS if seconds is None else calls_per_sample(us, seconds)
            graphs[provider.name] = {"cold": cold, "warm": _capture(call, count)}
            calls[provider.name], repeats[provider.name] = call, count
            each_round += (2 + count) * us + len(READINGS) * AROUND_US
        except Exception as error:  # whatever another project's code raises is the reason why it has no times
            timed[provider.name] = Timed({}, reason_of(error))
            require_context(provider.name)
    if seconds is not None:
        rounds = rounds_within(seconds, each_round, rounds)
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
                per_call = repeats[name] if reading == "warm" else 1
                samples[name][reading][i] = 1000 * start.elapsed_time(end) / per_call
        if progress:
            progress(i + 1, rounds)
    return {p.name: timed.get(p.name) or Timed(samples[p.name]) for p in providers}


def calls_per_sample(us: float, seconds: float) -> int:
    """How many calls of `us` microseconds a warm sample holds where a case may take `seconds`.

    Raises:
        Unavailable: LEAST_ROUNDS calls would take longer than that.
    """
    if LEAST_ROUNDS * us > 1e6 * seconds:
        what = f"one call takes {us / 1e3:.0f} ms"
        raise Unavailable(f"{what}: {LEAST_ROUNDS} do not fit into the {seconds:g} s of a case")
    return max(1, min(REPEATS, round(LONG_US / us)))


def rounds_within(seconds: float, each_round_us: float, most: int) -> int:
    """Rounds of `each_round_us` microseconds that fit into `seconds`: LEAST_ROUNDS at least, `most` at most."""
    return max(min(LEAST_ROUNDS, most), min(most, int(1e6 * seconds / max(each_round_us, 1e-9))))


def require_context(name: str) -> None:
    """After an error in `name`: gives memory back. Raises G4LabError where the process can use its GPU no more."""
    import gc

    import torch

    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise G4LabError(f"{name} broke the CUDA context, so nothing more can run: {reason_of(error)}") from error


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
    """The first line of what stopped a provider, after the error's type where that is not said by the text itself."""
    lines, kind = str(error).strip().splitlines(), type(error).__name__
    if not lines:
        return kind
    plain = isinstance(error, (G4LabError, ImportError, OSError, RuntimeError, AssertionError))
    return lines[0] if plain else f"{kind}: {lines[0]}"


def _replayed_us(graph) -> float:
    """Microseconds of one replay after another; what fails on the GPU fails here."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end)


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

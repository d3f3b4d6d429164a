"""The two ceilings of a roofline, bytes a second and FLOPs a second: measured on this GPU, or from a data sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources

from g4lab.bench import stats
from g4lab.errors import Unavailable, bad

COPY, MATMUL, LAUNCH = "device-to-device copy", "bf16 matmul", "empty kernel"
AGAIN = " (again)"
MEASURED = ("chip", "copy_gbps", "matmul_tflops", "launch_us", "noise")  # what a record keeps
COPY_BYTES = 1 << 30  # far beyond any L2
MATMUL_SIZE = 8192


@dataclass(frozen=True)
class Ceilings:
    """What a chip can do at most.

    Attributes:
        chip: its name.
        copy_gbps: 10^9 bytes a second, read and written bytes both counted.
        matmul_tflops: 10^12 FLOPs a second, dense bf16.
        launch_us: one empty kernel of many in a CUDA graph; None where a data sheet does not say.
        kind: "live", "recorded" or "published". source: where from, for a figure's badge.
        noise: for a measured ceiling, the A/A interval (low, high) of its ratio to itself, by the field's name.
    """

    chip: str
    copy_gbps: float
    matmul_tflops: float
    launch_us: float | None
    kind: str
    source: str
    noise: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("copy_gbps", "matmul_tflops"):
            if not getattr(self, name) > 0:
                raise bad(name, getattr(self, name), "a positive number")

    @property
    def flops_per_byte(self) -> float:
        """Below this intensity the copy bandwidth binds, above it the matmul rate."""
        return 1e3 * self.matmul_tflops / self.copy_gbps


def chips() -> dict[str, Ceilings]:
    """Every chip of chips.csv by name: data-sheet peaks, which no kernel reaches."""
    import csv

    text = resources.files("g4lab.bench").joinpath("chips.csv").read_text("utf-8")
    return {
        row["chip"]: Ceilings(
            row["chip"], float(row["memory_gbps"]), float(row["bf16_tflops"]), None, "published", row["source"]
        )
        for row in csv.DictReader(text.splitlines())
    }


def named(chip: str) -> Ceilings:
    """The data sheet's ceilings of a chip ("H200 SXM", or "h200"): kind "published".

    Raises:
        BadInput: a chip that chips.csv does not have.
    """
    wanted = chip.strip().lower()
    found = [each for name, each in chips().items() if wanted and name.lower().startswith(wanted)]
    if len(found) != 1:
        raise bad("chip", chip, "one of " + ", ".join(chips()))
    return found[0]


def of_record(record) -> Ceilings:
    """The ceilings that `g4lab bench ceilings` put on record (a g4lab.records.Record of the name "ceilings")."""
    values = {name: record.values[name] for name in MEASURED}
    return Ceilings(**values, kind=record.kind, source=f"{record.where}, measured {record.time:%Y-%m-%d}")


def measure(device: int = 0, *, rounds: int = 20, progress: Callable[[int, int], None] | None = None) -> Ceilings:
    """This GPU's copy bandwidth, bf16 matmul rate and launch floor: medians of calls back to back in CUDA graphs.

    Copies COPY_BYTES from one tensor to another; multiplies random matrices of MATMUL_SIZE (zeros would draw less power
    and run faster). Each is measured twice, interleaved, for the A/A interval in `noise`.

    Raises:
        Unavailable: no GPU, an interpreted process, or a GPU without room for the two tensors.
    """
    from g4lab.bench import timing

    timing.require_gpu()
    import torch

    with torch.cuda.device(device):
        timed = timing.time_providers(_providers(timing.Provider), None, rounds=rounds, progress=progress)
    for name, result in timed.items():
        if result.reason:
            raise Unavailable(f"{name} could not be timed: {result.reason}")
    samples = {name: result.samples["warm"] for name, result in timed.items()}
    return of_samples(samples, torch.cuda.get_device_name(device))


def of_samples(samples: Mapping[str, object], chip: str) -> Ceilings:
    """Ceilings from microseconds per call of COPY, MATMUL and LAUNCH, and each of them `AGAIN`."""
    median = {name: stats.quantiles(values)["p50"] for name, values in samples.items()}
    noise = {}
    for key, name in (("copy_gbps", COPY), ("matmul_tflops", MATMUL), ("launch_us", LAUNCH)):
        same = stats.median_ratio(samples[name], samples[name + AGAIN])
        noise[key] = (same.low, same.high)
    return Ceilings(
        chip=chip,
        copy_gbps=2 * COPY_BYTES / median[COPY] / 1e3,
        matmul_tflops=2 * MATMUL_SIZE**3 / median[MATMUL] / 1e6,
        launch_us=median[LAUNCH],
        kind="live",
        source=f"{chip}, measured in this run",
        noise=noise,
    )


def _providers(provider):
    builds = {COPY: _copy, MATMUL: _matmul, LAUNCH: _launch}
    return [provider(name + again, build) for name, build in builds.items() for again in ("", AGAIN)]


def _copy(_):
    from g4lab.bench.floors import copying

    return copying(2 * COPY_BYTES)


def _matmul(_):
    import torch

    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _launch(_):
    import torch

    from g4lab.bench.floors import launch_empty

    tensor = torch.empty(1, device="cuda")
    return lambda: launch_empty(tensor)

"""What every suite of kernel benchmarks shares: cases and providers as data, one row per (case, provider, reading).

A case is a dataclass; its fields, the provider and the reading name a row. The baseline stands among the providers
twice, the second time as `again(baseline)`, so that every speed-up has the A/A interval of its own run beside it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields

import pandas as pd

from g4lab.bench import stats, timing
from g4lab.bench.timing import Provider, Timed
from g4lab.errors import Unavailable

BASELINE = "eager PyTorch"  # unless a suite names another
EMPTY = "empty kernel (launch floor)"
MET, MISSED, INCOMPLETE, NOT_MEASURED = "met", "missed", "incomplete", "not measured"  # verdicts on a suite's goals

More = Callable[[object, str, str, dict[str, Timed]], dict]


def again(baseline: str = BASELINE) -> str:
    """The name under which the baseline stands among the providers a second time."""
    return f"{baseline} (again)"


AGAIN = again()


@dataclass(frozen=True)
class Proof:
    """One check of equality: the conditions, the counts found, and whether what is claimed holds."""

    parameters: dict
    values: dict
    holds: bool

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.parameters.items())


@dataclass(frozen=True)
class Suite:
    """What `g4lab bench NAME` runs: `prove(progress=...)` gives proofs, `measure(keep=..., progress=...)` a table whose
    rows `keys` name, `availability()` the providers. claim: what a proof claims, in a file's name and in words."""

    name: str
    prove: Callable[..., Iterable[Proof]]
    measure: Callable[..., pd.DataFrame]
    keys: Sequence[str]
    availability: Callable[[], pd.DataFrame]
    claim: tuple[str, str] = ("bits", "bit-equality")


def outputs(provider: Provider, case, device: str, *others: Callable) -> list:
    """What two calls of what the provider builds for `case` return, and one call of what each of `others` builds.

    Raises:
        Unavailable: the provider's own reason, or that of whatever went wrong in it.
        G4LabError: it broke the CUDA context.
    """
    try:
        if provider.missing():
            raise Unavailable(provider.missing())
        call = provider.build(case)
        found = [each().clone() for each in (call, call, *(build(case) for build in others))]
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
        return found
    except Exception as error:  # whatever another project's code raises
        if device == "cuda":
            timing.require_context(provider.name)
        raise Unavailable(timing.reason_of(error)) from error


def measure(
    cases: Sequence, providers_of: Callable[[object], Sequence[Provider]], *, baseline: str = BASELINE,
    columns: Callable[[object], dict] = asdict, rounds: int = 200, seconds: float | None = None,
    more: More | None = None, keep: Callable[[pd.DataFrame], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Times `providers_of(case)` on each case and returns one row per (case, provider, reading).

    Columns: `columns(case)`, provider, reading, reason (why there are no times), p20_us, p50_us, p80_us (µs per call),
    n, speedup over the baseline with its interval, aa_low, aa_high, beyond_noise, and what `more(case, provider,
    reading, timed)` adds for a provider that ran.

    rounds, seconds: of one case, as `timing.time_providers` takes them. keep: is given the rows of each case as soon as
    they are measured, so that a run that ends early leaves what it had.

    Raises:
        Unavailable: no GPU, or an interpreted process.
        G4LabError: a provider broke the CUDA context.
    """
    timing.require_gpu()
    found = []
    for done, case in enumerate(cases):
        timed = timing.time_providers(list(providers_of(case)), case, rounds=rounds, seconds=seconds)
        measured = [row for name in timed for row in rows(case, name, timed, more, baseline, columns)]
        if keep:
            keep(pd.DataFrame(measured))
        found += measured
        if progress:
            progress(done + 1, len(cases))
    return pd.DataFrame(found)


def keys(*cases: type) -> list[str]:
    """The columns that name a row of cases of these types; the others are what was measured."""
    return [*dict.fromkeys(field.name for case in cases for field in fields(case)), "provider", "reading"]


def rows(
    case, name: str, timed: dict[str, Timed], more: More | None = None, baseline: str = BASELINE,
    columns: Callable[[object], dict] = asdict,
) -> Iterator[dict]:  # fmt: skip
    """The rows of one provider, a reading each, from the samples of all providers of the case."""
    for reading in timing.READINGS:
        row = {**columns(case), "provider": name, "reading": reading, "reason": timed[name].reason}
        if not timed[name].reason:
            quantiles = stats.quantiles(timed[name].samples[reading])
            row |= {"n": quantiles.pop("n"), **{f"{key}_us": value for key, value in quantiles.items()}}
            row |= _over_baseline(timed, name, reading, baseline)
            row |= more(case, name, reading, timed) if more else {}
        yield row


def ratio(timed: dict[str, Timed], slow: str, fast: str, reading: str) -> stats.Ratio | None:
    """How many times longer `slow` takes than `fast`; None where one of them was not timed."""
    if any(name not in timed or timed[name].reason for name in (slow, fast)):
        return None
    return stats.median_ratio(timed[slow].samples[reading], timed[fast].samples[reading])


def _over_baseline(timed: dict[str, Timed], name: str, reading: str, baseline: str) -> dict:
    gain, noise = (ratio(timed, baseline, other, reading) for other in (name, again(baseline)))
    if gain is None or noise is None:
        return {}
    return {
        "speedup": gain.ratio, "speedup_low": gain.low, "speedup_high": gain.high,
        "aa_low": noise.low, "aa_high": noise.high, "beyond_noise": gain.beyond(noise),
    }  # fmt: skip


def availability(providers: Sequence[Provider]) -> pd.DataFrame:
    """Which providers could be timed here, each with all that stops it; times nothing and needs no GPU."""
    try:
        timing.require_gpu()
        machine = ""
    except Unavailable as error:
        machine = str(error)
    found = []
    for provider in providers:
        reason = "; ".join(filter(None, (provider.missing(), machine)))
        found.append({"provider": provider.name, "runs": not reason, "reason": reason})
    return pd.DataFrame(found)

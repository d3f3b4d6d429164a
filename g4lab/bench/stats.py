"""Statistics that every comparison shares: quantiles, and the interval of a ratio of medians. No torch needed."""

from dataclasses import dataclass

import numpy as np

from g4lab.errors import bad


@dataclass(frozen=True)
class Ratio:
    """median(a) / median(b) and its bootstrap percentile interval at `level`."""

    ratio: float
    low: float
    high: float
    level: float

    def beyond(self, noise: "Ratio") -> bool:
        """True where the interval excludes 1 and lies outside the A/A interval `noise` of the same harness."""
        outside = self.high < min(1.0, noise.low) or self.low > max(1.0, noise.high)
        return bool(outside)

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def median_ratio(a, b, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Ratio:
    """Ratio of medians of two independent samples with its bootstrap interval (percentile method, both resampled).

    For an A/A interval pass two runs of the same thing.

    Raises:
        BadInput: an empty sample, a value that is no positive number, or a level outside (0, 1).
    """
    a, b = _sample("a", a), _sample("b", b)
    if not 0 < level < 1:
        raise bad("level", level, "between 0 and 1")
    random = np.random.default_rng(seed)
    medians = [np.median(random.choice(x, (resamples, x.size)), axis=1) for x in (a, b)]
    low, high = np.quantile(medians[0] / medians[1], [(1 - level) / 2, (1 + level) / 2])
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high), level)


def quantiles(sample) -> dict[str, float]:
    """p20, p50, p80 and n of a sample of positive numbers, in its unit."""
    sample = _sample("sample", sample)
    p20, p50, p80 = np.quantile(sample, [0.2, 0.5, 0.8])
    return {"p20": float(p20), "p50": float(p50), "p80": float(p80), "n": int(sample.size)}


def _sample(name, values) -> np.ndarray:
    sample = np.asarray(values, dtype=float).ravel()
    if sample.size == 0 or not (np.isfinite(sample).all() and (sample > 0).all()):
        shown = "no values" if sample.size == 0 else sample.tolist()[:4]
        raise bad(name, shown, "a non-empty sample of positive, finite numbers")
    return sample

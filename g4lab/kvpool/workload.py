"""Prompt and output lengths with a concurrency, and what they take of the two pools."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from g4lab.errors import bad
from g4lab.gemma4 import Spec
from g4lab.kvpool.charges import Scheduling, full_tokens_per_request, swa_tokens_per_request

CONFIDENCE = 0.95
_STEPS = 33  # grid of a uniform distribution, for each of the two lengths


@dataclass(frozen=True)
class Workload:
    """Requests as (prompt, output) lengths in tokens, equally likely, of which `concurrency` are wanted at once.

    Raises:
        BadInput: no requests, a length below 1, or a concurrency below 1.
    """

    requests: tuple[tuple[int, int], ...]
    concurrency: int = 80

    def __post_init__(self) -> None:
        if not self.requests:
            raise bad("requests", self.requests, "at least one (prompt, output) pair")
        for prompt, output in self.requests:
            if prompt < 1 or output < 1:
                raise bad("requests", (prompt, output), "a prompt and an output of at least one token")
        if self.concurrency < 1:
            raise bad("concurrency", self.concurrency, "at least 1")

    @classmethod
    def fixed(cls, prompt: int, output: int, concurrency: int = 80) -> Workload:
        """Every request alike, as `sglang.bench_serving --random-range-ratio 1`."""
        return cls(((prompt, output),), concurrency)

    @classmethod
    def uniform(cls, prompt: int, output: int, range_ratio: float, concurrency: int = 80) -> Workload:
        """Lengths uniform from `range_ratio` times the given one up to it, as `bench_serving --random-range-ratio`.

        Raises:
            BadInput: `range_ratio` outside 0 to 1, or a length below 1.
        """
        if not 0 <= range_ratio <= 1:
            raise bad("range_ratio", range_ratio, "from 0 to 1")

        def lengths(longest: int) -> list[int]:
            shortest = max(int(longest * range_ratio), 1)
            return [shortest + round((longest - shortest) * i / (_STEPS - 1)) for i in range(_STEPS)]

        return cls(tuple((p, o) for p in lengths(prompt) for o in lengths(output)), concurrency)

    @classmethod
    def parse(cls, text: str, concurrency: int = 80) -> Workload:
        """`PROMPT/OUTPUT`, both in tokens: "8000/1000".

        Raises:
            BadInput: another form.
        """
        lengths = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not lengths:
            raise bad("workload", text, "PROMPT/OUTPUT in tokens, such as 8000/1000")
        return cls.fixed(int(lengths[1]), int(lengths[2]), concurrency)

    def full(self, scheduling: Scheduling) -> Demand:
        """What a request takes of the full pool."""
        return self._demand(lambda prompt, output: full_tokens_per_request(prompt + output, scheduling))

    def swa(self, spec: Spec, scheduling: Scheduling) -> Demand:
        """What a decoding request takes of the sliding pool."""
        return self._demand(lambda prompt, output: swa_tokens_per_request(spec, prompt, output, scheduling))

    def swa_in_flight(self, spec: Spec, scheduling: Scheduling) -> int:
        """Slots of the sliding pool that prefill chunks hold beyond what their requests keep once they decode."""
        prompt = statistics.fmean(p for p, _ in self.requests)
        chunk = min(scheduling.chunked_prefill_size, self.concurrency * prompt)
        kept = self.swa(spec, scheduling).mean / min(prompt, chunk)
        return math.ceil(scheduling.chunks_in_flight * chunk * max(0.0, 1 - kept)) + scheduling.page_size

    def _demand(self, tokens: Callable[[int, int], int]) -> Demand:
        taken = [tokens(prompt, output) for prompt, output in self.requests]
        return Demand(statistics.fmean(taken), statistics.pstdev(taken))


@dataclass(frozen=True)
class Demand:
    """Tokens that a request takes of a pool: mean and standard deviation over a workload's requests."""

    mean: float
    deviation: float

    def fits(self, pool: int, confidence: float = CONFIDENCE) -> float:
        """How many requests fit `pool` tokens with probability `confidence`; not rounded, for comparing pools.

        The sum of n requests is taken as normal: n * mean + z * deviation * sqrt(n) <= pool, solved for n.
        """
        if pool <= 0:
            return 0.0
        spread = statistics.NormalDist().inv_cdf(confidence) * self.deviation
        if not spread:
            return pool / self.mean
        return ((math.sqrt(spread**2 + 4 * self.mean * pool) - spread) / (2 * self.mean)) ** 2

    def needs(self, requests: int, confidence: float = CONFIDENCE) -> int:
        """Tokens that `requests` take together with probability `confidence`."""
        spread = statistics.NormalDist().inv_cdf(confidence) * self.deviation
        return math.ceil(requests * self.mean + spread * math.sqrt(requests))

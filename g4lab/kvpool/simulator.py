"""Admission, chunked prefill, decode, window eviction and retraction over both KV pools, by SGLang's rules, in seconds.

The rules are those of SGLang 0.5.21 (`Scheduler`, `PrefillAdder`, `check_decode_mem`, `retract_decode`,
`NewTokenRatioTracker`, `UnifiedRadixCache`): first come first served, prefill before decode. The times are an input:
`StepCosts`. Not modelled: scheduling that overlaps with the device, speculative decoding, prefixes that requests share,
pages of more than one token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from g4lab.errors import bad
from g4lab.kvpool.admission import Budget
from g4lab.kvpool.charges import window
from g4lab.kvpool.plan import Plan
from g4lab.kvpool.prefix_cache import FULL, SWA, Chain, PrefixCache
from g4lab.kvpool.simulation import Request, Served, Simulation, Step

# SGLANG_INIT_NEW_TOKEN_RATIO, that times SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR, and the steps from one to the other.
FIRST_RATIO, LEAST_RATIO, DECAY_STEPS = 0.7, 0.7 * 0.14, 600
RETRACT_STEPS = 20  # tokens for each request that retraction makes room for: SGLANG_RETRACT_DECODE_STEPS


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step: prefill = a + b * new tokens; decode = a + b * requests + c * tokens of KV that they read."""

    prefill_step_s: float
    prefill_token_s: float
    decode_step_s: float
    decode_request_s: float = 0.0
    decode_kv_token_s: float = 0.0

    def prefill(self, tokens: int) -> float:
        return self.prefill_step_s + self.prefill_token_s * tokens

    def decode(self, requests: int, kv_tokens: int) -> float:
        return self.decode_step_s + self.decode_request_s * requests + self.decode_kv_token_s * kv_tokens


def burst(requests: int, prompt_len: int, output_len: int) -> list[Request]:
    """`requests` alike, all at once, as `bench_serving --request-rate inf --random-range-ratio 1` sends them."""
    return [Request(prompt_len, output_len)] * requests


def simulate(
    plan: Plan,
    requests: Iterable[Request],
    costs: StepCosts,
    *,
    max_running: int = 4096,
    max_prefill_tokens: int = 16384,
) -> Simulation:
    """Serve `requests` with the pools, the chunk size and the eviction interval of `plan`.

    Args:
        max_running: SGLang's --max-running-requests. max_prefill_tokens: its --max-prefill-tokens.

    Raises:
        BadInput: a length below 1, pages of more than one token, or a request that the pools do not hold even alone.
    """
    if plan.scheduling.page_size != 1:
        raise bad("plan", f"pages of {plan.scheduling.page_size}", "pages of one token: others are not simulated")
    for name, value in (("max_running", max_running), ("max_prefill_tokens", max_prefill_tokens)):
        if value < 1:
            raise bad(name, value, "at least 1")
    requests = [Request(*request) for request in requests]
    for request in requests:
        if request.prompt_len < 1 or request.output_len < 1 or not request.arrival_s >= 0:
            raise bad("requests", tuple(request), "lengths of at least 1 token and an arrival at 0 s or later")
        if request.prompt_len + request.output_len + 1 >= plan.full_tokens:
            raise bad("requests", tuple(request), f"fewer tokens than the full pool's {plan.full_tokens}")
    return _Engine(plan, requests, costs, max_running, max_prefill_tokens).run()


@dataclass(eq=False, slots=True)
class _Live:
    """A request on its way. Its KV: `prefix` tokens in the cache's chain, then `own` ones of its decode steps.

    evicted: tokens from its start that have left the window, as far as SGLang's cursor knows.
    """

    request: Request
    chain: Chain = field(default_factory=Chain)
    generated: int = 0
    prefix: int = 0
    own: int = 0
    evicted: int = 0
    retractions: int = 0
    prefilled: int = 0
    again: int = 0
    first_step_s: float = -1.0
    ttft_s: float = 0.0
    e2e_s: float = 0.0

    @property
    def to_prefill(self) -> int:
        return self.request.prompt_len + self.generated - self.prefix

    @property
    def left(self) -> int:
        return self.request.output_len - self.generated

    @property
    def kv_tokens(self) -> int:
        return self.prefix + self.own

    @property
    def dead(self) -> int:
        """Of its own tokens, those no longer in the sliding pool."""
        return max(0, self.evicted - self.prefix)

    def served(self) -> Served:
        queue_s = self.first_step_s - self.request.arrival_s
        return Served(self.request, queue_s, self.ttft_s, self.e2e_s, self.retractions, self.prefilled, self.again)


class _Engine:
    def __init__(self, plan: Plan, requests: list[Request], costs: StepCosts, max_running: int, max_prefill: int):
        self.plan, self.costs, self.max_running, self.max_prefill = plan, costs, max_running, max_prefill
        self.window = window(plan.spec)
        self.cache = PrefixCache(plan.full_tokens, plan.swa_tokens, self.window)
        self.all = [_Live(request) for request in requests]
        self.coming = deque(sorted(self.all, key=lambda live: live.request.arrival_s))
        self.waiting: list[_Live] = []
        self.running: list[_Live] = []
        self.chunked: _Live | None = None  # the one whose prompt is partly done
        self.now, self.ratio = 0.0, FIRST_RATIO
        self.steps: list[Step] = []

    def run(self) -> Simulation:
        while self.coming or self.waiting or self.running or self.chunked:
            while self.coming and self.coming[0].request.arrival_s <= self.now:
                self.waiting.append(self.coming.popleft())
            if not (self.waiting or self.running or self.chunked):
                self.now, self.ratio = self.coming[0].request.arrival_s, FIRST_RATIO
            elif batch := self._admit():
                self._prefill(batch)
            elif self.running:
                self._decode()
            else:
                self._too_large(self.chunked or self.waiting[0])
        return Simulation(self.plan, tuple(live.served() for live in self.all), tuple(self.steps))

    def _too_large(self, live: _Live) -> None:
        pools = f"{self.plan.full_tokens} full and {self.plan.swa_tokens} sliding"
        raise bad("requests", tuple(live.request), f"a request that SGLang need not abort with pools of {pools} tokens")

    def _admit(self) -> list[tuple[_Live, int]]:
        """The next prefill batch: each request with the tokens of it to prefill now."""
        budget = Budget(
            self.cache,
            chunk=self.plan.scheduling.chunked_prefill_size,
            prefill=self.max_prefill,
            running_left=(live.left for live in self.running),
            new_token_ratio=self.ratio,
        )
        batch: list[tuple[_Live, int]] = []
        partly = self.chunked  # only one request at a time

        def add(live: _Live, tokens: int) -> None:
            budget.reserve(tokens, live.request.output_len if tokens == live.to_prefill else 0)
            batch.append((live, tokens))

        if self.chunked and (tokens := budget.go_on(self.chunked.to_prefill)):
            add(self.chunked, tokens)
        for live in self.waiting:
            if budget.spent or len(self.running) + len(batch) >= self.max_running:
                break
            live.prefix = self.cache.reuse(live.chain)
            tokens = budget.start(live.to_prefill, live.left)
            if not tokens or (partly and tokens < live.to_prefill):
                self.cache.lock(live.chain, False)
                break
            partly = partly or (live if tokens < live.to_prefill else None)
            add(live, tokens)
        started = {live for live, _ in batch}
        self.waiting = [live for live in self.waiting if live not in started]
        return batch

    def _prefill(self, batch: list[tuple[_Live, int]]) -> None:
        start, tokens = self.now, sum(tokens for _, tokens in batch)
        if not self.cache.take(tokens):
            self._too_large(batch[0][0])
        self.now += self.costs.prefill(tokens)
        if self.chunked in (live for live, _ in batch):
            self.chunked = None
        for live, new in batch:
            whole = new == live.to_prefill
            live.first_step_s = start if live.first_step_s < 0 else live.first_step_s
            live.prefilled += new
            live.again += new if live.retractions else 0
            live.prefix += new
            self.cache.publish_prefill(live.chain, new)
            live.evicted = max(live.evicted, live.prefix - 1 - self.window)
            if whole:
                live.generated += 1
                live.ttft_s = live.ttft_s or self.now - live.request.arrival_s
                self.running.append(live)
            else:
                self.chunked = live
        self._end_step(start, "prefill", len(batch), tokens)

    def _decode(self) -> None:
        retracted = 0
        if self.cache.make_room(len(self.running)):
            self.ratio = max(LEAST_RATIO, self.ratio - (FIRST_RATIO - LEAST_RATIO) / DECAY_STEPS)
        else:
            retracted = self._retract()
        start, count = self.now, len(self.running)
        for live in self.running:
            self._slide(live)
        self.cache.take(count)
        self.now += self.costs.decode(count, sum(live.kv_tokens for live in self.running))
        for live in self.running:
            live.own += 1
            live.generated += 1
        self._end_step(start, "decode", count, count, retracted)

    def _slide(self, live: _Live) -> None:
        """Give back what has left the window since the last time, once it is an interval; never what the cache has."""
        out, dead = live.kv_tokens - self.window, live.dead
        if live.own and out >= live.evicted + self.plan.scheduling.eviction_interval:
            live.evicted = max(live.prefix, out)
            self.cache.give(0, live.dead - dead)

    def _retract(self) -> int:
        """Send requests back to the queue until a step fits: those with the fewest tokens written first."""
        by_progress = sorted(self.running, key=lambda v: (v.generated, -v.request.prompt_len), reverse=True)
        retracted = 0
        while not retracted or not self.cache.make_room(len(by_progress)):
            if len(by_progress) == 1:
                break
            live = by_progress.pop()
            retracted += 1
            live.retractions += 1
            self.cache.give(live.own, live.own - live.dead)
            self.cache.lock(live.chain, False)
            self.cache.make_room(len(by_progress) * RETRACT_STEPS)
            live.own = live.evicted = live.prefix = 0
            self.waiting.append(live)
        if not self.cache.make_room(len(by_progress)):
            self._too_large(by_progress[0])
        self.running = by_progress
        written = sum(live.generated for live in by_progress) + RETRACT_STEPS * len(by_progress)
        self.ratio = min(1.0, written / (sum(live.request.output_len for live in by_progress) + 1))
        return retracted

    def _end_step(self, start: float, phase: str, requests: int, tokens: int, retracted: int = 0) -> None:
        used = self.cache.used(FULL), self.cache.used(SWA)
        self.steps.append(Step(start, self.now, phase, requests, tokens, *used, len(self.waiting), retracted))
        for live in self.running:
            if not live.left:
                live.e2e_s = self.now - live.request.arrival_s
                self.cache.publish(live.chain, live.own, live.own - live.dead)
                self.cache.lock(live.chain, False)
        self.running = [live for live in self.running if live.left]

"""What one request takes of each KV pool in SGLang 0.5.21, in tokens (one slot of the pool each).

The full pool keeps every token until the request ends. The sliding pool keeps the last window and slack: slots leave
it in whole pages, once `SGLANG_SWA_EVICTION_INTERVAL` tokens (times those of a verify step) have slid out, and a decode
step allocates ahead. With the prefix cache, SGLang's default, it keeps the prompt's last window besides, until the
request ends: the cache has it locked (seen on a running server). Sources: SGLang 0.5.21 `compute_swa_request_cap`,
`estimate_swa_kv_tokens`, `get_alloc_reserve_per_decode`, `free_swa_out_of_window_slots`, `cache_protected_len`.
"""

from __future__ import annotations

from dataclasses import dataclass

from g4lab.errors import bad
from g4lab.gemma4 import Spec


@dataclass(frozen=True)
class Scheduling:
    """The settings of a server that decide what requests hold. Defaults: SGLang 0.5.21's on one GPU below 160 GB.

    Raises:
        BadInput: a count below its smallest value.
    """

    page_size: int = 1
    chunked_prefill_size: int = 8192
    draft_tokens: int = 0  # --speculative-num-draft-tokens; 0 without MTP
    eviction_interval: int = 128  # SGLANG_SWA_EVICTION_INTERVAL
    overlap: bool = True  # without --disable-overlap-schedule two prefill chunks are in flight
    prefix_cache: bool = True  # without --disable-radix-cache

    def __post_init__(self) -> None:
        least = {"page_size": 1, "chunked_prefill_size": 1, "draft_tokens": 0, "eviction_interval": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise bad(name, getattr(self, name), f"at least {smallest}")

    @property
    def decode_reserve(self) -> int:
        """Tokens allocated ahead of a decode step: a page, or two verify steps' worth."""
        return 2 * self.draft_tokens or self.page_size

    @property
    def chunks_in_flight(self) -> int:
        return 2 if self.overlap else 1

    def paged(self, tokens: int) -> int:
        """`tokens` rounded up to whole pages."""
        return -(-tokens // self.page_size) * self.page_size


def window(spec: Spec) -> int:
    """Keys before the query that a sliding layer reads: SGLang's `sliding_window_size`, one below the model's."""
    return spec.sliding_window - 1


def full_tokens_per_request(tokens: int, scheduling: Scheduling = Scheduling()) -> int:
    """Slots of the full pool that a request of `tokens` (prompt and output) holds at its end."""
    return scheduling.paged(tokens + 2 * scheduling.draft_tokens)


def swa_tokens_per_request(spec: Spec, prompt: int, output: int, scheduling: Scheduling = Scheduling()) -> int:
    """Most slots of the sliding pool that a decoding request holds.

    What trails its newest token is at most SGLang's own worst case: window, eviction interval (times the tokens of a
    verify step), a page of alignment and what a decode step allocates ahead; a shorter request holds its tokens.
    """
    trailing = scheduling.eviction_interval * max(1, scheduling.draft_tokens) + scheduling.page_size
    worst = window(spec) + trailing + scheduling.decode_reserve
    if not scheduling.prefix_cache:
        return min(worst, scheduling.paged(prompt + output) + scheduling.decode_reserve)
    locked = scheduling.paged(min(prompt, window(spec)))
    return locked + min(worst, scheduling.paged(output) + scheduling.decode_reserve)


def swa_tokens_to_admit(spec: Spec, prompt: int, output: int, scheduling: Scheduling = Scheduling()) -> int:
    """Slots of the sliding pool that must be free before SGLang starts to prefill a request (no cached prefix)."""
    prompt = scheduling.paged(prompt)
    tail = max(min(prompt, scheduling.chunked_prefill_size) - window(spec), 0)
    return tail + min(prompt + output, window(spec)) + scheduling.page_size

"""How much one prefill pass may admit: SGLang's reservations in both pools, and its limits on a batch's tokens.

Sources: SGLang 0.5.21 `PrefillAdder`, `SWAPrefillBudget`, `estimate_swa_kv_tokens`. A request reserves its whole answer
in the full pool, and those that run a share of what they may still write (`new_token_ratio`). In the sliding pool it
reserves one window, and those that run nothing, although decoding grows there too: that is how the sliding pool is
promised twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from g4lab.kvpool.prefix_cache import FULL, SWA, PrefixCache

MOST_NEW_TOKENS = 4096  # no answer reserves more
PAGE = 1


class Budget:
    """One pass. running_left: tokens that each running request may still write."""

    def __init__(
        self, cache: PrefixCache, *, chunk: int, prefill: int, running_left: Iterable[int], new_token_ratio: float
    ) -> None:
        self._cache, self._chunk, self._prefill = cache, chunk, prefill
        self._later = sum(min(left, MOST_NEW_TOKENS) for left in running_left) * new_token_ratio
        self._now = self._swa = 0

    @property
    def spent(self) -> bool:
        """Whether the pass ends here."""
        tokens, pools = min(self._chunk, self._prefill), min(self._full_left, self._swa_left)
        return tokens <= 0 or pools <= 0

    def start(self, tokens: int, answer: int) -> int:
        """How many of a waiting request's `tokens` may be prefilled now, its used prefix being locked; 0: none.

        answer: tokens it may still write.
        """
        answer = min(answer, MOST_NEW_TOKENS)
        if tokens + answer + PAGE >= self._full_left:
            return 0
        limit, needed = self._chunk, self._swa_tokens(tokens, answer)
        if needed >= self._swa_left:
            if needed < self._cache.size[SWA]:
                return 0  # there will be room later
            limit = min(limit, self._swa_left - self._swa_tokens(0, answer))
        return max(0, min(tokens, limit))

    def go_on(self, tokens: int) -> int:
        """How many of the `tokens` left to a prompt begun in an earlier pass may be prefilled now."""
        return max(0, min(tokens, self._chunk, int(self._full_left), self._swa_left - PAGE))

    def reserve(self, tokens: int, answer: int) -> None:
        """Count a request in. answer: all it may write, 0 where its prompt is not done after these `tokens`."""
        answer = min(answer, MOST_NEW_TOKENS)
        self._swa += self._swa_tokens(tokens, answer)
        self._now += tokens + PAGE
        self._later += answer
        self._chunk -= tokens
        self._prefill -= tokens

    @property
    def _full_left(self) -> float:
        return self._cache.available(FULL) - self._now - self._later

    @property
    def _swa_left(self) -> int:
        return self._cache.available(SWA) - self._swa

    def _swa_tokens(self, tokens: int, answer: int) -> int:
        window = self._cache.window
        return max(min(tokens, self._chunk) - window, 0) + min(tokens + answer, window) + PAGE

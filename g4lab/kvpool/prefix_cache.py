"""Both KV pools with the radix cache on top, in counts of tokens: what is free, what is held, what eviction gives back.

Requests of the simulator share no prefix, so the cache is a chain of nodes for each: what its prefills and its answer
left behind. A chain in use is locked: all of it in the full pool, and its last window in the sliding pool. Sources:
SGLang 0.5.21 `UnifiedRadixCache`, `SWAComponent`, `free_swa_out_of_window_slots`. One token a page.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

FULL, SWA = 0, 1


@dataclass(slots=True)
class Node:
    length: int  # tokens it holds of the full pool
    alive: bool  # whether the sliding pool holds them too


@dataclass(eq=False, slots=True)
class Chain:
    """The cached KV of one request, root first."""

    nodes: list[Node] = field(default_factory=list)
    locked: bool = False

    @property
    def length(self) -> int:
        return sum(node.length for node in self.nodes)

    def match(self, window: int) -> int:
        """Tokens of the longest prefix that can be used: the last `window` before its end are in the sliding pool."""
        total = best = 0
        covered = math.inf
        for node in self.nodes:
            total += node.length
            covered = covered + node.length if node.alive else 0
            if covered >= window:
                best = total
        return best

    def unprotected(self, window: int) -> list[Node]:
        """Nodes whose part of the sliding pool may be taken."""
        end = len(self.nodes)
        if self.locked:
            covered = 0
            while end and covered < window:
                end -= 1
                covered += self.nodes[end].length
        return self.nodes[:end]

    def evictable(self, window: int) -> tuple[int, int]:
        alive = sum(node.length for node in self.unprotected(window) if node.alive)
        return 0 if self.locked else self.length, alive


class PrefixCache:
    """`free` and `evictable` tokens of the full and the sliding pool; `full` and `swa` are their sizes."""

    def __init__(self, full: int, swa: int, window: int) -> None:
        self.size, self.window = (full, swa), window
        self.free, self.evictable = [full, swa], [0, 0]
        self._chains: OrderedDict[Chain, None] = OrderedDict()  # least recently used first

    def available(self, pool: int) -> int:
        return self.free[pool] + self.evictable[pool]

    def used(self, pool: int) -> int:
        """Tokens that requests hold: what SGLang's log calls usage."""
        return self.size[pool] - self.available(pool)

    def take(self, tokens: int) -> bool:
        """Allocate `tokens` in both pools, evicting for them; False, and nothing taken, where they do not fit."""
        if not self.make_room(tokens):
            return False
        self.free = [free - tokens for free in self.free]
        return True

    def give(self, full: int, swa: int) -> None:
        """Return tokens that no chain holds."""
        self.free[FULL] += full
        self.free[SWA] += swa

    def lock(self, chain: Chain, locked: bool) -> None:
        with _Accounted(self, chain):
            chain.locked = locked

    def reuse(self, chain: Chain) -> int:
        """Lock what of `chain` can be used and free the rest; returns the tokens that need no prefill."""
        matched = chain.match(self.window)
        with _Accounted(self, chain):
            while chain.length > matched:
                self._drop_leaf(chain)
            chain.locked = True
        if matched:
            self._chains.move_to_end(chain)
        else:
            self._chains.pop(chain, None)
        return matched

    def publish(self, chain: Chain, tokens: int, alive: int) -> None:
        """Hand `tokens` of a request to its chain, the last `alive` of them in the sliding pool too.

        The last window gets a node of its own, so that a lock holds no more of the sliding pool than that.
        """
        last = min(alive, self.window)
        parts = ((tokens - alive, False), (alive - last, True), (last, True))
        with _Accounted(self, chain):
            chain.nodes += [Node(length, is_alive) for length, is_alive in parts if length]
        self._chains[chain] = None
        self._chains.move_to_end(chain)

    def publish_prefill(self, chain: Chain, tokens: int) -> None:
        """As `publish`, for a prefilled chunk: what has left the window goes back to the sliding pool first."""
        alive = min(tokens, self.window + 1)
        self.give(0, tokens - alive)
        self.publish(chain, tokens, alive)

    def make_room(self, tokens: int) -> bool:
        """Evict until `tokens` are free in both pools, the least recently used first; False where they never are."""
        if self.free[FULL] < tokens:
            self._evict_full(tokens)
        if self.free[SWA] < tokens:
            self._evict_swa(tokens)
        return min(self.free) >= tokens

    def _evict_full(self, tokens: int) -> None:
        for chain in [chain for chain in self._chains if not chain.locked]:
            with _Accounted(self, chain):
                while chain.nodes and self.free[FULL] < tokens:
                    self._drop_leaf(chain)
            self._forget_empty(chain)
            if self.free[FULL] >= tokens:
                return

    def _evict_swa(self, tokens: int) -> None:
        for chain in list(self._chains):
            with _Accounted(self, chain):
                for node in chain.unprotected(self.window):
                    if self.free[SWA] >= tokens:
                        break
                    if node.alive and node is chain.nodes[-1]:
                        self._drop_leaf(chain)  # a leaf goes whole, an inner node keeps its full part
                    elif node.alive:
                        node.alive = False
                        self.free[SWA] += node.length
            self._forget_empty(chain)
            if self.free[SWA] >= tokens:
                return

    def _drop_leaf(self, chain: Chain) -> None:
        leaf = chain.nodes.pop()
        self.give(leaf.length, leaf.length if leaf.alive else 0)

    def _forget_empty(self, chain: Chain) -> None:
        if not chain.nodes and not chain.locked:
            self._chains.pop(chain, None)


class _Accounted:
    """Keeps the cache's evictable counts true over a change of one chain."""

    def __init__(self, cache: PrefixCache, chain: Chain) -> None:
        self._cache, self._chain = cache, chain

    def __enter__(self) -> None:
        self._count(-1)

    def __exit__(self, *_) -> None:
        self._count(1)

    def _count(self, sign: int) -> None:
        for pool, tokens in enumerate(self._chain.evictable(self._cache.window)):
            self._cache.evictable[pool] += sign * tokens

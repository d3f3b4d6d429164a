"""How SGLang splits KV memory between the full and the sliding-window pool, and how many requests then fit.

    cell = full * n_full + ratio * swa * n_swa + full * n_draft     bytes of one token of the full pool
    full_tokens = kv_bytes // cell, swa_tokens = int(full_tokens * ratio), each floored to whole pages

`full` and `swa` are the bytes of one token in one layer, `n` counts layers: all of them, those that read another
layer's KV too (e4b, e2b), because SGLang allocates a buffer for each. The layers of an MTP assistant are charged as
full-attention ones, although a frozen-KV assistant reads the target's pool and gets 64 slots of its own. Source: SGLang
0.5.21 `HybridSWAPoolConfigurator`, `resolve_layer_indices`, `frozen_kv_mtp_worker_v2`; a test compares with the class.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from g4lab.errors import bad
from g4lab.gemma4 import Spec
from g4lab.gemma4 import spec as spec_named
from g4lab.gemma4.specs import FULL, SLIDING
from g4lab.kvpool.charges import Scheduling, window
from g4lab.kvpool.workload import Workload

DEFAULT_RATIO = 0.8  # SGLang 0.5.21's --swa-full-tokens-ratio
ASSISTANT_LAYERS = 4  # of google/gemma-4-*-it-assistant


@dataclass(frozen=True)
class Cell:
    """Bytes of one token on one rank. The draft model's layers are charged as full-attention ones."""

    full_layer: int
    swa_layer: int
    full_layers: int
    swa_layers: int
    draft_layers: int

    def bytes(self, ratio: float) -> float:
        """Bytes that one token of the full pool costs with its share of the sliding pool."""
        # In SGLang's order of operations, so that floats round alike.
        full = self.full_layer * (self.full_layers + self.draft_layers)
        return full + ratio * self.swa_layer * self.swa_layers


def cell(
    spec: Spec | str, *, tp: int = 1, dtype_bytes: int = 2, draft_layers: int = 0, writers_only: bool = False
) -> Cell:
    """A model's bytes per token, as SGLang counts them; `writers_only` leaves out layers that write no KV.

    Raises:
        BadInput: no such model, or a `tp` its heads cannot be split by, or `dtype_bytes` or `draft_layers` negative.
    """
    spec = spec_named(spec) if isinstance(spec, str) else spec
    if dtype_bytes < 1:
        raise bad("dtype_bytes", dtype_bytes, "bytes of one KV element, at least 1")
    if draft_layers < 0:
        raise bad("draft_layers", draft_layers, "layers of the draft model, at least 0")
    full, swa = ([at for at in spec.of_kind(kind) if at.owns_kv or not writers_only] for kind in (FULL, SLIDING))
    per_layer = [2 * layers[0].kv_heads(tp) * layers[0].head_dim * dtype_bytes for layers in (full, swa)]
    return Cell(*per_layer, len(full), len(swa), draft_layers)


@dataclass(frozen=True)
class Fit:
    """How many requests of a workload both pools hold to their ends; beyond that SGLang retracts or waits."""

    full: float  # that the full pool holds, not rounded
    swa: float
    concurrency: int

    @property
    def requests(self) -> int:
        return int(min(self.full, self.swa))

    @property
    def binds(self) -> str:
        """The pool that is full first: "full" or "swa"."""
        return "full" if self.full <= self.swa else "swa"

    @property
    def enough(self) -> bool:
        """Whether the workload's concurrency fits."""
        return self.requests >= self.concurrency


@dataclass(frozen=True)
class Plan:
    """The two pools of one rank, in tokens."""

    spec: Spec
    kv_bytes: int
    ratio: float
    cell: Cell
    scheduling: Scheduling
    full_tokens: int
    swa_tokens: int
    fit: Fit | None  # of the requests that the plan was asked for

    @property
    def full_bytes(self) -> int:
        return self.full_tokens * self.cell.full_layer * self.cell.full_layers

    @property
    def swa_bytes(self) -> int:
        return self.swa_tokens * self.cell.swa_layer * self.cell.swa_layers

    @property
    def draft_bytes(self) -> int:
        """Charged for the draft model's KV."""
        return self.full_tokens * self.cell.full_layer * self.cell.draft_layers

    @property
    def left_bytes(self) -> int:
        """Of `kv_bytes`, what rounding leaves."""
        return self.kv_bytes - self.full_bytes - self.swa_bytes - self.draft_bytes

    def fits(self, workload: Workload) -> Fit:
        """How many requests of `workload` fit without retraction."""
        free = self.swa_tokens - workload.swa_in_flight(self.spec, self.scheduling)
        return Fit(
            full=workload.full(self.scheduling).fits(self.full_tokens),
            swa=workload.swa(self.spec, self.scheduling).fits(free),
            concurrency=workload.concurrency,
        )


def plan(
    spec: Spec | str,
    kv_bytes: int | None = None,
    *,
    requests: int | None = None,
    context_len: int | None = None,
    workload: Workload | None = None,
    ratio: float = DEFAULT_RATIO,
    max_total_tokens: int | None = None,
    page_size: int = 1,
    tp: int = 1,
    dtype_bytes: int = 2,
    draft_layers: int = 0,
    writers_only: bool = False,
    scheduling: Scheduling | None = None,
) -> Plan:
    """The pools that SGLang makes of `kv_bytes` on one rank, and how many requests fit.

    Args:
        kv_bytes: memory for KV on one rank; None where `max_total_tokens` alone decides.
        requests, context_len: so many requests of so many tokens, half of them prompt; `workload` says it finer.
        max_total_tokens: SGLang's --max-total-tokens, a cap on the full pool.
        dtype_bytes: of one KV element: 2 for bfloat16, 1 for fp8.
        draft_layers: of the MTP assistant, all charged as full-attention layers; 0 without MTP.
        writers_only: no buffers for layers that write no KV, as patch `kv_layers` makes it.
        scheduling: chunk size, draft tokens and eviction interval; its page size must be `page_size`.

    Raises:
        BadInput: a value out of range, or pools too small to admit any request, where SGLang fails at start.
    """
    spec = spec_named(spec) if isinstance(spec, str) else spec
    scheduling = scheduling or Scheduling(page_size=page_size)
    if scheduling.page_size != page_size:
        raise bad("page_size", page_size, f"{scheduling.page_size}, as in scheduling")
    if not 0 < ratio <= 1:
        raise bad("ratio", ratio, "above 0 and at most 1")
    of = cell(spec, tp=tp, dtype_bytes=dtype_bytes, draft_layers=draft_layers, writers_only=writers_only)
    full_tokens, swa_tokens = _solve(_most_tokens(of, kv_bytes, ratio, max_total_tokens), ratio, page_size)
    if full_tokens <= 0:
        raise bad(
            "kv_bytes", kv_bytes, f"at least {int(of.bytes(ratio) * page_size) + 1} bytes, one page of {spec.name}"
        )
    if window(spec) + page_size >= swa_tokens:
        least = f"more than {window(spec) + page_size}: SGLang admits no request below its window and a page"
        raise bad("ratio", ratio, f"a sliding pool of {least}, not {swa_tokens} (raise the ratio or the memory)")
    if kv_bytes is None:
        kv_bytes = int(of.bytes(ratio) * full_tokens)
    made = Plan(spec, int(kv_bytes), ratio, of, scheduling, full_tokens, swa_tokens, None)
    workload = workload or _workload(requests, context_len)
    return dataclasses.replace(made, fit=made.fits(workload)) if workload else made


def _most_tokens(of: Cell, kv_bytes: int | None, ratio: float, max_total_tokens: int | None) -> int:
    """Tokens of the full pool before paging: what the bytes hold, or the cap where it is lower."""
    if kv_bytes is None and max_total_tokens is None:
        raise bad("kv_bytes", kv_bytes, "bytes of KV memory on one rank, or max_total_tokens")
    if kv_bytes is None:
        return max_total_tokens
    if kv_bytes < 1:
        raise bad("kv_bytes", kv_bytes, "bytes of KV memory on one rank, at least 1")
    held = int(kv_bytes // of.bytes(ratio))
    return held if max_total_tokens is None else min(held, max_total_tokens)


def _solve(tokens: int, ratio: float, page_size: int) -> tuple[int, int]:
    """Full and sliding tokens, each in whole pages."""
    full = tokens // page_size * page_size
    return full, int(full * ratio) // page_size * page_size


def _workload(requests: int | None, context_len: int | None) -> Workload | None:
    if requests is None and context_len is None:
        return None
    if context_len is None or context_len < 2:
        raise bad("context_len", context_len, "tokens of one request, prompt and output, at least 2")
    output = context_len // 2  # about the split that holds most of the sliding pool
    return Workload.fixed(context_len - output, output, 1 if requests is None else requests)

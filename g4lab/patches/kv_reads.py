"""Opt-in bounds check of what attention reads from the KV pools, and of what the two-pool allocator hands out.

In each step the request table is compared with the full pool and, at the first layer of each kind, the indices that the
backend would give its kernel with the request table and the full-to-sliding mapping. A bad one raises KVIndexError,
which names layer, request, position and value, before anything is read, and leaves a file for `g4lab kv inspect`.
"""

from __future__ import annotations

import contextvars
import os
import tempfile
from pathlib import Path

import numpy as np

from g4lab.kvpool.sentinel import Allocation, KVIndexError, Read, faults, host, message, translate
from g4lab.patches.counting import count, tally

_call: contextvars.ContextVar = contextvars.ContextVar("attention call")  # (layer, batch) for loops to watch, or None


def watched(original, backend, q, k, v, layer, batch, *args, **kwargs):
    """Around AttentionBackend.forward, through which every layer of every backend goes."""
    first = (
        not batch.forward_mode.is_idle() and not layer.is_cross_attention and _first_of_its_kind(backend, layer, batch)
    )
    if first:
        look(backend, layer, batch)
    token = _call.set((layer, batch) if first else None)
    try:
        return original(backend, q, k, v, layer, batch, *args, **kwargs)
    finally:
        _call.reset(token)


def _first_of_its_kind(backend, layer, batch) -> bool:
    """Layers of one kind share their indices within a step."""
    seen = vars(batch).setdefault("g4lab_kv_seen", set())
    kind = id(backend), is_sliding(backend, layer)
    return not (kind in seen or seen.add(kind))


def is_sliding(backend, layer) -> bool:
    """Whether the pool that `backend` reads now, swapped in or its own, has this layer's keys in its sliding part."""
    layers = getattr(backend.token_to_kv_pool, "layers_mapping", {})
    return layers.get(layer.layer_id, (None, False))[1]


def _has_window(layer) -> bool:
    return layer.sliding_window_size is not None and layer.sliding_window_size > -1


def look(backend, layer, batch) -> None:
    """Check the indices in the backend's metadata. Raises KVIndexError."""
    metadata = backend.forward_metadata
    if getattr(metadata, "kv_indptr", None) is not None:
        indptr, entries, page_size = *_packed(metadata, layer), 1
    elif getattr(metadata, "page_table", None) is not None:
        indptr, entries, page_size = *_paged(backend, layer, metadata), backend.page_size
    else:
        return  # torch_native keeps none: its loops are watched. FlashInfer's and aiter's plans are not.
    if len(indptr) - 1 < len(batch.req_pool_indices):
        tally("kv_sentinel", "not checked", f"{type(backend).__name__}: rows that are no requests")
        return
    _judge(_read(backend, layer, batch, indptr, entries, page_size))


def _packed(metadata, layer):
    """Triton's lists: the window's own for a layer that has one."""
    if _has_window(layer):
        return metadata.window_kv_indptr, metadata.window_kv_indices
    return metadata.kv_indptr, metadata.kv_indices


def _paged(backend, layer, metadata):
    """The page table that a FlashAttention or trtllm_mha layer would get, as lists; each backend has its own rule."""
    table = metadata.page_table
    if hasattr(backend, "_get_layer_page_table"):
        table = backend._get_layer_page_table(layer, None)
    elif backend.use_sliding_window_kv_pool and metadata.swa_page_table is not None and _has_window(layer):
        table = metadata.swa_page_table
    pages = (metadata.cache_seqlens_int32 + backend.page_size - 1) // backend.page_size
    return _used(table, pages)


def _used(table, counts):
    """The first counts[b] entries of each row b, as lists: indptr and entries."""
    counts, table = host(counts), host(table)
    return np.concatenate([[0], counts.cumsum()]), table[: len(counts)][np.arange(table.shape[1]) < counts[:, None]]


def watched_loop(original, backend, query, output, k, v, req_to_token, requests, seq_lens, *rest, **kwargs):
    """Around torch_native's loops, inside torch_native_swa: `req_to_token` is what the loop indexes the pool with."""
    if call := _call.get():
        slots = req_to_token[requests, : int(seq_lens.max())]
        _judge(_read(backend, *call, *_used(slots, seq_lens), 1))
    return original(backend, query, output, k, v, req_to_token, requests, seq_lens, *rest, **kwargs)


def _read(backend, layer, batch, indptr, entries, page_size) -> Read:
    """What `layer` would read, beside what the request table and the mapping say."""
    pool, mode = backend.token_to_kv_pool, batch.forward_mode
    requests = host(batch.req_pool_indices)
    lens = host(batch.seq_lens)
    indptr = host(indptr)[: len(requests) + 1]
    held = (indptr[1:] - indptr[:-1]) * page_size
    extends = not (mode.is_decode_or_idle() or mode.is_target_verify())
    first_query = host(batch.extend_prefix_lens) if extends else lens - mode.is_decode_or_idle()
    packed = getattr(backend.forward_metadata, "kv_indptr", None) is not None
    # Triton's lists end where the step's own keys begin; they, page tables and loops otherwise start at position 0.
    end = (first_query if extends else lens) if packed else held
    sliding = is_sliding(backend, layer)
    table = host(backend.req_to_token_pool.req_to_token[batch.req_pool_indices, : max((*end, *held, 1))])
    size = (pool.size_swa if sliding else pool.size) if hasattr(pool, "layers_mapping") else pool.size
    return Read(
        backend=type(backend).__name__,
        mode=mode.name,
        layer=layer.layer_id,
        sliding=sliding,
        page_size=page_size,
        rows=size + pool.page_size,
        window=layer.sliding_window_size if _has_window(layer) else None,
        requests=requests,
        start=end - held,
        first_query=first_query,
        indptr=indptr,
        entries=host(entries),
        table=table,
        translated=translate(table, pool.full_to_swa_index_mapping) if sliding else None,
    )


def watched_step(original, runner, batch, *args, **kwargs):
    """Around ModelRunner.forward: the request table itself, which all lists and page tables are made from."""
    if not batch.forward_mode.is_idle():
        check_table(runner, batch)
    return original(runner, batch, *args, **kwargs)


def check_table(runner, batch) -> None:
    """Check the slots of the batch's requests against the full pool. Raises KVIndexError."""
    allocator, lens = runner.token_to_kv_pool_allocator, host(batch.seq_lens)
    table = host(runner.req_to_token_pool.req_to_token[batch.req_pool_indices, : max((*lens, 1))])
    indptr, entries = _used(table, lens)
    _judge(
        Read(
            backend="",
            mode=batch.forward_mode.name,
            layer=None,
            sliding=False,
            page_size=1,
            rows=getattr(allocator, "size_full", allocator.size) + allocator.page_size,
            window=None,
            requests=host(batch.req_pool_indices),
            start=np.zeros_like(lens),
            first_query=lens,
            indptr=indptr,
            entries=entries,
            table=table,
            translated=None,
        )
    )


def watched_allocation(slots, allocator, *args, **kwargs):
    """After an allocation of SGLang's two-pool allocator; `slots` [N] of the full pool, or None where it is full."""
    if slots is None or getattr(allocator, "swa_req_ring", False):
        return
    _judge(
        Allocation(
            call=type(allocator).__name__,
            page_size=allocator.page_size,
            full_rows=allocator.size_full + allocator.page_size,
            sliding_rows=allocator.size_swa + allocator.page_size,
            full=host(slots),
            sliding=host(allocator.full_to_swa_index_mapping[slots]),
        )
    )


def _judge(record: Read | Allocation) -> None:
    count("kv_sentinel")
    found = list(faults(record))
    if found:
        from g4lab.kvpool import dump

        folder = os.environ.get("G4LAB_KV_DUMP_DIR") or tempfile.gettempdir()
        path = dump.save(record, Path(folder) / f"kv-{os.getpid()}.npz")
        raise KVIndexError(f"{message(record, found)}; explained by: g4lab kv inspect {path}")

"""The Triton code of extend attention: what one program computes. `g4lab.kernels.extend_attention` launches it."""

import triton
import triton.language as tl

from g4lab.kernels import ieee


@triton.jit
def _find_tile(qo_indptr, num_sequences, index, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, STEP: tl.constexpr):
    """Which sequence has the index-th tile of the batch, and how many tiles come before that sequence's first."""
    sequence = 0
    before = 0
    seen = 0
    for first in range(0, num_sequences, STEP):
        b = first + tl.arange(0, STEP)
        there = b < num_sequences
        start = tl.load(qo_indptr + b, mask=there, other=0).to(tl.int32)
        end = tl.load(qo_indptr + b + 1, mask=there, other=0).to(tl.int32)
        tiles = tl.cdiv((end - start) * GROUP, BLOCK_M)
        ends = seen + tl.cumsum(tiles)
        past = there & (ends <= index)
        sequence += tl.sum(past.to(tl.int32))
        before += tl.sum(tl.where(past, tiles, 0))
        seen += tl.sum(tiles)
    return sequence, before


@triton.jit
def _blocks(first, last, full_first, full_last, BLOCK_N: tl.constexpr):
    """Blocks of the keys first..last-1 of which full_first..full_last-1 are seen by every row of the tile.

    Returns (masked blocks before, start of the interior, its blocks, start of the masked rest, masked blocks in all).
    """
    before = tl.cdiv(tl.maximum(tl.minimum(full_first, last) - first, 0), BLOCK_N)
    interior = first + before * BLOCK_N
    count = tl.maximum(tl.minimum(full_last, last) - interior, 0) // BLOCK_N
    rest = interior + count * BLOCK_N
    return before, interior, count, rest, before + tl.cdiv(tl.maximum(last - rest, 0), BLOCK_N)


@triton.jit
def _operand(x):
    """As it is; in the interpreter, which multiplies bf16 wrongly, in fp32."""
    return ieee.widen(x) if ieee.INTERPRETED else x


@triton.jit
def _load(ptr, rows, present, FIRST: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr):
    """Columns FIRST to FIRST + COLS of the rows that begin at these offsets; zeros past D and in rows not present."""
    cols = FIRST + tl.arange(0, COLS)
    at = ptr + rows[:, None] + cols[None, :]
    if MASKED and FIRST + COLS > D:
        x = tl.load(at, mask=present[:, None] & (cols[None, :] < D), other=0.0)
    elif MASKED:
        x = tl.load(at, mask=present[:, None], other=0.0)
    elif FIRST + COLS > D:
        x = tl.load(at, mask=cols[None, :] < D, other=0.0)
    else:
        x = tl.load(at)
    return _operand(x)


@triton.jit
def _attend(q, q_tail, acc, acc_tail, top, total, k_ptr, k_rows, v_ptr, v_rows, present, visible, scale, cap_scale,
            D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, CAP: tl.constexpr,
            MASKED: tl.constexpr):  # fmt: skip
    """One block of keys: the running products, row maxima (times log2 e) and sums with it taken in."""
    k = _load(k_ptr, k_rows, present, 0, MAIN, D, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if TAIL > 0:
        k_tail = _load(k_ptr, k_rows, present, MAIN, TAIL, D, MASKED)
        scores = tl.dot(q_tail, tl.trans(k_tail), scores, input_precision="ieee")
    if CAP:
        scores = 1.0 - 2.0 / (tl.exp2(scores * cap_scale) + 1.0)  # tanh; cap_scale holds 2 log2(e) / cap
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    # A row that has seen nothing yet keeps -inf as its maximum; 0 in its place makes all its weights 0, not NaN.
    base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    weights = tl.exp2(scores * scale - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, 1)
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    weights = ieee.round_to(weights, dtype) if ieee.INTERPRETED else weights.to(dtype)
    v = _load(v_ptr, v_rows, present, 0, MAIN, D, MASKED)
    acc = tl.dot(weights, v, acc * shrink[:, None], input_precision="ieee")
    if TAIL > 0:
        v_tail = _load(v_ptr, v_rows, present, MAIN, TAIL, D, MASKED)
        acc_tail = tl.dot(weights, v_tail, acc_tail * shrink[:, None], input_precision="ieee")
    return acc, acc_tail, new_top, total


@triton.jit
def _visible(key, last, query, mask_row, mask_ptr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr):
    """[rows, keys]: which keys a row sees; `last` ends the block's keys. MASK: as the custom mask at mask_row says."""
    seen = (key < last)[None, :] & (mask_row >= 0)[:, None]
    if CAUSAL:
        seen &= key[None, :] <= query[:, None]
    if WINDOW >= 0:
        seen &= query[:, None] - key[None, :] <= WINDOW
    if MASK:
        seen &= tl.load(mask_ptr + mask_row[:, None] + key[None, :], mask=seen, other=0) != 0
    return seen


@triton.jit
def _store(ptr, rows, x, there, FIRST: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr):
    """Columns FIRST to FIRST + COLS of the rows that begin at these offsets, rounded to the tensor's dtype."""
    cols = FIRST + tl.arange(0, COLS)
    dtype: tl.constexpr = ptr.dtype.element_ty
    tl.store(ptr + rows[:, None] + cols[None, :], ieee.narrow(ieee.round_to(x, dtype), dtype),
             mask=there[:, None] & (cols[None, :] < D))  # fmt: skip


@triton.jit
def _extend_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices,
    mask_ptr, mask_indptr, mask_offsets, num_sequences, scale, cap_scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_os, stride_ot, stride_oh,
    stride_kbs, stride_kbh, stride_vbs, stride_vbh,
    D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, MASK: tl.constexpr, MASK_PREFIX: tl.constexpr, MASK_OFFSETS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    index, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, before = _find_tile(qo_indptr, num_sequences, index, GROUP, BLOCK_M, STEP)
    if sequence >= num_sequences:
        return
    q_start = tl.load(qo_indptr + sequence).to(tl.int64)
    extend = (tl.load(qo_indptr + sequence + 1) - q_start).to(tl.int32)
    kv_start = tl.load(kv_indptr + sequence).to(tl.int64)
    prefix = (tl.load(kv_indptr + sequence + 1) - kv_start).to(tl.int32)

    # The last tiles see the most keys; they go first.
    tile = tl.cdiv(extend * GROUP, BLOCK_M) - 1 - (index - before)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    there = row < extend * GROUP
    token = tl.minimum(row // GROUP, extend - 1)
    head = kv_head * GROUP + row % GROUP
    query = prefix + token
    first_query = prefix + tile * BLOCK_M // GROUP
    last_query = prefix + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, extend - 1)

    # Keys that any row sees, and keys that all rows see.
    last = prefix + extend if MASK else last_query + 1
    full_last = prefix if MASK else first_query + 1
    first = 0
    full_first = 0
    if WINDOW >= 0:
        first = tl.maximum(first_query - WINDOW, 0)
        full_first = tl.maximum(last_query - WINDOW, 0)
    if SPLIT:
        share = tl.cdiv(tl.cdiv(last - first, BLOCK_N), tl.num_programs(2)) * BLOCK_N
        first += split * share
        last = tl.minimum(last, first + share)

    mask_row = tl.where(there, 0, -1).to(tl.int64)
    if MASK:
        offset = tl.load(mask_offsets + sequence).to(tl.int64) if MASK_OFFSETS else 0
        width = offset + prefix + extend
        mask_row = tl.where(there, tl.load(mask_indptr + sequence).to(tl.int64) + token * width + offset, -1)

    q_rows = (q_start + token) * stride_qt + head * stride_qh
    q = _load(q_ptr, q_rows, there, 0, MAIN, D, True)
    q_tail = _load(q_ptr, q_rows, there, MAIN, TAIL, D, True) if TAIL > 0 else q
    acc = tl.zeros([BLOCK_M, MAIN], tl.float32)
    acc_tail = tl.zeros([BLOCK_M, TAIL if TAIL > 0 else 1], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    cols = tl.arange(0, BLOCK_N)

    # The prefix, in the pool.
    k_pool, v_pool = k_buffer + kv_head * stride_kbh, v_buffer + kv_head * stride_vbh
    slots = kv_indices + kv_start
    end = tl.minimum(last, prefix)
    none_full = 0 if MASK and MASK_PREFIX else end
    edge, interior, count, rest, masked = _blocks(first, end, full_first, none_full, BLOCK_N)
    for block in range(masked):
        key = tl.where(block < edge, first, rest - edge * BLOCK_N) + block * BLOCK_N + cols
        slot = tl.load(slots + key, mask=key < end, other=0).to(tl.int64)
        seen = _visible(key, end, query, mask_row, mask_ptr, WINDOW, False, MASK and MASK_PREFIX)
        acc, acc_tail, top, total = _attend(
            q, q_tail, acc, acc_tail, top, total, k_pool, slot * stride_kbs, v_pool, slot * stride_vbs, key < end, seen,
            scale, cap_scale, D, MAIN, TAIL, CAP, True,
        )  # fmt: skip
    # Slots are loaded a block ahead: in their own block's turn, the copies that need them would wait for them.
    ahead = tl.load(slots + interior + cols, mask=interior + cols < end, other=0).to(tl.int32)
    # No stages of the loop's own: with them Triton pipelines this load, too, and then waits for every copy at once.
    for block in range(count):
        slot = ahead.to(tl.int64)
        ahead = tl.load(slots + interior + tl.minimum(block + 1, count - 1) * BLOCK_N + cols).to(tl.int32)
        acc, acc_tail, top, total = _attend(
            q, q_tail, acc, acc_tail, top, total, k_pool, slot * stride_kbs, v_pool, slot * stride_vbs, there, there,
            scale, cap_scale, D, MAIN, TAIL, CAP, False,
        )  # fmt: skip

    # The new tokens, in the order of their positions.
    k_new = k_ptr + (q_start - prefix) * stride_kt + kv_head * stride_kh
    v_new = v_ptr + (q_start - prefix) * stride_vt + kv_head * stride_vh
    edge, interior, count, rest, masked = _blocks(tl.maximum(first, prefix), last, full_first, full_last, BLOCK_N)
    for block in range(count):
        key = (interior + block * BLOCK_N + cols).to(tl.int64)
        acc, acc_tail, top, total = _attend(
            q, q_tail, acc, acc_tail, top, total, k_new, key * stride_kt, v_new, key * stride_vt, there, there,
            scale, cap_scale, D, MAIN, TAIL, CAP, False,
        )  # fmt: skip
    for block in range(masked):
        start = tl.where(block < edge, tl.maximum(first, prefix), rest - edge * BLOCK_N)
        key = start + block * BLOCK_N + cols
        seen = _visible(key, last, query, mask_row, mask_ptr, WINDOW, not MASK, MASK)
        rows = key.to(tl.int64)
        acc, acc_tail, top, total = _attend(
            q, q_tail, acc, acc_tail, top, total, k_new, rows * stride_kt, v_new, rows * stride_vt, key < last, seen,
            scale, cap_scale, D, MAIN, TAIL, CAP, True,
        )  # fmt: skip

    unseen = total == 0.0
    norm = 1.0 / tl.where(unseen, 1.0, total)
    out_rows = split.to(tl.int64) * stride_os + (q_start + token) * stride_ot + head * stride_oh
    _store(out_ptr, out_rows, acc * norm[:, None], there, 0, MAIN, D)
    if TAIL > 0:
        _store(out_ptr, out_rows, acc_tail * norm[:, None], there, MAIN, TAIL, D)
    if SPLIT:
        lse = tl.where(unseen, float("-inf"), top + tl.log2(total))
        tl.store(lse_ptr + out_rows // D, lse, mask=there)


@triton.jit
def _combine_kernel(
    parts_ptr, lse_ptr, out_ptr, rows, num_splits, stride_ot, stride_oh,
    HEADS: tl.constexpr, D: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    top = tl.full([ROWS], float("-inf"), tl.float32)
    for split in range(num_splits):
        top = tl.maximum(top, tl.load(lse_ptr + split * rows + row, mask=there, other=float("-inf")))
    base = tl.where(top == float("-inf"), 0.0, top)
    cols = tl.arange(0, COLS)
    mask = there[:, None] & (cols[None, :] < D)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLS], tl.float32)
    for split in range(num_splits):
        at = (split * rows + row).to(tl.int64)
        weight = tl.exp2(tl.load(lse_ptr + at, mask=there, other=float("-inf")) - base)
        part = tl.load(parts_ptr + at[:, None] * D + cols[None, :], mask=mask, other=0.0)
        total += weight
        acc += weight[:, None] * part
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    at = (row // HEADS).to(tl.int64) * stride_ot + (row % HEADS) * stride_oh
    tl.store(out_ptr + at[:, None] + cols[None, :], ieee.narrow(ieee.round_to(acc, dtype), dtype), mask=mask)

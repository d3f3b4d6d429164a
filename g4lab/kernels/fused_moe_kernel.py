"""The Triton code of the expert layer: pairs sorted by expert, two grouped products, a sum over each token's experts.

A pair is a token and one of its top-k experts, numbered token * K + k. `g4lab.kernels.fused_moe` launches these.
"""

import triton
import triton.language as tl

from g4lab.kernels import ieee


@triton.jit
def _count(ids_ptr, first, last, E: tl.constexpr, E_PAD: tl.constexpr, STEP: tl.constexpr):
    """How many of the pairs first..last-1 chose each expert, [E_PAD]; ids that no expert has count nowhere."""
    experts = tl.arange(0, E_PAD)
    counts = tl.zeros([E_PAD], tl.int32)
    for start in range(first, last, STEP):
        pair = start + tl.arange(0, STEP)
        chosen = tl.load(ids_ptr + pair, mask=pair < last, other=-1).to(tl.int32)
        counts += tl.sum((chosen[:, None] == experts[None, :]).to(tl.int32), 0)
    return tl.where(experts < E, counts, 0)


@triton.jit
def _count_kernel(
    ids_ptr, counts_ptr, num_pairs,
    E: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    counts = _count(ids_ptr, chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, num_pairs), E, E_PAD, STEP)
    tl.store(counts_ptr + chunk * E_PAD + tl.arange(0, E_PAD), counts)


@triton.jit
def _place_kernel(
    ids_ptr, counts_ptr, pairs_ptr, block_expert_ptr, block_rows_ptr, num_pairs, num_chunks, max_blocks,
    E: tl.constexpr, E_PAD: tl.constexpr, CHUNK: tl.constexpr, STEP: tl.constexpr, ONE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    experts = tl.arange(0, E_PAD)
    before = tl.zeros([E_PAD], tl.int32)
    if ONE:
        total = _count(ids_ptr, 0, num_pairs, E, E_PAD, STEP)
    else:
        total = tl.zeros([E_PAD], tl.int32)
        for each in range(num_chunks):
            counts = tl.load(counts_ptr + each * E_PAD + experts)
            total += counts
            before += tl.where(each < chunk, counts, 0)
    blocks = tl.cdiv(total, BLOCK_M)
    end_block = tl.cumsum(blocks)
    first_block = end_block - blocks

    # This chunk's pairs stand behind those of the same expert in the chunks before, in their own order.
    base = first_block * BLOCK_M + before
    last = tl.minimum(chunk * CHUNK + CHUNK, num_pairs)
    for start in range(chunk * CHUNK, last, STEP):
        pair = start + tl.arange(0, STEP)
        chosen = tl.load(ids_ptr + pair, mask=pair < last, other=-1).to(tl.int32)
        hit = (chosen[:, None] == experts[None, :]) & (experts[None, :] < E)
        rank = tl.cumsum(hit.to(tl.int32), 0)
        place = tl.sum(tl.where(hit, base[None, :] + rank - 1, 0), 1)
        tl.store(pairs_ptr + place, pair, mask=(chosen >= 0) & (chosen < E))
        base += tl.sum(hit.to(tl.int32), 0)

    # Each program describes some of the blocks; the expert of blocks that nobody needs is E_PAD.
    for start in range(chunk * STEP, max_blocks, tl.num_programs(0) * STEP):
        block = start + tl.arange(0, STEP)
        expert = tl.sum((end_block[None, :] <= block[:, None]).to(tl.int32), 1)
        rows = total[None, :] - (block[:, None] - first_block[None, :]) * BLOCK_M
        rows = tl.sum(tl.where(expert[:, None] == experts[None, :], rows, 0), 1)
        tl.store(block_expert_ptr + block, expert, mask=block < max_blocks)
        tl.store(block_rows_ptr + block, tl.minimum(rows, BLOCK_M), mask=block < max_blocks)


@triton.jit
def _operand(x):
    """As it is; in the interpreter, which multiplies bf16 wrongly, in fp32."""
    return ieee.widen(x) if ieee.INTERPRETED else x


@triton.jit
def _swizzled(program, max_blocks, tiles, GROUP_M: tl.constexpr):
    """(block, tile) of a program: GROUP_M blocks go through all tiles together, so that what they share stays in L2."""
    first = program // (GROUP_M * tiles) * GROUP_M
    size = tl.minimum(max_blocks - first, GROUP_M)
    within = program % (GROUP_M * tiles)
    return first + within % size, within // size


@triton.jit
def _load(at, rows, cols, ROWS_MASKED: tl.constexpr, COLS_MASKED: tl.constexpr):
    """What lies at `at` [R, C]: zeros where rows [R] or cols [C] say that there is nothing."""
    if ROWS_MASKED and COLS_MASKED:
        x = tl.load(at, mask=rows[:, None] & cols[None, :], other=0.0)
    elif ROWS_MASKED:
        x = tl.load(at, mask=rows[:, None], other=0.0)
    elif COLS_MASKED:
        x = tl.load(at, mask=cols[None, :], other=0.0)
    else:
        x = tl.load(at)
    return _operand(x)


@triton.jit
def _gelu_tanh(x):
    """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3))) / 2, tanh(u) as 1 - 2 / (exp(2 u) + 1)."""
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * (1.0 - 1.0 / (tl.exp(2.0 * inner) + 1.0))


@triton.jit
def _store(ptr, row_offsets, col, x, there, COLS: tl.constexpr):
    """Rounded to the tensor's dtype; columns from COLS on are left alone."""
    dtype: tl.constexpr = ptr.dtype.element_ty
    at = ptr + row_offsets[:, None] + col[None, :]
    tl.store(at, ieee.narrow(ieee.round_to(x, dtype), dtype), mask=there[:, None] & (col < COLS)[None, :])


@triton.jit
def _gate_up_kernel(
    x_ptr, w_ptr, h_ptr, pairs_ptr, block_expert_ptr, block_rows_ptr, max_blocks, stride_xt, stride_we, stride_wn,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr, E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """h[i] = gelu_tanh(x . gate) * (x . up) of the i-th placed pair's token and expert."""
    block, tile = _swizzled(tl.program_id(0), max_blocks, tl.cdiv(WIDTH, BLOCK_N), GROUP_M)
    expert = tl.load(block_expert_ptr + block).to(tl.int64)
    if expert >= E:
        return
    row = tl.arange(0, BLOCK_M)
    there = row < tl.load(block_rows_ptr + block)
    token = (tl.load(pairs_ptr + block * BLOCK_M + row, mask=there, other=0) // TOP_K).to(tl.int64)
    col = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_at = x_ptr + token[:, None] * stride_xt + k[None, :]
    gate_at = w_ptr + expert * stride_we + col[:, None] * stride_wn + k[None, :]
    up_at = gate_at + WIDTH * stride_wn
    ragged_n: tl.constexpr = WIDTH % BLOCK_N != 0
    ragged_k: tl.constexpr = HIDDEN % BLOCK_K != 0
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        left = k < HIDDEN - start
        x = _load(x_at + start, there, left, True, ragged_k)
        w = _load(gate_at + start, col < WIDTH, left, ragged_n, ragged_k)
        gate = tl.dot(x, tl.trans(w), gate, input_precision="ieee")
        w = _load(up_at + start, col < WIDTH, left, ragged_n, ragged_k)
        up = tl.dot(x, tl.trans(w), up, input_precision="ieee")
    rows = (block * BLOCK_M + row).to(tl.int64) * WIDTH
    _store(h_ptr, rows, col, _gelu_tanh(gate) * up, there, WIDTH)


@triton.jit
def _down_kernel(
    h_ptr, w_ptr, y_ptr, weights_ptr, pairs_ptr, block_expert_ptr, block_rows_ptr, max_blocks, stride_we, stride_wn,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y[pair] = routing weight of the pair * (h of the pair . down of its expert)."""
    block, tile = _swizzled(tl.program_id(0), max_blocks, tl.cdiv(HIDDEN, BLOCK_N), GROUP_M)
    expert = tl.load(block_expert_ptr + block).to(tl.int64)
    if expert >= E:
        return
    row = tl.arange(0, BLOCK_M)
    there = row < tl.load(block_rows_ptr + block)
    col = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    h_at = h_ptr + (block * BLOCK_M + row).to(tl.int64)[:, None] * WIDTH + k[None, :]
    w_at = w_ptr + expert * stride_we + col[:, None] * stride_wn + k[None, :]
    ragged_n: tl.constexpr = HIDDEN % BLOCK_N != 0
    ragged_k: tl.constexpr = WIDTH % BLOCK_K != 0
    y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        left = k < WIDTH - start
        h = _load(h_at + start, there, left, True, ragged_k)
        w = _load(w_at + start, col < HIDDEN, left, ragged_n, ragged_k)
        y = tl.dot(h, tl.trans(w), y, input_precision="ieee")
    pair = tl.load(pairs_ptr + block * BLOCK_M + row, mask=there, other=0).to(tl.int64)
    weight = ieee.widen(tl.load(weights_ptr + pair, mask=there, other=0.0))
    _store(y_ptr, pair * HIDDEN, col, y * weight[:, None], there, HIDDEN)


@triton.jit
def _sum_kernel(
    y_ptr, ids_ptr, out_ptr, num_tokens, stride_ot,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out[t] = the sum of y over t's pairs, k = 0 first, in fp32."""
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    there = token < num_tokens
    total = tl.zeros([ROWS, COLS], tl.float32)
    for k in tl.static_range(TOP_K):
        chosen = tl.load(ids_ptr + token * TOP_K + k, mask=there, other=-1)
        computed = (chosen >= 0) & (chosen < E)
        at = y_ptr + (token * TOP_K + k)[:, None] * HIDDEN + col[None, :]
        total += ieee.widen(tl.load(at, mask=computed[:, None] & (col < HIDDEN)[None, :], other=0.0))
    _store(out_ptr, token * stride_ot, col, total, there, HIDDEN)

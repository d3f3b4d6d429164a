"""The inputs of the extend-attention benchmark: a paged pool with shuffled slots, and the same keys packed densely.

As on a server: the pool's slots are handed out in no order, new keys and values are in the pool already when attention
runs (SGLang writes them first), and the indices have SGLang's dtypes. Scores are scaled by head_dim ** -0.5, so that
rows of normal values give a softmax that is neither flat nor a single key.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from g4lab.kernels.checks import DTYPES
from g4lab.tuning.extend_shapes import ExtendShape

TORCH = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


class ExtendInputs(NamedTuple):
    """The tensors of `extend_attention` in its order; `slots` [B, prefix + extend] has new tokens' slots, too."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_buffer: torch.Tensor
    v_buffer: torch.Tensor
    qo_indptr: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    slots: torch.Tensor

    @property
    def sm_scale(self) -> float:
        return self.q.shape[-1] ** -0.5


@functools.lru_cache(maxsize=1)  # read only, so all providers of a shape share one; the next shape's takes its place
def inputs(shape: ExtendShape, device: str = "cuda") -> ExtendInputs:
    """Seeded inputs of a shape."""
    generator = torch.Generator(device).manual_seed(shape.batch * shape.extend + shape.prefix)
    dtype, keys = TORCH[shape.dtype], shape.prefix + shape.extend

    def draw(rows, heads):
        return torch.randn(rows, heads, shape.head_dim, generator=generator, device=device, dtype=dtype)

    def offsets(length, dtype):
        return torch.arange(shape.batch + 1, device=device, dtype=dtype) * length

    q = draw(shape.batch * shape.extend, shape.num_q_heads)
    k_buffer, v_buffer = (draw(shape.batch * keys + 1, shape.num_kv_heads) for _ in range(2))
    slots = torch.randperm(shape.batch * keys, generator=generator, device=device) + 1  # slot 0 is SGLang's padding
    slots = slots.view(shape.batch, keys)
    new = slots[:, shape.prefix :].flatten()
    return ExtendInputs(
        q, k_buffer[new], v_buffer[new], k_buffer, v_buffer, offsets(shape.extend, torch.int64),
        offsets(shape.prefix, torch.int32), slots[:, : shape.prefix].flatten(), slots,
    )  # fmt: skip


def dense(x: ExtendInputs, shape: ExtendShape, repeat_heads: bool = False) -> tuple[torch.Tensor, ...]:
    """q [B, Hq, extend, D] and contiguous k, v [B, H, prefix + extend, D], for libraries that read no pages.

    repeat_heads: H is Hq, a copy of the KV head for every query head; for what knows no GQA.
    """
    q = x.q.view(shape.batch, shape.extend, shape.num_q_heads, shape.head_dim).transpose(1, 2)
    keys, values = (
        buffer[x.slots].transpose(1, 2).repeat_interleave(shape.group if repeat_heads else 1, dim=1).contiguous()
        for buffer in (x.k_buffer, x.v_buffer)
    )
    return q, keys, values


def by_sequence(out: torch.Tensor, shape: ExtendShape) -> torch.Tensor:
    """Output [T, Hq, D] as [B, extend, Hq, D]: the form in which all providers return it, without a copy."""
    return out.view(shape.batch, shape.extend, shape.num_q_heads, shape.head_dim)


class Sample(NamedTuple):
    """Rows of a shape's output that are compared with the truth: one sequence's query rows, one KV head's heads."""

    sequence: int
    rows: list[int]
    kv_head: int


def samples(shape: ExtendShape) -> Iterator[Sample]:
    """The first, a middle and the last sequence, with the first and the last KV head.

    Rows are the first and the last, both sides of where tiles of 16, 64 and 128 tokens meet and of where the window
    begins to hide the prefix, the cached keys' last, and a few between.
    """
    window = [] if shape.window is None else [shape.window - shape.prefix, shape.window]
    edges = [0, 16, 64, 128, shape.extend // 3, shape.extend // 2, shape.extend, *window]
    rows = sorted({row for edge in edges for row in (edge - 1, edge, edge + 1) if 0 <= row < shape.extend})
    for sequence in sorted({0, shape.batch // 2, shape.batch - 1}):
        for kv_head in sorted({0, shape.num_kv_heads - 1}):
            yield Sample(sequence, rows, kv_head)


def sampled(x: ExtendInputs, shape: ExtendShape, sample: Sample) -> tuple[torch.Tensor, ...]:
    """Arguments of `extend_attention_reference` for a sample alone: each row a sequence of one new token, whose prefix
    is every key before it. The result is [rows, group, D]."""
    rows = torch.tensor(sample.rows, device=x.q.device)
    slots, head = x.slots[sample.sequence], slice(sample.kv_head, sample.kv_head + 1)
    heads = slice(sample.kv_head * shape.group, (sample.kv_head + 1) * shape.group)
    lengths = torch.cat([rows.new_zeros(1), shape.prefix + rows])
    own = slots[shape.prefix + rows]
    return (
        x.q[sample.sequence * shape.extend + rows][:, heads],
        x.k_buffer[own][:, head], x.v_buffer[own][:, head], x.k_buffer[:, head], x.v_buffer[:, head],
        torch.arange(len(rows) + 1, device=x.q.device), lengths.cumsum(0),
        torch.cat([slots[: shape.prefix + row] for row in sample.rows]),
    )  # fmt: skip

"""Attention of other libraries on the shapes of extend attention: builds for the benchmark, each what it can do.

A build takes (shape, device) and returns a call without arguments, whose result is [B, extend, Hq, D]; it raises
Unavailable where the library cannot do the shape. What the call does not need to do each time is left out of it in the
peer's favour: keys and values packed densely, masks, page tables.
"""

import torch

from g4lab.bench.extend_cases import by_sequence, dense, inputs
from g4lab.errors import Unavailable
from g4lab.kernels.extend_reference import visible_keys
from g4lab.tuning import sglang_extend
from g4lab.tuning.extend_shapes import ExtendShape

FLASH_HEAD_DIM = 256  # FlashAttention 2 and 3 go no further
VLLM_PAGE = 16  # its default block size
VERIFY = 16  # tokens of a sequence, at most, where speculative decoding verifies a draft


def sglang(shape: ExtendShape, device: str = "cuda"):
    """SGLang's `extend_attention_fwd` on the paged pool; with another tile inside `sglang_extend.tiled`."""
    x = inputs(shape, device)
    out = torch.empty_like(x.q)
    forward = getattr(sglang_extend.module(), sglang_extend.FORWARD)

    def call():
        forward(
            x.q, x.k, x.v, out, x.k_buffer, x.v_buffer, x.qo_indptr, x.kv_indptr, x.kv_indices,
            custom_mask=None, is_causal=True, mask_indptr=None, max_len_extend=shape.extend, k_scale=1.0, v_scale=1.0,
            sm_scale=x.sm_scale, sliding_window_size=-1 if shape.window is None else shape.window,
        )  # fmt: skip
        return by_sequence(out, shape)

    return call


def sglang_verify(shape: ExtendShape, device: str = "cuda"):
    """SGLang's split-KV kernel for verify, which SGLang 0.5.21 runs on AMD GPUs alone (TritonAttnBackend), without
    window; the splits are those it chooses."""
    from sglang.kernels.ops.attention.verify_splitkv import verify_splitkv_fwd

    if shape.extend > VERIFY or shape.prefix == 0 or shape.window is not None:
        raise Unavailable(f"made for up to {VERIFY} draft tokens after a prefix, without a window")
    x = inputs(shape, device)
    out = torch.empty_like(x.q)

    def call():
        verify_splitkv_fwd(
            x.q, x.k, x.v, out, x.k_buffer, x.v_buffer, x.qo_indptr, x.kv_indptr, x.kv_indices,
            custom_mask=None, is_causal=True, mask_indptr=None, max_len_extend=shape.extend, k_scale=1.0, v_scale=1.0,
            sm_scale=x.sm_scale,
        )  # fmt: skip
        return by_sequence(out, shape)

    return call


def sdpa(shape: ExtendShape, device: str = "cuda"):
    """PyTorch's scaled_dot_product_attention on dense keys: is_causal without prefix and window, else a mask.

    PyTorch chooses the kernel. Those that take a mask, or head dims above 256, know no GQA: they get repeated heads.
    """
    x = inputs(shape, device)
    causal = shape.prefix == 0 and not _windowed(shape)
    gqa = causal and shape.head_dim <= FLASH_HEAD_DIM
    q, k, v = dense(x, shape, repeat_heads=not gqa)
    options = {"is_causal": True} if causal else {"attn_mask": _visible(shape, device)}

    def call():
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=x.sm_scale, enable_gqa=gqa, **options)
        return out.transpose(1, 2)

    return call


def flex(shape: ExtendShape, device: str = "cuda"):
    """PyTorch's FlexAttention, compiled for the shape, on dense keys with a block mask of what is visible."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    x = inputs(shape, device)
    q, k, v = dense(x, shape)
    prefix, window = shape.prefix, shape.prefix + shape.extend if shape.window is None else shape.window

    def visible(b, h, query, key):
        return (key <= query + prefix) & (query + prefix - key <= window)

    mask = create_block_mask(visible, None, None, shape.extend, prefix + shape.extend, device=device)
    torch._dynamo.reset()  # or the ninth shape would run eager, without a word
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask, scale=x.sm_scale, enable_gqa=shape.group > 1).transpose(1, 2)


def _flash_3(flash_attn_with_kvcache):
    """A build with FlashAttention-3's paged call, as an engine makes it: one token a page, new tokens in the pool."""

    def build(shape: ExtendShape, device: str = "cuda"):
        _head_dim_fits(shape)
        x = inputs(shape, device)
        q, pages = by_sequence(x.q, shape), x.slots.int()
        pools = x.k_buffer[:, None], x.v_buffer[:, None]
        lengths = torch.full((shape.batch,), shape.prefix + shape.extend, dtype=torch.int32, device=device)
        options = {"softmax_scale": x.sm_scale, "causal": True, "window_size": _window(shape)}
        return lambda: flash_attn_with_kvcache(q, *pools, cache_seqlens=lengths, page_table=pages, **options)

    return build


def flash_3(shape: ExtendShape, device: str = "cuda"):
    """FlashAttention-3 as its authors package it (flash_attn_interface)."""
    from flash_attn_interface import flash_attn_with_kvcache

    return _flash_3(flash_attn_with_kvcache)(shape, device)


def flash_3_sglang(shape: ExtendShape, device: str = "cuda"):
    """FlashAttention-3 as SGLang's kernel package has it."""
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    return _flash_3(flash_attn_with_kvcache)(shape, device)


def flash_2(shape: ExtendShape, device: str = "cuda"):
    """FlashAttention-2 on dense keys: its pages have 256 tokens at least, an engine's pool has one."""
    from flash_attn import flash_attn_func

    _head_dim_fits(shape)
    x = inputs(shape, device)
    q, k, v = (each.transpose(1, 2) for each in dense(x, shape))
    return lambda: flash_attn_func(q, k, v, softmax_scale=x.sm_scale, causal=True, window_size=_window(shape))


def vllm(shape: ExtendShape, device: str = "cuda"):
    """vLLM's Triton kernel for prefill and verify, which knows heads of 512, too; keys in pages of 16, packed in order.
    Checked with 0.19.0's kernel in the interpreter: within the budget."""
    try:
        from vllm.v1.attention.ops.triton_unified_attention import unified_attention
    except ImportError:  # where releases until 2025 have it
        from vllm.attention.ops.triton_unified_attention import unified_attention

    x = inputs(shape, device)
    out, (k_pages, v_pages, table) = torch.empty_like(x.q), paged(x, VLLM_PAGE)
    keys = shape.prefix + shape.extend
    starts = x.qo_indptr.int()
    lengths = torch.full((shape.batch,), keys, dtype=torch.int32, device=device)
    scale = torch.ones(shape.batch, shape.num_kv_heads, device=device)

    def call():
        unified_attention(
            q=x.q, k=k_pages, v=v_pages, out=out, cu_seqlens_q=starts, max_seqlen_q=shape.extend, seqused_k=lengths,
            max_seqlen_k=keys, softmax_scale=x.sm_scale, causal=True, window_size=_window(shape), block_table=table,
            softcap=0, q_descale=None, k_descale=scale, v_descale=scale,
        )  # fmt: skip
        return by_sequence(out, shape)

    return call


def paged(x, page: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values of every sequence in pages of its own, [pages, page, H, D], and their table [B, pages of one]
    int32; the last page's rest is zeros."""
    batch, keys = x.slots.shape
    pages = -(-keys // page)
    tables = torch.arange(batch * pages, dtype=torch.int32, device=x.q.device).view(batch, pages)
    found = []
    for buffer in (x.k_buffer, x.v_buffer):
        kept = torch.nn.functional.pad(buffer[x.slots], (0, 0, 0, 0, 0, pages * page - keys))
        found.append(kept.view(batch * pages, page, *buffer.shape[1:]))
    return *found, tables


def _head_dim_fits(shape: ExtendShape) -> None:
    if shape.head_dim > FLASH_HEAD_DIM:
        raise Unavailable(f"FlashAttention's head dim ends at {FLASH_HEAD_DIM}; this shape has {shape.head_dim}")


def _windowed(shape: ExtendShape) -> bool:
    """Whether the window hides anything."""
    return shape.window is not None and shape.window < shape.prefix + shape.extend - 1


def _window(shape: ExtendShape) -> tuple[int, int]:
    """Keys seen to the left and, by causality none, to the right."""
    return (shape.window, 0) if _windowed(shape) else (-1, -1)


def _visible(shape: ExtendShape, device: str) -> torch.Tensor:
    return visible_keys(shape.extend, shape.prefix, shape.window, device)

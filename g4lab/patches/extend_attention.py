"""Patch `extend_attention`: SGLang's prefill, chunked prefill and verify attention by g4lab's kernel.

It stands in for `extend_attention_fwd` of the Triton backend, which decode does not use. What the kernel does not take
(extend_call.cannot_take) goes to SGLang's, and the patch's report counts why. Out of scope: deterministic mode, which
has a kernel of its own (`extend_attention_fwd_unified`).

One difference is SGLang's fault: with a custom mask its loop ends where the query tile ends, so that of an image's
tokens, which see one another both ways, a query sees those of its own tile and before. Ours sees all that the mask
says. Masks of speculative trees have nothing above the diagonal and are the same for both.
"""

from __future__ import annotations

from g4lab.patches.choices import needs_interpreter
from g4lab.patches.counting import count, tally
from g4lab.patches.extend_call import FORWARD, ExtendCall, cannot_take, other_arguments
from g4lab.patches.registry import Hook, Patch


def _extend(original, *args, **kwargs):
    """Stands around SGLang's extend_attention_fwd, which writes to its argument o_extend and returns nothing."""
    call = ExtendCall(*args, **kwargs)
    if why_not := cannot_take(call):
        tally("extend_attention", "declined", why_not)
        return original(*args, **kwargs)
    count("extend_attention")
    attend(call)
    return None


def attend(call: ExtendCall) -> None:
    """g4lab's kernel on the arguments of SGLang's, where cannot_take is None."""
    from g4lab.kernels.extend_attention import extend_attention

    extend_attention(
        call.q_extend,
        call.k_extend,
        call.v_extend,
        call.k_buffer,
        call.v_buffer,
        call.qo_indptr,
        call.kv_indptr,
        call.kv_indices,
        max_len_extend=call.max_len_extend,
        sm_scale=call.sm_scale or call.head_dim**-0.5,
        window=call.window,
        logit_cap=max(call.logit_cap, 0.0),
        custom_mask=call.custom_mask,
        mask_indptr=call.mask_indptr,
        skip_prefix_custom_mask=call.skip_prefix_custom_mask,
        window_kv_offsets=call.window_kv_offsets if call.window else None,
        out=call.o_extend,
    )


PATCH = Patch(
    name="extend_attention",
    effect="attends over prefix and new tokens by g4lab's kernel: prefill, chunked prefill and verify",
    source="pyc96/sglang#4",
    hooks=(Hook(FORWARD, "around", _extend),),
    requires="the Triton attention backend without deterministic mode, an unscaled KV cache of the model's dtype",
    counts="calls of the kernel, one for each layer and prefill chunk or verify step; none in decode",
    kernel="_extend_kernel",
    gone={"kernels": ("^_fwd_kernel$",)},
    declines=lambda device: needs_interpreter(device) or other_arguments(),
)

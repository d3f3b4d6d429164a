"""Extend attention in eager PyTorch, one sequence after another: what the fused kernel has to equal."""

import torch


def extend_attention_reference(
    q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, *, sm_scale=1.0, window=None, logit_cap=0.0,
    custom_mask=None, mask_indptr=None, skip_prefix_custom_mask=True, window_kv_offsets=None, compute=torch.float32,
):  # fmt: skip
    """Arguments as `g4lab.kernels.extend_attention.extend_attention`; every operator works in the dtype `compute`.

    compute: float64 for the truth, float32 for a reference, the inputs' own dtype for what eager PyTorch would give,
    which rounds after every operator: the measure of how far any kernel may be off.

    Returns:
        [T, Hq, D] in `compute`; 0 where a query sees no key.
    """
    out = torch.zeros(q.shape, dtype=compute, device=q.device)
    bounds = zip(qo_indptr.tolist(), qo_indptr.tolist()[1:], kv_indptr.tolist(), kv_indptr.tolist()[1:], strict=False)
    for b, (q_start, q_end, kv_start, kv_end) in enumerate(bounds):
        if q_start == q_end:
            continue
        new, slots = slice(q_start, q_end), kv_indices[kv_start:kv_end].long()
        group = q.shape[1] // k.shape[1]
        keys, values = (
            torch.cat([buffer[slots], fresh[new]]).to(compute).repeat_interleave(group, dim=1).transpose(0, 1)
            for buffer, fresh in ((k_buffer, k), (v_buffer, v))
        )
        visible = visible_keys(q_end - q_start, kv_end - kv_start, window, q.device)
        if custom_mask is not None:
            offset = 0 if window_kv_offsets is None else int(window_kv_offsets[b])
            visible = _masked(visible, custom_mask, int(mask_indptr[b]), offset, skip_prefix_custom_mask, window)
        scores = torch.matmul(q[new].to(compute).transpose(0, 1), keys.transpose(1, 2)) * sm_scale
        if logit_cap > 0:
            scores = logit_cap * torch.tanh(scores / logit_cap)
        scores = scores.masked_fill(~visible, float("-inf"))
        weights = torch.softmax(scores, dim=-1).masked_fill(~visible.any(-1, keepdim=True), 0.0)
        out[new] = torch.matmul(weights, values).transpose(0, 1)
    return out


def visible_keys(extend: int, prefix: int, window: int | None, device=None) -> torch.Tensor:
    """bool [extend, prefix + extend]: a query sees itself and the keys before it, `window` of them where given."""
    query = prefix + torch.arange(extend, device=device)[:, None]
    key = torch.arange(prefix + extend, device=device)[None, :]
    return (key <= query) & (query - key <= (window if window is not None else prefix + extend))


def _masked(causal, custom_mask, start: int, offset: int, skip_prefix: bool, window: int | None):
    """What the custom mask lets a query see: it takes causality's place, not the window's."""
    extend, keys = causal.shape
    mask = custom_mask[start : start + extend * (offset + keys)].view(extend, offset + keys)[:, offset:].bool()
    if skip_prefix:
        mask = torch.cat([torch.ones_like(mask[:, : keys - extend]), mask[:, keys - extend :]], dim=1)
    if window is None:
        return mask
    query = keys - extend + torch.arange(extend, device=mask.device)[:, None]
    return mask & (query - torch.arange(keys, device=mask.device) <= window)

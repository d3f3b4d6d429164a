"""A stand-in for SGLang's compiled `sgl_kernel`, so that SGLang's server runs on a CPU for which there is no build.

g4lab puts this folder on the path of a server process that it starts on a CPU, and nowhere else. The eight operations
that speculative decoding calls on a CPU are written here in plain torch: same arguments, same results, written into the
caller's tensors. Every other name imports, and raises when it is called.
"""

import ctypes

import torch

__g4lab_standin__ = True
__version__ = "0+g4lab.standin"

_FULL_MASK, _QLEN_ONLY = 0, 1  # SGLang's TreeMaskMode


def build_tree_kernel_efficient_cpu(
    parent_list,
    selected_index,
    verified_seq_len,
    tree_mask,
    positions,
    retrive_index,
    retrive_next_token,
    retrive_next_sibling,
    topk,
    depth,
    draft_token_num,
    tree_mask_mode=_FULL_MASK,
):
    """Lay out each request's draft tree of N = draft_token_num nodes; node 0 is the last verified token.

    parent_list [B, *]: the candidate that each group of topk candidates grew from. selected_index [B, N-1]: the
    candidates kept, ascending, so that parents precede children. Writes the ancestor mask (bool, flat: per request
    [N, seq_len + N] with the prefix left alone, or [N, N]), positions [B*N], retrive_index [B, N] (node -> flat
    index), and the first child and next sibling of each node [B, N] (untouched, -1, where there is none).
    """
    if int(tree_mask_mode) not in (_FULL_MASK, _QLEN_ONLY):
        raise NotImplementedError(f"sgl_kernel stand-in: tree mask mode {tree_mask_mode} is not written")
    count = draft_token_num
    offset = 0
    for request, prefix in enumerate(verified_seq_len.tolist()):
        parents = _parents(selected_index[request].tolist(), parent_list[request].tolist(), topk)
        ancestors = torch.eye(count, dtype=torch.bool)
        last_child = {}
        for node, parent in enumerate(parents, start=1):
            ancestors[node] |= ancestors[parent]
            siblings, key = (
                (retrive_next_sibling, last_child[parent]) if parent in last_child else (retrive_next_token, parent)
            )
            siblings[request, key] = node
            last_child[parent] = node
        width = count if int(tree_mask_mode) == _QLEN_ONLY else prefix + count
        rows = tree_mask[offset : offset + count * width].view(count, width)
        rows[:, width - count :] = ancestors
        offset += count * width
        nodes = slice(request * count, (request + 1) * count)
        positions[nodes] = prefix + ancestors.sum(1) - 1
        retrive_index[request] = torch.arange(nodes.start, nodes.stop)


def _parents(selected, grown_from, topk):
    """The parent node of nodes 1, 2, ...: a candidate of group 0 hangs on the root, of group g on grown_from[g]."""
    groups = [candidate // topk for candidate in selected]
    return [0 if group == 0 else selected.index(grown_from[group]) + 1 for group in groups]


def verify_tree_greedy_cpu(
    predicts,
    accept_index,
    accept_token_num,
    candidates,
    retrive_index,
    retrive_next_token,
    retrive_next_sibling,
    target_predict,
):
    """Walk each request's tree along the target's own greedy tokens.

    candidates, retrive_*, target_predict [B, N]. Writes the flat indices of the accepted nodes, the root first
    (accept_index [B, S+1]), how many drafts were right (accept_token_num [B]), and the target's token after each
    accepted node (predicts [B*N]).
    """
    target = target_predict.reshape(-1)
    for request in range(candidates.shape[0]):
        node, right = 0, 0
        while True:
            flat = retrive_index[request, node]
            accept_index[request, right] = flat
            predicts[flat] = target[flat]
            if right + 1 == accept_index.shape[1]:
                break
            child = int(retrive_next_token[request, node])
            while child != -1 and candidates[request, child] != target[flat]:
                child = int(retrive_next_sibling[request, child])
            if child == -1:
                break
            node, right = child, right + 1
        accept_token_num[request] = right


def assign_req_to_token_pool_cpu(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, pool_len):
    """Write out_cache_loc, request after request, into req_to_token[request, start:end]."""
    slots = out_cache_loc.split((end_offset - start_offset).tolist())
    for row, start, end, values in zip(
        req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), slots, strict=False
    ):
        req_to_token[row, start:end] = values.to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, pool_len):
    """Read req_to_token[request, start:end], request after request, into the front of out_cache_loc."""
    spans = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    slots = torch.cat([req_to_token[row, start:end] for row, start, end in spans])
    out_cache_loc[: slots.numel()] = slots.to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices, req_to_token, seq_lens, out_cache_loc, pool_len, topk, speculative_num_steps
):
    """Read the topk * steps slots behind each request's sequence into out_cache_loc."""
    ends = seq_lens + topk * speculative_num_steps
    assign_extend_cache_locs_cpu(req_pool_indices, req_to_token, seq_lens, ends, out_cache_loc, pool_len)


def fill_bonus_tokens_cpu(accept_tokens, accept_lens, bonus_tokens, accept_stride):
    """bonus_tokens[b] = the last of request b's accept_lens[b] accepted tokens, which lie accept_stride apart."""
    last = torch.arange(accept_lens.shape[0]) * accept_stride + accept_lens - 1
    bonus_tokens.copy_(accept_tokens.reshape(-1)[last])


def fill_accept_out_cache_loc_cpu(accept_index, out_cache_loc, accept_out_cache_loc):
    """Gather the cache slots of the accepted nodes (accept_index >= 0) to the front of accept_out_cache_loc."""
    slots = out_cache_loc[accept_index[accept_index >= 0]]
    accept_out_cache_loc[: slots.numel()] = slots


def copy_all_layer_kv_cache_cpu(data_ptrs, strides, tgt_loc, src_loc):
    """In each buffer (address, bytes per slot), copy slots src_loc to tgt_loc; all are read before one is written."""
    sources, targets = src_loc.tolist(), tgt_loc.tolist()
    for base, size in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        rows = [ctypes.string_at(base + slot * size, size) for slot in sources]
        for slot, row in zip(targets, rows, strict=True):
            ctypes.memmove(base + slot * size, row, size)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def unwritten(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} is not in g4lab's stand-in: it needs SGLang's compiled kernels")

    unwritten.__name__ = name
    return unwritten

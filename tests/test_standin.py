"""The stand-in for sgl_kernel against small draft trees worked out by hand."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from g4lab.runners.server_command import STANDIN

_spec = importlib.util.spec_from_file_location("g4lab_standin", STANDIN / "sgl_kernel" / "__init__.py")
standin = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(standin)

FULL_MASK, QLEN_ONLY = 0, 1

# A chain, topk 1: root -> a -> b. Candidates 0, 1, 2 of steps 1, 2, 3; step s hangs on candidate s - 1.
CHAIN = SimpleNamespace(topk=1, parents=[-1, 0, 1], selected=[0, 1], depth=[0, 1, 2], below={0: [1], 1: [2]})
# A branching tree, topk 2: step 1 gives candidates 0, 1 (below the root); group 1 (candidates 2, 3) grew from candidate
# 1, group 2 (candidates 4, 5) from candidate 0. Kept: 0, 1, 2, 3, 5, that is nodes 1..5.
TREE = SimpleNamespace(
    topk=2, parents=[-1, 1, 0], selected=[0, 1, 2, 3, 5], depth=[0, 1, 1, 2, 2, 2], below={0: [1, 2], 1: [5], 2: [3, 4]}
)


def build(trees, prefixes, mode):
    """The stand-in's layout of one tree per request; trees of equal size, as in a batch."""
    n, bs = len(trees[0].selected) + 1, len(trees)
    size = n * n * bs if mode == QLEN_ONLY else sum((p + n) * n for p in prefixes)
    out = SimpleNamespace(
        n=n,
        mask=torch.ones(size, dtype=torch.bool),
        positions=torch.empty(bs * n, dtype=torch.long),
        index=torch.full((bs, n), -1),
        child=torch.full((bs, n), -1),
        sibling=torch.full((bs, n), -1),
    )
    standin.build_tree_kernel_efficient_cpu(
        torch.tensor([t.parents for t in trees]),
        torch.tensor([t.selected for t in trees]),
        torch.tensor(prefixes),
        out.mask,
        out.positions,
        out.index,
        out.child,
        out.sibling,
        trees[0].topk,
        3,
        n,
        mode,
    )
    return out


def test_chain_by_hand():
    out = build([CHAIN], [4], FULL_MASK)
    rows = out.mask.view(3, 7)
    assert rows[:, :4].all()
    assert rows[:, 4:].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert out.positions.tolist() == [4, 5, 6]
    assert out.index.tolist() == [[0, 1, 2]]
    assert out.child.tolist() == [[1, 2, -1]]
    assert out.sibling.tolist() == [[-1, -1, -1]]


def test_branching_tree_by_hand():
    out = build([TREE], [10], QLEN_ONLY)
    assert out.mask.view(6, 6).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert out.positions.tolist() == [10, 11, 11, 12, 12, 12]
    assert out.child.tolist() == [[1, 5, 3, -1, -1, -1]]
    assert out.sibling.tolist() == [[-1, 2, -1, 4, -1, -1]]


@pytest.mark.parametrize("mode", [FULL_MASK, QLEN_ONLY])
def test_requests_of_a_batch_do_not_touch_each_other(mode):
    other = SimpleNamespace(topk=2, parents=[-1, 0, 1], selected=[0, 1, 2, 3, 4])  # 1, 2 | 3, 4 below 1 | 5 below 2
    both = build([TREE, other], [10, 3], mode)
    alone = [build([TREE], [10], mode), build([other], [3], mode)]
    assert torch.equal(both.mask, torch.cat([a.mask for a in alone]))
    assert torch.equal(both.positions, torch.cat([a.positions for a in alone]))
    assert torch.equal(both.child, torch.cat([a.child for a in alone]))
    assert torch.equal(both.sibling, torch.cat([a.sibling for a in alone]))
    assert both.index.tolist() == [list(range(6)), list(range(6, 12))]
    assert alone[1].child.tolist() == [[1, 3, 5, -1, -1, -1]]
    assert alone[1].sibling.tolist() == [[-1, 2, -1, 4, -1, -1]]


def test_no_drafts_kept_and_unwritten_mask_mode():
    root = SimpleNamespace(topk=1, parents=[], selected=[])
    out = build([root], [2], FULL_MASK)
    assert out.mask.tolist() == [True] * 3
    assert out.positions.tolist() == [2]
    with pytest.raises(NotImplementedError, match="mask mode 2"):
        build([CHAIN], [4], 2)


def verify(trees, candidates, target, depth=3):
    layout = build(trees, [7] * len(trees), QLEN_ONLY)
    bs, n = layout.index.shape
    predicts = torch.zeros(bs * n, dtype=torch.int32)
    accepted = torch.full((bs, depth + 1), -1, dtype=torch.int32)
    right = torch.empty(bs, dtype=torch.int32)
    standin.verify_tree_greedy_cpu(
        predicts=predicts,
        accept_index=accepted,
        accept_token_num=right,
        candidates=torch.tensor(candidates),
        retrive_index=layout.index,
        retrive_next_token=layout.child,
        retrive_next_sibling=layout.sibling,
        target_predict=torch.tensor(target),
    )
    return right.tolist(), accepted.tolist(), predicts.tolist()


def test_chain_is_accepted_up_to_the_first_wrong_draft():
    chains, drafts = [CHAIN] * 3, [[50, 51, 52]] * 3
    right, accepted, predicts = verify(chains, drafts, [[51, 52, 53], [51, 99, 53], [99, 52, 53]], depth=2)
    assert right == [2, 1, 0]
    assert accepted == [[0, 1, 2], [3, 4, -1], [6, -1, -1]]
    assert predicts == [51, 52, 53, 51, 99, 0, 99, 0, 0]


def test_tree_follows_the_sibling_that_is_right():
    # Node tokens: 1: 11, 2: 12, 3: 13, 4: 14, 5: 15. The target says 12 after the root, then 14 after node 2.
    right, accepted, predicts = verify([TREE], [[10, 11, 12, 13, 14, 15]], [[12, 0, 14, 0, 77, 0]])
    assert (right, accepted) == ([2], [[0, 2, 4, -1]])
    assert predicts == [12, 0, 14, 0, 77, 0]


def test_no_more_is_accepted_than_there_is_room_for():
    right, accepted, _ = verify([CHAIN], [[50, 51, 52]], [[51, 52, 53]], depth=1)
    assert (right, accepted) == ([1], [[0, 1]])


def test_cache_slots_are_written_and_read_in_order():
    pool = torch.zeros(3, 8, dtype=torch.int32)
    rows, start, end = torch.tensor([2, 0]), torch.tensor([1, 4]), torch.tensor([3, 4])
    standin.assign_req_to_token_pool_cpu(rows, pool, start, end, torch.tensor([71, 72]), 8)
    assert pool.tolist() == [[0] * 8, [0] * 8, [0, 71, 72, 0, 0, 0, 0, 0]]
    pool = torch.arange(24, dtype=torch.int32).view(3, 8)
    out = torch.zeros(6, dtype=torch.long)
    standin.assign_extend_cache_locs_cpu(rows, pool, start, torch.tensor([3, 6]), out, 8)
    assert out.tolist() == [17, 18, 4, 5, 0, 0]
    out = torch.zeros(8, dtype=torch.long)
    standin.assign_draft_cache_locs_contiguous_cpu(rows, pool, start, out, 8, 2, 2)
    assert out.tolist() == [17, 18, 19, 20, 4, 5, 6, 7]


def test_bonus_tokens_and_accepted_slots():
    bonus = torch.zeros(2, dtype=torch.int32)
    standin.fill_bonus_tokens_cpu(torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 1]), bonus, 3)
    assert bonus.tolist() == [7, 8]
    out = torch.zeros(6, dtype=torch.long)
    accepted = torch.tensor([[0, 2, -1], [3, -1, -1]])
    standin.fill_accept_out_cache_loc_cpu(accepted, torch.tensor([40, 41, 42, 43]), out)
    assert out.tolist() == [40, 42, 43, 0, 0, 0]


def test_cache_rows_move_as_if_all_were_read_first():
    k, v = torch.arange(12.0).view(4, 3), torch.arange(8, dtype=torch.int16).view(4, 2)
    pointers = torch.tensor([k.data_ptr(), v.data_ptr()])
    strides = torch.tensor([3 * 4, 2 * 2])
    standin.copy_all_layer_kv_cache_cpu(pointers, strides, torch.tensor([1, 2]), torch.tensor([0, 1]))
    assert k.tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [9, 10, 11]]
    assert v.tolist() == [[0, 1], [0, 1], [2, 3], [6, 7]]


def test_what_is_not_written_imports_and_raises_when_called():
    assert standin.__g4lab_standin__
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.silu_and_mul"):
        standin.silu_and_mul(torch.zeros(2))
    with pytest.raises(AttributeError):
        getattr(standin, "__file_of_nothing__")  # noqa: B009

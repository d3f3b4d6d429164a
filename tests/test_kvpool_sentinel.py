"""The sentinel's arithmetic, its dumps, and what `g4lab kv inspect` says of them."""

import dataclasses

import numpy as np
import pytest
import torch

from g4lab import cli
from g4lab.errors import BadInput
from g4lab.kvpool import dump
from g4lab.kvpool.sentinel import NO_SLOT, Allocation, KVIndexError, Read, faults, host, message, translate

WINDOW = 4
UNTRANSLATED = "a FULL-pool slot that was never translated"


def a_read(entries=None, **changes):
    """Two requests of 6 and 3 tokens at full slots 11.. and 21..; their last 5 and 3 are in a sliding pool of 8.

    The first position of the first request has left the window: its sliding slot is given back.
    """
    table = np.array([[11, 12, 13, 14, 15, 16], [21, 22, 23, 0, 0, 0]])
    translated = np.array([[0, 1, 2, 3, 4, 5], [6, 7, 8, 0, 0, 0]])
    read = Read(
        backend="simulated", mode="DECODE", layer=2, sliding=True, page_size=1, rows=9, window=WINDOW,
        requests=np.array([3, 7]), start=np.array([0, 0]), first_query=np.array([5, 2]), indptr=np.array([0, 6, 9]),
        entries=np.array([0, 1, 2, 3, 4, 5, 6, 7, 8]), table=table, translated=translated,
    )  # fmt: skip
    read = dataclasses.replace(read, **changes)
    return dataclasses.replace(read, entries=np.array(entries)) if entries is not None else read


def words(record):
    return [str(fault) for fault in faults(record)]


def test_a_right_read_has_no_fault():
    assert words(a_read()) == []
    assert dump.explain(a_read())[-1] == "no slot is bad"


@pytest.mark.parametrize(
    ("position", "value", "said"),
    [
        (4, 15, "slot 15 of a pool that has 8, a FULL-pool slot that was never translated; expected slot 4"),
        (4, 40, "slot 40 of a pool that has 8; expected slot 4"),
        (4, 9, "slot 9 of a pool that has 8; expected slot 4"),  # one past the end
        (0, 9, "slot 9 of a pool that has 8; expected slot 0"),  # outside is wrong where the window is not, too
        (4, NO_SLOT, "slot -1 of a pool that has 8, the mark of a position without a slot; expected slot 4"),
        (4, 0, "slot 0, the reserved dummy, which keeps no token's key; expected slot 4"),
        (4, 7, "slot 7, that of row 1 position 1; expected slot 4"),
    ],
)
def test_one_wrong_entry_is_named(position, value, said):
    entries = [0, 1, 2, 3, 4, 5, 6, 7, 8]
    entries[position] = value
    assert words(a_read(entries)) == [f"row 0 (request 3) position {position}: {said}"]


def test_what_no_query_attends_may_be_anything_inside_the_pool():
    assert words(a_read([7, 1, 2, 3, 4, 5, 6, 7, 8])) == []
    assert len(words(a_read([7, 1, 2, 3, 4, 5, 6, 7, 8], window=None))) == 1


def test_the_padding_request_reads_the_dummy():
    padded = a_read([0, 1, 2, 3, 4, 5, 0, 0, 0])
    assert len(words(padded)) == 3
    assert words(dataclasses.replace(padded, requests=np.array([3, 0]))) == []


def test_a_slot_freed_within_the_window_and_a_mapping_out_of_its_pool():
    lost = a_read([0, 1, 2, 3, 0, 5, 6, 7, 8], translated=np.array([[0, 1, 2, 3, 0, 5], [6, 7, 8, 0, 0, 0]]))
    assert words(lost)[0].endswith("and the mapping has no other: freed within the window, or never given")
    corrupt = a_read([0, 1, 2, 3, 99, 5, 6, 7, 8], translated=np.array([[0, 1, 2, 3, 99, 5], [6, 7, 8, 0, 0, 0]]))
    assert words(corrupt)[0].endswith("slot 99 of a pool that has 8, as the mapping says")


def test_window_lists_and_empty_requests():
    """Triton's lists start in the middle of a request; one may be empty."""
    some = a_read([3, 4, 8], indptr=np.array([0, 2, 3]), start=np.array([3, 2]))
    assert words(some) == []
    assert "row 1 (request 7) position 2: slot 7" in words(dataclasses.replace(some, entries=np.array([3, 4, 7])))[0]
    assert words(a_read([], indptr=np.array([0, 0, 0]))) == []


def test_pages():
    """Pages of 4: entries are page numbers, positions count tokens, and page 0 is the dummy."""
    table = np.arange(8, 14)[None]
    translated = np.arange(4, 10)[None]
    read = a_read(
        [1, 2], page_size=4, rows=12, requests=np.array([1]), start=np.array([0]), first_query=np.array([5]),
        indptr=np.array([0, 2]), table=table, translated=translated,
    )  # fmt: skip
    assert words(read) == []
    (said,) = words(dataclasses.replace(read, entries=np.array([1, 3])))
    assert said == f"row 0 (request 1) position 4: slot 12 of a pool that has 8, {UNTRANSLATED}; expected slot 8"
    assert "reserved dummy" in words(dataclasses.replace(read, entries=np.array([1, 0])))[0]


def test_translation_takes_no_slot_outside_the_mapping():
    mapping = torch.tensor([0, 5, 6, NO_SLOT])
    assert translate(torch.tensor([[0, 2], [3, 9]]), mapping).tolist() == [[0, 6], [NO_SLOT, NO_SLOT]]
    assert translate([-1], mapping).tolist() == [NO_SLOT]
    assert host(torch.tensor([1], dtype=torch.int32)).dtype == np.int64


def an_allocation(**changes):
    given = Allocation("alloc_extend", 1, 20, 9, np.array([11, 12]), np.array([1, 8]))
    return dataclasses.replace(given, **changes)


def test_allocations():
    assert words(an_allocation()) == []
    assert words(an_allocation(sliding=np.array([1, 9]))) == ["token 1: slot 9, outside the sliding pool's 1 to 8"]
    assert words(an_allocation(sliding=np.array([0, 8]))) == ["token 0: slot 0, outside the sliding pool's 1 to 8"]
    assert words(an_allocation(full=np.array([11, 11]))) == ["token 1: slot 11, given twice in the full pool"]


def test_the_message_names_layer_and_counts():
    found = list(faults(a_read([0, 12, 13, 14, 15, 16, 6, 7, 8])))
    said = message(a_read(), found)
    assert said.startswith("layer 2 (sliding pool, simulated, DECODE): row 0 (request 3) position 1: slot 12 of")
    assert said.endswith("; 4 more")
    assert issubclass(KVIndexError, IndexError)


@pytest.mark.parametrize("record", [a_read([0, 12, 13, 14, 15, 16, 6, 7, 8]), an_allocation(sliding=np.array([9, 9]))])
def test_a_dump_is_the_record(record, tmp_path):
    path = dump.save(record, tmp_path / "new" / "bad.npz")
    again = dump.load(path)
    assert words(again) == words(record)
    assert words(record)
    assert again.where == record.where
    assert [p.name for p in path.parent.iterdir()] == ["bad.npz"]


def test_inspect_explains_a_dump(tmp_path, capsys):
    path = dump.save(a_read([0, 12, 13, 14, 15, 16, 6, 7, 1]), tmp_path / "bad.npz")
    assert cli.run(["kv", "inspect", str(path), "--most", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "layer 2 (sliding pool, simulated, DECODE): 2 requests read 9 keys",
        "the layer's pool has 8 slots, pages of 1; a query attends 4 keys before it",
        f"row 0 (request 3) position 1: slot 12 of a pool that has 8, {UNTRANSLATED}; expected slot 1",
        f"row 0 (request 3) position 2: slot 13 of a pool that has 8, {UNTRANSLATED}; expected slot 2",
        "row 0: 5 of its 6 slots are bad, up to position 5",
        "row 1 (request 7) position 2: slot 1, that of row 0 position 1; expected slot 8",
        "6 of 9 slots are bad",
    ]


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_file_that_is_no_dump_is_bad_input(content, tmp_path, capsys):
    path = tmp_path / "other.npz"
    if content is None:
        np.savez(path, a=np.zeros(2))
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match="expected a file that the patch kv_sentinel wrote"):
        dump.load(path)
    assert cli.run(["kv", "inspect", str(path)]) == 2
    assert cli.run(["kv", "inspect", str(tmp_path / "none.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 2

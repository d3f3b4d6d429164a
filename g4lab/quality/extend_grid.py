"""The correctness grid of extend attention: head dims x cases x dtypes, each with an error budget of its own.

A row of one query and one head, D values, may be off from the fp64 reference by

    2 x (what the reference is off that rounds every operator to the inputs' dtype)
    + (eps of the dtype + eps of fp32 x scale x D) x (the row's largest value)

The first term is what eager PyTorch would be allowed. The second is for what no reference shows: the kernel rounds
weights before they are divided by their sum, and the order of its fp32 sums is its own. Scores of normal values are of
size scale x sqrt(D), D random roundings of that size add up like sqrt(D) of them, and what a score is off, its weight
is off relatively. Values of independent keys add up with random signs, and so do their errors: like the row itself,
whence its largest value. A row that sees nothing has no budget: it must be 0.

Whatever no sequence may read is NaN: slots of no sequence, rows between strided views. So reading it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
import torch

from g4lab.errors import bad
from g4lab.kernels.extend_attention import extend_attention
from g4lab.kernels.extend_reference import extend_attention_reference
from g4lab.kernels.extend_tiles import ExtendTile

HEAD_DIMS = (64, 128, 192, 256, 288, 512)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TILE = ExtendTile(16, 16, 4, 1)  # small, so that short sequences have interior, edge and tail blocks


@dataclass(frozen=True)
class GridCase:
    """sequences: (new tokens, cached tokens) of each. heads: (query heads, KV heads).

    mask: "" for causality; "tree": drafts see their ancestors; "blind": as that, and every third row sees nothing.
    masked_prefix: the mask hides cached tokens, too (skip_prefix_custom_mask=False), and has columns before them
    (window_kv_offsets). shared: sequences begin with the same pages. strided: q, k and v are parts of one tensor, as
    are the buffers; out has gaps. scale: of the scores, None for head_dim ** -0.5.
    """

    name: str
    sequences: tuple[tuple[int, int], ...]
    window: int | None = None
    heads: tuple[int, int] = (2, 1)
    logit_cap: float = 0.0
    mask: str = ""
    masked_prefix: bool = False
    shared: bool = False
    strided: bool = False
    scale: float | None = None
    splits: int = 1


CASES = (
    GridCase("ragged batch", ((21, 37), (3, 40), (6, 17)), heads=(4, 2)),
    GridCase("empty prefix", ((24, 0), (5, 0))),
    GridCase("empty sequences", ((0, 30), (10, 21), (0, 0), (5, 36), (0, 9))),
    GridCase("one token", ((1, 50), (1, 0), (1, 16))),
    GridCase("heads in threes", ((11, 20), (4, 33)), heads=(6, 2)),
    GridCase("window above the extend", ((20, 50), (9, 70)), window=40),
    GridCase("window below the extend", ((40, 20), (25, 0)), window=11),
    GridCase("window 1", ((20, 25), (9, 0)), window=1),
    GridCase("prefix partly in the window", ((30, 60), (12, 15)), window=23),
    GridCase("tree mask", ((6, 35), (4, 20), (8, 0)), mask="tree"),
    GridCase("tree mask, window", ((6, 60), (4, 33), (8, 0)), mask="tree", window=30),
    GridCase("rows masked whole", ((12, 30), (20, 0)), mask="blind", masked_prefix=True, window=25),
    GridCase("shared, scattered pages", ((6, 40), (10, 28), (4, 40)), shared=True),
    GridCase("strided views", ((12, 20), (3, 20)), heads=(4, 2), strided=True),
    GridCase("logit cap", ((14, 37), (3, 20)), logit_cap=1.5),
    GridCase("sharp scores", ((14, 37), (3, 20)), scale=1.0),
    GridCase("split keys", ((5, 70), (1, 20), (0, 9), (3, 0)), splits=4),
    GridCase("split keys, window", ((4, 70), (12, 20)), heads=(4, 2), window=37, splits=3),
)  # fmt: skip


def grid(
    head_dims: Iterable[int] = HEAD_DIMS, cases: Iterable[str | GridCase] | None = None,
    dtypes: Iterable[str] = tuple(DTYPES), *, tile: ExtendTile | None = TILE, device: str | None = None,
    kernel: Callable = extend_attention, progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Runs every case with every head dim and dtype, in Triton's interpreter where there is no GPU.

    cases: GridCases or names of CASES, None for all. tile: None lets the kernel choose. kernel: what takes
    `extend_attention`'s arguments. progress: called with (done, total).

    Returns:
        Columns head_dim, case, dtype, error and budget (of the row that is the furthest through its budget), ratio (of
        the two; infinite for NaN) and holds.

    Raises:
        BadInput: an unknown case or dtype.
    """
    chosen = CASES if cases is None else tuple(case(each) if isinstance(each, str) else each for each in cases)
    jobs = [(head_dim, each, dtype) for head_dim in head_dims for each in chosen for dtype in dtypes]
    for *_, dtype in jobs:
        if dtype not in DTYPES:
            raise bad("dtypes", dtype, "some of " + ", ".join(DTYPES))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for done, (head_dim, each, dtype) in enumerate(jobs):
        found = check(each, head_dim, DTYPES[dtype], tile=tile, device=device, kernel=kernel)
        rows.append({"head_dim": head_dim, "case": each.name, "dtype": dtype} | found)
        if progress:
            progress(done + 1, len(jobs))
    return pd.DataFrame(rows)


def case(name: str) -> GridCase:
    """The case called `name`. Raises BadInput for an unknown one."""
    for each in CASES:
        if each.name == name:
            return each
    raise bad("case", name, "one of " + ", ".join(each.name for each in CASES))


def check(
    each: GridCase, head_dim: int, dtype: torch.dtype, *, tile=TILE, device="cpu", kernel=extend_attention
) -> dict:
    """One cell of the grid: error, budget, ratio and holds, as `grid` has them."""
    x, options, out = inputs(each, head_dim, dtype, device)
    longest = max(extend for extend, _ in each.sequences)
    got = kernel(**x, **options, max_len_extend=longest, tile=tile, splits=each.splits, out=out).double()
    truth, low = (extend_attention_reference(**x, **options, compute=c).double() for c in (torch.float64, dtype))
    budget = row_budget(truth, low, dtype, options["sm_scale"])
    error = (got - truth).abs().amax(-1).nan_to_num(math.inf)
    ratio = torch.where(error == 0, 0.0, error / budget)
    worst = int(ratio.argmax())
    numbers = {"error": error, "budget": budget, "ratio": ratio}
    return {name: float(x.flatten()[worst]) for name, x in numbers.items()} | {"holds": bool((ratio <= 1).all())}


def row_budget(truth: torch.Tensor, low: torch.Tensor, dtype: torch.dtype, sm_scale: float) -> torch.Tensor:
    """What each row of [..., D] may be off from `truth` in fp64; `low` is the reference computed in `dtype`."""
    eps = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * sm_scale * truth.shape[-1]
    return 2 * (low.double() - truth).abs().amax(-1) + eps * truth.abs().amax(-1)


def inputs(each: GridCase, head_dim: int, dtype: torch.dtype, device: str = "cpu") -> tuple[dict, dict, torch.Tensor]:
    """Tensors and options of both `extend_attention` and its reference, seeded by the case, and where to write."""
    generator = torch.Generator().manual_seed(sum(map(ord, each.name)) + head_dim)
    extends, prefixes = zip(*each.sequences, strict=True)
    tokens, cached = sum(extends), sum(prefixes)
    num_slots = 2 * cached + 3
    kv_indices = torch.randperm(num_slots, generator=generator)[:cached]
    if each.shared:
        pages = kv_indices[: max(prefixes)]
        kv_indices = torch.cat([pages[:prefix] for prefix in prefixes])
    num_q_heads, num_kv_heads = each.heads
    layout = {"head_dim": head_dim, "strided": each.strided, "device": device, "dtype": dtype}
    q, k, v = _rows(tokens, [num_q_heads, num_kv_heads, num_kv_heads], **layout)
    k_buffer, v_buffer = _rows(num_slots, [num_kv_heads] * 2, **layout)
    (out,) = _rows(tokens, [num_q_heads], **layout)
    for tensor in (q, k, v):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    for buffer in (k_buffer, v_buffer):
        buffer[kv_indices] = torch.randn(cached, *buffer.shape[1:], generator=generator).to(buffer)
    x = {"q": q, "k": k, "v": v, "k_buffer": k_buffer, "v_buffer": v_buffer}
    x |= {"qo_indptr": _indptr(extends, device), "kv_indptr": _indptr(prefixes, device).int()}
    options = {"sm_scale": each.scale or head_dim**-0.5, "window": each.window, "logit_cap": each.logit_cap}
    options |= _mask(each, generator, device) if each.mask else {}
    return x | {"kv_indices": kv_indices.to(device)}, options, out


def _rows(count: int, heads: list[int], *, head_dim: int, strided: bool, **kind) -> list[torch.Tensor]:
    """[count, heads, D] of NaN for each of `heads`: parts of one tensor with gaps, or a tensor each."""
    if not strided:
        return [torch.full((count, each, head_dim), math.nan, **kind) for each in heads]
    packed = torch.full((count, sum(heads) + 1, head_dim + 16), math.nan, **kind)
    return [part[..., :head_dim] for part in packed.split([*heads, 1], dim=1)[:-1]]


def _indptr(lengths: tuple[int, ...], device: str) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0)


def _mask(each: GridCase, generator: torch.Generator, device: str) -> dict:
    """custom_mask and its arguments: [new tokens, offset + cached + new tokens] of each sequence, flat."""
    parts, offsets = [], []
    for b, (extend, prefix) in enumerate(each.sequences):
        offset = 5 * b if each.masked_prefix else 0
        tree = _tree(extend, generator)
        before = torch.rand(extend, offset + prefix, generator=generator) < 0.5
        part = torch.cat([before, tree], dim=1)
        if each.mask == "blind":
            part[::3] = False
        parts.append(part.flatten())
        offsets.append(offset)
    found = {"custom_mask": torch.cat(parts).to(device), "mask_indptr": _indptr([len(p) for p in parts], device)}
    if not each.masked_prefix:
        return found
    return found | {"window_kv_offsets": torch.tensor(offsets, device=device), "skip_prefix_custom_mask": False}


def _tree(size: int, generator: torch.Generator) -> torch.Tensor:
    """bool [size, size]: drafts of a random tree, whose parents come first, see themselves and their ancestors."""
    seen = torch.eye(size, dtype=torch.bool)
    for draft in range(1, size):
        seen[draft] |= seen[int(torch.randint(draft, (1,), generator=generator))]
    return seen

"""Patch `extend_tiles`: SGLang's own extend-attention kernel with a tile chosen by the launch.

SGLang 0.5.21 chooses by head dim alone, always with one stage. Here the table of tiles that $G4LAB_EXTEND_TILES names
chooses by batch and by the longest extend, too: `seed` (default, pyc96/sglang#4, timed on an H100), `legacy` (SGLang
before May 2026), `sglang` (0.5.21's own choice, for comparison). A table without tiles of its own for this GPU is
declined. On a CPU in the interpreter, which has no architecture, the tiles are those of sm_90; that shows that they
compute the same, not that they are fast.

The launch alone is changed: what the Triton backend asks once at its start, the tile by which the scheduler budgets
prefill batches (extend_attention_block_m), stays SGLang's, as do the deterministic and the dense-prefill kernels, which
ask the same function. Where `extend_attention` is on, too, it does the work, and this patch what that one declines.
"""

from __future__ import annotations

import functools

from g4lab import env
from g4lab.errors import BadInput
from g4lab.patches.choices import Choice
from g4lab.patches.counting import count, tally
from g4lab.patches.extend_call import FORWARD, ExtendCall, other_arguments
from g4lab.patches.registry import Device, Hook, Patch

table = Choice("G4LAB_EXTEND_TILES", ("seed", "legacy", "sglang"))
INTERPRETED_AS = "sm_90"


def _with_our_tile(original, *args, **kwargs):
    """Stands around SGLang's extend_attention_fwd."""
    from g4lab.tuning.sglang_extend import tiled

    call = ExtendCall(*args, **kwargs)
    tile, why_not = pick(call)
    if why_not:
        tally("extend_tiles", "declined", why_not)
        return original(*args, **kwargs)
    count("extend_tiles")
    tally("extend_tiles", "tiles", f"head_dim {call.head_dim}: {tile}")
    with tiled(tile):
        return original(*args, **kwargs)


def pick(call: ExtendCall):
    """The table's ExtendTile for this call and None, or None and why the call keeps SGLang's tile."""
    from g4lab.kernels.extend_attention import arch_of
    from g4lab.kernels.extend_tiles import pick_tile

    if call.v_extend.shape[-1] != call.head_dim:
        return None, "values with another head dim than keys"
    arch = arch_of(call.q_extend.device) if call.q_extend.is_cuda else INTERPRETED_AS
    try:
        tile = pick_tile(arch=arch, table=table(), **call.launch())
    except BadInput as error:
        return None, str(error)
    if call.custom_mask is not None and call.max_len_extend > tile.block_m:
        # SGLang's loop over a mask ends where the query tile ends, so another tile would see other keys.
        return None, "a custom mask over more tokens than a tile"
    return tile, None


def _declines(device: Device) -> str | None:
    arch = env.machine()["gpus"][0]["sm"] if device == "cuda" else INTERPRETED_AS
    return table.declines(device) or no_tiles(table(), arch) or other_arguments()


@functools.cache
def no_tiles(name: str, arch: str) -> str | None:
    """Why table `name` changes nothing on `arch`, or None. `sglang` never does, which is what it is asked for."""
    from g4lab.kernels.extend_tiles import TABLES

    own, sglangs = ([rule for rule in TABLES[each] if arch in rule.arches] for each in (name, "sglang"))
    if not own:
        return f"the table {name} has no tiles for {arch}"
    if own == sglangs and name != "sglang":
        return f"the table {name} has SGLang's own tiles for {arch}"
    return None


PATCH = Patch(
    name="extend_tiles",
    effect="gives SGLang's extend kernel a tile and stages by batch and extend, from G4LAB_EXTEND_TILES (default seed)",
    source="pyc96/sglang#4",
    hooks=(Hook(FORWARD, "around", _with_our_tile),),
    requires="the Triton attention backend, not deterministic mode; a GPU that the table has tiles for (seed: sm_90)",
    counts="launches with the table's tile, one for each layer and prefill chunk or verify step; none where "
    "extend_attention does its work",
    declines=_declines,
)

"""Token identity: does an engine say, token for token, what the reference says?"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from g4lab.errors import bad
from g4lab.figures import GRID, PALETTE, house_style, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Tokens = Sequence[int]


def random_prompts(lengths: Sequence[int], vocab_size: int, seed: int = 0, first: int = 3) -> list[list[int]]:
    """One prompt of uniform random token ids for each length; ids below `first` (special tokens) are left out."""
    draw = random.Random(seed)
    return [[draw.randrange(first, vocab_size) for _ in range(length)] for length in lengths]


def first_difference(reference: Tokens, served: Tokens) -> int | None:
    """Position of the first token in which two outputs differ (a missing token differs); None where they are equal."""
    for position, (a, b) in enumerate(zip(reference, served, strict=False)):
        if a != b:
            return position
    return None if len(reference) == len(served) else min(len(reference), len(served))


def identity(
    prompts: Sequence[Tokens], reference: Sequence[Tokens], served: Mapping[str, Sequence[Tokens]]
) -> pd.DataFrame:
    """One row for each engine (as named in `served`) and prompt: engine, prompt tokens, new tokens, equal, first
    difference (position among the new tokens, NA where equal).

    Raises:
        BadInput: an engine answered another number of prompts than the reference.
    """
    import pandas as pd

    rows = []
    for engine, outputs in served.items():
        if not len(outputs) == len(reference) == len(prompts):
            raise bad("served", f"{len(outputs)} outputs of {engine}", f"one for each of {len(prompts)} prompts")
        for prompt, expected, got in zip(prompts, reference, outputs, strict=True):
            at = first_difference(expected, got)
            rows.append((engine, len(prompt), len(expected), at is None, at))
    columns = ["engine", "prompt tokens", "new tokens", "equal", "first difference"]
    return pd.DataFrame(rows, columns=columns).astype({"first difference": "Int64"})


def draw_identity(
    prompts: Sequence[Tokens], reference: Sequence[Tokens], served: Mapping[str, Sequence[Tokens]], source: str
) -> Figure:
    """A strip for each engine and prompt, a square for each new token: filled where it is the reference's, hollow where
    it is another. `source`: what measured it, for the badge (the kind is live)."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    house_style()
    rows = [(engine, i) for engine in served for i in range(len(prompts))]
    longest = max(len(tokens) for tokens in reference)
    fig, ax = plt.subplots(figsize=(9, 0.34 * len(rows) + 1.3))
    for y, (engine, i) in enumerate(rows):
        for x, expected in enumerate(reference[i]):
            got = served[engine][i]
            same = x < len(got) and got[x] == expected
            face, edge = (PALETTE[0], PALETTE[0]) if same else ("none", PALETTE[3])
            ax.add_patch(Rectangle((x + 0.08, y - 0.36), 0.84, 0.72, facecolor=face, edgecolor=edge, linewidth=1.2))
        if i == 0 and y:
            ax.axhline(y - 0.5, color=GRID)
    ax.set(xlim=(0, longest), ylim=(len(rows) - 0.5, -0.5), xlabel="new token (position)")
    ax.set_yticks(range(len(rows)), [f"{engine} · prompt of {len(prompts[i])}" for engine, i in rows])
    ax.set_xticks([x + 0.5 for x in range(longest)], [str(x) for x in range(longest)])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title("Filled: the reference's token. Hollow: another one")
    stamp(fig, "live", source)
    return fig

"""The tuner's report: how many tiles each rule removed, what is left and in which order, and the rules in words."""

from collections.abc import Sequence

import pandas as pd

from g4lab.tuning import tile_model
from g4lab.tuning.tile_rules import WORDS
from g4lab.tuning.tune import KEEP, Verdict


def pruning(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row for each shape: tiles enumerated, removed by each rule, left."""
    return pd.DataFrame(
        {
            "shape": each.shape.name,
            "tiles": len(each.removed) + len(each.ranked),
            **each.counts,
            "left": len(each.ranked),
        }
        for each in verdicts
    )


def ranking(verdicts: Sequence[Verdict], first: int = 3) -> pd.DataFrame:
    """A row for each shape: the tile, what says so, and the first tiles by the model with its microseconds."""
    rows = []
    for each in verdicts:
        basis = f"timed on {each.timing['machine']}" if each.timing else "compile facts and model"
        leading = [f"{candidate.tile}: {us:.0f}" for candidate, us in each.ranked[:first]]
        rows.append({"shape": each.shape.name, "tile": str(each.best or "none is left"), "by": basis})
        rows[-1] |= {f"model {i + 1}": text for i, text in enumerate(leading)}
    return pd.DataFrame(rows)


def words(verdicts: Sequence[Verdict]) -> list[str]:
    """The rules in the order in which they apply, what each removed over all shapes, and the model's limits."""
    total = {rule: sum(each.counts[rule] for each in verdicts) for rule in WORDS}
    lines = [f"{rule} ({total[rule]} removed): {text}" for rule, text in WORDS.items()]
    return [*lines, tile_model.LIMITS, f"The first {KEEP} by the model are timed where there is a GPU."]

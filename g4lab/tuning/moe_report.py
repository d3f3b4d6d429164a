"""The report of the expert layer's tuner: tiles removed by each rule, what is left and in which order, and losses."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from g4lab.kernels.moe_tiles import MoEConfig
from g4lab.tuning import moe_model, moe_off_key
from g4lab.tuning.moe_keys import short
from g4lab.tuning.moe_space import PRODUCTS, WORDS
from g4lab.tuning.moe_tune import BLOCKS, KEEP, Compiled, Tuned


def pruning(tuned: Sequence[Tuned]) -> pd.DataFrame:
    """A row for each product and outcome, with the numbers of tokens for which it is so, first to last. Columns: tiles
    enumerated, removed by each rule that removed any, left."""
    rows = [
        {"tp": each.shape.tp, "product": product, "tokens": each.shape.tokens,
         "tiles": len(verdict.removed) + len(verdict.ranked), **verdict.counts, "left": len(verdict.ranked)}
        for each in tuned for product, verdict in each.verdicts.items()
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    same = [name for name in frame.columns if name != "tokens"]
    spans = frame.groupby(same, sort=False).tokens.agg(lambda t: f"{min(t)}" if len(t) == 1 else f"{min(t)}-{max(t)}")
    found = spans.reset_index()
    return found[["tp", "product", "tokens", *(name for name in same[2:] if name not in WORDS or any(found[name]))]]


def ranking(tuned: Sequence[Tuned]) -> pd.DataFrame:
    """A row for each shape: both tiles, what says so, the model's microseconds and the least that memory allows."""
    rows = []
    for each in tuned:
        config, row = each.config, {"tp": each.shape.tp, "tokens": each.shape.tokens}
        for product in PRODUCTS:
            best = config and each.verdicts[product].best(config.gate_up.block_m)
            row[product] = short(getattr(config, product)) if config else "none is left"
            row[f"{product} model us"] = best and round(best[1], 1)
        rows.append(row | {"by": each.basis})
    return pd.DataFrame(rows)


def off_key(compiled: Compiled, keyed: Sequence[Tuned], between: Sequence[Tuned]) -> pd.DataFrame:
    """`moe_off_key.losses` at sizes between the keys of each tp, as timed where all of them are, else by the model."""
    timed = all(each.times for each in (*keyed, *between))
    frames = []
    for tp in dict.fromkeys(each.shape.tp for each in keyed):
        keys = {each.shape.tokens: each.config for each in keyed if each.shape.tp == tp and each.config}
        own = {each.shape.tokens: each for each in between if each.shape.tp == tp}

        def us(tokens: int, config: MoEConfig, own=own) -> float | None:
            each = own[tokens]
            if not timed:
                return compiled.config_us(each.shape, config)
            times = [each.times[product].get(short(getattr(config, product))) for product in PRODUCTS]
            return sum(times) if all(times) else None

        basis = keyed[0].basis if timed else "model estimates, not timed"
        frame = moe_off_key.losses(keys, own, us, lambda tokens, own=own: own[tokens].config, basis)
        frame.insert(0, "tp", tp)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True).round({"nearest_us": 1, "own_us": 1, "loss_pct": 1})


def words(tuned: Sequence[Tuned]) -> list[str]:
    """The rules in the order in which they apply, what each removed over all shapes, and the model's limits."""
    verdicts = [verdict for each in tuned for verdict in each.verdicts.values()]
    total = {rule: sum(each.counts[rule] for each in verdicts) for rule in WORDS}
    lines = [f"{rule} ({total[rule]} removed): {text}" for rule, text in WORDS.items()]
    timed = f"With a GPU the first {KEEP} tiles by the model of each of the first {BLOCKS} block_m are timed."
    return [*lines, moe_model.LIMITS, timed]

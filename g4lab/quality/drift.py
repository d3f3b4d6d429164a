"""How far two engines' answers to one prompt lie apart: log-probabilities, experts and tokens, as arrays.

Rows are positions of one sequence, prompt and answer: row i holds what the engine said after it had read tokens 0 to i.
Rows compare while both engines have read the same tokens; `comparable_rows` says how many do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from g4lab.errors import bad
from g4lab.quality.tokens import Tokens, first_difference


class Drift(NamedTuple):
    """One row each [R]: largest and mean |difference| of log-probabilities over the tokens that both name, the KL
    divergence of b from a (nats), and whether the likeliest token is the same."""

    largest: np.ndarray
    mean: np.ndarray
    kl: np.ndarray
    same_top: np.ndarray


def comparable_rows(prompt_len: int, answer_a: Tokens, answer_b: Tokens) -> int:
    """Rows, of prompt_len - 1 + len(answer), that both engines computed from the same tokens.

    The first answered token that differs is still chosen from equal contexts; nothing after it is.
    """
    at = first_difference(answer_a, answer_b)
    return prompt_len - 1 + (len(answer_a) if at is None else at + 1)


def drift(ids_a: np.ndarray, logp_a: np.ndarray, ids_b: np.ndarray, logp_b: np.ndarray, vocab_size: int) -> Drift:
    """Compare log-probabilities row by row.

    ids [R, K] and logp [R, K]: the K likeliest tokens of a row, likeliest first; each token once. With K = vocab_size
    all is exact. With fewer, only tokens that both rows name are compared, and KL is of those and one bucket for all
    others: a lower bound of the true divergence, as every merging of outcomes is.

    A NaN, or an infinity on one side only, is an infinite drift.

    Raises:
        BadInput: the arrays' shapes differ from a's, or K exceeds vocab_size.
    """
    for name, array in (("logp_a", logp_a), ("ids_b", ids_b), ("logp_b", logp_b)):
        if array.shape != ids_a.shape:
            raise bad(name, array.shape, f"the shape of ids_a, {ids_a.shape}")
    rows, width = ids_a.shape
    if width > vocab_size:
        raise bad("vocab_size", vocab_size, f"at least {width} (the tokens in a row)")
    found = np.zeros((3, rows))
    for i in range(rows):
        _, at_a, at_b = np.intersect1d(ids_a[i], ids_b[i], assume_unique=True, return_indices=True)
        found[:, i] = _row(logp_a[i].astype(float)[at_a], logp_b[i].astype(float)[at_b], len(at_a) < vocab_size)
    return Drift(*found, ids_a[:, 0] == ids_b[:, 0])


def _row(a: np.ndarray, b: np.ndarray, others: bool) -> tuple[float, float, float]:
    """Largest and mean difference and KL of the same tokens' log-probabilities [K]; others: there are more tokens."""
    with np.errstate(invalid="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a - b))
    if not apart.size or not np.isfinite(apart).all():
        return np.inf, np.inf, np.inf
    p, q = _distribution(a, others), _distribution(b, others)
    # Sum of p log(p / q) - p + q: the same for distributions, and no term is negative, however small.
    log_ratio = np.log(p) - np.log(q)
    return apart.max(), apart.mean(), max(float((p * (np.expm1(-log_ratio) + log_ratio)).sum()), 0.0)


def _distribution(logp: np.ndarray, others: bool) -> np.ndarray:
    p = np.exp(logp)
    if others:
        p = np.append(p, max(1 - p.sum(), len(p) * 2.0**-24))  # fp32 log-probabilities resolve no smaller rest
    p = np.maximum(p, np.finfo(float).tiny)
    return p / p.sum()


def flips(experts_a: np.ndarray, experts_b: np.ndarray) -> np.ndarray:
    """Where a token's set of experts differs: bool [R, L], from chosen experts [R, L, K] in any order.

    Raises:
        BadInput: the shapes differ.
    """
    if experts_a.shape != experts_b.shape:
        raise bad("experts_b", experts_b.shape, f"the shape of experts_a, {experts_a.shape}")
    return (np.sort(experts_a, -1) != np.sort(experts_b, -1)).any(-1)


def first_flips(flipped: np.ndarray) -> np.ndarray:
    """The first layer in which each token is routed otherwise: int [R], L where it is in none; from flips' [R, L]."""
    return np.where(flipped.any(-1), flipped.argmax(-1), flipped.shape[-1])
